"""Dai et al.'s measures, and the model of docs/experiments/icl_vs_finetuning.py that descends."""

import numpy as np
import pytest

from icl_vs_finetuning import (N, QUERIES, UP_TO_ITSELF, built, cosine, in_context, rec_to_ftp, run,
                               sim_am, sim_aou, tasks, unit)
from iclca_ref import lsa


# ---- The measures --------------------------------------------------------------------------------

def test_the_three_measures_take_their_known_values():
    zero_shot = np.array([[[1.0, 0.0]], [[2.0, 0.0]]])              # two examples, one layer, width 2
    icl = np.array([[[0.0, 3.0]], [[0.0, 5.0]]])
    tuned = np.array([[[0.0, 1.0]], [[0.0, -1.0]]])
    # updates (−1, 1) and (−1, ±1): cosines 1 and 0
    assert sim_aou(icl, tuned, zero_shot) == pytest.approx(0.5)
    assert sim_aou(icl, icl, zero_shot) == pytest.approx(1)
    weights = np.array([[[[1.0, 0.0]], [[3.0, 4.0]]]])              # two layers, one head, two tokens
    assert sim_am(weights, np.array([[[[0.0, 2.0]], [[6.0, 8.0]]]])) == pytest.approx(0.5)
    right = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 1, 0]], bool)   # ICL, tuned, zero-shot
    assert rec_to_ftp(*right) == 0.5


def test_the_measures_do_not_depend_on_the_scale_and_keep_float32():
    a, b, c = np.random.default_rng(0).standard_normal((3, 4, 2, 5)).astype(np.float32)
    assert sim_aou(a, b, c).dtype == sim_am(a, b).dtype == np.float32
    assert sim_aou(7 * a, b, c / 3) == pytest.approx(sim_aou(a, b, c), rel=1e-5)
    assert sim_am(a, -2 * a) == pytest.approx(-1)


@pytest.mark.parametrize("size", [3e38, 1e20, 3e-23, 1e-45])
def test_the_directions_of_very_long_and_very_short_vectors_are_right(size):
    a = np.array([size, 0, -size], np.float32)
    assert unit(a) == pytest.approx(np.array([0.5**0.5, 0, -0.5**0.5]), rel=1e-6)
    assert cosine(a, np.array([size, size, 0], np.float32)) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("width, expected", [(2, 4 / np.pi**2), (9, 0.4847), (400, 0.5)])
def test_the_sim_aou_of_noise_is_one_half_for_wide_vectors_only(width, expected):
    """At width 2 it is the mean cosine of an angle of a triangle inscribed in the unit circle."""
    noise = np.random.default_rng(0).standard_normal((3, 200_000 // width, 1, width))
    cosines = [sim_aou(*part) for part in np.array_split(noise, 20, axis=1)]
    assert abs(np.mean(cosines) - expected) < 6 * np.std(cosines) / 20**0.5
    assert np.std(cosines) / 20**0.5 < 0.002


def test_the_measures_refuse_vectors_without_a_direction_and_shapes_that_differ():
    one, zero = np.ones((1, 1, 2)), np.zeros((1, 1, 2))
    for bad in zero, one * np.nan, one * np.inf, one[:, :0]:
        with pytest.raises(ValueError, match="neither 0"):
            sim_am(bad, one[:, :bad.shape[1]])
    for arguments in (zero, one, one), (one, one, one), (one, one, one[..., :1]), (one[:0],) * 3:
        with pytest.raises(ValueError):
            sim_aou(*arguments)
    for call in lambda: sim_am(one, one[..., :1]), lambda: cosine(one, one[0]):
        with pytest.raises(ValueError, match="one shape"):
            call()


def test_the_share_of_what_is_corrected_needs_booleans_of_one_shape_and_something_corrected():
    yes = np.array([True, True])
    with pytest.raises(ValueError, match="corrects none of the 2"):
        rec_to_ftp(yes, yes, yes)
    with pytest.raises(ValueError, match="one shape"):
        rec_to_ftp(yes[:1], yes, ~yes)
    ones, zeros = 1 * yes, 0 * yes
    for arguments in (ones, ones, zeros), (ones, yes, ~yes), (yes, ones, ~yes), (yes, yes, zeros):
        with pytest.raises(TypeError, match="booleans"):
            rec_to_ftp(*arguments)


# ---- The model -----------------------------------------------------------------------------------

def descended(demonstrations, queries):
    """The predictions of two of von Oswald's layers."""
    for weights in built():
        demonstrations, queries = lsa(demonstrations, queries, weights)
    return -queries[..., -1]


def test_in_context_the_built_model_is_the_layers_of_proposition_1():
    demonstrations, queries, _ = tasks(np.random.default_rng(0), 5)
    predictions, _, _, _ = in_context(demonstrations, queries, built())
    expected = descended(demonstrations, queries)
    assert expected.shape == (5, QUERIES) and abs(expected).mean() > 0.1
    assert abs(predictions[:, N:] - expected).max() < 1e-13


def test_if_query_tokens_are_read_too_the_model_is_not_those_layers():
    demonstrations, queries, _ = tasks(np.random.default_rng(0), 5)
    tokens = np.concatenate([demonstrations, queries], axis=1)
    predictions, _, _, _ = run(tokens, built(), np.tri(N + QUERIES))
    assert abs(predictions[:, N:] - descended(demonstrations, queries)).mean() > 0.01


def test_without_demonstrations_the_built_model_predicts_0_and_its_outputs_have_a_direction():
    _, queries, _ = tasks(np.random.default_rng(0), 5)
    predictions, outputs, _, _ = run(queries, built(), UP_TO_ITSELF)
    assert (predictions == 0).all()
    assert (unit(np.stack(outputs)) ** 2).sum(axis=-1) == pytest.approx(np.ones((2, 5)))
