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


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_what_the_script_draws_says_what_it_shows_and_fits_a_page(name, monkeypatch):
    model, shades = trained_induction.random_model(np.random.default_rng(0)), "$^"
    if name == "induction_head":  # its model takes two minutes: untrained, all but the shades
        monkeypatch.setattr(trained_induction, "trained", lambda *_, **__: model)
        shades = 'fill-opacity=".*?"'
    file, committed = (re.sub(shades, "", text) for text in (
        draw.drawn(name, RESULTS), (FIGURES / f"{name}.svg").read_text("utf-8")))
    assert NUMBER.sub("#", file) == NUMBER.sub("#", committed)
    numbers, theirs = (np.array(NUMBER.findall(text), float) for text in (file, committed))
    assert abs(numbers - theirs).max() < 0.02  # versions of NumPy differ in last digits
    root = ET.fromstring(committed)
    width, height = map(int, root.get("viewBox").split()[2:])
    assert width <= 838 and min(len(root.findtext("{*}" + a)) for a in ("title", "desc")) > 10
    assert set(re.findall(r"(?:url\(|href=|src=|@import)[^);]*", committed)) <= {"url(#tip"}
    assert "prefers-color-scheme:dark" in committed and "font:17px" in committed
    for at in root.findall(".//{*}text"):
        assert 0 < float(at.get("x")) < width and 0 < float(at.get("y")) < height


@pytest.mark.parametrize("name", draw.CHARTS)
def test_a_chart_shows_all_of_its_table_and_other_numbers_give_another_one(name):
    table, _, _, marks, *_ = draw.CHARTS[name]
    for curves in draw.panels(RESULTS, *table).values():
        assert all(marks[0] <= y <= marks[-1] for a in curves.values() for y in a.values())
    assert draw.drawn(name, re.sub(r"\.\d", ".7", RESULTS)) != draw.drawn(name, RESULTS)
    for document, names in ("## Speed\n\n## Deeper layers\n", ()), (RESULTS, ("gone",)):
        with pytest.raises(LookupError, match=f"no such table with .*{''.join(names)}"):
            draw.panels(document, *table[:2], (*table[2], *names), *table[3:])


def test_all_pictures_are_the_scripts_whose_help_draws_nothing():
    assert {path.stem for path in FIGURES.glob("*.svg")} == {*NAMES}
    assert b"pictures" in subprocess.check_output([sys.executable, FIGURES / "draw.py", "--help"])
