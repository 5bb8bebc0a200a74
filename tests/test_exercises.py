"""docs/exercises, but for answers.py, the student's: wrong answers hear what is wrong with them."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from iclca_ref import fitted_bias

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "exercises"
DESCRIPTIONS = (ROOT / "docs" / "exercises.md").read_text("utf-8")
sys.path.append(str(FOLDER))
ours = pytest.importorskip("solutions", reason="handed out without the solutions")
checks = pytest.importorskip("test_answers")
SOLUTIONS = {name: f for name, f in vars(ours).items() if inspect.isfunction(f)}
CALLS = [f"{name}{inspect.signature(f)}" for name, f in SOLUTIONS.items()]


def turned_by_its_own_length(k_1, v_1, k_2, v_2, turn):
    kv_1, kv_2 = (ours.convert(k, v, np.zeros((4, 2)), 0, turn)[0]
                  for k, v in ((k_1, v_1), (k_2, v_2)))
    return turn(-len(k_1)) @ kv_1 + kv_2 - (turn(-len(k_2)) @ kv_2 + kv_1)


@pytest.mark.parametrize("name, right", SOLUTIONS.items())
def test_a_right_answer_passes_rounded_too(name, right):
    def rounded(answer):
        if isinstance(answer, tuple):
            return list(map(rounded, answer))
        return answer * (1 + 1e-13) if isinstance(answer, np.ndarray) else answer

    checks.check(name, SimpleNamespace(**{name: lambda *given: rounded(right(*given))}))


WRONG = [
    ("linear_attention", lambda q, k, v: q @ (k.T @ v) / (q @ k.sum(axis=0))[:, None],
     "right for one token; wrong for two tokens. Does a token see itself .*none after"),
    ("absorb_for_one", lambda x, c: (np.eye(len(x)), np.eye(len(x)), 0 * c), "a prompt of 2 token"),
    ("absorb_for_one", lambda x, c: (*ours.absorb_for_one(x, c)[:2], x), "right for `other` too"),
    ("same_bias", lambda c: np.divide(c, 2, out=c), "XᵀX of your context: .* 0.25 times .*c = "),
    ("same_bias", lambda context: -context, "minus one of the context's"),
    ("bad_denominator", lambda turn: (np.ones(2), np.ones(2), 1), "for 90°; wrong for 50°"),
    ("bad_denominator", lambda turn: (np.ones(2), -np.ones(2), 4), "two positive features each"),
    ("convert", lambda k, v, b, d, turn: (b + k.T @ v, d + k.sum(axis=0)),
     "right for one token; wrong for three tokens. .*turned back"),
    ("convert", lambda k, v, b, d, turn: (b + ours.convert(k, v, 0 * b, d, turn)[0], d + k.sum(0)),
     "right for .*three tokens; wrong for one token after .*b_kv: "),
    ("convert", lambda k, v, b, d, turn: ours.convert(k, v, turn(1) @ b, d, turn), "after a start"),
    ("convert", lambda k, v, b, d, turn: ours.convert(k, v, b, 0 * d, turn), "b_D not.*b_d: entry"),
    ("convert", lambda *a: ours.convert(*a)[0], "expected 2 things, b_kv, b_d"),
    ("forget", lambda kv, k, v, turn: kv - np.outer(k, v), "wrong for a text of two .*forward"),
    ("forget", lambda *a: ours.forget(*a).T, "the transpose of what is expected"),
    ("forget", lambda kv, *a: kv[0], r"one token.\n  its shape is \(2,\), expected \(4, 2\)"),
    ("forget", lambda *a: None, "is a return missing"),
    ("forget", lambda *a: "b", "cannot be used: .* to float: 'b'"),
    ("order_matters", turned_by_its_own_length, "; wrong for contexts of 1 and 3"),
    ("order_matters", lambda *a: -ours.order_matters(*a), "-1 times what is expected"),
    ("forgetful", lambda *a: checks.run_with("none", *a), "wrong for two tokens from a state"),
    ("forgetful", lambda *a: (ours.forgetful(*a)[0], a[3]), "state: its shape is"),
    ("laws_broken", lambda *a: set(), "right for a right run; wrong for one that drops"),
    ("states_at_once", lambda a, b: (b, np.append(b[0], a[1:] * b[:-1] + b[1:])), "by_doubling: "),
    ("states_at_once", lambda *a: ours.states_at_once(*a)[1:] * 2, "is it the two sums"),
    ("trained_output", lambda *a: ours.trained_output(*a[:4], a[4] * a[5], 1),
     "; wrong for two steps. .*after the"),
    ("step_weights", lambda W0, eta, n: ours.step_weights(W0, eta * eta / n, n),
     "wrong for n = 1. .*Once or twice"),
    ("step_weights", lambda *a: (*ours.step_weights(*a)[:3], 2 * np.eye(5)), "P must be.* 2 t"),
    ("equalizing_gamma", lambda a, b: 1 / (3 * max(a, b)), "they become .* and "),
    ("train_on_bias", lambda *a: ours.train_on_bias(*a[:4], 1), "one step; wrong for two"),
    ("keys_gradient", lambda *a: ours.keys_gradient(*(x[::-1] for x in a[:4]), a[4])[::-1],
     "right for one token; wrong for three tokens. .*time runs backwards"),
    ("keys_gradient", lambda *a: ours.keys_gradient(*a[:4], 0 * a[4]), "last state counts. .*Gᵀ"),
    ("virtual_context", lambda q, k, b, g, eta, turn: (q, -eta * g), "nothing turned.*divided by"),
    ("virtual_context", lambda *a: (a[0], ours.virtual_context(*a)[1]), "; wrong for three .*at 0"),
    ("learn_context", lambda *a: ours.learn_context(*a[:3], a[3] / 2, a[4]), "kv: it is 0.5 times"),
    ("learn_context", lambda *a: (ours.learn_context(*a)[0], a[2][0]), "blind: training changes"),
    ("learn_context", lambda *a: (ours.learn_context(*a)[0], np.zeros(3)), "in context is 0"),
    ("delta_bias", lambda k, v, beta: ((k.T * beta).T, k.T * beta @ v), "two tokens. .*erases"),
    ("delta_bias", lambda *a: [x * 1.0000001 for x in ours.delta_bias(*a)], "effective: .* 1.0"),
    ("delta_bias", lambda k, v, b: (ours.delta_bias(k, v, b)[0], k.T @ v), "state: it is"),
    ("delta_bias", lambda k, v, b: [x * v.any() for x in ours.delta_bias(k, v, b)],
     "s: wrong for one token. Here v is 0"),
    ("best_shares", lambda *a: ours.best_shares(*a)[::-1], "A_Rᵀ A_R best"),
    ("best_shares", lambda A, rows: (np.linalg.pinv(A[:, rows]) @ A, ours.best_shares(A, rows)[1]),
     "kept; wrong for more tokens kept than queries. A kept token stands for itself"),
    ("best_shares", lambda *a: (ours.best_shares(*a)[0],) * 2, "merged: entry"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG)
def test_a_wrong_answer_hears_what_is_wrong(name, wrong, message):
    with pytest.raises(pytest.fail.Exception) as failure:
        checks.check(name, SimpleNamespace(**{name: wrong}))
    assert re.search(message, str(failure.value), re.S), str(failure.value)
    assert len(str(failure.value).splitlines()) < 12


def test_the_best_bias_of_positive_shares_lies_between_the_two_of_the_exercise():
    for _, _, (A, rows), _ in checks.EXERCISES["best_shares"](np.random.default_rng()):
        best, merged = ours.best_shares(A, rows)
        shares = best, fitted_bias(A, np.eye(A.shape[1]), rows).kv, merged
        assert (np.diff([np.linalg.norm(A[:, rows] @ E - A) for E in shares]) >= -1e-12).all()


@pytest.mark.parametrize("written, command, said", [
    ([f"def {call}: raise NotImplementedError\n" for call in CALLS], "-m pytest docs/exercises",
     ["0 of 19 attempted: edit docs/exercises/answers.py", "19 skipped"]),
    ([inspect.getsource(ours), "\ndef forget(kv, *other): return kv[9]\n",
      "\ndef same_bias(context): return context / 2\n"], "docs/exercises/test_answers.py",
     ["19 of 19 attempted, 17 right", "same_bias: wrong for", "IndexError", "forget was called"]),
    (["def convert(k, v:\n"], "docs/exercises/test_answers.py -k 05", ["SyntaxError"])])
def test_a_students_run_in_a_plain_folder_says_what_matters(written, command, said, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "docs" / "exercises")
    for name in "pyproject.toml", "iclca_ref.py", "linear_transformer.py":
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs" / "exercises" / "answers.py").write_text("".join(written), "utf-8")
    done = subprocess.run([sys.executable, "-Xutf8", *command.split(), "-pno:cacheprovider"],
                          cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert not [x for x in said if x not in done.stdout], done.stdout + done.stderr
    assert "def check" not in done.stdout and "def test_" not in done.stdout, done.stdout


def test_every_exercise_is_described_graded_and_has_a_place_for_its_answer():
    graded = re.findall(r"^(\d+)\. \*\*.+\*\* ★{1,3} \d+ minutes", DESCRIPTIONS, re.M)
    assert graded == [str(i) for i in range(1, len(CALLS) + 1)]
    assert list(checks.EXERCISES) == list(SOLUTIONS)
    assert not [call for call in CALLS if f"`{call}`" not in DESCRIPTIONS]
    answers = (FOLDER / "answers.py").read_text("utf-8", "replace")
    if answers.count("def ") == answers.count(": raise NotImplementedError"):  # not being filled in
        assert re.findall("^def (.*): raise", answers, re.M) == CALLS
