"""docs/exercises: skipped until attempted, passed by the solutions, failed by a wrong answer."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "exercises"
EXERCISES = [line.split("(")[0][4:] for line in (FOLDER / "test_exercises.py").read_text("utf-8").splitlines()
             if line.startswith("def test_")]


@pytest.fixture
def exercises(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return runpy.run_path(str(FOLDER / "test_exercises.py"))


def answer_with(monkeypatch, exercises, **functions):
    for name, function in functions.items():
        monkeypatch.setattr(exercises["MODULE"], name, function)


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_is_skipped_until_attempted_and_our_solution_passes(exercises, monkeypatch, name):
    with pytest.raises(pytest.skip.Exception):
        exercises[name]()
    solutions = runpy.run_path(str(FOLDER / "solutions.py"))
    answer_with(monkeypatch, exercises, **{n: f for n, f in solutions.items() if callable(f) and hasattr(exercises["MODULE"], n)})
    exercises[name]()


def test_a_wrong_answer_fails(exercises, monkeypatch):
    answer_with(monkeypatch, exercises, normalizer_bias=lambda k, b_d: k.sum(axis=0))
    with pytest.raises(AssertionError):
        exercises["test_04_derive_b_d"]()


def test_the_command_of_the_exercises_runs_and_every_exercise_is_described():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "docs/exercises"],
                          cwd=FOLDER.parent.parent, capture_output=True, text=True)
    assert done.returncode in (0, 5) and "12 skipped" in done.stdout, done.stdout
    text = (FOLDER.parent / "exercises.md").read_text("utf-8")
    assert len(EXERCISES) == 12 and all(f"{i}. **" in text for i in range(1, 13))
