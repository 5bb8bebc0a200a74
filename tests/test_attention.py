"""Linear attention: the three forms are one function, and it is causal."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (Case, assert_close, assert_differ, assert_exactly_equal, assert_proved,
                   assert_refuted, attention_cases, every, fractions, realistic, rngs, shapes,
                   symbolic_case, uniform)
from iclca_ref import attention_bias
from linear_transformer import (chunked_attention, parallel_attention, recurrent_attention,
                                softmax, softmax_attention)

one = fractions([[1], [1]])
options = dict(rotated=(False, True), started=(False, True), normalized=(False, True))
SHAPES = shapes(every(m=(0,), n=range(4), pairs=(1, 2), d_v=(1,), **options)
                + every(m=(0,), n=(3,), heads=(2,), pairs=(2,), d_v=(3,), **options),
                every(m=(0,), n=range(5), heads=(1, 2), pairs=(1, 2), d_v=(1, 2, 3), **options))


def arguments(case):
    return case.q, case.k, case.v, case.bias, case.rope, case.normalize


# ---- Three forms, one function ----------------------------------------------------------------------

@pytest.mark.proves("three forms, one function", "Eq 5, 13, 19")
@given(attention_cases(), st.integers(1, 5))
def test_the_recurrent_parallel_and_chunked_forms_of_attention_are_one_function(case, chunk):
    definition = recurrent_attention(*arguments(case))
    assert_exactly_equal(parallel_attention(*arguments(case)), definition)
    assert_exactly_equal(chunked_attention(*arguments(case), chunk=chunk), definition)


@pytest.mark.proves("three forms, one function", "Eq 5, 13, 19")
def test_the_three_forms_are_the_same_polynomials():
    for shape in SHAPES:
        case = symbolic_case(**shape)
        definition = recurrent_attention(*arguments(case))
        assert_proved(parallel_attention(*arguments(case)), definition, **shape)
        assert_proved(chunked_attention(*arguments(case), chunk=2), definition, **shape)


@pytest.mark.proves("three forms, one function", "Eq 5, 13, 19")
def test_the_three_forms_are_the_same_polynomials_across_the_chunk_of_32():
    shape = dict(m=0, n=35, started=True)
    case = symbolic_case(**shape)
    definition = recurrent_attention(*arguments(case))
    assert_proved(parallel_attention(*arguments(case)), definition, **shape)
    assert_proved(chunked_attention(*arguments(case)), definition, **shape)


@pytest.mark.proves("one token more is one token from the state", "§7, Eq 19")
def test_a_text_is_its_last_token_read_from_the_state_of_those_before_in_all_three_forms():
    """The step of the induction over the length, at any place: the state is seen from the next token."""
    for shape in every(m=(1, 2, 3), n=(1,), pairs=(1, 2), d_v=(1,), **options):
        case = symbolic_case(**shape)
        for attend in recurrent_attention, parallel_attention, partial(chunked_attention, chunk=2):
            o, last = attend(*arguments(case))
            _, state = attend(*case.context, *arguments(case)[3:])
            assert_proved(attend(*case.prompt, state, *arguments(case)[4:]), (o[..., case.m:, :], last), **shape)


@pytest.mark.breaks("one token more is one token from the state", "the state in the frame of the first token")
def test_from_the_state_in_the_frame_of_the_first_token_the_next_output_is_another_polynomial():
    case = symbolic_case(1, 1, rotated=True)
    o, _ = recurrent_attention(*arguments(case))
    _, state = recurrent_attention(*case.context, *arguments(case)[3:])
    turned = state.turned(case.rope, 1)
    assert_refuted(recurrent_attention(*case.prompt, turned, *arguments(case)[4:])[0], o[..., 1:, :])


@pytest.mark.proves("three forms, one function", "Eq 5, 13, 19")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs, st.booleans())
def test_the_three_forms_agree_to_rounding_in_floating_point(dtype, rng, normalize):
    given_arguments = *realistic(rng, dtype, n=80), normalize
    definition = recurrent_attention(*given_arguments)
    assert_close(parallel_attention(*given_arguments), definition, ulps=100)   # 80 tokens, summed in other orders
    assert_close(chunked_attention(*given_arguments), definition, ulps=100)


@pytest.mark.breaks("three forms, one function", "attention without the causal mask")
@example(Case(fractions([[1], [1]]), one, one, 0, None, None, False))
@given(attention_cases(least_prompt=2))
def test_without_the_mask_the_parallel_form_is_another_function(case):
    unmasked = case.q @ attention_bias(case.k, case.v, case.bias).kv
    assert_differ(unmasked, parallel_attention(case.q, case.k, case.v, case.bias, normalize=False)[0])


@pytest.mark.breaks("three forms, one function", "attention without the causal mask")
def test_without_the_mask_two_tokens_give_other_polynomials():
    q, k, v, *_ = symbolic_case(0, 2)
    difference = assert_refuted(q @ attention_bias(k, v).kv, parallel_attention(q, k, v, normalize=False)[0])
    assert str(difference) == "k0_1_0*q0_0_0*v0_1_0 + k0_1_1*q0_0_1*v0_1_0"       # q₁·k₂ v₂: the look ahead


# ---- Causality --------------------------------------------------------------------------------------

def first_tokens(case, attend=chunked_attention):
    """The outputs of the first m tokens, with the others after them."""
    return attend(*arguments(case))[0][..., :case.m, :]


@pytest.mark.proves("causality", "Def 3.3, Assumption 4.2")
@given(attention_cases(least_context=1))
def test_an_output_does_not_depend_on_later_tokens(case):
    q, k, v = case.context
    alone = case._replace(q=q, k=k, v=v)
    for attend in recurrent_attention, parallel_attention, partial(chunked_attention, chunk=2):
        assert_exactly_equal(first_tokens(case, attend), first_tokens(alone, attend))


@pytest.mark.proves("causality", "Def 3.3, Assumption 4.2")
def test_an_output_holds_no_variable_of_a_later_token():
    for shape in every(m=(1, 2), n=(1, 2), **options):
        case = symbolic_case(**shape)
        q, k, v = case.context
        for attend in recurrent_attention, parallel_attention, partial(chunked_attention, chunk=2):
            assert_proved(first_tokens(case, attend), first_tokens(case._replace(q=q, k=k, v=v), attend), **shape)


@pytest.mark.breaks("causality", "attention without the causal mask")
@given(attention_cases(least_context=1, least_prompt=1), rngs)
def test_without_the_mask_attention_is_not_causal(case, rng):
    k, v = (np.concatenate([x[..., :case.m, :], uniform(rng, *x[..., case.m:, :].shape)], axis=-2)
            for x in (case.k, case.v))
    unmasked, changed = (case.q @ attention_bias(k, v).kv for k, v in ((case.k, case.v), (k, v)))
    assert_differ(unmasked[..., :case.m, :], changed[..., :case.m, :])


@pytest.mark.breaks("causality", "attention without the causal mask")
def test_without_the_mask_an_output_holds_variables_of_a_later_token():
    q, k, v, *_ = symbolic_case(1, 1)
    assert_refuted((q @ attention_bias(k, v).kv)[:, :1], (q[:, :1] @ attention_bias(k[:, :1], v[:, :1]).kv))


# ---- The functions themselves -----------------------------------------------------------------------

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


def test_a_normalizer_of_zero_is_refused():
    q, k, v = np.array([[1.0]]), np.array([[0.0]]), np.array([[1.0]])
    for form in recurrent_attention, parallel_attention, chunked_attention:
        with pytest.raises(ValueError, match="normalizer"):
            form(q, k, v)
        assert form(q, k, v, normalize=False)[0] == 0


def test_a_normalizer_however_small_is_used():
    tiny, v = np.full((3, 1), 1e-150), np.array([[3.0], [5.0], [10.0]])
    for form in recurrent_attention, parallel_attention, chunked_attention:
        np.testing.assert_allclose(form(tiny, tiny, v)[0].ravel(), [3, 4, 6], rtol=1e-12)


def test_integers_stay_integers_without_a_normalizer():
    q, k, v = np.random.default_rng(0).integers(-9, 9, (3, 2, 5, 2))
    for form in recurrent_attention, parallel_attention, chunked_attention:
        for dtype in int, object:
            o, bias = form(q.astype(dtype), k.astype(dtype), v.astype(dtype), normalize=False)
            assert {a.dtype for a in (o, *bias)} == {np.dtype(dtype)}
            assert {type(x) for a in (o, *bias) for x in a.ravel().tolist()} == {int}


def test_integers_with_a_normalizer_become_floats_in_every_chunk():
    k, v = np.ones((70, 1), int), np.arange(70)[:, None]
    np.testing.assert_array_equal(chunked_attention(k, k, v)[0].ravel(), np.arange(70) / 2)
