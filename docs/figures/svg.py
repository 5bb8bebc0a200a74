"""Small helpers that draw SVG: words, boxes, arrows, heat maps and line charts, each a string.

The colours follow the reader's light or dark mode; negative cells carry a bar, and lines differ by
dash, marker and the name at their end, so that a picture can be read without colours.
"""

import re
from html import escape

import numpy as np

WIDTH = 830  # GitHub shows 838 pixels of a page's width: letters of 17 are as large as the text
STYLE = """text{font:17px -apple-system,"Segoe UI",Helvetica,Arial,sans-serif;text-anchor:middle}
text,rect,polygon{fill:currentColor}rect,polygon,polyline{stroke:currentColor;stroke-width:2}
polyline,.hollow{fill:none}.arrow{marker-end:url(#tip)}.sub{font-size:14px}.b{font-weight:600}
.start{text-anchor:start}.end{text-anchor:end}.thin{stroke-width:1;stroke-opacity:.4}
.dash,.c1.curve{stroke-dasharray:9 5}.c2.curve{stroke-dasharray:3 4}
.c3.curve{stroke-dasharray:14 4 3 4}svg{color:#1f2328}.paper{fill:#fff;stroke:none}
.c0{color:#0550ae}.c1{color:#a04100}.c2{color:#1a7f37}.c3{color:#8250df}
@media(prefers-color-scheme:dark){svg{color:#e6edf3}.paper{fill:#0d1117}
.c0{color:#79c0ff}.c1{color:#ffa657}.c2{color:#7ee787}.c3{color:#d2a8ff}}"""


def svg(about, height, *pieces):
    """A whole file. `about` has its title and, after a colon, its description (to be read out)."""
    title, about = about.split(": ", 1)
    short = re.compile(r"-?\d+\.\d+(e-\d+)?")  # three decimals: no last digits of a machine
    pieces = short.sub(lambda a: f"{round(float(a[0]), 3) + 0:g}", "\n".join(pieces))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}"
viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t d">
<title id="t">{title}</title><desc id="d">{about}</desc>
<style>{STYLE}</style>
<marker id="tip" markerWidth="9" markerHeight="9" refX="6" refY="4" orient="auto">
<polyline points="0,0 6,4 0,8" style="stroke-width:1"/></marker>
<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>\n{pieces}\n</svg>\n"""


def text(x, y, words, kind="", turn=0):
    """Words, with b_{KV} for an index below the line, or a number."""
    if not isinstance(words, str):
        words = f"{round(float(words), 6) + 0:g}".replace("-", "−")
    sub = r'<tspan class="sub" dy="5">\1</tspan><tspan dy="-5">&#8203;</tspan>'
    turn = f' transform="rotate({turn} {x} {y})"' * bool(turn)
    words = re.sub("_{(.*?)}", sub, escape(words, quote=False))
    return f'<text x="{x}" y="{y}" class="{kind}"{turn}>{words}</text>'


def line(kind, *points, shape="polyline"):
    return f'<{shape} class="{kind}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def marker(x, y, i):
    """A disc, a square, a triangle or a pentagon; from the fifth on they are hollow."""
    corners = (24, 4, 3, 5)[i % 4]
    angles = np.pi * (2 * np.arange(corners) + (corners == 4)) / corners
    points = zip(x + 6 * np.sin(angles), y - 6 * np.cos(angles))
    return line(f"c{i % 4}" + " hollow" * (i > 3), *points, shape="polygon")


def box(x, y, w, h, *words, kind="c0", fill=0.12, rx=6):
    """A rectangle with lines of words in its middle."""
    top = y + h / 2 + 17 - 11 * len(words)
    words = (text(x + w / 2, top + 22 * i, a) for i, a in enumerate(words))
    return (f'<rect x="{x}" y="{y}" width="{w}" height="{h}" class="{kind}" rx="{rx}" '
            f'fill-opacity="{fill}"/>' + "".join(words))


def heat(x, y, matrix, cell, write=False):
    """A matrix, the larger the darker, negative ones with a bar, no NaN; `write` adds numbers."""
    pieces, top = "", np.nanmax(abs(matrix))
    for (i, j), a in np.ndenumerate(matrix):
        if not np.isnan(a):
            kind, shade = f"thin c{int(a < -0.02 * top)}", abs(a) / top * (0.45 if write else 0.9)
            pieces += box(x + j * cell, y + i * cell, cell, cell, kind=kind, fill=shade, rx=0)
            if write and a or a < -0.1 * top:
                pieces += text(x + (j + 0.5) * cell, y + (i + 0.5) * cell + 6, a if write else "−",
                               "paper" if shade > 0.5 else "")
    return pieces


def power(y):
    """10^y as the tables write it."""
    return f"{10**y:g}" if -3 <= y < 6 else f"{10**y:.0e}"


def chart(panels, title, xlabel, log="xy", right=130):
    """Height and pieces of a picture of lines {panel: {name: {x: y}}}; {} in the title is a panel.

    The x are numbers, or words m = ... in their order; a line of the first x alone is a level.
    """
    lines = sorted((a for panel in panels.values() for a in panel.values()), key=len, reverse=True)
    xs, linear = list(dict.fromkeys(x for a in lines for x in a)), "y" not in log
    fx, fy = (np.log10 if axis in log else np.array for axis in "xy")
    if isinstance(xs[0], str):
        across = np.arange(len(xs))
        labels = [(x[4:] or x) * (len(xs) < 6 or i % 2 == 0) for i, x in enumerate(xs)]
    else:
        across, units = fx(xs) - fx(min(xs)), ((1e9, "B"), (1e6, "M"), (1e3, "k"))
        labels = [next((f"{x / size:.3g}{unit}" for size, unit in units if x >= size), x)
                  if max(xs) >= 1e5 else x for x in xs]
    ys = fy([y for a in lines for y in a.values()])
    ends = min(ys.min(), *[0] * linear, ys.max()), ys.max()
    steps = (a * 10.0**e for e in range(-2 * linear, 9) for a in (1, 2, 5))
    step = next(step for step in steps if np.ptp(ends) < 6 * step)
    marks = step * np.arange(np.floor(ends[0] / step), np.ceil(ends[1] / step) + 1)
    width, pieces = (WIDTH - 25 - right) / len(panels) - 50, []

    def down(y):
        return 326 - 280 * (y - marks[0]) / np.ptp(marks)

    pieces += [text(67, down(y) + 6, y if linear else power(y), "end") for y in marks]
    for left, (panel, lines) in zip(75 + (width + 50) * np.arange(len(panels)), panels.items()):
        place, free = dict(zip(xs, left + 12 + (width - 24) * across / max(across))), 0
        pieces += [text(left + width / 2, 28, title.format(panel), "b")]
        pieces += [text(place[x], 350, label) for x, label in zip(xs, labels)]
        pieces += [line("thin", (left, down(y)), (left + width, down(y))) for y in marks]
        pieces += [text(left + width / 2, 376, xlabel)]
        lines = {name: a if a.keys() - xs[:1] else dict.fromkeys(xs, a[xs[0]])
                 for name, a in lines.items()}
        last = {name: a[[*a][-1]] for name, a in lines.items()}
        for i, (name, a) in sorted(enumerate(lines.items()), key=lambda item: -last[item[1][0]]):
            points = [(place[x], down(fy(y))) for x, y in a.items()]
            here = points[-1][1] + 6
            free, end = max(free + 21, here), points[-1][0] + 16
            words = name * (panel == [*panels][-1])
            pieces += [line(f"curve c{i % 4}", *points), *(marker(*point, i) for point in points),
                       text(end + 16 * (free > here), free, words, f"start b c{i % 4}")]
            pieces += [marker(end + 4, free - 6, i)] * bool(free > here and words)
    return 390, *pieces


def panels(document, heading, header, x="", *names, by=""):
    """Lines {panel: {name: {x: y}}} of the table with this header (a pattern) under this heading.

    The named columns against column x, or without x each row against the columns m = ... and all;
    `by` is the column that tells the panels apart. Raises LookupError if there is no such table.
    """
    section = "".join(re.findall(rf"^## [^\n]*{heading}.*?(?=^## |\Z)", document, re.M | re.S))
    blocks = "\n".join(re.findall(r"```text(\n.*?\n)```", section, re.S))
    found = re.search(rf"^ *{header}.*?(?=\n\n|\n\Z)", blocks, re.M | re.S)
    if not found:
        raise LookupError(f"no such table under {heading}")
    rows = [list(re.finditer(r"\S+(?: \S+)*", row)) for row in found[0].split("\n")]
    heads, lines = {end: head[0] for head in rows[0] for end in head.span()}, {}
    for row in rows[1:]:
        row = {heads.get(cell.end(), heads.get(cell.start(), "")): cell[0] for cell in row}
        numbers = {head: float(re.sub("[,%]|±.*", "", cell)) for head, cell in row.items()
                   if re.match(r"-?\d", cell)}
        label = next(cell for head, cell in row.items() if head != by)
        for head in names or [head for head in numbers if re.match("m = |all", head)]:
            if head in numbers:
                name, at = (head, numbers[x]) if x else (label, head)
                lines.setdefault(row.get(by, ""), {}).setdefault(name, {})[at] = numbers[head]
    return lines
