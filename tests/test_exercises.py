"""docs/exercises: skipped until attempted; right answers pass, wrong ones hear what is wrong.

Nothing here imports docs/exercises/answers.py: it is the student's, and may hold anything.
"""

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "exercises"
DESCRIPTIONS = (ROOT / "docs" / "exercises.md").read_text("utf-8")
if not (FOLDER / "solutions.py").exists():
    pytest.skip("handed out without the solutions", allow_module_level=True)


def module(name):
    """A file of docs/exercises as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


checks, solutions = module("check_exercises"), module("solutions")
CHECKS = {name: check for name, check in vars(checks).items() if name.startswith("test_")}
SOLUTIONS = {name: f for name, f in vars(solutions).items() if inspect.isfunction(f)}
CALLS = [f"{name}{inspect.signature(f)}" for name, f in SOLUTIONS.items()]
OURS = SimpleNamespace(**SOLUTIONS)


def unanswered(*arguments):
    raise NotImplementedError


def run(check, answers, tmp_path):
    """One check, as pytest runs it, of any module of answers."""
    needs_path = "tmp_path" in inspect.signature(CHECKS[check]).parameters
    CHECKS[check](answers, *[tmp_path] * needs_path)


@pytest.mark.parametrize("check", CHECKS)
def test_an_exercise_is_skipped_until_attempted_and_our_solution_passes(check, tmp_path):
    run(check, OURS, tmp_path)
    with pytest.raises(pytest.skip.Exception, match="not attempted"):
        run(check, SimpleNamespace(**dict.fromkeys(SOLUTIONS, unanswered)), tmp_path)


def as_fractions(result):
    """The same answer in rational numbers."""
    if isinstance(result, tuple):
        return tuple(map(as_fractions, result))
    return checks.rational(result) if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize("check", [check for check in CHECKS if "law" not in check])
def test_an_answer_in_fractions_is_as_right_as_one_in_floats(check, tmp_path):
    answers = {name: lambda *a, f=f: as_fractions(f(*a)) for name, f in SOLUTIONS.items()}
    run(check, SimpleNamespace(**answers), tmp_path)


def two_sums_that_see_ahead(q, k, v):
    return q @ (k.T @ v) / (q @ k.sum(axis=0))[:, None]


def unchanged_weights(x, context):
    return np.eye(len(x)), np.eye(len(x)), 0 * context


def three_four_five(context):
    return np.concatenate([0.6 * context, 0.8 * context])


def not_turned(k, v, b_kv, b_d, turn):
    return b_kv + k.T @ v, b_d + k.sum(axis=0)


def start_not_turned(k, v, b_kv, b_d, turn):
    kv, d = solutions.convert(k, v, 0 * b_kv, b_d, turn)
    return kv + b_kv, d


def normalizer_turned(k, v, b_kv, b_d, turn):
    kv, d = solutions.convert(k, v, b_kv, 0 * b_d, turn)
    return kv, d + turn(-len(k)) @ b_d


def turned_by_its_own_length(k_1, v_1, k_2, v_2, turn):
    kv_1, kv_2 = (solutions.convert(k, v, np.zeros((4, 2)), 0, turn)[0]
                  for k, v in ((k_1, v_1), (k_2, v_2)))
    return turn(-len(k_1)) @ kv_1 + kv_2 - (turn(-len(k_2)) @ kv_2 + kv_1)


def errors_of_the_first_step(W0, X, Y, x, eta, steps):
    return W0 @ x - steps * eta / len(X) * (X @ W0.T - Y).T @ (X @ x)


def eta_twice(W0, eta, n):
    w_q, w_k, w_v, p = solutions.step_weights(W0, eta, n)
    return w_q, w_k * (eta / n), w_v, p


def nothing_erased(k, v, beta):
    effective = beta[:, None] * k
    return effective, effective.T @ v


def maps_on_the_wrong_side(k, v, alpha, beta):
    return solutions.gated_delta_map(k[::-1], v[::-1], alpha[::-1], beta[::-1])


def one_regression_for_all(q, k, v, beta, ridge, G, H):
    _, G, H = solutions.least_squares(q, k, v, beta, ridge, G, H)
    return q @ np.linalg.solve(H + ridge * np.eye(len(H)), G), G, H


def patch_of_one(w, z, z_in_context, i=0):
    return np.outer(w @ (z_in_context[i] - z[i]), z[i]) / (z[i] @ z[i])


def both_patches(w, z, z_in_context):
    return sum(patch_of_one(w, z, z_in_context, i) for i in (0, 1))


def rows_for_columns(words, path):
    solutions.draw_context(words[::-1], path)


def all_alike(words, path):
    solutions.draw_context(words, path)
    Path(path).write_text(re.sub('fill-opacity="[^"]*"', "", Path(path).read_text("utf-8")), "utf-8")


WRONG = [
    ("01", "linear_attention", two_sums_that_see_ahead,
     "right for one token; wrong for two tokens. Does a token see itself .*none after"),
    ("02", "absorb_for_one", unchanged_weights, "wrong for a prompt of 2 tokens"),
    ("02", "absorb_for_one", lambda x, context: (*solutions.absorb_for_one(x, context)[:2], x),
     "your weights are right for `other` too"),
    ("03", "same_bias", lambda context: context / 2, "XᵀX of your context: entry"),
    ("03", "same_bias", lambda context: -context, "minus one of the context's"),
    ("03", "same_bias", three_four_five, "right up to rounding only.*fractions.Fraction"),
    ("04", "bad_denominator", lambda turn: (np.ones(2), np.ones(2), 1),
     "right for quarter turns; wrong for 1 radian"),
    ("05", "convert", not_turned, "right for one token; wrong for two tokens. .*turned back"),
    ("05", "convert", start_not_turned, "four tokens; wrong for one token after .*b_kv: "),
    ("05", "convert", normalizer_turned, "wrong for one token after a start. .*b_D not.*b_d: "),
    ("05", "convert", lambda *a: solutions.convert(*a)[0], "expected 2 things, b_kv, b_d"),
    ("05", "convert", lambda *a: None, "is a return missing"),
    ("06", "forget", lambda kv, k, v, turn: kv - np.outer(k, v),
     "right for a text of one token; wrong for a text of two tokens. .*turned forward"),
    ("06", "forget", lambda *a: solutions.forget(*a).T, "shape is .*is it transposed"),
    ("06", "forget", lambda kv, k, v, turn: kv / 0, "not an array of finite numbers"),
    ("07", "order_matters", turned_by_its_own_length, "; wrong for contexts of 1 and 3"),
    ("07", "order_matters", lambda *a: -solutions.order_matters(*a), "minus what is expected"),
    ("08", "forgetful", lambda *a: checks.right_run(*a), "wrong for two tokens from a state"),
    ("09", "laws_broken", lambda *a: set(), "right for a right run; wrong for one that drops"),
    ("10", "trained_output", errors_of_the_first_step, "; wrong for two steps. .*after the"),
    ("11", "step_weights", eta_twice, "wrong for n = 1. .*Once or twice"),
    ("12", "equalizing_gamma", lambda a, b: 1 / (3 * max(a, b)), "they become .* and "),
    ("13", "train_on_bias", lambda b, W, eta, n, steps: solutions.train_on_bias(b, W, eta, n, 1),
     "right for one step; wrong for two steps. The second step starts"),
    ("14", "delta_bias", nothing_erased, "one token; wrong for two tokens. .*also erases"),
    ("15", "gated_delta_map", maps_on_the_wrong_side, "wrong for two tokens. .*on the left"),
    ("16", "least_squares", one_regression_for_all, "; wrong for three tokens. .*of its own"),
    ("17", "serve_two", patch_of_one, "patch of query 1 alone"),
    ("17", "serve_two", both_patches, "right angles; wrong for queries at an angle. .*interfere"),
    ("17", "serve_two", lambda w, z, c: w @ (c - z).T @ np.linalg.pinv(z.T), "expected None"),
    ("18", "draw_context", rows_for_columns, "wrong for “a b”. .*in the row of the first"),
    ("18", "draw_context", all_alike, "a share of the largest entry.*the opacity at"),
    ("18", "draw_context", lambda words, path: None, "no file was written"),
    ("18", "draw_context", lambda words, path: Path(path).write_text("b"), "not an SVG file"),
]


@pytest.mark.parametrize("number, name, wrong, message", WRONG)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_wrong_answer_hears_what_is_wrong(number, name, wrong, message, tmp_path):
    check, = (check for check in CHECKS if check.startswith(f"test_{number}"))
    with pytest.raises(pytest.fail.Exception) as failure:
        run(check, SimpleNamespace(**{**SOLUTIONS, name: wrong}), tmp_path)
    assert re.search(message, str(failure.value), re.S), str(failure.value)
    assert len(str(failure.value).splitlines()) < 15


def test_the_counterexample_of_the_derivation_is_right_and_an_argument_is_never_changed(tmp_path):
    def at_zero(x, context):
        w_1, w_2, _ = solutions.absorb_for_one(x, context)
        x[:] = context[:] = 0                                  # of the answer's own copies
        return w_1, w_2, np.zeros((1, len(x)), int)

    run("test_02_right_for_one_prompt", SimpleNamespace(absorb_for_one=at_zero), tmp_path)


def test_the_documented_command_skips_passes_and_explains_without_a_traceback(tmp_path):
    command = re.search(r"^    python (-m pytest .*)$", DESCRIPTIONS, re.M)[1].split()
    folder = tmp_path / "docs" / "exercises"
    folder.mkdir(parents=True)
    for file in "docs/exercises/check_exercises.py", "iclca_ref.py", "linear_transformer.py":
        shutil.copy(ROOT / file, tmp_path / file)
    ours = (FOLDER / "solutions.py").read_text("utf-8")
    unanswered_and_wrong = ("\n\ndef forget(kv, k, v, turn):\n    raise NotImplementedError\n"
                            "\n\ndef same_bias(context):\n    return context / 2\n")
    (folder / "answers.py").write_text(ours + unanswered_and_wrong, "utf-8")
    done = subprocess.run([sys.executable, *command, "-p", "no:cacheprovider"], cwd=tmp_path,
                          capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONUTF8": "1"})
    assert "1 failed, 16 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "same_bias: wrong for one token" in done.stdout and "def test_" not in done.stdout


def test_every_exercise_is_described_and_graded():
    graded = re.findall(r"^(\d+)\. \*\*.+\*\* ★{1,3} \d+ minutes", DESCRIPTIONS, re.M)
    assert graded == [str(i) for i in range(1, len(CHECKS) + 1)] and len(SOLUTIONS) == len(CHECKS)
    assert not [call for call in CALLS if f"`{call}`" not in DESCRIPTIONS]


def test_the_file_to_be_filled_has_every_exercise_unless_it_is_being_filled():
    text = (FOLDER / "answers.py").read_text("utf-8", "replace")
    if text.count("def ") != text.count("    raise NotImplementedError"):
        pytest.skip("answers.py has answers: it is the student's")
    assert re.findall(r"^def (.*):$", text, re.M) == CALLS
