"""The experiments: each runs with --quick, and its figures stay within the bounds that docs/results.md states."""

import re

import numpy as np
import pytest

import one_gd_step


def run(script, capsys, *arguments):
    """What the script prints with --quick."""
    script.main(["--quick", *arguments])
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    return output


def figures(output, label):
    """The numbers on the first line that starts with the label."""
    line = next(line for line in output.splitlines() if line.startswith(label))
    return [float(x.replace(",", "")) for x in re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", line[len(label):])]


def test_a_trained_layer_is_one_gradient_step(capsys):
    output = run(one_gd_step, capsys)
    assert abs(figures(output, "relative difference")[0]) < 1          # per cent
    assert figures(output, "cosine of sensitivities")[0] > 0.99
    diagonal, spread, expected = figures(output, "diagonal of the products")
    assert abs(diagonal / expected - 1) < 0.02 and spread < 0.01


def test_the_gradients_written_by_hand_are_the_derivatives_of_the_loss():
    rng = np.random.default_rng(0)
    weights = one_gd_step.LSA(*rng.normal(0, 0.5, (4, 11, 11)))
    batch = context, query, answer = one_gd_step.tasks(rng, 3)

    def loss(weights):
        return np.mean((one_gd_step.predict(weights, context, query) - answer) ** 2)

    gradients = one_gd_step.gradients(weights, *batch)
    for name, gradient in zip(weights._fields, gradients):
        direction = rng.standard_normal((11, 11))
        up, down = (weights._replace(**{name: getattr(weights, name) + s * 1e-5 * direction}) for s in (1, -1))
        assert (loss(up) - loss(down)) / 2e-5 == pytest.approx((gradient * direction).sum(), rel=1e-6)
