"""ICLCA: Theorem 4.1, §4.1's impossibility, Theorem 4.5, Algorithm 1, and what breaks them."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (Case, assert_close, assert_differ, assert_exactly_equal, assert_proved,
                   assert_refuted, attention_cases, every, fractions, rational_rope, realistic, case_rngs, rngs,
                   shapes, symbolic_case, symbolic_transformer, transformers, uniform)
from iclca_ref import attention_bias, iclca, key_value_matrix, linear_bias
from linear_transformer import (Bias, Layer, Transformer, chunked_attention, forward, identity,
                                parallel_attention, random_transformer, recurrent_attention, rotate_at,
                                run_layers)
from polynomials import Polynomial, variables

attend = partial(chunked_attention, chunk=2)   # so that short texts have several chunks
lengths = st.integers(0, 3)
floating = pytest.mark.parametrize("dtype", [np.float64, np.float32])


# ---- Theorem 4.1: one linear layer ------------------------------------------------------------------

def linear_layer(x, w_q, w_k, w_v, b_kv):
    """Eq 9: Q (KᵀV + b_KV), without a mask."""
    return x @ w_q @ ((x @ w_k).T @ (x @ w_v) + b_kv)


def theorem_4_1(context, x, w_q, w_k, w_v, b_kv):
    """The prompt after its context became a bias, and the prompt's rows with the context in front."""
    in_context = linear_layer(np.concatenate([context, x]), w_q, w_k, w_v, b_kv)[len(context):]
    return linear_layer(x, w_q, w_k, w_v, linear_bias(context, w_k, w_v, b_kv)), in_context


def linear_shapes(m, n, d, d_k, d_v):
    return dict(c=(m, d), x=(n, d), q=(d, d_k), k=(d, d_k), v=(d, d_v), b=(d_k, d_v))


@st.composite
def linear_cases(draw, least=0):
    """A context (m, d), a prompt (n, d), w_q, w_k, w_v and b_kv."""
    m, n = (draw(st.integers(least, 3)) for _ in range(2))
    sizes, rng = [draw(st.integers(1, 3)) for _ in range(3)], draw(case_rngs)
    return tuple(uniform(rng, *shape) for shape in linear_shapes(m, n, *sizes).values())


@pytest.mark.proves("Theorem 4.1", "Thm 4.1, Eq 9-11")
@given(linear_cases())
def test_theorem_4_1_context_in_front_equals_a_bias_on_the_key_value_matrix(case):
    assert_exactly_equal(*theorem_4_1(*case))


@pytest.mark.proves("Theorem 4.1", "Thm 4.1, Eq 9-11")
def test_theorem_4_1_holds_for_every_context_prompt_and_weights():
    for shape in shapes(every(m=range(3), n=range(1, 3), d=(1, 2), d_k=(1, 2), d_v=(1,))
                        + [dict(m=3, n=3, d=2, d_k=2, d_v=2)],
                        every(m=range(4), n=range(4), d=(1, 2), d_k=(1, 2), d_v=(1, 2))):
        case = [variables(name, *sizes) for name, sizes in linear_shapes(**shape).items()]
        assert_proved(*theorem_4_1(*case), **shape)


def normalized_theorem_4_1(context, x, w_q, w_k, w_v, b_kv):
    """Theorem 4.1 for attention whose rows are divided by Σ q·k, with no bias for that sum."""
    def normalized(x, b_kv):
        return linear_layer(x, w_q, w_k, w_v, b_kv) / (x @ w_q @ (x @ w_k).sum(axis=0))[:, None]

    in_context = normalized(np.concatenate([context, x]), b_kv)[len(context):]
    return normalized(x, linear_bias(context, w_k, w_v, b_kv)), in_context


@pytest.mark.breaks("Theorem 4.1", "a normalizer, and no bias for it")
@example(tuple(fractions(a) for a in ([[1]], [[2]], [[1]], [[1]], [[1]], [[1]])))
@given(linear_cases(least=1))
def test_with_a_normalizer_and_no_bias_for_it_theorem_4_1_fails(case):
    assert_differ(*normalized_theorem_4_1(*case))


@pytest.mark.breaks("Theorem 4.1", "a normalizer, and no bias for it")
def test_with_a_normalizer_and_no_bias_for_it_both_sides_of_theorem_4_1_are_other_functions():
    assert_refuted(*normalized_theorem_4_1(*(variables(n, *s) for n, s in linear_shapes(1, 1, 1, 1, 1).items())))


# ---- The Key-Value matrix ---------------------------------------------------------------------------

def split(case, matrix=key_value_matrix):
    """The Key-Value matrix of a whole text, and the sum of those of its two parts."""
    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    return matrix(k, v) + matrix(k_x, v_x), matrix(case.k, case.v)


def depending_on_all(k, v):
    return key_value_matrix(k / k.sum(axis=-2, keepdims=True), v)


@pytest.mark.proves("Key-Value matrix", "Def 3.4, Eq 6")
@given(attention_cases())
def test_tokens_in_front_change_the_key_value_matrix_alone_by_their_own(case):
    assert_exactly_equal(*split(case))


@pytest.mark.proves("Key-Value matrix", "Def 3.4, Eq 6")
def test_the_key_value_matrix_splits_for_all_keys_and_values():
    for shape in every(m=range(3), n=range(3), heads=(1, 2), pairs=(1,), d_v=(1, 2)):
        assert_proved(*split(symbolic_case(**shape)), **shape)


@pytest.mark.breaks("Key-Value matrix", "keys divided by the sum of all keys")
@given(attention_cases(least_context=1, least_prompt=1))
def test_with_keys_that_depend_on_all_tokens_the_key_value_matrix_does_not_split(case):
    assert_differ(*split(case, depending_on_all))


@pytest.mark.breaks("Key-Value matrix", "keys divided by the sum of all keys")
def test_with_keys_that_depend_on_all_tokens_both_sides_are_other_functions():
    assert_refuted(*split(symbolic_case(1, 1), depending_on_all))


# ---- §4.1: no other weights will do -----------------------------------------------------------------

def constant_term(a):
    """Of polynomials in x and other variables, the terms without x."""
    def without_x(p):
        return Polynomial({m: c for m, c in p.terms.items() if not any(name[0] == "x" for name, _ in m)})
    return np.frompyfunc(lambda p: without_x(Polynomial({}) + p), 1, 1)(a)


@pytest.mark.proves("no W_1, W_2 absorb a context", "§4.1, Eq 7-8, App A")
def test_whatever_w_1_and_w_2_their_term_has_no_part_without_x_and_what_the_context_needs_has():
    """Eq 7 asks (X W_1)ᵀ X W_2 = (X W_K)ᵀ X W_V + (X' W_K)ᵀ X' W_V for every X: compare the parts without X."""
    for shape in every(m=range(1, 3), n=range(1, 3), d=(1, 2), d_k=(1, 2), d_v=(1, 2)):
        s = linear_shapes(**shape)
        context, x, w_k, w_v = (variables(name, *s[name]) for name in "cxkv")
        w_1, w_2 = variables("a", *s["k"]), variables("b", *s["v"])
        absorbed = key_value_matrix(context @ w_k, context @ w_v)
        needed = key_value_matrix(x @ w_k, x @ w_v) + absorbed
        assert_proved(constant_term(key_value_matrix(x @ w_1, x @ w_2)), 0 * absorbed, zero=True, **shape)
        assert_proved(constant_term(needed), absorbed, **shape)
        assert_refuted(absorbed, 0 * absorbed)
        assert_proved(linear_bias(context, w_k, w_v, 0 * absorbed), absorbed, **shape)   # a bias has it


@pytest.mark.breaks("no W_1, W_2 absorb a context", "a bias beside them, which does have a part without X")
@given(linear_cases(least=1))
def test_with_a_bias_the_context_is_absorbed_at_x_zero_where_weights_alone_give_zero(case):
    context, x, _, w_k, w_v, _ = case
    weights_alone = key_value_matrix(0 * x @ w_k, 0 * x @ w_v)
    assert_differ(linear_bias(context, w_k, w_v, weights_alone), weights_alone)


# ---- Theorem 4.5: one attention layer ---------------------------------------------------------------

def in_context(case, attend=attend):
    """The last N rows of O([X'; X] with b)."""
    return attend(case.q, case.k, case.v, case.bias, case.rope, case.normalize)[0][..., case.m:, :]


def converted(case, attend=attend, convert=attention_bias):
    """O(X with b')."""
    _, k, v = case.context
    return attend(*case.prompt, convert(k, v, case.bias, case.rope), case.rope, case.normalize)[0]


@pytest.mark.proves("Theorem 4.5", "Thm 4.5, Eq 14-16")
@given(attention_cases())
def test_theorem_4_5_context_in_front_equals_converted_bias(case):
    assert_exactly_equal(converted(case), in_context(case))


options = dict(rotated=(False, True), started=(False, True), normalized=(False, True))
SHAPES = shapes(every(m=range(4), n=(1, 2), pairs=(1,), d_v=(1,), **options)
                + every(m=(2, 3), n=(3,), heads=(2,), pairs=(2,), d_v=(3,), **options),
                every(m=range(4), n=range(4), heads=(1, 2), pairs=(1, 2), d_v=(1, 2, 3), **options))


@pytest.mark.proves("Theorem 4.5", "Thm 4.5, Eq 14-16")
def test_theorem_4_5_holds_for_every_context_prompt_start_and_angle():
    for shape in SHAPES:
        case = symbolic_case(**shape)
        assert_proved(converted(case), in_context(case), **shape)


@pytest.mark.proves("Theorem 4.5", "Thm 4.5, Eq 14-16")
def test_theorem_4_5_holds_for_a_context_and_a_prompt_longer_than_a_chunk():
    for shape in shapes([dict(m=34, n=2, rotated=True)], [dict(m=70, n=30, rotated=True, started=True)]):
        case = symbolic_case(**shape)
        assert_proved(converted(case, chunked_attention), in_context(case, chunked_attention), **shape)


@pytest.mark.proves("Theorem 4.5", "Thm 4.5, Eq 14-16")
@floating
@given(rngs, st.integers(1, 200))
def test_theorem_4_5_holds_to_rounding_in_floating_point(dtype, rng, m):
    q, k, v, bias, rope = realistic(rng, dtype, n=m + 20)
    case = Case(q, k, v, m, bias, rope, True)
    assert_close(converted(case, chunked_attention), in_context(case, chunked_attention), ulps=300)  # 220 tokens


# The smallest cases in which the broken proofs fail: one token of context, one of prompt.
turning = partial(rational_rope, theta=fractions([["3/5", "4/5"]]))
smallest = Case(*fractions([[[1, 0], [1, 0]]] * 3), 1, None, turning, False)
smallest_normalized = Case(*fractions([[[1], [1]], [[1], [1]], [[1], [0]]]), 1, None, None, True)
both = dict(least_context=1, least_prompt=1)
always = st.just(True)


def not_turned_back(k, v, bias, rope):
    """Theorem 4.5 without R_{−M}: the context at its places 1 ... M."""
    b, rk = Bias.start(k, v, bias), rotate_at(k, rope, np.arange(1, k.shape[-2] + 1))
    return Bias(b.kv + key_value_matrix(rk, v), b.d + k.sum(axis=-2))


@pytest.mark.breaks("Theorem 4.5", "leaving out R_{−M} (the context not turned back)")
@example(smallest)
@given(attention_cases(**both, rotated=always))
def test_without_turning_the_context_back_theorem_4_5_fails(case):
    assert_differ(converted(case, convert=not_turned_back), in_context(case))


@pytest.mark.breaks("Theorem 4.5", "leaving out R_{−M} (the context not turned back)")
def test_without_turning_the_context_back_the_smallest_difference_is_q_k_v_times_one_minus_cos_theta():
    case = symbolic_case(1, 1, rotated=True)
    case.q[..., 1] = case.k[..., 1] = 0
    difference = assert_refuted(converted(case, convert=not_turned_back), in_context(case))
    assert str(difference) == "k0_0_0*q0_1_0*v0_0_0 - 1/2*k0_0_0*q0_1_0*v0_0_0*w0^-1 - 1/2*k0_0_0*q0_1_0*v0_0_0*w0"


def numerator_alone(k, v, bias, rope):
    """Theorem 4.5 with b_D left at 0."""
    return attention_bias(k, v, bias, rope)._replace(d=0 * k.sum(axis=-2))


@pytest.mark.breaks("Theorem 4.5", "leaving out b_D")
@example(smallest_normalized)
@given(attention_cases(**both, normalized=always))
def test_without_the_bias_of_the_normalizer_theorem_4_5_fails(case):
    assert_differ(converted(case, convert=numerator_alone), in_context(case))


@pytest.mark.breaks("Theorem 4.5", "leaving out b_D")
def test_without_the_bias_of_the_normalizer_both_sides_are_other_functions():
    case = symbolic_case(1, 1, normalized=True)
    assert_refuted(converted(case, convert=numerator_alone), in_context(case))


def placed(case, p):
    """The case with a position vector added to every query and key, counted from its own first token."""
    d = case.q.shape[-1]
    return case._replace(q=case.q + p[:case.q.shape[-2], :d], k=case.k + p[:case.k.shape[-2], :d])


def with_absolute_positions(case, p):
    (q, k, v), (q_x, k_x, v_x) = case.context, case.prompt
    context = placed(case._replace(q=q, k=k, v=v), p)
    prompt = placed(case._replace(q=q_x, k=k_x, v=v_x, m=0), p)
    bias = attention_bias(context.k, context.v, case.bias, case.rope)
    return in_context(prompt._replace(bias=bias)), in_context(placed(case, p))


@pytest.mark.breaks("Theorem 4.5", "absolute positions, added (against Assumption 4.3)")
@example(smallest._replace(rope=None), fractions([[0, 0], [1, 0]]))
@given(attention_cases(**both), rngs.map(lambda rng: uniform(rng, 8, 4)))
def test_with_absolute_positions_theorem_4_5_fails(case, p):
    assert_differ(*with_absolute_positions(case, p))


@pytest.mark.breaks("Theorem 4.5", "absolute positions, added (against Assumption 4.3)")
def test_with_absolute_positions_both_sides_are_other_polynomials():
    assert_refuted(*with_absolute_positions(symbolic_case(1, 1), variables("p", 2, 2)))


@pytest.mark.breaks("Theorem 4.5", "turning by the square of the position (R_a R_b ≠ R_{a+b})")
@example(smallest)
@given(attention_cases(**both, rotated=always))
def test_with_rotations_that_do_not_compose_theorem_4_5_fails(case):
    crooked = case._replace(rope=lambda positions: case.rope(positions * positions))
    assert_differ(converted(crooked), in_context(crooked))


@pytest.mark.breaks("Theorem 4.5", "turning by the square of the position (R_a R_b ≠ R_{a+b})")
def test_with_rotations_that_do_not_compose_both_sides_are_other_polynomials():
    case = symbolic_case(1, 1, rotated=True)
    crooked = case._replace(rope=lambda positions: case.rope(positions * positions))
    assert_refuted(converted(crooked), in_context(crooked))


def squared(q, k, v, bias, rope, normalize):
    """Attention with the normalizer φ(q)·(Σ φ(k))², entry by entry."""
    o, _ = parallel_attention(q, k, v, bias, rope, normalize=False)
    z = k.cumsum(axis=-2)
    return o / (q * (z * z + (bias.d[..., None, :] if bias else 0))).sum(axis=-1, keepdims=True), None


def squared_bias(k, v, bias, rope):
    z = k.sum(axis=-2)
    return Bias(key_value_matrix(k, v), z * z)


@pytest.mark.breaks("Theorem 4.5", "the normalizer (Σ φ(k))² (against Assumption 4.4)")
def test_with_a_normalizer_that_does_not_separate_both_sides_are_other_functions():
    case = symbolic_case(1, 1)
    assert_refuted(converted(case, squared, squared_bias), in_context(case, squared))


@pytest.mark.breaks("Theorem 4.5", "the normalizer (Σ φ(k))² (against Assumption 4.4)")
@example(smallest_normalized)
@given(attention_cases(**both, rotated=st.just(False), biased=st.just(False)))
def test_with_a_normalizer_that_does_not_separate_theorem_4_5_fails(case):
    assert_differ(converted(case, squared, squared_bias), in_context(case, squared))


# ---- Eq 19: the bias is the state; contexts compose -------------------------------------------------

def state_of(case):
    """The closed sum of Theorem 4.5 for the context, and the state of the recurrence after it."""
    q, k, v = case.context
    return (attention_bias(k, v, case.bias, case.rope),
            recurrent_attention(q, k, v, case.bias, case.rope, normalize=False)[1])


def composed(case, rope):
    """Two contexts, one converted on top of the other, and both converted at once."""
    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    first = attention_bias(k, v, case.bias, case.rope)
    return attention_bias(k_x, v_x, first, rope), attention_bias(case.k, case.v, case.bias, case.rope)


@pytest.mark.proves("Eq 19: the bias is the state", "§7, Eq 19")
@given(attention_cases())
def test_the_closed_sum_of_theorem_4_5_is_the_state_of_the_recurrence(case):
    assert_exactly_equal(*state_of(case))


@pytest.mark.proves("Eq 19: the bias is the state", "§7, Eq 19")
def test_the_closed_sum_is_the_state_for_all_keys_values_and_angles():
    for shape in every(m=range(4), n=(0,), heads=(1, 2), pairs=(1, 2), d_v=(1, 2), rotated=(False, True),
                       started=(False, True)):
        assert_proved(*state_of(symbolic_case(**shape)), **shape)


@pytest.mark.breaks("Eq 19: the bias is the state", "the state in the frame of the first token")
@given(attention_cases(least_context=1, rotated=always))
def test_the_state_in_the_frame_of_the_first_token_is_not_the_bias(case):
    bias, state = state_of(case)
    assert_differ(state.turned(case.rope, case.m).kv, bias.kv)


@pytest.mark.breaks("Eq 19: the bias is the state", "the state in the frame of the first token")
def test_the_state_in_the_frame_of_the_first_token_is_another_polynomial():
    case = symbolic_case(1, 0, rotated=True)
    bias, state = state_of(case)
    assert_refuted(state.turned(case.rope, 1).kv, bias.kv)


@pytest.mark.proves("contexts compose", "§1, §8")
@given(attention_cases())
def test_converting_one_context_on_top_of_another_equals_converting_both_at_once(case):
    assert_exactly_equal(*composed(case, case.rope))


@pytest.mark.proves("contexts compose", "§1, §8")
def test_contexts_compose_for_all_keys_values_starts_and_angles():
    for shape in every(m=range(3), n=range(3), heads=(1, 2), pairs=(1, 2), d_v=(1,), rotated=(False, True),
                       started=(False, True)) + [dict(m=40, n=30, rotated=True, started=True)]:
        case = symbolic_case(**shape)
        assert_proved(*composed(case, case.rope), **shape)


@pytest.mark.breaks("contexts compose", "adding the two biases as they are")
@given(attention_cases(least_context=1, least_prompt=1, rotated=always))
def test_adding_the_biases_of_two_contexts_without_turning_the_first_fails(case):
    (_, k_1, v_1), (_, k_2, v_2) = case.context, case.prompt
    added = attention_bias(k_1, v_1, None, case.rope).kv + attention_bias(k_2, v_2, None, case.rope).kv
    assert_differ(added, attention_bias(case.k, case.v, None, case.rope).kv)


@pytest.mark.breaks("contexts compose", "adding the two biases as they are")
def test_the_sum_of_two_biases_is_another_polynomial_than_the_bias_of_both():
    case = symbolic_case(1, 1, rotated=True)
    added = sum(attention_bias(k, v, None, case.rope).kv for _, k, v in (case.context, case.prompt))
    assert_refuted(added, attention_bias(case.k, case.v, None, case.rope).kv)


# ---- Algorithm 1: whole transformers ----------------------------------------------------------------

ones, no_mlp = fractions([[[1, 1]]]), fractions(np.zeros((2, 1, 0), int))
layer_of_ones = Layer(w_q=ones, w_k=ones, w_v=ones[..., :1], w_o=ones[..., :1], w_1=no_mlp[0], w_2=no_mlp[1].T,
                      theta=fractions([["3/5", "4/5"]]))
tiny = Transformer(fractions([[1], [2]]), (layer_of_ones,) * 2, fractions([[1]]), identity, False, identity, identity,
                   rational_rope)


def texts(least=0):
    return st.lists(st.integers(0, 3), min_size=least, max_size=3)


def algorithm_1(model, context, prompt, biases=None, attend=attend):
    """Logits of the prompt and states after it: with the context converted, and with it in front."""
    logits, state = forward(model, context + prompt, biases, attend)
    return forward(model, prompt, iclca(model, context, biases), attend), (logits[len(context):], state)


@pytest.mark.proves("Algorithm 1", "§4.5, App D")
@given(transformers(), texts(), texts(1))
def test_algorithm_1_every_logit_of_the_prompt_is_the_same_with_the_context_as_biases(model, context, prompt):
    assert_exactly_equal(*algorithm_1(model, context, prompt))


MODELS = shapes(every(m=(1, 2), n=(1, 2), depth=(1, 2), normalize=(False, True), parallel=(False, True))
                + every(m=(1,), n=(1,), depth=(3,), heads=(2,), pairs=(2,), normalize=(False, True), d_ff=(2,)),
                every(m=range(3), n=(1, 2), depth=(1, 2, 3), heads=(1, 2), pairs=(1, 2), d_ff=(0, 1),
                      normalize=(False, True), parallel=(False, True)))


@pytest.mark.proves("Algorithm 1", "§4.5, App D")
def test_algorithm_1_holds_for_every_feature_map_norm_activation_embedding_weight_and_angle():
    for shape in MODELS:
        model = symbolic_transformer(**{k: v for k, v in shape.items() if k not in "mn"})
        assert_proved(*algorithm_1(model, [0, 1][:shape["m"]], [2, 3][:shape["n"]]), **shape)


@pytest.mark.proves("Algorithm 1", "§4.5, App D")
def test_one_block_of_any_rows_from_any_biases_converts_which_is_the_induction_over_depth():
    for shape in every(m=(1, 2), n=(1, 2), heads=(1, 2), normalize=(False, True), parallel=(False, True)):
        options = {k: v for k, v in shape.items() if k not in "mn"}
        bias = Bias(variables("s", shape["heads"], 2, 1), variables("z", shape["heads"], 2))
        model, context, prompt = symbolic_transformer(**options), [0, 1][:shape["m"]], [2, 3][:shape["n"]]
        assert_proved(*algorithm_1(model, context, prompt, [bias]), **shape, started=True)
        alone, whole = (run_layers(model, text, [bias])[0] for text in (context, context + prompt))
        assert_proved(alone, whole[:len(context)], **shape, started=True)      # the next block's context rows


@pytest.mark.proves("Algorithm 1", "§4.5, App D")
@floating
@given(rngs, st.booleans(), st.booleans(), st.sampled_from([0, None]), st.integers(1, 5))
def test_algorithm_1_holds_to_rounding_in_floating_point(dtype, rng, normalize, parallel, d_ff, depth):
    model = random_transformer(rng, 100, 40, n_layers=depth, n_heads=5, d_ff=d_ff, dtype=dtype)
    model = model._replace(normalize=normalize, parallel=parallel)
    text, m = rng.integers(0, 100, 80), 60
    logits = forward(model, text)[0][m:]
    # at most 6 in 400 models of 3 layers: each sums 80 tokens in another order
    assert_close(forward(model, text[m:], iclca(model, text[:m]))[0], logits, ulps=50)


def test_algorithm_1_takes_its_biases_from_the_closed_sum():
    model = random_transformer(np.random.default_rng(0), 9, 8, 1, 2, dtype=np.float32)
    layer, tokens = model.layers[0], np.random.default_rng(1).integers(0, 9, 500)
    h = model.norm(model.embed[tokens])
    expected = attention_bias(model.phi(h @ layer.w_k), h @ layer.w_v, rope=partial(model.rope, theta=layer.theta))
    for a, b in zip(iclca(model, tokens)[0], expected):
        np.testing.assert_array_equal(a, b)


def seeing_everything(q, k, v, bias, rope, normalize):
    """Attention without a mask, without rotation and normalizer."""
    bias = attention_bias(k, v, bias)
    return q @ bias.kv, bias


def with_context_tokens_that_see_the_prompt(model, context, prompt):
    logits, _ = forward(model, context + prompt, attend=seeing_everything)
    _, biases = forward(model, context, attend=seeing_everything)
    return forward(model, prompt, biases, seeing_everything)[0], logits[len(context):]


@pytest.mark.breaks("Algorithm 1", "context tokens that see the prompt (against Assumption 4.2)")
@example(tiny, [0], [1])
@given(transformers(n_layers=st.just(2)), texts(1), texts(1))
def test_when_context_tokens_see_the_prompt_algorithm_1_fails(model, context, prompt):
    assert_differ(*with_context_tokens_that_see_the_prompt(model, context, prompt))


@pytest.mark.breaks("Algorithm 1", "context tokens that see the prompt (against Assumption 4.2)")
def test_when_context_tokens_see_the_prompt_two_layers_fail_and_one_does_not():
    assert_refuted(*with_context_tokens_that_see_the_prompt(symbolic_transformer(depth=2), [0], [1]))
    one, other = with_context_tokens_that_see_the_prompt(symbolic_transformer(depth=1), [0, 1], [2, 3])
    assert (one == other).all()


@pytest.mark.breaks("Algorithm 1", "leaving out the biases of the first layer")
@example(tiny, [0], [1])
@given(transformers(), texts(1), texts(1))
def test_every_layer_needs_its_bias(model, context, prompt):
    biases = [None, *iclca(model, context)[1:]]
    assert_differ(forward(model, prompt, biases)[0], forward(model, context + prompt)[0][len(context):])


@pytest.mark.proves("contexts compose", "§1, §8")
@given(transformers(), texts(), texts())
def test_contexts_compose_in_whole_transformers(model, first, second):
    assert_exactly_equal(iclca(model, second, iclca(model, first)), iclca(model, first + second))


@pytest.mark.proves("the empty context changes nothing", "§4.5")
@given(transformers(), texts(1), texts(1))
def test_the_empty_context_changes_nothing(model, context, prompt):
    assert_exactly_equal(forward(model, prompt, iclca(model, [])), forward(model, prompt))
    biases = iclca(model, context)
    assert_exactly_equal(iclca(model, [], biases), biases)


@pytest.mark.proves("the empty context changes nothing", "§4.5")
def test_the_empty_context_changes_nothing_for_any_model_and_biases():
    for shape in every(n=(1, 2), depth=(1, 2), normalize=(False, True), parallel=(False, True)):
        model = symbolic_transformer(**{k: v for k, v in shape.items() if k != "n"})
        prompt = [2, 3][:shape["n"]]
        assert_proved(forward(model, prompt, iclca(model, [])), forward(model, prompt), **shape)


@pytest.mark.breaks("the empty context changes nothing", "a context of one token")
@example(tiny, [0], [1])
@given(transformers(), texts(1), texts(1))
def test_a_context_of_one_token_changes_the_logits(model, context, prompt):
    assert_differ(forward(model, prompt, iclca(model, context[:1]))[0], forward(model, prompt)[0])


@pytest.mark.proves("decoding = one pass", "§7, Eq 19")
@given(transformers(), texts(), texts(1))
def test_decoding_token_by_token_from_converted_biases_equals_one_pass(model, context, prompt):
    whole, _ = forward(model, context + prompt)
    biases = iclca(model, context)
    for i, token in enumerate(prompt):
        logits, biases = forward(model, [token], biases)
        assert_exactly_equal(logits[0], whole[len(context) + i])


@pytest.mark.proves("decoding = one pass", "§7, Eq 19")
def test_decoding_a_token_from_the_state_of_those_before_equals_one_pass_for_any_model():
    for shape in every(m=(1, 2), depth=(1, 2), normalize=(False, True), parallel=(False, True)):
        model = symbolic_transformer(**{k: v for k, v in shape.items() if k != "m"})
        context = [0, 1][:shape["m"]]
        whole, last = forward(model, [*context, 2])
        _, state = forward(model, context)
        assert_proved(forward(model, [2], state), (whole[-1:], last), **shape)


@pytest.mark.breaks("decoding = one pass", "the context's biases again at every token")
@example(tiny, [0], [1, 0])
@given(transformers(), texts(1), texts(2))
def test_decoding_with_the_same_biases_at_every_token_is_not_one_pass(model, context, prompt):
    whole, _ = forward(model, context + prompt)
    assert_differ(forward(model, prompt[-1:], iclca(model, context))[0], whole[-1:])
