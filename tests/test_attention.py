"""Linear attention: the three forms are one function, and it is causal."""

from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (Case, attention_cases, every, fractions, rational_rope, realistic, shapes,
                   symbolic_case)
from iclca_ref import attention_bias, softmax_attend
from linear_transformer import (Bias, check_shapes, chunked_attention, elu_plus_one,
                                parallel_attention, recurrent_attention, rope, rope_frequencies,
                                softmax, softmax_attention)
from theorem import broken, theorem

FORMS = dict(recurrent=recurrent_attention, parallel=parallel_attention,
             chunked=partial(chunked_attention, chunk=2))
turning = partial(rational_rope, theta=fractions([["3/5", "4/5"]]))
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
options = dict(rotated=(False, True), started=(False, True), normalized=(False, True))
SHAPES = shapes(every(m=(0,), n=range(4), pairs=(1, 2), d_v=(1,), **options)
                + every(m=(0,), n=(3,), heads=(2,), pairs=(2,), d_v=(3,), **options),
                every(m=(0,), n=range(5), heads=(1, 2), pairs=(1, 2), d_v=(1, 2, 3), **options))


# ---- Three forms, one function ------------------------------------------------------------------

def arguments(case):
    return case.q, case.k, case.v, case.bias, case.rope, case.normalize

def realistic_case(rng, dtype):
    q, k, v, bias, rope = realistic(rng, dtype, n=80)
    return Case(q, k, v, 0, bias, rope, bool(rng.integers(2)))


@theorem("three forms, one function", "Eq 5, 13, 19", attention_cases(), SHAPES,
         floats=realistic_case, ulps=100)   # 80 tokens, summed in other orders
def three_forms(case, chunk=2):
    """Outputs and states of the parallel and the chunked form  =  those of the recurrent one."""
    recurrent, parallel, chunked = (form(*arguments(case)) for form in (
        recurrent_attention, parallel_attention, partial(chunked_attention, chunk=chunk)))
    return (parallel, chunked), (recurrent, recurrent)

@theorem("three forms, one function", "Eq 5, 13, 19",
         st.tuples(attention_cases(), st.integers(1, 5)), [dict(n=35, started=True)],
         lambda n, started: (symbolic_case(0, n, started=started), 32))
def three_forms_for_chunks_of_other_lengths(case, chunk):
    return three_forms(case, chunk)

def unmasked(case):
    """Attention to all tokens, without rotation and normalizer."""
    return case.q @ attention_bias(case.k, case.v, case.bias).kv

@broken(three_forms, "attention without the causal mask", attention_cases(least_prompt=2),
        [symbolic_case(0, 2)], Case(*fractions([[[1], [1]]] * 3), 0, None, None, False),
        difference="k0_1_0*q0_0_0*v0_1_0 + k0_1_1*q0_0_1*v0_1_0")   # q₁·k₂ v₂: the look ahead
def without_the_mask(case):
    return unmasked(case), parallel_attention(case.q, case.k, case.v, case.bias, normalize=False)[0]


@theorem("a text is its last token and state", "§7, Eq 19", attention_cases(least_prompt=1),
         every(m=(1, 2, 3), n=(1,), pairs=(1, 2), d_v=(1,), **options))
def induction_over_the_length(case, turn=0):
    """The tokens after the first m read from those' state, seen `turn` places before  =  with them.

    With one token after them it is the step of the induction over the length, for each form.
    """
    sides = [], []
    for attend in FORMS.values():
        o, last = attend(*arguments(case))
        _, state = attend(*case.context, *arguments(case)[3:])
        sides[0].append(attend(*case.prompt, state.turned(case.rope, turn), *arguments(case)[4:]))
        sides[1].append((o[..., case.m:, :], last))
    return sides

@broken(induction_over_the_length, "the state in the frame of the first token",
        attention_cases(least_context=1, least_prompt=1, rotated=st.just(True)),
        [symbolic_case(1, 1, rotated=True)])
def from_the_state_in_the_frame_of_the_first_token(case):
    return induction_over_the_length(case, turn=case.m)


# ---- Causality ----------------------------------------------------------------------------------

@theorem("causality", "Def 3.3, Ass. 4.2", attention_cases(least_context=1),
         every(m=(1, 2), n=(1, 2), **options))
def causality(case):
    """The outputs of the first m tokens, with others after them  =  without."""
    q, k, v = case.context
    alone = case._replace(q=q, k=k, v=v)
    return ([attend(*arguments(case))[0][..., :case.m, :] for attend in FORMS.values()],
            [attend(*arguments(alone))[0] for attend in FORMS.values()])

@broken(causality, "attention without the causal mask",
        attention_cases(least_context=1, least_prompt=1), [symbolic_case(1, 1)])
def causality_without_the_mask(case):
    q, k, v = case.context
    return unmasked(case)[..., :case.m, :], unmasked(case._replace(q=q, k=k, v=v))


@forms
def test_a_later_query_or_key_that_is_no_number_leaves_earlier_outputs_alone(form):
    qkv = np.random.default_rng(0).random((3, 6, 2))
    expected, _ = form(*qkv)
    for where, bad in product((0, 1), (np.inf, -np.inf, np.nan)):
        changed = qkv.copy()
        changed[where, 3] = bad
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(form(*changed)[0][:3], expected[:3])


# ---- The functions themselves -------------------------------------------------------------------

@pytest.mark.parametrize("attend, similarity", [
    (lambda *qkv: parallel_attention(*qkv)[0], np.dot),
    (softmax_attention, lambda q, k: np.exp(q @ k / 2))])     # √4 = 2
def test_attention_is_the_formula_written_as_loops(attend, similarity):
    q, k, v = np.random.default_rng(0).random((3, 5, 4))
    for i, o in enumerate(attend(q, k, v)):
        w = [similarity(q[i], k[j]) for j in range(i + 1)]
        expected = sum(w[j] * v[j] for j in range(i + 1)) / sum(w)
        np.testing.assert_allclose(o, expected, rtol=1e-13)


def test_softmax_does_not_overflow_and_takes_whole_numbers_minus_infinity_and_nothing():
    x = np.array([[1e300, 1e300, -1e300], [-1e308, -1e308, -np.inf], [0, -np.inf, -np.inf]])
    np.testing.assert_array_equal(softmax(x), [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0]])
    np.testing.assert_allclose(softmax(np.array([[0, 0], [-9, -9]])), 0.5)
    assert softmax(np.zeros((2, 0), np.float32)).dtype == np.float32
    running_mean = softmax_attention(a(3, 0), a(3, 0), np.array([[3.0], [5.0], [10.0]]))
    np.testing.assert_allclose(running_mean, [[3], [4], [6]])


@forms
def test_a_normalizer_of_zero_is_refused_and_a_small_one_is_used(form):
    k = fractions([[1, 0], [-1, 0]])
    for args in [(a(1, 1), 0 * a(1, 1), a(1, 1)), (k, k, k, None, turning)]:
        with pytest.raises(ValueError, match="normalizer"):
            form(*args)
        form(*args, *[None] * (5 - len(args)), normalize=False)
    for tiny in 1e-30, 1e-300, -1e-300:
        np.testing.assert_allclose(form(a(1, 1), a(1, 1) * tiny, 3 * a(1, 1))[0], 3, rtol=1e-15)


@forms
def test_whole_numbers_stay_whole_without_a_normalizer_and_become_floats_with_one(form):
    q, k, v = np.random.default_rng(0).integers(-9, 9, (3, 2, 5, 2))
    for dtype in int, object:
        o, bias = form(q.astype(dtype), k.astype(dtype), v.astype(dtype), normalize=False)
        assert {x.dtype for x in (o, *bias)} == {np.dtype(dtype)}
        assert {type(x) for y in (o, *bias) for x in y.ravel().tolist()} == {int}
    k, v = np.ones((70, 1), int), np.arange(70)[:, None]
    np.testing.assert_array_equal(form(k, k, v)[0].ravel(), np.arange(70) / 2)
    halves, start = np.array([[0.5], [1.0], [2.0]]), Bias(np.array([[1]]), np.array([1]))
    o, state = form(a(3, 1), halves, np.array([[3], [1], [7]]), start)
    np.testing.assert_allclose(o[:, 0], [2.5 / 1.5, 3.5 / 2.5, 17.5 / 4.5], rtol=1e-15)
    assert state.kv == 17.5


@pytest.mark.parametrize("dtype, lowest", [(np.float32, -43), (np.float64, -354)])
def test_elu_plus_one_keeps_its_digits_in_a_product_down_to_the_stated_bound(dtype, lowest):
    phi, values = elu_plus_one(np.array([[lowest]], dtype)), np.array([[2.0]], dtype)
    for form in FORMS.values():
        np.testing.assert_allclose(form(phi, phi, values)[0], 2, rtol=8 * np.finfo(dtype).eps)
    assert 0 < (phi * phi).item() < 100 * np.finfo(dtype).tiny     # not far from the bound


# in eps; theory and figures: docs/results.md, the square root of the chunks, 0.003 a token with
# rotation; the closed sum has the order of the BLAS and its threads, at most the square root of n
@pytest.mark.parametrize("rotated, bound", [(False, 20), (True, 1000)])
def test_100_000_tokens_stay_within_the_stated_error(rotated, bound):
    rng, n = np.random.default_rng(0), 100_000
    q, k = rng.random((2, n, 4), np.float32) * np.float32(1e4)
    v, theta = rng.standard_normal((n, 2), np.float32), rope_frequencies(4).astype(np.float32)
    results = []
    for dtype in np.float32, np.float64:
        turn = partial(rope, theta=theta.astype(dtype)) if rotated else None
        given_arrays = [x.astype(dtype) for x in (q, k, v)]
        o, state = chunked_attention(*given_arrays, rope=turn, chunk=np.uint8(64))
        results.append((state.kv, o[-100:], attention_bias(*given_arrays[1:], rope=turn).kv))
    of_chunks, _, closed = results[1]
    assert np.linalg.norm(of_chunks - closed) <= 1e-12 * np.linalg.norm(closed)
    for single, double, limit in zip(*results, (bound, bound, 316)):
        assert np.isfinite(single).all() and single.dtype == np.float32
        allowed = limit * np.finfo(np.float32).eps * np.linalg.norm(double)
        assert np.linalg.norm(single - double) <= allowed


# ---- What the functions do with their arguments -------------------------------------------------

qkv = "q:nk k:nk v:nv"
CASES = [
    *[case(f"{name}{' rotated' * bool(rope)}{' normalized' * normalize}",
           lambda q, k, v, *b, form=form, how=(rope, normalize): form(q, k, v, Bias(*b), *how),
           f"{qkv} kv?:kv d?:k", Fraction)
      for (name, form), rope, normalize in product(FORMS.items(), (None, turning), (False, True))],
    *[case(f"{name}, no tokens", lambda q, k, v, *b, form=form: form(q, k, v, Bias(*b), turning),
           "q:zk k:zk v:zv kv?:kv d?:k", Fraction) for name, form in FORMS.items()],
    *[case(f"{name}, no start", form, qkv, Fraction) for name, form in FORMS.items()],
    *[case(f.__name__, f, x, float) for f, x in ((softmax, "x:nd"), (softmax_attention, qkv))]]
test_batches, test_types = batches(*CASES), types_and_layouts(*CASES)

some_shapes = st.lists(st.sampled_from([0, 1, 2, 3]), min_size=0, max_size=4).map(tuple)
nearby = st.tuples(st.sampled_from([(), (1,), (2,), (2, 1)]), st.integers(0, 3),
                   st.integers(1, 2)).map(lambda parts: (*parts[0], *parts[1:]))


@pytest.mark.parametrize("attend", [*FORMS.values(), softmax_attention, attention_bias])
@given(st.tuples(*[some_shapes] * 3) | st.tuples(*[nearby] * 3))
def test_no_shapes_that_do_not_fit_ever_give_an_answer(attend, qkv):
    q, k, v = qkv
    assume(len(k) < 2 or k[:-1] != v[:-1] or q != k and attend is not attention_bias)
    with pytest.raises(ValueError, match="k "):
        attend(*([a(*q)] if attend is not attention_bias else []), a(*k), a(*v))


@given(some_shapes | nearby, some_shapes | nearby)
def test_no_bias_of_another_shape_ever_gives_an_answer(kv, d):
    x = a(2, 3, 2, 2)
    assume(kv[-2:] != (2, 2) or d[-1:] != (2,) or any(
        lead != (2, 3)[2 - len(lead):] for lead in (kv[:-2], d[:-1])))
    for attend in *FORMS.values(), lambda q, *rest: attention_bias(*rest):
        with pytest.raises(ValueError, match="bias.kv"):
            attend(x, x, x, Bias(a(*kv), a(*d)))


check = partial(check_shapes, "q:nk k:nd v?:kd")
test_mistakes = refused(
    *[("must be an array; " + type(x).__name__, lambda x=x: parallel_attention(x, a(2, 1), a(2, 1)))
      for x in (np.ma.array(a(2, 1)), np.rec.array(a(2, 1)), a(2, 1).view(np.matrix))],
    ("cos (4, 1)", lambda: recurrent_attention(*[a(4, 3)] * 3, rope=partial(rope, theta=a(1)))),
    ("q; list", lambda: softmax_attend([[1.0]], [[1.0]], [[1.0]])),
    *[("chunk", partial(chunked_attention, *[a(2, 2)] * 3, chunk=c)) for c in (0, np.inf, np.nan)],
    *[(words, lambda form=form, r=r: form(*[a(4, 2)] * 3, rope=r)) for form in FORMS.values()
      for words, r in (("rope; theta", rope), ("not callable", a(2)))],
    *[(words, lambda form=form, b=b: form(*[a(4, 2)] * 3, b)) for form in FORMS.values()
      for words, b in (("int", 0), ("Bias; kv; d", ()), ("bias.kv (2, 2)", a(2, 2, 2)))],
    *[(f"{name}; {t}", lambda form=form, i=i, t=t: form(*(
        x.astype(t) if i == j else x for j, x in enumerate([a(4, 2)] * 3))))
      for form in (*FORMS.values(), softmax_attention) for i, name in enumerate("qkv")
      for t in ("bool", "uint8", "float16")],
    *[("q; list", lambda form=form: form([[1.0]], [[1.0]], [[1.0]])) for form in FORMS.values()],
    ("q (); k (2, 4)", lambda: check(a(), a(2, 4), a(3, 4))),
    *calls(check, "q k v", "23 24 534", "23 524 34", "3 24 34", "23 34 34", "23 24 43", "523 24 34",
           "523 524 134", "6523 6524 634", "23 24 4", "13 24 34", "23 124 34", "6523 6524 76534"))


def test_the_check_of_shapes_lets_leading_axes_agree_or_be_left_out():
    for _, call in calls(check, "q k v", "23 24 34", "523 524 34", "523 524 534", "6523 6524 534",
                         "023 024 34"):
        call()
