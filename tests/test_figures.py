"""The pictures: each committed file is what docs/figures/draw.py draws, and can be read."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import draw
import numpy as np
import pytest

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
RESULTS = (FIGURES.parent / "results.md").read_text("utf-8")
NAMES = [*draw.PICTURES, *draw.CHARTS]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-\d+)?")
RULES = """## A model that was trained

```text
kept, %          m = 8   m = 16    all
fitted           29±2%      55%   100%
last kept       -1,051       7%   100%
random                   -1e-05
```
"""


def words(file):
    return ["".join(element.itertext()) for element in ET.fromstring(file).findall(".//{*}text")]


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_picture_is_what_the_script_draws(name, monkeypatch):
    committed, near = (FIGURES / f"{name}.svg").read_text("utf-8"), 0.02  # of versions of NumPy
    if name == "induction_head":  # whose model takes two minutes: all but the shades, untrained
        import trained_induction
        model, near = trained_induction.random_model(np.random.default_rng(0)), 1000
        monkeypatch.setattr(trained_induction, "train", lambda *_, **__: [model])
    file = draw.drawn(name, RESULTS)
    assert NUMBER.sub("#", file) == NUMBER.sub("#", committed) and words(file) == words(committed)
    numbers, theirs = (np.array(NUMBER.findall(text), float) for text in (file, committed))
    assert abs(numbers - theirs).max() <= near


@pytest.mark.parametrize("path", FIGURES.glob("*.svg"), ids=lambda path: path.stem)
def test_a_picture_is_drawn_by_the_script_says_what_it_shows_fits_a_page_and_loads_nothing(path):
    assert path.stem in NAMES
    root = ET.fromstring(file := path.read_text("utf-8"))
    width, height = map(int, root.get("viewBox").split()[2:])
    assert width == int(root.get("width")) <= 838
    assert len(root.findtext("{*}title")) > 10 and len(root.findtext("{*}desc")) > 10
    assert set(re.findall(r"(?:url\(|href=|src=|@import)[^);]*", file)) <= {"url(#tip"}
    assert "prefers-color-scheme:dark" in file and "font:17px" in file
    for element in root.findall(".//{*}text"):
        assert 0 < float(element.get("x")) < width and 0 < float(element.get("y")) < height


@pytest.mark.parametrize("name", draw.CHARTS)
def test_a_chart_shows_all_of_its_table_and_other_numbers_give_another_one(name):
    table, _, _, marks, *_ = draw.CHARTS[name]
    curves = [a for panel in draw.panels(RESULTS, *table).values() for a in panel.values()]
    assert all(marks[0] <= y <= marks[-1] for curve in curves for y in curve.values())
    assert draw.drawn(name, re.sub(r"\.\d", ".7", RESULTS)) != draw.drawn(name, RESULTS)
    with pytest.raises(LookupError, match="no such table"):
        draw.drawn(name, "# Results\n\n## Speed\n\n## Deeper layers\n")


def test_a_table_of_rules_against_m_is_read_with_gaps_percent_signs_and_deviations():
    names = "last kept", "fitted", "random"
    assert draw.panels(RULES, "trained", "kept, %", names) == {None: {
        "last kept": {"8": -1051, "16": 7}, "fitted": {"8": 29, "16": 55}, "random": {"16": -1e-5}}}
    with pytest.raises(LookupError, match="fitted, gone"):
        draw.panels(RULES, "trained", "kept, %", ("fitted", "gone"))


@pytest.mark.parametrize("marks, ys", [((0.1, 1, 10), (0.1, 1, 10)), ((0, 5, 10), (1, 4, 7))])
def test_equal_ratios_are_equally_far_on_a_logarithmic_axis_and_equal_differences_else(marks, ys):
    _, pieces = draw.chart({None: {"line": dict(zip("abc", ys))}}, "", "", marks)
    points = re.search('class="curve.*?points="(.*?)"', "".join(pieces))[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points)
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2) and y1 < y0


def test_the_rows_of_the_first_picture_add_up_to_the_logits_on_both_sides():
    found = words(draw.drawn("context_to_weights", ""))
    bars = [word for word in found if re.fullmatch(r"\w+ \d", word)]
    sums = [word for word in found if word.isdigit()][-4:]
    assert bars[:4] == bars[4:] and [bar[-1] for bar in bars[:4]] == sums


def test_help_says_what_the_script_does_and_draws_nothing():
    command = [sys.executable, FIGURES / "draw.py", "--help"]
    assert b"pictures" in subprocess.run(command, capture_output=True, check=True).stdout
