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
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from iclca_ref import implicit_weight_update, softmax_attend
from linear_transformer import block, forward, mlp, softmax
from llama2c import continuation, decode, draw_texts, encode, read_model, read_tokens, write_tiny
from softmax_rules import ALL, MERGED, RANDOM, apart, caches, converted, rule

BOS, SCORED = 1, 40


def logits(model, ids, biases=None):
    return forward(model, ids, biases, softmax_attend)[0]


def table(model, pairs, rules):
    """Print mean loss, relative error of the logits, and what is kept of the context's benefit."""
    found = defaultdict(list)
    for context, rest in pairs:
        layers, expected = caches(model, context), logits(model, [*context, *rest])[len(context):]
        answers = {("in context", 0): expected, ("dropped", 0): logits(model, rest),
                   ("dropped, BOS kept", 0): logits(model, [BOS, *rest])[1:]}
        for name, m, convert in rules:
            answers[name, m] = logits(model, rest, converted(layers, convert))
        for key, answer in answers.items():
            p = softmax(answer[:-1])[np.arange(len(rest) - 1), rest[1:]]
            found[key].append((-np.log(p).mean(), apart(answer, expected)))
    mean = {key: np.mean(rows, axis=0) for key, rows in found.items()}
    best = mean["in context", 0][0]
    dropped = min(mean["dropped", 0][0], mean["dropped, BOS kept", 0][0])
    lengths = [len(context) for context, _ in pairs]
    print(f"\n{len(pairs)} contexts of {min(lengths)} to {max(lengths)} tokens, {SCORED} after each")
    for name in "in context", "dropped", "dropped, BOS kept":
        print("{:22}error of the logits {:.2f}, loss {:.3f}".format(name, *mean[name, 0][::-1]))
    sizes, benefit = sorted({m for _, m in mean if m}), dropped - best
    for label, cell in (("error of the logits", lambda loss, error: f"{error:.2g}"),
                        ("loss", lambda loss, error: f"{loss:.3f}"),
                        ("kept, %", lambda loss, _: f"{100 * (dropped - loss) / benefit:.1f}")):
        print(f"\n{label:22}" + "".join(f"{'all' if m == ALL else f'm = {m}':>10}" for m in sizes))
        for name in sorted({name for name, m in mean if m}):
            cells = (cell(*mean[name, m]) if (name, m) in mean else "" for m in sizes)
            print(f"{name:22}" + "".join(f"{text:>10}" for text in cells))


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
    (context, rest), d_k = pairs[0], model.layers[0].w_q.shape[-1]
    every_rule = [(name, m, rule(name, m, d_k, rng)) for names, sizes in (
        (MERGED, (8, 16, 32, 64, ALL)), (RANDOM, (64, 256, 1024))) for name in names for m in sizes]
    print("\n" + textwrap.fill(f"context: {decode(context, tokens)!r}", 99))
    print(f"and then: {decode(rest[:3], tokens)!r}\n")
    show("in context", [*context, *rest[:3]])
    for name, m, convert in every_rule:
        if m in (16, 256):
            show(f"{m}, {name}", rest[:3], converted(caches(model, context), convert))
    show("dropped", rest[:3])
    table(model, pairs, every_rule)
    patch(exact, context, rest)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a terminal without UTF-8
    sys.exit(main())
