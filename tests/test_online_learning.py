"""Retention and the delta rule: recurrences whose state replaces the context."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (assert_close, assert_differ, assert_exactly_equal, attention_cases, fractions, realistic, rngs,
                   uniform)
from iclca_ref import delta_rule, gradient_descent, retention, retention_bias
from linear_transformer import Bias, recurrent_attention
from test_iclca import smallest

decays = st.fractions(0, 1, max_denominator=9).filter(lambda gamma: 0 < gamma < 1)


def start_of(case):
    return None if case.bias is None else case.bias.kv


@pytest.mark.proves("Theorem 4.5 for retention", "RetNet; Thm 4.5 with γⁿ")
@given(attention_cases(), decays)
def test_for_retention_a_context_in_front_equals_its_bias_with_the_decay(case, gamma):
    whole, state = retention(case.q, case.k, case.v, gamma, start_of(case), case.rope)
    _, k, v = case.context
    bias = retention_bias(k, v, gamma, start_of(case), case.rope)
    assert_exactly_equal(retention(*case.prompt, gamma, bias, case.rope), (whole[..., case.m:, :], state))
    assert_exactly_equal(retention(*case.context, gamma, start_of(case), case.rope)[1], bias)


@pytest.mark.proves("retention composes", "RetNet; §8")
@given(attention_cases(), decays)
def test_retention_biases_compose_and_gamma_one_is_linear_attention(case, gamma):
    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    first = retention_bias(k, v, gamma, start_of(case), case.rope)
    assert_exactly_equal(retention_bias(k_x, v_x, gamma, first, case.rope),
                         retention_bias(case.k, case.v, gamma, start_of(case), case.rope))
    o, state = recurrent_attention(case.q, case.k, case.v, case.bias, case.rope, normalize=False)
    assert_exactly_equal(retention(case.q, case.k, case.v, Fraction(1), start_of(case), case.rope), (o, state.kv))


@pytest.mark.breaks("retention composes", "γᴹ for the context before (the two biases added as they are)")
@given(attention_cases(least_context=1, least_prompt=1, rotated=st.just(False)), decays)
def test_adding_two_retention_biases_without_the_decay_fails(case, gamma):
    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    assert_differ(retention_bias(k, v, gamma) + retention_bias(k_x, v_x, gamma), retention_bias(case.k, case.v, gamma))


@given(attention_cases(), st.lists(decays, min_size=2, max_size=2))
def test_each_head_may_have_its_own_decay(case, gammas):
    gammas = fractions(gammas[:len(case.q)])
    o, state = retention(case.q, case.k, case.v, gammas, start_of(case), case.rope)
    for h, gamma in enumerate(gammas):
        start = None if case.bias is None else case.bias.kv[h]
        assert_exactly_equal((o[h], state[h]), retention(case.q[h], case.k[h], case.v[h], gamma, start, case.rope))


@pytest.mark.breaks("Theorem 4.5 for retention", "γᴹ beside R_{−M} (the start not decayed)")
@example(smallest._replace(bias=Bias(fractions([[1, 0], [0, 0]]), fractions([0, 0]))), Fraction(1, 2))
@given(attention_cases(least_context=1, least_prompt=1, biased=st.just(True)), decays)
def test_with_the_decay_left_out_of_the_shift_theorem_4_5_for_retention_fails(case, gamma):
    whole, _ = retention(case.q, case.k, case.v, gamma, start_of(case), case.rope)
    _, k, v = case.context
    undecayed = retention_bias(k, v, Fraction(1), start_of(case), case.rope)
    assert_differ(retention(*case.prompt, gamma, undecayed, case.rope)[0], whole[..., case.m:, :])


@st.composite
def delta_cases(draw, least=0):
    """A case of attention, one rate for each token, and a starting state or None."""
    case = draw(attention_cases(least_context=least, least_prompt=least, rotated=st.just(False)))
    beta = draw(rngs).integers(1, 9, case.k.shape[:-1])
    return case, fractions(beta) / 9


@pytest.mark.proves("Delta rule = online gradient descent", "DeltaNet")
@given(delta_cases())
def test_the_state_of_the_delta_rule_is_the_weight_matrix_of_online_gradient_descent(case):
    case, beta = case
    _, state = delta_rule(case.q, case.k, case.v, beta, start_of(case))
    for h in range(len(case.q)):
        W = 0 * state[h].T if case.bias is None else case.bias.kv[h].T
        for k, v, rate in zip(case.k[h], case.v[h], beta[h]):
            W, _, _ = gradient_descent(W, k[None], v[None], rate)      # one example: ½ ‖W k − v‖²
        assert_exactly_equal(state[h].T, W)


@pytest.mark.breaks("Delta rule = online gradient descent", "the error v − sᵀk (the value v itself: Hebb's rule, linear attention)")
@given(delta_cases(least=1))
def test_linear_attention_is_not_online_gradient_descent(case):
    case, beta = case
    _, state = delta_rule(case.q, case.k, case.v, beta)
    _, hebbian = recurrent_attention(case.q, beta[..., None] * case.k, case.v, normalize=False)
    assert_differ(hebbian.kv, state)


@pytest.mark.proves("Delta rule: the state replaces the context", "DeltaNet; part E")
@given(delta_cases())
def test_the_state_of_the_delta_rule_after_a_context_replaces_it(case):
    case, beta = case
    whole, state = delta_rule(case.q, case.k, case.v, beta, start_of(case))
    _, trained = delta_rule(*case.context, beta[..., :case.m], start_of(case))
    assert_exactly_equal(delta_rule(*case.prompt, beta[..., case.m:], trained), (whole[..., case.m:, :], state))


@pytest.mark.proves("Delta rule: the state replaces the context", "DeltaNet; part E")
@given(delta_cases())
def test_each_output_of_the_delta_rule_is_the_trained_layer_at_the_query(case):
    case, beta = case
    o, _ = delta_rule(case.q, case.k, case.v, beta, start_of(case))
    for i in range(case.q.shape[-2]):
        cut = slice(i + 1)
        _, state = delta_rule(case.q[:, cut], case.k[:, cut], case.v[:, cut], beta[:, cut], start_of(case))
        assert_exactly_equal(o[:, i], (case.q[:, i, None] @ state)[:, 0])


@pytest.mark.breaks("Delta rule: the state replaces the context", "the state itself (Σ β_j k_j v_jᵀ in its place)")
@example((smallest, fractions(["1/2", "1/2"])))
@given(delta_cases(least=1))
def test_the_sum_of_theorem_4_5_does_not_replace_the_context_of_a_delta_rule(case):
    case, beta = case
    whole, _ = delta_rule(case.q, case.k, case.v, beta, fractions(np.ones((case.k.shape[-1], case.v.shape[-1]), int)))
    _, k, v = case.context
    summed = 1 + (beta[..., :case.m, None] * k).swapaxes(-1, -2) @ v
    assert_differ(delta_rule(*case.prompt, beta[..., case.m:], summed)[0], whole[..., case.m:, :])


@pytest.mark.proves("Theorem 4.5 for retention", "RetNet; Thm 4.5 with γⁿ")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs, st.integers(0, 60))
def test_retention_and_delta_rule_convert_to_rounding_in_floating_point(dtype, rng, m):
    q, k, v, bias, rope = realistic(rng, dtype, n=m + 20)
    gamma, k = [0.9, np.full(k.shape[:-2], 0.97)][m % 2], k / k.shape[-1]
    context, prompt = [x[..., :m, :] for x in (q, k, v)], [x[..., m:, :] for x in (q, k, v)]
    whole, _ = retention(q, k, v, gamma, bias.kv, rope)
    converted = retention_bias(*context[1:], gamma, bias.kv, rope)
    assert_close(retention(*prompt, gamma, converted, rope)[0], whole[..., m:, :], ulps=100)
    beta = rng.random(k.shape[:-1]).astype(dtype)
    whole, _ = delta_rule(q, k, v, beta, bias.kv)
    _, state = delta_rule(*context, beta[..., :m], bias.kv)
    assert_close(delta_rule(*prompt, beta[..., m:], state)[0], whole[..., m:, :], ulps=100)


def test_integer_keys_do_not_round_a_decay():
    k = np.array([[1], [1], [1]])
    assert retention(k, k, k, 0.5)[0].ravel().tolist() == [1, 1.5, 1.75] and retention_bias(k, k, 0.5) == [[1.75]]
    assert retention(k.astype(np.float32), k.astype(np.float32), k.astype(np.float32), np.float64(0.1))[0].dtype == np.float32


def test_states_decays_and_rates_that_do_not_fit_are_refused():
    q = k = np.ones((2, 5, 4))
    v = np.ones((2, 5, 3))
    for make in partial(retention, q, k, v, 0.5), partial(delta_rule, q, k, v, np.ones((2, 5))), \
            partial(retention_bias, k, v, 0.5):
        for state in np.ones((2, 4, 4)), np.ones((1, 4, 3)), np.ones(4):
            with pytest.raises(ValueError, match="bias"):
                make(state=state)
    for gamma in np.ones(3), np.ones((2, 1)), np.ones((2, 5)):
        for make in partial(retention, q, k, v), partial(retention_bias, k, v):
            with pytest.raises(ValueError, match="gamma"):
                make(gamma)
    for beta in np.ones(5), np.ones((2, 1)), np.ones((2, 5, 1)):
        with pytest.raises(ValueError, match="beta"):
            delta_rule(q, k, v, beta)
    with pytest.raises(ValueError, match="must be"):
        delta_rule(q[:, :1], k, v, np.ones((2, 5)))
