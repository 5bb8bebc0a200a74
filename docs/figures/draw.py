"""Draw the pictures of the README and the documents, from computed arrays, beside this script.

What takes long is read from the tables in docs/results.md, so that picture and text agree.

    python docs/figures/draw.py
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE.parents[1], HERE.parent, HERE.parent / "experiments", HERE))
import linear_transformer as lt
import one_gd_step
from iclca_ref import attention_bias, gd_weights, gradient_descent, iclca, lsa
from svg import box, chart, heat, line, marker, panels, svg, text
from text_to_weights import TEXT, induction_transformer, split_words


def results(*table, **by):
    """The lines of a table in docs/results.md, for `chart`; arguments as for `panels`."""
    return panels((HERE.parent / "results.md").read_text("utf-8"), *table, **by)


# ---- The pictures: height and pieces -------------------------------------------------------------

def context_to_weights():
    """A context becomes weights: a text before a prompt and two biases give it the same logits."""
    words, prompt = list(split_words(TEXT)), ["feeds", "the"]
    names = np.array(list(dict.fromkeys(words)))
    context, ask = ([list(names).index(word) for word in part] for part in (words, prompt))
    model = induction_transformer(len(names), len(words) + 64)
    biases = iclca(model, context)
    size = sum(a.size for bias in biases for a in bias)
    counts = np.rint(biases[-1].kv[0][:len(names)])
    rows = np.lexsort((-counts.sum(axis=1), -counts.max(axis=1)))[:5]  # the largest entries first
    columns = np.lexsort((-counts[rows].sum(axis=0), -counts[rows].max(axis=0)))[:8]
    pieces = [text(415, 24, "b_{KV}: row's word, then column's", "b"),
              text(415, 322, "the same logits"), line("arrow", (260, 92), (296, 92)),
              line("arrow", (558, 160), (576, 132)),
              heat(330, 112, counts[rows][:, columns], 28, write=True),
              line("", (385, 282), (445, 282)), line("", (385, 292), (445, 292))]
    pieces += [text(322, 132 + 28 * i, word, "end") for i, word in enumerate(names[rows])]
    pieces += [text(349 + 28 * j, 104, word, "start", -50) for j, word in enumerate(names[columns])]
    excerpt = [*TEXT.split("\n")[0].rstrip(".").split(". "), f"… {len(words)} words"]
    biased = ["b_{KV} and b_{D}", f"{size:,} numbers", "instead of the text"]
    for x, title, lines, logits in (
            (10, "a context in front", excerpt, lt.forward(model, context + ask)[0][-1]),
            (580, "two biases in each layer", biased, lt.forward(model, ask, biases)[0][-1])):
        pieces += [text(x + 120, 24, title, "b"), box(x, 40, 240, 100, *lines, kind="c0 dash"),
                   box(x, 150, 240, 34, "prompt: " + " ".join(prompt), kind="c1"),
                   line("arrow", (x + 120, 190), (x + 120, 226)),
                   text(x + 132, 214, "transformer", "start")]
        for y, best in zip((240, 266, 292, 318), np.argsort(-np.rint(logits), kind="stable")):
            end = x + 90 + 36 * logits[best]
            pieces += [box(x + 90, y, end - x - 90, 18, kind="c2", fill=0.5),
                       text(x + 80, y + 15, names[best], "end"),
                       text(end + 10, y + 15, logits[best], "start")]
    return 352, *pieces


def causal_matrix():
    """The context acts through one block: the prompt's scores with the context become b_KV."""
    q, k, v = np.random.default_rng(3).random((3, 9, 3))
    scores = np.where(np.tri(9) > 0, q @ k.T, np.nan)
    return (420, text(262, 24, "scores q_{i}·k_{j}: each token sees itself and those before", "b"),
            text(190, 52, "context"), text(352, 52, "prompt"), text(90, 160, "context", "end"),
            text(90, 322, "prompt", "end"), heat(100, 64, scores, 36), text(640, 306, "+"),
            box(100, 244, 180, 144, kind="c1", fill=0, rx=0), text(740, 232, "the prompt alone"),
            line("c1 arrow", (190, 389), (190, 408), (554, 408), (554, 358)),
            text(554, 232, "b_{KV} = Σ k_{j} v_{j}ᵀ"), heat(668, 244, scores[5:, 5:], 36),
            heat(500, 244, attention_bias(k[:5], v[:5]).kv, 36), text(640, 120, "for every prompt"),
            text(640, 150, "o_{i} = q_{i}ᵀ b_{KV} + Σ_{l ≤ i} (q_{i}·k_{l}) v_{l}ᵀ"))


def number_line():
    """The context is turned back: hands turn by 30° a place; R_−3 moves all by 3 places."""
    pieces = [text(20, 40, "in context", "start b"),
              text(20, 66, "30° for each place", "start"), text(810, 204, "converted", "end b"),
              text(810, 230, "all turned by R_{−3}", "end")]
    for y, start in (90, 0), (250, -3):
        pieces += [line("thin", (20, y), (810, y))]
        for place, name in enumerate("b c_{1} c_{2} c_{3} x_{1} x_{2}".split(), start):
            x, kind = 356 + 82 * place, "c" + str("cxb".index(name[0]))
            cos, sin = 19 * np.ravel(lt.rope(np.array([place]), np.array([np.pi / 6])))
            pieces += [box(x - 20, y - 20, 40, 40, kind=kind, rx=20), text(x, y + 42, place),
                       line(kind, (x, y), (x + sin, y - cos)), text(x, y - 28, name)]
            pieces += [line("arrow", (x - 20, y + 50), (x - 216, y + 110))] * (not start)
    return 304, *pieces


def layers():
    """One bias per layer replaces the context: it passes them once, each keeps its sums."""
    model = lt.random_transformer(np.random.default_rng(0), 50, 16, n_layers=3, n_heads=4)
    biases = iclca(model, [3, 1, 4, 1, 5, 9])
    pieces = [text(70, 24, "once", "b"), text(70, 264, "every time", "b"),
              box(10, 40, 120, 50, "context"), box(10, 280, 120, 50, "prompt", kind="c1"),
              line("arrow", (692, 305), (726, 305)), text(770, 311, "logits", "b"),
              text(818, 358, "as with the context in front", "end")]
    for x, name, bias in zip((180, 370, 560), ("layer 1", "layer 2", "layer 3"), biases):
        pieces += [box(x, 40, 130, 50, name), box(x, 280, 130, 50, name, kind="c1"),
                   heat(x + 29, 140, bias.kv[0], 18), text(x + 108, 182, "b_{KV}, b_{D}", "start")]
        pieces += [line("arrow", (x - 46, y), (x - 4, y)) for y in (65, 305)]
        pieces += [line("arrow", (x + 65, y), (x + 65, end)) for y, end in ((94, 134), (218, 276))]
    return 374, *pieces


def one_step():
    """One layer is one gradient step: the line turns or the targets move, the residuals agree."""
    x, y, ask, W0 = (np.array([[Fraction(a)] for a in column])
                     for column in ([-1, 1, 2], [-2, 3, 5], [3], [1]))
    W1, _, _ = gradient_descent(W0, x, y, eta=Fraction(1, 3))
    layer = gd_weights(W0, eta=Fraction(1, 3), n=len(x))
    tokens, asked = lsa(np.hstack([x, y]), np.hstack([ask, -ask @ W0.T]), layer)
    key = f"disc: target y, with its residual W x − y; square: prediction at x = {ask[0, 0]}"
    pieces = [text(415, 308, key)]

    def at(a, b):
        return left + 90 + 46 * float(a), 206 - 26 * float(b)

    for left, title, W, targets, answer in (
            (10, f"before: W = {W0[0, 0]}", W0, y, W0 @ ask),
            (290, f"the step: W = {W1[0, 0]}", W1, y, W1 @ ask),
            (570, "the layer: the targets move", W0, tokens[:, 1:], -asked[:, 1:])):
        pieces += [text(left + 120, 24, title, "b"),
                   line("c2", *(at(a, a * W[0, 0]) for a in (-1.3, 3.1))),
                   line("thin", at(-1.6, 0), at(3.4, 0)), line("thin", at(0, -2.6), at(0, 6.4)),
                   text(*at(2.6, answer[0, 0]), answer[0, 0]),
                   marker(*at(ask[0, 0], answer[0, 0]), 1)]
        for a, b in zip(x[:, 0], targets[:, 0]):
            pieces += [line("c0", at(a, b), at(a, W[0, 0] * a)), marker(*at(a, b), 0),
                       text(*at(a - Fraction(1, 2), b - Fraction(1, 5)), W[0, 0] * a - b)]
    return 324, *pieces


def trained_and_constructed():
    """A layer trained for 500 steps, and one built by hand: matrix products; − is negative."""
    trained = one_gd_step.train(np.random.default_rng(0), 500, 256)
    built = gd_weights(np.zeros((1, 10)), 1.5, 10)
    pieces = [text(415, 200, "W_{K}ᵀ W_{Q}"), text(415, 389, "P W_{V}, y-row")]
    for x, title, w in zip((40, 493), ("trained", "constructed"), (trained, built)):
        scores, values = w.w_k.T @ w.w_q, (w.p @ w.w_v)[-1:]
        sign = np.sign(scores.trace())  # training leaves the common sign of the two products open
        pieces += [text(x + 148, 24, title, "b"), heat(x, 44, sign * scores, 27),
                   heat(x, 370, sign * values, 27)]
    return 410, *pieces


def deeper_layers():
    """Loss after K layers: GD++ falls much faster than gradient descent."""
    return chart(results("Deeper", "K ", "K", "GD", "GD++"), "loss", "K, the number of layers", "")


def softmax_conversion():
    """Softmax attention, error against m: random and orthogonal features, and landmarks."""
    lines = results("Softmax", "sharpness", by="sharpness")
    return chart(lines, "error, sharpness {}", "features m")


def benefit_kept():
    """stories15M, percent of the context's benefit kept: by rule and number m of landmarks."""
    lines = results("stories15M", "kept, %")
    return chart(lines, "percent of the benefit kept", "m", log="", right=230)


def error_by_length():
    """Error of float32 against the length of the context: the state, and the outputs."""
    lines = results("error grows", "tokens", "tokens", "state carried", "state summed", "outputs")
    return chart(lines, "{}: error in eps", "tokens")


def cost_of_a_prompt():
    """Time of a prompt over its time alone: growing with a context in front, flat converted."""
    lines = results("Speed", "context ", "context", "in front", "converted")
    return chart(lines, "time of a prompt / its time without context", "tokens of context")


def table1():
    """Table 1, relative error against the size of the model: float32, float64, the paper."""
    lines = results("Table 1", "parameters", "parameters", "float32", "paper", "float64")
    return chart(lines, "relative error of the logits", "parameters")


PICTURES = (context_to_weights, causal_matrix, number_line, layers, one_step, deeper_layers,
            trained_and_constructed, softmax_conversion, benefit_kept, error_by_length,
            cost_of_a_prompt, table1)

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    for picture in PICTURES:
        try:
            file = svg(picture.__doc__, *picture())
            (HERE / f"{picture.__name__}.svg").write_text(file, "utf-8", newline="\n")
        except LookupError as error:
            print(f"{picture.__name__} is not drawn: {error}")
