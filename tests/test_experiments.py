"""The experiments: each runs with --quick, and its figures stay within the bounds that docs/results.md states."""

import re

import numpy as np
import pytest

import one_gd_step
import softmax_conversion


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


def test_landmarks_need_fewer_rows_than_random_features_and_sharp_attention_is_hard(capsys):
    output = run(softmax_conversion, capsys)
    rows = {tuple(line.split()[:2]): [float(x) for x in line.split()[2:]] for line in output.splitlines()[3:]}
    for sharpness in "0.25", "0.8", "3.0":
        dropped, random, landmark = (rows[sharpness, kind] for kind in ("dropped", "random", "landmark"))
        assert landmark[0] < random[0] < dropped[0] and landmark[1] < 2e-6       # m = 64 is all of the context
        assert random[2] < random[0]
    assert rows["0.8", "random"][2] < 0.25 and rows["0.8", "landmark"][0] < 0.16
    assert rows["3.0", "random"][2] > 0.7                                        # the approximation fails
