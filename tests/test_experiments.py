"""The experiments: each runs with --quick, its figures hold, its gradients are derivatives."""

import functools
import importlib
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import deeper_layers
import icl_vs_finetuning
import one_gd_step
import speed
from iclca_ref import LSA
from linear_transformer import chunked_attention

DOCS = Path(__file__).parent.parent / "docs"
SCRIPTS = sorted(path.stem for path in (DOCS / "experiments").glob("*.py"))
NUMBER = r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?"
ROW = rf"^\| (\w+) \| ([^|]+) \| (\d+) \| ({NUMBER}) \| ({NUMBER}) to ({NUMBER}) \|$"
FIGURES = re.findall(ROW, (DOCS / "results.md").read_text("utf-8"), re.M)


@functools.cache
def quick_run(script):
    """What the script prints with --quick."""
    output = io.StringIO()
    with redirect_stdout(output):
        importlib.import_module(script).main(["--quick"])
    return output.getvalue()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_experiment_runs_prints_a_table_and_explains_its_options(script, capsys):
    assert len(quick_run(script).splitlines()) >= 2
    assert max(map(len, quick_run(script).splitlines())) <= 100
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--help"])
    assert stop.value.code == 0 and "--quick" in capsys.readouterr().out


@pytest.mark.parametrize("script, line, place, documented, low, high", FIGURES,
                         ids=[f"{script}: {line}, {place}" for script, line, place, *_ in FIGURES])
def test_the_documented_quick_figures_hold(script, line, place, documented, low, high):
    lines = (" ".join(text.split()) for text in quick_run(script).splitlines())
    rest = next(text[len(line):] for text in lines if re.match(rf"{re.escape(line)}\b", text))
    found = re.findall(NUMBER, rest)[int(place) - 1].replace(",", "")
    for figure in documented, found:
        assert float(low) <= float(figure) <= float(high)


def test_every_experiment_has_a_documented_figure():
    assert {script for script, *_ in FIGURES} == set(SCRIPTS)


def derivative(loss, x, direction, h=1e-5):
    return (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)


def test_the_gradients_written_by_hand_are_the_derivatives_of_the_loss():
    rng = np.random.default_rng(0)
    weights = LSA(*rng.normal(0, 0.5, (4, 11, 11)))
    batch = context, query, answer = one_gd_step.tasks(rng, 3)
    for name, gradient in zip(weights._fields, one_gd_step.gradients(weights, *batch)):
        def loss(w):
            changed = weights._replace(**{name: w})
            return np.mean((one_gd_step.predict(changed, context, query) - answer) ** 2)

        direction = rng.standard_normal((11, 11))
        by_hand = (gradient * direction).sum()
        assert derivative(loss, getattr(weights, name), direction) == pytest.approx(by_hand, rel=1e-6)


def test_the_gradients_of_the_recurrent_layer_are_the_derivatives_of_its_loss():
    rng = np.random.default_rng(0)
    A, B, direction = 0.1 * rng.standard_normal((3, 11, 11))
    context, query, answer = one_gd_step.tasks(rng, 3)
    tokens = np.concatenate([context, query], axis=1)
    for layers in 1, 2, 3:
        def loss(A, B):
            return deeper_layers.loss_and_gradients(A, B, layers, tokens, answer)[0]

        _, d_A, d_B = deeper_layers.loss_and_gradients(A, B, layers, tokens, answer)
        by_A = derivative(lambda A: loss(A, B), A, direction)
        by_B = derivative(lambda B: loss(A, B), B, direction)
        assert by_A == pytest.approx((d_A * direction).sum(), rel=1e-5)
        assert by_B == pytest.approx((d_B * direction).sum(), rel=1e-5)


@pytest.mark.parametrize("reads", [np.eye(5), np.tri(5)], ids=["each alone", "up to itself"])
def test_the_gradients_of_fine_tuning_are_the_derivatives_of_its_loss(reads):
    rng = np.random.default_rng(0)
    layers = [LSA(*0.4 * rng.standard_normal((4, 1, 9, 9))) for _ in range(2)]
    tokens, targets = rng.standard_normal((1, 5, 9)), rng.standard_normal((1, 5))
    for i, gradients in enumerate(icl_vs_finetuning.gradients(tokens, targets, layers, reads)):
        for name, gradient in zip(("w_k", "w_v"), gradients):
            def loss(w):
                changed = layers[:i] + [layers[i]._replace(**{name: w})] + layers[i + 1:]
                predictions, _, _, _ = icl_vs_finetuning.run(tokens, changed, reads)
                return 0.5 * np.mean((predictions - targets) ** 2)

            direction = rng.standard_normal((1, 9, 9))
            by_hand = pytest.approx((gradient * direction).sum(), rel=1e-5)
            assert derivative(loss, getattr(layers[i], name), direction) == by_hand


@pytest.mark.parametrize("n", [1, 32, 70])
def test_the_loop_that_speed_is_measured_against_computes_the_same_attention(n):
    arguments = speed.qkv(np.random.default_rng(0), n)
    expected, _ = chunked_attention(*arguments)
    assert speed.loop_in_place(*arguments) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert abs(expected).max() > 0.5
