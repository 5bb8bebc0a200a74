"""A pretrained model's context as weights: stories15M of llama2.c (Karpathy, MIT), ICLCA §5.

    python docs/experiments/stories15m.py [FOLDER] [--prompt TEXT] [--generate N] [--text FILE]

FOLDER holds stories15M.bin (60.8 MB, huggingface.co/karpathy/tinyllamas) and tokenizer.bin
(github.com/karpathy/llama2.c); without it, a tiny random model in the same format is written and
read. "Kept" is (loss dropped − loss converted) / (loss dropped − loss in context), in percent,
with the lower of the two losses of dropping: with and without the first token, BOS, in front.
"""

import argparse
import sys
import tempfile
import textwrap
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from iclca_ref import (farthest_rows, implicit_weight_update, log_landmark_features,
                       log_random_features, merged_bias, orthogonal_projection, softmax_attend,
                       softmax_bias)
from linear_transformer import Bias, block, forward, mlp, rotate_at, run_layers, softmax
from llama2c import continuation, decode, draw_texts, encode, read_model, read_tokens, write_tiny

BOS, SCORED, ALL = 1, 40, 10**9


# ---- What a context becomes: rules from its (q, k, v) and a size to a (Bias, log_features) ------

def caches(model, tokens, ahead=64):
    """Each layer's (q, k, v): keys turned to the places 1−M ... 0, the last queries to 1, 2, ...

    Those queries are a guess at what the prompt, which will stand there, is going to look for.
    """
    def attend(q, k, v, _, rope, normalize):
        m = k.shape[-2]
        return softmax_attend(q, k, v, None, rope)[0], (
            rotate_at(q[..., -ahead:, :], rope, np.arange(min(ahead, m)) + 1),
            rotate_at(k, rope, np.arange(m) + 1 - m), v)

    return run_layers(model, tokens, attend=attend)[1]


def clusters(x, r, weight):
    """Which of r rows, each the farthest by weight, is nearest: x (..., m, d) gives (..., m)."""
    apart, nearest = (x * x).sum(axis=-1), np.zeros(x.shape[:-1], int)
    for c in range(r):
        far = (weight * apart).argmax(axis=-1)[..., None, None]
        d = ((x - np.take_along_axis(x, far, axis=-2)) ** 2).sum(axis=-1)
        nearest = np.where(d < apart, c, nearest)
        apart = np.minimum(d, apart) if c else d
    return nearest


def attended_landmarks(q, k, v, r):
    """A context merged into r tokens by how the queries q look at it: landmarks and their Bias.

        w_j = Σ_i e^{q_i·k_j} / Z_i,    z_c = Σ_{j∈c} w_j k_j / Σ_{j∈c} w_j,
        u_c = Σ_i e^{q_i·z_c} / Z_i,    b_KV,c = Σ_{j∈c} w_j v_j / u_c,  b_D,c = Σ_{j∈c} w_j / u_c

    with Z_i = Σ_l e^{q_i·k_l}: q looks at each cluster c as much as at its keys. Exact if r = m.
    """
    q, k = (x / x.shape[-1] ** 0.25 for x in (q, k))
    r, tiny = min(r, k.shape[-2]), 1e-30
    log_z = np.logaddexp.reduce(log_landmark_features(q, k), axis=-1, keepdims=True)

    def looked_at(z):    # 0.001: what nobody looks at still counts
        return np.exp(log_landmark_features(q, z) - log_z).sum(axis=-2)[..., None] + 0.001

    w = looked_at(k)
    rows = np.concatenate([x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + tiny)
                           for x in (k, v)], axis=-1)
    share = np.eye(r, dtype=k.dtype)[clusters(rows, r, w[..., 0])] * w    # (..., m, r)
    share, total = share.swapaxes(-1, -2), share.sum(axis=-2)[..., None]
    z = share @ k / (total + tiny)
    return z, Bias(share @ v / looked_at(z), (total / looked_at(z))[..., 0])


def keep(k, v, rows):
    """Some tokens of the context as they are: rows (heads, r)."""
    k, v = (np.take_along_axis(x, rows[..., None], axis=-2) for x in (k, v))
    return k / k.shape[-1] ** 0.25, Bias(v, np.ones_like(v[..., 0]))


def rules(rng, d_k):
    """(name, m, rule), all of them: rule(q, k, v) gives landmarks, or log features, and a Bias."""
    def most_attended(q, k, v, m):
        attended = softmax(q @ k.swapaxes(-1, -2) / k.shape[-1] ** 0.5).sum(axis=-2)
        return keep(k, v, np.argsort(-attended, axis=-1)[..., :m])

    def farthest(q, k, v, m):
        z = farthest_rows(k / k.shape[-1] ** 0.25, min(m, k.shape[-2]))
        return z, merged_bias(k, v, z)

    def projected(projection):
        f = partial(log_random_features, projection=projection)
        return lambda q, k, v: (f, softmax_bias(k, v, f))

    for m in 8, 16, 32, 64, ALL:
        yield "last kept", m, lambda q, k, v, m=m: keep(k, v, np.arange(k.shape[-2])[None, -m:])
        yield "most attended kept", m, partial(most_attended, m=m)
        yield "merged, farthest", m, partial(farthest, m=m)
        yield "merged, attended", m, partial(attended_landmarks, r=m)
    for m in 64, 256, 1024:
        yield "random features", m, projected(rng.standard_normal((m, d_k)))
        yield "orthogonal features", m, projected(orthogonal_projection(rng, m, d_k))


def converted(layers, rule):
    """The biases that `rule` makes of `caches`."""
    made = [rule(*layer) for layer in layers]
    return [(b, z if callable(z) else partial(log_landmark_features, landmarks=z)) for z, b in made]


# ---- Measures -----------------------------------------------------------------------------------

def logits(model, ids, biases=None):
    return forward(model, ids, biases, softmax_attend)[0]


def apart(answer, expected):
    """The relative error of logits."""
    return np.linalg.norm(answer - expected) / np.linalg.norm(expected)


def table(model, pairs, rules):
    """Print mean loss, relative error of the logits, and what is kept of the context's benefit."""
    found = defaultdict(list)
    for context, rest in pairs:
        layers, expected = caches(model, context), logits(model, [*context, *rest])[len(context):]
        answers = {("in context", 0): expected, ("dropped", 0): logits(model, rest),
                   ("dropped, BOS kept", 0): logits(model, [BOS, *rest])[1:]}
        for name, m, rule in rules:
            answers[name, m] = logits(model, rest, converted(layers, rule))
        for key, answer in answers.items():
            p = softmax(answer[:-1])[np.arange(len(rest) - 1), rest[1:]]
            found[key].append((-np.log(p).mean(), apart(answer, expected)))
    mean = {key: np.mean(rows, axis=0) for key, rows in found.items()}
    best = mean["in context", 0][0]
    dropped = min(mean["dropped", 0][0], mean["dropped, BOS kept", 0][0])
    print(f"\n{len(pairs)} contexts of {min(len(c) for c, _ in pairs)} to "
          f"{max(len(c) for c, _ in pairs)} tokens, the {SCORED} tokens after each\n\n"
          f"{'':20}{'m':>6}{'loss':>10}{'error of logits':>18}{'kept, %':>10}")
    for (name, m), (loss, error) in sorted(mean.items()):
        print(f"{name:20}{m if 0 < m < ALL else 'all' if m else '':>6}{loss:>10.3f}{error:>18.1e}"
              f"{100 * (dropped - loss) / (dropped - best):>10.1f}")


def patch(model, context, others):
    """Print how far tokens alone, with the last one's patch in every layer, are from in context."""
    def attended(x, layer):    # x + Attention(norm(x)): a block whose MLP has no width
        layer = layer._replace(w_1=layer.w_1[:, :0], w_2=layer.w_2[:0])
        return block(x, layer, model, None, softmax_attend)[0][..., -1:, :]

    tokens = np.array([context[-1], *others])[:, None]    # the first is the one whose patch it is
    full, x = model.embed[context], model.embed[tokens]
    for layer in model.layers:
        h, wanted = attended(x, layer), attended(full, layer)[0]
        update = implicit_weight_update(layer.w_1.T, model.norm(h[0, 0]), model.norm(wanted)).T
        x = (h + mlp(model.norm(h), layer.w_1 + update, layer.w_2, model.activation)
             + wanted - h[0, 0])
        full = block(full, layer, model, None, softmax_attend)[0]
    answers = {"patch": model.norm(x) @ model.unembed, "no patch": logits(model, tokens)}
    expected = [logits(model, [*context[:-1], *token])[-1:] for token in tokens]
    print("\nrelative error of the logits of a token without its context")
    for name, answer in answers.items():
        own, *errors = map(apart, answer, expected)
        print(f"{name:9} its own {own:.1e}, of another token {np.median(errors):.1e} "
              f"(median of {len(errors)})")


def texts(path, tokens):
    """Up to 24 texts of 900 characters of a file, encoded."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return [np.array(encode(file.read(900), tokens)[:151 + SCORED]) for _ in range(24)]


def main(argv=None):
    usage, _, files = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(description=usage, epilog=files)
    parser.add_argument("folder", nargs="?", metavar="FOLDER", type=Path)
    parser.add_argument("--prompt", default="Tom liked to", metavar="TEXT", help="to continue")
    parser.add_argument("--generate", type=int, default=30, metavar="N", help="tokens to add (30)")
    parser.add_argument("--text", metavar="FILE", help="a UTF-8 text to cut the contexts from")
    parser.add_argument("--quick", action="store_true", help="the tiny random model, 2 contexts")
    arguments = parser.parse_args(argv)
    quick, rng = arguments.quick or not arguments.folder, np.random.default_rng(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder) if quick else arguments.folder
            if quick:
                print("A tiny model with random weights: its words and figures mean nothing.\n")
                write_tiny(folder, rng)
            model, exact = (read_model(folder / "stories15M.bin", dtype)
                            for dtype in (np.float32, np.float64))
            tokens = read_tokens(folder / "tokenizer.bin", len(model.embed))
        ids = encode(arguments.prompt, tokens)
        found = texts(arguments.text, tokens) if arguments.text else draw_texts(
            model, rng, 12 if quick else 24, 192)
        ends = [next((n for n in range(1, len(t)) if t[n] < 3), len(t)) for t in found]
        pairs = [np.split(t[:n], [min(150, n - SCORED - 1)])
                 for t, n in zip(found, ends) if n > 100 + SCORED][:2 if quick else None]
        if not pairs:
            raise ValueError("no text is long enough: a context of 100 tokens and 40 more")

        def show(name, ids, biases=None):
            n = min(arguments.generate, 4) if quick else arguments.generate
            print(f"{name:26}{decode(continuation(model, ids, n, biases), tokens)!r}")

        show(repr(arguments.prompt), ids)
    except (OSError, ValueError) as error:
        print(f"stories15m.py: {error}", file=sys.stderr)
        return 2
    (context, rest), every_rule = pairs[0], [*rules(rng, model.layers[0].w_q.shape[-1])]
    print("\n" + textwrap.fill(f"context: {decode(context, tokens)!r}", 99))
    print(f"and then: {decode(rest[:3], tokens)!r}\n")
    show("in context", [*context, *rest[:3]])
    for name, m, rule in every_rule:
        if m in (16, 256):
            show(f"{name}, {m}", rest[:3], converted(caches(model, context), rule))
    show("dropped", rest[:3])
    table(model, pairs, every_rule)
    patch(exact, context, rest)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a terminal without UTF-8
    sys.exit(main())
