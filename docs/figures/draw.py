"""Draw the pictures of the README and the documents, beside this script, from computed arrays or
the tables in docs/results.md: for light and dark mode, and readable without colours.

    python docs/figures/draw.py [--only NAME ...]      all: two minutes, to train a model
"""
import argparse
import re
import sys
from pathlib import Path
import numpy as np
HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE.parents[1], HERE.parent, HERE.parent / "experiments", HERE))
import linear_transformer as lt
import trained_induction as induction
from iclca_ref import gd_weights, gradient_descent, iclca, lsa
from text_to_weights import TEXT, induction_transformer, split_words

WIDTH = 830  # GitHub shows 838 pixels of a page's width: letters of 17 are as large as the text
STYLE = """text{font:17px -apple-system,"Segoe UI",Helvetica,Arial,sans-serif;text-anchor:middle}
text,rect,polygon{fill:currentColor}rect,polygon,polyline{stroke:currentColor;stroke-width:2}
polyline{fill:none}.arrow{marker-end:url(#tip)}.sub{font-size:14px}.b{font-weight:600}
.start{text-anchor:start}.end{text-anchor:end}.thin{stroke-width:1;stroke-opacity:.4}
.dash,.c1.curve{stroke-dasharray:9 5}.c2.curve{stroke-dasharray:3 4}.c3.curve{stroke-dasharray:14 4
3 4}.c4.curve{stroke-dasharray:2 7}svg{color:#1f2328}.paper{fill:#fff;stroke:none}
.c0{color:#0550ae}.c1{color:#a04100}.c2{color:#1a7f37}.c3{color:#8250df}.c4{color:#59636e}
@media(prefers-color-scheme:dark){svg{color:#e6edf3}.paper{fill:#0d1117}.c0{color:#79c0ff}
.c1{color:#ffa657}.c2{color:#7ee787}.c3{color:#d2a8ff}.c4{color:#9198a1}}"""


def text(x, y, word, kind=""):   # words, with b_{KV} for an index below the line, or a number
    sub = r'<tspan class="sub" dy="5">\1</tspan><tspan dy="-5">&#8203;</tspan>'
    word = word if isinstance(word, str) else f"{word + 0:g}".replace("-", "−")
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{re.sub("_{(.*?)}", sub, word)}</text>'


def line(kind, *points, shape="polyline"):
    return f'<{shape} class="{kind}" points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def marker(x, y, i):
    corners = (24, 4, 3, 5, 4)[i]  # a disc, a square, a triangle, a pentagon, a diamond
    angles = np.pi * (2 * np.arange(corners) + (i == 1)) / corners
    return line(f"c{i}", *zip(x + 6 * np.sin(angles), y - 6 * np.cos(angles)), shape="polygon")


def box(x, y, w, h, *words, kind="c0", fill=0.12, rx=6):   # a rectangle around lines of words
    top = y + h / 2 + 17 - 11 * len(words)
    words = "".join(text(x + w / 2, top + 22 * i, a) for i, a in enumerate(words))
    return (f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h}" class="{kind}" rx="{rx}" '
            f'fill-opacity="{fill:.3g}"/>{words}')


def heat(x, y, matrix, cell, name="", frame="", dark=0.9):
    """A matrix with its name, the darker the larger an entry's size; NaN is left out."""
    (n, m), shades = matrix.shape, dark * abs(matrix) / np.nanmax(abs(matrix))
    cells = (box(x + j * cell, y + i * cell, cell, cell, kind="thin c0", fill=shades[i, j], rx=0)
             for i, j in np.argwhere(shades >= 0))
    frame = box(x, y, m * cell, n * cell, kind=frame, fill=0, rx=0) * bool(frame)
    return "".join(cells) + frame + text(x + m * cell / 2, y - 8, name) * bool(name)


def chart(lines, title, below, marks, right=130):
    """Height and pieces of lines {panel: {name: {x: y}}}; {} in the title is a panel. A line of one
    x is a level. Axes are logarithmic: y unless from 0, x unless at equal steps.
    """
    scale, width, pieces = np.log10 if marks[0] else np.array, (WIDTH - 25 - right) / len(lines), []
    for left, (panel, curves) in zip(75 + width * np.arange(len(lines)), lines.items()):
        xs = [*max(curves.values(), key=len)]
        across = np.log(xs) if xs[1] - xs[0] < xs[-1] - xs[-2] else np.array(xs)
        place = dict(zip(xs, left + 12 + (width - 74) * (across - across[0]) / np.ptp(across)))
        pieces += [text(left + width / 2 - 25, 28, title.format(panel), "b"),
                   text(left + width / 2 - 25, 376, below)]
        pieces += [text(place[x], 350, x) for x in xs[::-1 - len(xs) * len(lines) // 12]]
        for y, mark in zip(np.linspace(326, 46, len(marks)), marks):
            pieces += [line("thin", (left, y), (left + width - 50, y)),
                       text(left - 8, y + 6, mark, "end")]
        for i, (name, a) in enumerate(curves.items()):
            a = a if len(a) > 1 else dict.fromkeys(xs, *a.values())
            ys = np.interp(scale([*a.values()]), scale([marks[0], marks[-1]]), (326, 46))
            pieces += [line(f"curve c{i}", *zip(map(place.get, a), ys))]
            pieces += [marker(place[x], y, i) for x, y in zip(a, ys)]
    for i, name in enumerate(curves):
        pieces += [marker(WIDTH - right + 14, 60 + 26 * i, i),
                   text(WIDTH - right + 28, 66 + 26 * i, name, f"start b c{i}")]
    return 390, pieces


def panels(document, heading, first, names, by=None):
    """Lines {panel: {name: {x: y}}} of the table under this heading whose header begins so: names
    of columns, x the first cell of a row; or names of rows, if the columns are called m = .... `by`
    is the column that tells the panels apart. Gaps may end a row. LookupError if one is missing.
    """
    found = re.search(rf"^## [^\n]*{heading}(?:(?!^## ).)*?^( *{first}  .*?)(?=\n\n|\n```)",
                      document, re.M | re.S) or ["", ""]
    (header, *rows), lines = (re.split("  +", row.strip()) for row in found[1].split("\n")), {}
    for row in (dict(zip(header, row)) for row in rows):
        label = next(cell for head, cell in row.items() if head != by)
        curves = lines.setdefault(row.get(by), {name: {} for name in names})
        for head, cell in row.items():
            name, x = (label, head[4:]) if head.startswith("m = ") else (head, label)
            if name in names:
                x, y = (float(re.match("[^ ±]*", a)[0]) for a in (x, cell))
                curves[name][x] = y
    if not lines or not all(all(curves.values()) for curves in lines.values()):
        raise LookupError(f"under {heading} is no such table with {', '.join(names)}")
    return lines


def context_to_weights():
    """A context becomes weights: the rows of b_KV at the prompt's words add up to its logits."""
    words, prompt = split_words(TEXT), ["feeds", "the"]
    names = list(dict.fromkeys(words))
    context, ask = ([names.index(word) for word in part] for part in (words, prompt))
    model = induction_transformer(len(names), len(words) + len(prompt))
    biases = iclca(model, context)
    table = np.rint(biases[-1].kv[0, [len(names) + ask[0], ask[1]]])
    table = np.vstack([table, table.sum(axis=0)])
    columns = np.argsort(-table[-1], kind="stable")[:4]
    pieces = [text(460, 24, "two rows of b_{KV}: how often", "b"),
              text(460, 262, "= the logits, rounded"), line("arrow", (236, 90), (262, 90)),
              line("arrow", (576, 90), (594, 90)), heat(348, 82, table[:2, columns], 56, dark=0.45)]
    for i, label in enumerate((f"2 after {prompt[0]}", f"1 after {prompt[1]}", "their sum")):
        pieces += [text(340, 116 + 56 * i, label, "end")]
        pieces += [text(376 + 56 * j, 116 + 56 * i, table[i, a]) for j, a in enumerate(columns)]
    pieces += [text(376 + 56 * j, 72, names[a], "sub") for j, a in enumerate(columns)]
    excerpt = [*TEXT.split("\n")[0].rstrip(".").split(". "), f"… {len(words)} words in all"]
    instead = ["b_{KV} and b_{D}", "of each layer, as large", "for a text of any length"]
    for x, title, lines, tokens, start in (
            (10, "a context in front", excerpt, context + ask, None),
            (600, "two biases in each layer", instead, ask, biases)):
        logits = np.rint(lt.forward(model, tokens, start)[0][-1])
        pieces += [text(x + 110, 24, title, "b"), box(x, 40, 220, 100, *lines, kind="c0 dash"),
                   box(x, 150, 220, 34, "prompt: " + " ".join(prompt), kind="c1"),
                   line("arrow", (x + 80, 190), (x + 80, 226)),
                   text(x + 92, 214, f"{len(tokens)} words to read", "start")]
        for y, a in zip((240, 266, 292, 318), columns):
            pieces += [text(x + 84, y + 15, f"{names[a]} {logits[a]:.0f}", "end"),
                       box(x + 94, y, 36 * logits[a], 18, kind="c2", fill=0.5)]
    return 352, pieces


def causal_matrix():
    """The context acts through b_KV: scores S times values V′ are queries times K′ᵀV′."""
    q, k, v = np.random.default_rng(3).random((3, 9, 3))
    scores, bias = np.where(np.tri(9) > 0, q @ k.T, np.nan), k[:5].T @ v[:5]
    return 404, [
        text(18, 24, "scores q_{i}·k_{j}: a token sees itself and those before", "start b"),
        text(181, 54, "context"), text(334, 54, "prompt"), text(88, 154, "context", "end"),
        text(88, 307, "prompt", "end"), heat(96, 64, scores, 34), text(637, 142, "="),
        box(96, 234, 170, 136, kind="c1", fill=0, rx=0), text(181, 392, "S", "b c1"),
        box(266, 234, 136, 136, kind="c3", fill=0, rx=0), text(334, 392, "T", "b c3"),
        text(432, 54, "the context enters as S V′ = Q (K′ᵀ V′)", "start b"),
        heat(432, 92, scores[5:, :5], 22, "S = Q K′ᵀ", "c1"), heat(554, 92, v[:5], 22, "V′"),
        heat(654, 92, q[5:], 22, "Q"), heat(742, 92, bias, 22, "b_{KV} = K′ᵀ V′", "c2"),
        text(432, 250, "so for every prompt: O = Q b_{KV} + T V", "start b"), text(602, 336, "+"),
        heat(432, 286, q[5:], 22, "Q"), heat(514, 286, bias, 22, "b_{KV}", "c2"),
        heat(624, 286, scores[5:, 5:], 22, "T", "c3"), heat(724, 286, v[5:], 22, "V")]


def number_line():
    """The context is turned back: hands turn by 30° a place; R_−3 moves all by 3 places."""
    pieces = [text(20, 40, "in context", "start b"), text(20, 66, "30° for each place", "start"),
              text(810, 204, "converted", "end b"), text(810, 230, "all turned by R_{−3}", "end")]
    for y, start in (90, 0), (250, -3):
        pieces += [line("thin", (20, y), (810, y))]
        for place, name in enumerate("b c_{1} c_{2} c_{3} x_{1} x_{2}".split(), start):
            x, kind = 356 + 82 * place, "c" + str("cxb".index(name[0]))
            cos, sin = 19 * np.ravel(lt.rope(np.array([place]), np.array([np.pi / 6])))
            pieces += [box(x - 20, y - 20, 40, 40, kind=kind, rx=20), text(x, y + 42, place),
                       line(kind, (x, y), (x + sin, y - cos)), text(x, y - 28, name)]
            pieces += [line("arrow", (x - 20, y + 50), (x - 216, y + 110))] * (not start)
    return 304, pieces


def layers():
    """One bias per layer replaces the context: it passes them once, each keeps its sums."""
    model = lt.random_transformer(np.random.default_rng(0), 50, 16, n_layers=3, n_heads=4)
    pieces = [text(70, 24, "once", "b"), text(70, 264, "every time", "b"),
              box(10, 40, 120, 50, "context"), box(10, 280, 120, 50, "prompt", kind="c1"),
              line("arrow", (692, 305), (726, 305)), text(780, 311, "same logits", "b")]
    for i, bias in enumerate(iclca(model, [3, 1, 4, 1, 5, 9])):
        x, name = 180 + 190 * i, f"layer {i + 1}"
        pieces += [box(x, 40, 130, 50, name), box(x, 280, 130, 50, name, kind="c1"),
                   heat(x + 29, 140, bias.kv[0], 18), text(x + 108, 182, "b_{KV}, b_{D}", "start")]
        pieces += [line("arrow", (x - 46, y), (x - 4, y)) for y in (65, 305)]
        pieces += [line("arrow", (x + 65, y), (x + 65, end)) for y, end in ((94, 134), (218, 276))]
    return 346, pieces


def one_step():
    """One layer is one gradient step: the line turns or the targets move, the residuals agree."""
    x, y, ask, W0 = (np.array([column]).T for column in ([-1, 1, 2.], [-2, 3, 5.], [3.], [1.]))
    W1, _, _ = gradient_descent(W0, x, y, eta=1 / 3)
    tokens, asked = lsa(np.hstack([x, y]), np.hstack([ask, -ask * W0]), gd_weights(W0, 1 / 3, 3))
    pieces = [text(415, 308, "disc: target y with its residual W x − y; square: answer at x = 3")]
    def at(a, b):
        return left + 46 * a, 206 - 26 * b

    for left, title, w, targets, answer in (
            (100, "before: W = {:g}", W0.item(), y, W0.item() * 3),
            (380, "the step: W = {:g}", W1.item(), y, W1.item() * 3),
            (660, "the layer: the targets move", W0.item(), tokens[:, 1:], -asked[0, 1])):
        pieces += [text(left + 30, 24, title.format(w), "b"), line("thin", at(-1.6, 0), at(3.4, 0)),
                   line("thin", at(0, -2.6), at(0, 6.4)), text(*at(2.6, answer), answer),
                   line("c2", at(-1.3, -1.3 * w), at(3.1, 3.1 * w)), marker(*at(3, answer), 1)]
        for a, b in zip(x[:, 0], targets[:, 0]):
            pieces += [line("c0", at(a, b), at(a, w * a)), marker(*at(a, b), 0),
                       text(*at(a - 0.5, b - 0.2), round(w * a - b, 6) + 0)]
    return 324, pieces


def induction_head():
    """Two trained heads: one looks from the token after T at T, the other from T at that token."""
    model = induction.trained(0, **induction.FULL)
    context, (place,), _ = induction.texts(np.random.default_rng(3), 1, 12)
    tokens, pieces = induction.asked(context)[0], []
    weights = induction.attention_weights(model, tokens)
    for x, title, heads, i, j in (
            (56, "layer 1: the token after T looks at T", weights[0], place + 1, place),
            (476, "layer 2: the last T looks at that token", weights[1], 12, place + 1)):
        head = np.where(np.tri(13) > 0, heads[heads[:, i, j].argmax()], np.nan)
        pieces += [heat(x, 40, head, 26), text(x + 169, 24, title, "b"),
                   box(x + 26 * j, 40 + 26 * i, 26, 26, kind="c1", fill=0, rx=0)]
        for a, token in enumerate(np.where(tokens == induction.TRIGGER, "T", tokens)):
            pieces += [text(x - 8, 59 + 26 * a, token, "end"), text(x + 13 + 26 * a, 400, token)]
    return 412, pieces


PICTURES = {picture.__name__: picture for picture in (
    context_to_weights, causal_matrix, number_line, layers, one_step, induction_head)}
RULES = "least squares", "Attention Matching", "merged, attended", "most attended kept", "last kept"
CHARTS = {  # a table in docs/results.md, as for `panels`; the rest as for `chart`
    "deeper_layers": (("Deeper", "K", ("GD", "GD++")), "loss", "layers K", (0, 0.5, 1, 1.5, 2)),
    "softmax_conversion": (
        ("Softmax", "sharpness", ("dropped", "random", "kept", "fitted"), "sharpness"),
        "error, sharpness {}", "features m", (0, 0.25, 0.5, 0.75, 1)),
    "benefit_kept": (("stories15M", "KL kept, %", RULES), "stories15M: KL kept, %",
                     "rows per head", (0, 25, 50, 75, 100), 200),
    "few_shot_accuracy": (("SmolLM2", "in percent of that", ("least squares, by keys", *RULES[:4])),
                 "% of the accuracy in context", "rows per head", (0, 25, 50, 75, 100, 125), 235),
    "cost_of_a_prompt": (
        ("Speed", "context", ("in front", "converted")), "time of a prompt / its time alone",
        "tokens of context", (0.1, 1, 10, 100, 1000)),
}


def drawn(name, document):   # a picture's file; document is the text of docs/results.md
    if name in PICTURES:
        (title, about), (height, pieces) = PICTURES[name].__doc__.split(": "), PICTURES[name]()
    else:
        table, heading, below, *how = CHARTS[name]
        title, about = name.replace("_", " "), f"{', '.join(table[2])}, by {below}; in results.md"
        height, pieces = chart(panels(document, *table), heading, below, *how)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}"
viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t d">
<title id="t">{title}</title><desc id="d">{about}</desc><style>{STYLE}</style>
<marker id="tip" markerWidth="9" markerHeight="9" refX="6" refY="4" orient="auto">
<polyline points="0,0 6,4 0,8" style="stroke-width:1"/></marker>
<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>
""" + "\n".join((*pieces, "</svg>\n"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = [*PICTURES, *CHARTS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME")
    for name in parser.parse_args().only:
        file = drawn(name, (HERE.parent / "results.md").read_text("utf-8"))
        (HERE / f"{name}.svg").write_text(file, "utf-8", newline="\n")
