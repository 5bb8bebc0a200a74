"""Dai et al.'s measures, and what the scripts on trained models are made of."""

import numpy as np
import pytest

import trained_biases
from arguments import refused
from exact import flat
from icl_vs_finetuning import cosine, outputs, rec_to_ftp, settings, sim_aou, tuned
from linear_transformer import forward
from trained_induction import TRIGGER, attention_weights, last_logits, random_model, train


def test_the_three_measures_take_their_known_values():
    zero_shot = np.array([[[1.0, 0.0]], [[2.0, 0.0]]])            # two examples, one layer, width 2
    icl = np.array([[[0.0, 3.0]], [[0.0, 5.0]]])
    tuned = np.array([[[0.0, 1.0]], [[0.0, -1.0]]])               # updates (−1, 1) and (−1, ±1)
    assert sim_aou(icl, tuned, zero_shot) == pytest.approx(0.5)
    assert sim_aou(7 * icl, icl, zero_shot / 3) == pytest.approx(1)
    weights = np.array([[[1.0, 0.0]], [[3.0, 4.0]]])              # two layers, one head, two tokens
    assert cosine(weights, np.array([[[0.0, 2.0]], [[6.0, 8.0]]])).ravel() == pytest.approx([0, 1])
    right = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 1, 0]], bool)   # ICL, tuned, zero-shot
    assert rec_to_ftp(*right) == 0.5 and np.isnan(rec_to_ftp(*right[[0, 1, 1]]))


@pytest.mark.parametrize("size", [3e38, 1e20, 3e-23, 1e-45])
def test_the_directions_of_very_long_and_very_short_vectors_are_right(size):
    a = np.array([size, 0, -size], np.float32)
    assert cosine(a, np.array([size, size, 0], np.float32)) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("width, expected", [(2, 4 / np.pi**2), (9, 0.4847), (400, 0.5)])
def test_the_sim_aou_of_noise_is_one_half_for_wide_vectors_only(width, expected):
    noise = np.random.default_rng(0).standard_normal((3, 200_000 // width, 1, width))
    cosines = [sim_aou(*part) for part in np.array_split(noise, 20, axis=1)]
    assert abs(np.mean(cosines) - expected) < 6 * np.std(cosines) / 20**0.5 < 0.012


one, yes = np.ones((1, 1, 2)), np.array([True, True])
test_mistakes = refused(
    *(("neither 0", lambda bad=bad: cosine(bad, one[:, :bad.shape[1]]))
      for bad in (0 * one, one * np.nan, one * np.inf, one[:, :0])),
    ("same shape", lambda: sim_aou(one, one, one[..., :1])),
    ("same shape", lambda: rec_to_ftp(yes, yes, ~yes[:1])),
    ("b (1, 2)", lambda: cosine(one, one[0])), ("cast", lambda: rec_to_ftp(1 * yes, yes, ~yes)))


def test_the_attention_weights_are_those_that_make_the_output():
    model = random_model(np.random.default_rng(0), np.float64)
    still = model._replace(layers=tuple(x._replace(theta=0 * x.theta) for x in model.layers))
    text = np.arange(9)
    assert attention_weights(still, text).sum(axis=-1) == pytest.approx(np.ones((2, 2, 9)))
    per_head = model.norm(model.embed[text]) @ model.layers[0].w_v
    written = (attention_weights(model, text)[0] @ per_head @ model.layers[0].w_o).sum(axis=0)
    assert outputs(model, text[None], 1)[1][0, 0] == pytest.approx(written[-1])


def test_the_settings_differ_in_what_they_say_and_the_step_learns_its_answer():
    model, rng = random_model(np.random.default_rng(0), np.float64), np.random.default_rng(1)
    context, answers, found = settings(model, rng, 5, 1)
    text, place = np.nonzero(context == TRIGGER)
    assert (context[text, place + 1] == answers).all()
    logits = last_logits(model, context)
    assert (found["in context"][0] == logits[0].argmax(axis=-1)).all()
    assert abs(logits[0] - logits[2]).max() < 1e-12 < abs(logits[0] - logits[1]).max()
    p = [forward(m, [TRIGGER])[0][0, 7] for m in (model, tuned(model, 7))]
    assert p[1] > p[0]


def test_training_is_repeated_bit_by_bit_and_the_biases_are_constrained():
    start, constrain = trained_biases.ZEROS, trained_biases.ARMS["b_D >= 0"]
    one, other = (flat([*train(3, 8, 2, 1e-2, start, constrain)][-1][3:]) for _ in range(2))
    assert all((x == y).all() for x, y in zip(one, other))
    assert all(kv.any() and (d >= 0).all() for kv, d in (one[-4:-2], one[-2:]))
    assert {x.dtype for x in one if x.dtype.kind == "f"} == {np.dtype(np.float32)}
