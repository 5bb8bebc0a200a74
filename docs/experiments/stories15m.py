"""A pretrained model's context as weights: stories15M of llama2.c (Karpathy, MIT), ICLCA §5.

FOLDER holds stories15M.bin (60.8 MB, huggingface.co/karpathy/tinyllamas) and tokenizer.bin
(github.com/karpathy/llama2.c); without it, a tiny random model in the same format is written and
read. The contexts are stories that the model writes; kept.py says what the tables hold. The rules
were chosen with --seed 5; the figures in results.md are those of the default, 2.

    python docs/experiments/stories15m.py [FOLDER] [--prompt TEXT] [--generate N] [--seed SEED]
"""
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
import numpy as np
from common import at_least, command_line, progress, start, told
from iclca_ref import implicit_weight_update, softmax_attend
from linear_transformer import block, identity
from pretrained.decoding import anywhere, continuation, sampler
from pretrained.kept import SIZES, WIDER, apart, conversions, logits, measure, tables
from pretrained.llama2c import decode, encode, read_model, read_tokens, write_tiny
from pretrained.rules import RULES, random_features
BOS, SCORED = 1, 40


def stories(model, rng, count, least=100):
    """Stories of the model's own: up to 150 tokens, at least `least`, and 40 after them."""
    found = continuation(model, np.full((count, 1), BOS), 151 + SCORED, choose=sampler(rng))
    texts = ([BOS, *text[:np.argmax([*(text < 3), True])]] for text in found)    # up to their end
    return [np.split(text, [min(150, len(text) - SCORED - 1)]) for text in map(np.array, texts)
            if len(text) > least + SCORED]


def patch(model, context, others, place=anywhere):
    """Print how far tokens alone, with the last one's patch in every layer, are from in context."""
    def attended(x, layer):    # x + Attention(norm(x)): a block whose MLP has no width
        layer = layer._replace(w_1=layer.w_1[:, :0], w_2=layer.w_2[:0])
        return block(x, layer, plain, None, softmax_attend)[0][..., -1:, :]

    tokens = np.array([context[-1], *others])[:, None]    # the first is the one whose patch it is
    alone, plain = place(model, len(context) - 1), model._replace(activation=identity)
    full, x = model.embed[context], alone.embed[tokens]
    for layer in model.layers:
        h, wanted = attended(x, layer), attended(full, layer)[0]
        update = implicit_weight_update(layer.w_1.T, model.norm(h[0, 0]), model.norm(wanted)).T
        mlp = model.activation(model.norm(h) @ (layer.w_1 + update)) @ layer.w_2
        x = h + mlp + wanted - h[0, 0]
        full = block(full, layer, model, None, softmax_attend)[0]
    answers = {"patch": model.norm(x) @ model.unembed, "no patch": logits(alone, tokens)}
    expected = [logits(model, [*context[:-1], *token])[-1:] for token in tokens]
    print("\nrelative error of the logits of a token without its context")
    for name, answer in answers.items():
        own, *errors = map(apart, answer, expected)
        print(f"{name:9} its own {own:.1e}, of another token {np.median(errors):.1e} "
              f"(median of {len(errors)})")


@told
def main(argv=None):
    parser = command_line(__doc__, "the tiny random model, 2 contexts")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", type=Path)
    parser.add_argument("--prompt", default="Tom liked to", metavar="TEXT", help="to continue")
    parser.add_argument("--generate", type=at_least(0), default=30, metavar="N", help="tokens (30)")
    parser.add_argument("--seed", type=at_least(0), default=2, help="of the contexts; 5: to choose")
    a = parser.parse_args(argv)
    quick, rng = a.quick or not a.folder, np.random.default_rng(a.seed)
    with TemporaryDirectory() as folder:
        folder = Path(folder) if quick else a.folder
        if quick:
            print("A tiny model with random weights: its words and figures mean nothing.\n")
            write_tiny(folder, rng)
        model, exact = (read_model(folder / "stories15M.bin", x) for x in (np.float32, np.float64))
        tokens = read_tokens(folder / "tokenizer.bin", len(model.embed))
    n, sizes = (min(a.generate, 4), (4, 8)) if quick else (a.generate, SIZES)

    def show(name, ids, biases=None):
        added = continuation(model, ids, min(n, model.max_length - len(ids)), biases)
        print(f"goes on, {name:22}{decode(added, tokens)!r}")

    def score(key, answer):
        found[key].append(measure(answer, expected, rest[1:]))

    added = continuation(model, encode(a.prompt, tokens), n)
    print(f"{a.prompt!r}: {decode(added, tokens)!r}")
    found, seconds = defaultdict(list), defaultdict(list)
    rules = {**RULES, WIDER: partial(random_features, rng=rng, times=32)}
    pairs = stories(model, rng, *((6, 20) if quick else (24,)))[:2 if quick else None]
    for i, (context, rest) in enumerate(pairs):
        progress(f"context {i + 1} of {len(pairs)}", end="\r")
        expected = logits(model, [*context, *rest])[len(context):-1]
        score(("in context", 0), expected)
        score(("dropped", 0), logits(model, rest[:-1]))
        score(("dropped, BOS kept", 0), logits(model, [BOS, *rest[:-1]])[1:])
        if not i:
            show("in context", [*context, *rest[:3]])
            show("dropped", rest[:3])
        for name, m, biases in conversions(model, context, rng, rules, seconds, sizes):
            score((name, m), logits(model, rest[:-1], biases))
            if m == sizes[-1] // 2 and not i:
                show(name, rest[:3], biases)
    n = [len(context) for context, _ in pairs]
    print(f"\n{len(n)} contexts of {min(n)} to {max(n)} tokens, {SCORED} after each")
    tables(found, seconds, sizes)
    patch(exact, *pairs[0])


if __name__ == "__main__":
    start(main)
