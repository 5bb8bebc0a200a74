"""The pictures: each committed file is what docs/figures/draw.py draws, and can be read."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import draw
import pytest
import svg

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
FILES = sorted(FIGURES.glob("*.svg"))
TABLES = (draw.deeper_layers, draw.softmax_conversion, draw.error_by_length, draw.cost_of_a_prompt,
          draw.table1)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
STORIES = """## A model that was trained: stories15M

```text
kept, %                  m = 8   m = 16   m = 32   m = 64      all
merged, farthest keys      29%      55%      75%      93%     100%
last m tokens            51±2%    73±2%    77±2%    88±1%   100±0%
random                                                 0%
```
"""


def drawn(picture):
    return svg.svg(picture.__doc__, *picture())


def words(file):
    return ["".join(element.itertext()) for element in ET.fromstring(file).findall(".//{*}text")]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A function that puts another text in the place of docs/results.md."""
    monkeypatch.setattr(draw, "HERE", tmp_path / "figures")
    return lambda document: (tmp_path / "results.md").write_text(document, "utf-8")


@pytest.mark.parametrize("picture", draw.PICTURES, ids=lambda picture: picture.__name__)
def test_a_committed_picture_is_what_the_script_draws(picture):
    path = FIGURES / f"{picture.__name__}.svg"
    try:
        file = drawn(picture)
    except LookupError:
        assert not path.exists(), "drawn from a table that docs/results.md does not have"
        return
    committed = path.read_text("utf-8")
    assert NUMBER.sub("#", file) == NUMBER.sub("#", committed)
    # versions of NumPy differ in last digits, and the files round pixels and shades to 0.001
    assert [*map(float, NUMBER.findall(file))] == pytest.approx(
        [*map(float, NUMBER.findall(committed))], rel=0, abs=0.02)


def test_the_script_draws_every_picture_that_is_there():
    assert {path.stem for path in FILES} <= {picture.__name__ for picture in draw.PICTURES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_picture_says_what_it_shows_fits_a_page_and_loads_nothing(path):
    file = path.read_text("utf-8")
    root = ET.fromstring(file)
    width, height = map(int, root.get("viewBox").split()[2:])
    assert width == int(root.get("width")) <= 838
    assert len(root.findtext("{*}title")) > 10 and len(root.findtext("{*}desc")) > 10
    assert set(re.findall(r"(?:url\(|href=|src=|@import)[^);]*", file)) <= {"url(#tip"}
    assert "prefers-color-scheme:dark" in file and "font:17px" in file
    letters = root.findall(".//{*}text")
    assert letters
    for element in letters:
        assert 0 < float(element.get("x")) < width and 0 < float(element.get("y")) < height


@pytest.mark.parametrize("picture", TABLES, ids=lambda picture: picture.__name__)
def test_other_numbers_in_the_table_give_another_picture(picture, results):
    document = (FIGURES.parent / "results.md").read_text("utf-8")
    results(document)
    before = drawn(picture)
    results(re.sub(r"\.\d", ".7", document))
    assert drawn(picture) != before
    results("# Results\n\n## Speed\n\n## Table 1\n")
    with pytest.raises(LookupError, match="no such table"):
        drawn(picture)


def test_a_table_of_rules_against_m_is_read_with_gaps_percent_signs_and_deviations(results):
    results(STORIES)
    assert draw.results("stories15M", "kept, %") == {"": {
        "merged, farthest keys": {"m = 8": 29, "m = 16": 55, "m = 32": 75, "m = 64": 93,
                                  "all": 100},
        "last m tokens": {"m = 8": 51, "m = 16": 73, "m = 32": 77, "m = 64": 88, "all": 100},
        "random": {"m = 64": 0}}}
    found = words(drawn(draw.benefit_kept))
    assert {"merged, farthest keys", "last m tokens", "8", "64", "all"} <= {*found}


def test_equal_ratios_are_equal_distances_on_a_logarithmic_scale_and_equal_differences_on_another():
    for log, line in ("xy", {1: 0.1, 10: 1, 100: 10}), ("", {1: 3, 2: 5, 3: 7}):
        _, *pieces = svg.chart({"": {"line": line}}, "", "", log=log)
        curve, = (piece for piece in pieces if 'class="curve' in piece)
        points = re.search('points="(.*?)"', curve)[1].split()
        x, y = zip(*(map(float, point.split(",")) for point in points))
        assert x[1] - x[0] == pytest.approx(x[2] - x[1]) and x[1] > x[0]
        assert y[1] - y[0] == pytest.approx(y[2] - y[1]) and y[1] < y[0]



def test_help_says_what_the_script_does_and_draws_nothing():
    command = [sys.executable, FIGURES / "draw.py", "--help"]
    done = subprocess.run(command, capture_output=True, check=True, encoding="utf-8")
    assert "pictures" in done.stdout
