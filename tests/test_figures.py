"""The pictures: each committed file is what docs/figures/draw.py draws, and can be read."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import draw
import numpy as np
import pytest
import trained_induction

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
RESULTS, NAMES = (FIGURES.parent / "results.md").read_text("utf-8"), [*draw.PICTURES, *draw.CHARTS]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-\d+)?")
RULES = """## A model that was trained
```text
kept, %            m = 8      m = 16     all
fitted        29.1±0.20%  55.2±0.10%    100%
last kept   -1,051 ± 2.1           7    100%
random                1e-05
```
"""


def words(file):
    return ["".join(word.itertext()) for word in ET.fromstring(file).findall(".//{*}text")]


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_picture_is_what_the_script_draws(name, monkeypatch):
    model, shades = trained_induction.random_model(np.random.default_rng(0)), "$^"
    if name == "induction_head":  # its model takes two minutes: untrained, all but the shades
        monkeypatch.setattr(trained_induction, "trained", lambda *_, **__: model)
        shades = 'fill-opacity=".*?"'
    file, committed = (re.sub(shades, "", text) for text in (
        draw.drawn(name, RESULTS), (FIGURES / f"{name}.svg").read_text("utf-8")))
    assert NUMBER.sub("#", file) == NUMBER.sub("#", committed) and words(file) == words(committed)
    numbers, theirs = (np.array(NUMBER.findall(text), float) for text in (file, committed))
    assert abs(numbers - theirs).max() < 0.02  # versions of NumPy differ in last digits


@pytest.mark.parametrize("path", [*FIGURES.glob("*.svg")], ids=lambda path: path.stem)
def test_a_picture_is_drawn_by_the_script_says_what_it_shows_fits_a_page_and_loads_nothing(path):
    assert path.stem in NAMES
    root = ET.fromstring(file := path.read_text("utf-8"))
    width, height = map(int, root.get("viewBox").split()[2:])
    assert width <= 838 and min(len(root.findtext("{*}" + a)) for a in ("title", "desc")) > 10
    assert set(re.findall(r"(?:url\(|href=|src=|@import)[^);]*", file)) <= {"url(#tip"}
    assert "prefers-color-scheme:dark" in file and "font:17px" in file
    for at in root.findall(".//{*}text"):
        assert 0 < float(at.get("x")) < width and 0 < float(at.get("y")) < height


@pytest.mark.parametrize("name", draw.CHARTS)
def test_a_chart_shows_all_of_its_table_and_other_numbers_give_another_one(name):
    table, _, _, marks, *_ = draw.CHARTS[name]
    for curves in draw.panels(RESULTS, *table).values():
        assert all(marks[0] <= y <= marks[-1] for a in curves.values() for y in a.values())
    assert draw.drawn(name, re.sub(r"\.\d", ".7", RESULTS)) != draw.drawn(name, RESULTS)
    with pytest.raises(LookupError, match="no such table"):
        draw.drawn(name, "# Results\n\n## Speed\n\n## Deeper layers\n")


def test_a_table_of_rules_against_m_is_read_with_percent_signs_and_deviations():
    assert draw.panels(RULES, "trained", "kept, %", ("last kept", "fitted", "random")) == {None: {
        "last kept": {8: -1051, 16: 7}, "fitted": {8: 29.1, 16: 55.2}, "random": {8: 1e-5}}}
    with pytest.raises(LookupError, match="fitted, gone"):
        draw.panels(RULES, "trained", "kept, %", ("fitted", "gone"))


@pytest.mark.parametrize("marks, a", [
    ((0.1, 1, 10), {1: 0.1, 10: 1, 100: 10}), ((0, 5, 10), {1: 1, 2: 4, 3: 7})])
def test_equal_ratios_are_equally_far_on_a_logarithmic_axis_and_equal_differences_else(marks, a):
    _, pieces = draw.chart({None: {"line": a}}, "", "", marks)
    points = re.search('class="curve.*?points="(.*?)"', "".join(pieces))[1].split()
    (dx, dy), (ex, ey) = np.diff([[float(a) for a in point.split(",")] for point in points], axis=0)
    assert dx == pytest.approx(ex) and dy == pytest.approx(ey) and dx > 0 > dy


def test_the_rows_of_the_first_picture_add_up_to_the_logits_on_both_sides():
    found = words(draw.drawn("context_to_weights", ""))
    bars = [word for word in found if re.fullmatch(r"\w+ \d", word)]
    sums = [word for word in found if word.isdigit()][-4:]
    assert bars[:4] == bars[4:] and [bar[-1] for bar in bars[:4]] == sums


def test_help_says_what_the_script_does_and_draws_nothing():
    assert b"pictures" in subprocess.check_output([sys.executable, FIGURES / "draw.py", "--help"])
