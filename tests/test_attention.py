"""Linear attention: the three forms are one function, and it is causal."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (Case, assert_close, assert_differ, assert_exactly_equal, attention_cases, fractions, realistic, rngs,
                   uniform)
from linear_transformer import (Bias, chunked_attention, parallel_attention, recurrent_attention, softmax,
                                softmax_attention)

chunks = st.integers(1, 5)
one = fractions([[1], [1]])


@pytest.mark.proves("three forms, one function", "Eq 5, 13, 19")
@given(attention_cases(), chunks)
def test_the_recurrent_parallel_and_chunked_forms_of_attention_are_one_function(case, chunk):
    arguments = case.q, case.k, case.v, case.bias, case.rope, case.normalize
    definition = recurrent_attention(*arguments)
    assert_exactly_equal(parallel_attention(*arguments), definition)
    assert_exactly_equal(chunked_attention(*arguments, chunk=chunk), definition)


@pytest.mark.proves("three forms, one function", "Eq 5, 13, 19")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs, st.booleans())
def test_the_three_forms_agree_to_rounding_in_floating_point(dtype, rng, normalize):
    arguments = *realistic(rng, dtype), normalize
    definition = recurrent_attention(*arguments)
    assert_close(parallel_attention(*arguments), definition, ulps=200)   # 200 tokens are summed in different orders
    assert_close(chunked_attention(*arguments), definition, ulps=200)


@pytest.mark.breaks("three forms, one function", "the causal mask")
@example(Case(fractions([[1], [1]]), one, one, 0, None, None, False))
@given(attention_cases(least_prompt=2))
def test_without_the_mask_the_parallel_form_is_another_function(case):
    b = case.bias or Bias(0, 0)
    unmasked = case.q @ (case.k.swapaxes(-1, -2) @ case.v + b.kv)
    assert_differ(unmasked, parallel_attention(case.q, case.k, case.v, case.bias, normalize=False)[0])


@pytest.mark.proves("causality", "Def 3.3, Assumption 4.2")
@given(attention_cases(least_prompt=1), rngs)
def test_an_output_does_not_depend_on_later_tokens(case, rng):
    arguments = case.bias, case.rope, case.normalize
    whole = chunked_attention(case.q, case.k, case.v, *arguments, chunk=2)[0]
    changed = [np.concatenate([x[..., :case.m, :], uniform(rng, *x[..., case.m:, :].shape)], axis=-2)
               for x in (case.q, case.k, case.v)]
    assert_exactly_equal(chunked_attention(*changed, *arguments, chunk=2)[0][..., :case.m, :], whole[..., :case.m, :])


@pytest.mark.breaks("causality", "the mask (each token sees one ahead)")
@given(attention_cases(least_context=1, least_prompt=1, rotated=st.just(False)), rngs)
def test_with_a_mask_that_lets_each_token_see_one_ahead_it_is_not_causal(case, rng):
    def sees_ahead(k, v):
        return np.tril(case.q @ k.swapaxes(-1, -2), 1) @ v

    k, v = (np.concatenate([x[..., :case.m, :], uniform(rng, *x[..., case.m:, :].shape)], axis=-2) for x in (case.k, case.v))
    assert_differ(sees_ahead(k, v)[..., :case.m, :], sees_ahead(case.k, case.v)[..., :case.m, :])


def test_attention_is_the_formula_written_as_loops():
    rng = np.random.default_rng(0)
    q, k, v = rng.random((5, 2)), rng.random((5, 2)), rng.random((5, 3))
    expected = [[sum(q[i] @ k[j] * v[j, c] for j in range(i + 1)) / sum(q[i] @ k[j] for j in range(i + 1))
                 for c in range(3)] for i in range(5)]
    np.testing.assert_allclose(parallel_attention(q, k, v)[0], expected, rtol=1e-14)


def test_softmax_attention_is_the_formula_written_as_loops_and_keeps_its_type():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 5, 4)).astype(np.float32)
    expected = np.empty((2, 5, 4))
    for h in range(2):
        for i in range(5):
            w = np.exp([q[h, i] @ k[h, j] / 2 for j in range(i + 1)])     # √4 = 2
            expected[h, i] = w @ v[h, :i + 1] / w.sum()
    o = softmax_attention(q, k, v)
    assert o.dtype == np.float32
    np.testing.assert_allclose(o, expected, rtol=1e-5)
    assert softmax_attention(q[:, :0], k[:, :0], v[:, :0]).shape == (2, 0, 4)


def test_softmax_survives_large_scores_and_takes_each_row_on_its_own():
    np.testing.assert_array_equal(softmax(np.array([[1e4, 0.0, -1e4], [-2e4, -1e4, -2e4]])), [[1, 0, 0], [0, 1, 0]])


@given(rngs)
def test_one_bias_without_batch_axes_serves_the_whole_batch(rng):
    q, k = uniform(rng, 2, 3, 2, 4, 2)
    v, bias = uniform(rng, 3, 2, 4, 1), Bias(uniform(rng, 2, 2, 1), uniform(rng, 2, 2))
    for form in recurrent_attention, parallel_attention, partial(chunked_attention, chunk=3):
        o, (kv, d) = form(q, k, v, bias)
        assert kv.shape == (3, 2, 2, 1) and d.shape == (3, 2, 2)
        for b in range(3):
            assert_exactly_equal((o[b], (kv[b], d[b])), form(q[b], k[b], v[b], bias))


def test_a_normalizer_of_zero_is_refused():
    q, k, v = np.array([[1.0]]), np.array([[0.0]]), np.array([[1.0]])
    for form in recurrent_attention, parallel_attention, chunked_attention:
        with pytest.raises(ValueError, match="normalizer"):
            form(q, k, v)
        assert form(q, k, v, normalize=False)[0] == 0


def test_integers_stay_integers_without_a_normalizer():
    q, k, v = np.random.default_rng(0).integers(-9, 9, (3, 2, 5, 2))
    for form in recurrent_attention, parallel_attention, chunked_attention:
        for dtype in int, object:
            o, bias = form(q.astype(dtype), k.astype(dtype), v.astype(dtype), normalize=False)
            assert {a.dtype for a in (o, *bias)} == {np.dtype(dtype)}
            assert {type(x) for a in (o, *bias) for x in a.ravel().tolist()} == {int}
