"""ICLCA: Theorem 4.1, §4.1's impossibility, Theorem 4.5, Algorithm 1, and what breaks them."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (Case, assert_close, assert_differ, assert_exactly_equal, attention_cases, fractions, rational_rope,
                   realistic, rngs, transformers, uniform)
from iclca_ref import attention_bias, iclca, key_value_matrix, linear_bias
from linear_transformer import (Bias, Layer, Transformer, chunked_attention, forward, identity, parallel_attention,
                                random_transformer, recurrent_attention, rotate)

attend = partial(chunked_attention, chunk=2)   # so that short texts have several chunks
lengths = st.integers(0, 3)


# ---- Theorem 4.1: one linear layer ----------------------------------------------------------------------------------

def linear_layer(x, w_q, w_k, w_v, b_kv):
    """Eq 9: Q (KᵀV + b_KV), without a mask."""
    return x @ w_q @ ((x @ w_k).T @ (x @ w_v) + b_kv)


@st.composite
def linear_cases(draw):
    """A context (m, d), a prompt (n, d), w_q, w_k, w_v and b_kv."""
    d, d_k, d_v, rng = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(rngs)
    shapes = (draw(lengths), d), (draw(lengths), d), (d, d_k), (d, d_k), (d, d_v), (d_k, d_v)
    return tuple(uniform(rng, *shape) for shape in shapes)


@pytest.mark.proves("Theorem 4.1", "Thm 4.1, Eq 9-11")
@given(linear_cases())
def test_theorem_4_1_context_in_front_equals_a_bias_on_the_key_value_matrix(case):
    context, x, w_q, w_k, w_v, b_kv = case
    in_context = linear_layer(np.concatenate([context, x]), w_q, w_k, w_v, b_kv)[len(context):]
    assert_exactly_equal(linear_layer(x, w_q, w_k, w_v, linear_bias(context, w_k, w_v, b_kv)), in_context)


@pytest.mark.breaks("Theorem 4.1", "attention without a normalizer (each row divided by its Σ q·k)")
@example(tuple(fractions(a) for a in ([[1]], [[2]], [[1]], [[1]], [[1]], [[1]])))
@given(linear_cases().filter(lambda case: len(case[0]) and len(case[1])))
def test_with_a_normalizer_and_no_bias_for_it_theorem_4_1_fails(case):
    def normalized(x, b_kv):
        return linear_layer(x, w_q, w_k, w_v, b_kv) / (x @ w_q @ (x @ w_k).sum(axis=0))[:, None]

    context, x, w_q, w_k, w_v, b_kv = case
    in_context = normalized(np.concatenate([context, x]), b_kv)[len(context):]
    assert_differ(normalized(x, linear_bias(context, w_k, w_v, b_kv)), in_context)


@pytest.mark.proves("Key-Value matrix", "Def 3.4, Eq 6")
@given(attention_cases())
def test_tokens_in_front_change_the_key_value_matrix_alone_by_their_own(case):
    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    assert_exactly_equal(key_value_matrix(case.k, case.v), key_value_matrix(k, v) + key_value_matrix(k_x, v_x))


@pytest.mark.breaks("Key-Value matrix", "keys of their own tokens (each divided by the sum of all keys)")
@given(attention_cases(least_context=1, least_prompt=1))
def test_with_keys_that_depend_on_all_tokens_the_key_value_matrix_does_not_split(case):
    def matrix(k, v):
        return key_value_matrix(k / k.sum(axis=-2, keepdims=True), v)

    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    assert_differ(matrix(k, v) + matrix(k_x, v_x), matrix(case.k, case.v))


@pytest.mark.proves("no W_1, W_2 absorb a context", "§4.1, Eq 7-8, App A")
@given(linear_cases(), rngs)
def test_at_x_zero_no_weights_give_the_term_that_the_context_needs(case, rng):
    """Eq 7 asks (X W_1)ᵀ X W_2 = (X W_K)ᵀ X W_V + (X' W_K)ᵀ X' W_V for every X. At X = 0 the left is 0 for all W."""
    context, x, _, w_k, w_v, _ = case
    nothing = 0 * x
    w_1, w_2 = uniform(rng, *w_k.shape), uniform(rng, *w_v.shape)
    left = key_value_matrix(nothing @ w_1, nothing @ w_2)
    needed = key_value_matrix(nothing @ w_k, nothing @ w_v) + key_value_matrix(context @ w_k, context @ w_v)
    assert_exactly_equal(left, fractions(np.zeros(left.shape, int)))
    if len(context):
        assert_differ(left, needed)
    assert_exactly_equal(left + linear_bias(context, w_k, w_v, 0 * needed), needed)   # a bias does give it


@pytest.mark.breaks("no W_1, W_2 absorb a context", "a context other than 0 (one of zeros needs nothing)")
@given(linear_cases())
def test_a_context_of_zeros_needs_nothing_at_all(case):
    context, _, _, w_k, w_v, _ = case
    assert_exactly_equal(linear_bias(0 * context, w_k, w_v, 0 * (w_k.T @ w_v)), 0 * (w_k.T @ w_v))


# ---- Theorem 4.5: one attention layer -------------------------------------------------------------------------------

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


@pytest.mark.proves("Eq 19: the bias is the state", "§7, Eq 19")
@given(attention_cases())
def test_the_closed_sum_of_theorem_4_5_is_the_state_of_the_recurrence(case):
    q, k, v = case.context
    _, state = recurrent_attention(q, k, v, case.bias, case.rope, normalize=False)
    assert_exactly_equal(attention_bias(k, v, case.bias, case.rope), state)


@pytest.mark.breaks("Eq 19: the bias is the state", "R_{−M} (the state in the frame of the first token)")
@given(attention_cases(least_context=1, rotated=st.just(True)))
def test_the_state_in_the_frame_of_the_first_token_is_not_the_bias(case):
    q, k, v = case.context
    _, state = recurrent_attention(q, k, v, case.bias, case.rope, normalize=False)
    assert_differ(state.turned(case.rope, case.m).kv, attention_bias(k, v, case.bias, case.rope).kv)


@pytest.mark.breaks("contexts compose", "R_{−M} for the context before (the two biases added as they are)")
@given(attention_cases(least_context=1, least_prompt=1, rotated=st.just(True)))
def test_adding_the_biases_of_two_contexts_without_turning_the_first_fails(case):
    (_, k_1, v_1), (_, k_2, v_2) = case.context, case.prompt
    added = attention_bias(k_1, v_1, None, case.rope).kv + attention_bias(k_2, v_2, None, case.rope).kv
    assert_differ(added, attention_bias(case.k, case.v, None, case.rope).kv)


@pytest.mark.proves("contexts compose", "§8")
@given(attention_cases())
def test_converting_one_context_on_top_of_another_equals_converting_both_at_once(case):
    (_, k_1, v_1), (_, k_2, v_2) = case.context, case.prompt
    first = attention_bias(k_1, v_1, case.bias, case.rope)
    assert_exactly_equal(attention_bias(k_2, v_2, first, case.rope),
                         attention_bias(case.k, case.v, case.bias, case.rope))


# The smallest cases in which the broken proofs fail: one token of context, one of prompt.
turning = partial(rational_rope, theta=fractions([["3/5", "4/5"]]))
smallest = Case(*fractions([[[1, 0], [1, 0]]] * 3), 1, None, turning, False)
smallest_normalized = Case(*fractions([[[1], [1]], [[1], [1]], [[1], [0]]]), 1, None, None, True)
both = dict(least_context=1, least_prompt=1)


@pytest.mark.breaks("Theorem 4.5", "R_{−M} (the context not turned back)")
@example(smallest)
@given(attention_cases(**both, rotated=st.just(True)))
def test_without_turning_the_context_back_theorem_4_5_fails(case):
    def not_turned_back(k, v, bias, rope):
        b, rk = bias or Bias(0, 0), rotate(k, *rope(np.arange(1, k.shape[-2] + 1)))
        return Bias(b.kv + key_value_matrix(rk, v), b.d + k.sum(axis=-2))

    assert_differ(converted(case, convert=not_turned_back), in_context(case))


@pytest.mark.breaks("Theorem 4.5", "b_D (the numerator's bias alone)")
@example(smallest_normalized)
@given(attention_cases(**both, normalized=st.just(True)))
def test_without_the_bias_of_the_normalizer_theorem_4_5_fails(case):
    def numerator_alone(k, v, bias, rope):
        return attention_bias(k, v, bias, rope)._replace(d=0 * k.sum(axis=-2))

    assert_differ(converted(case, convert=numerator_alone), in_context(case))


@pytest.mark.breaks("Theorem 4.5", "Assumption 4.3 (absolute positions added)")
@example(smallest._replace(rope=None), fractions([[0, 0], [1, 0]]))
@given(attention_cases(**both), rngs.map(lambda rng: uniform(rng, 8, 4)))
def test_with_absolute_positions_theorem_4_5_fails(case, p):
    def placed(case):
        """The case with a position vector added to every query and key, counted from its own first token."""
        d = case.q.shape[-1]
        return case._replace(q=case.q + p[:case.q.shape[-2], :d], k=case.k + p[:case.k.shape[-2], :d])

    (q, k, v), (q_x, k_x, v_x) = case.context, case.prompt
    context, prompt = placed(case._replace(q=q, k=k, v=v)), placed(case._replace(q=q_x, k=k_x, v=v_x, m=0))
    bias = attention_bias(context.k, context.v, case.bias, case.rope)
    assert_differ(in_context(prompt._replace(bias=bias)), in_context(placed(case)))


@pytest.mark.breaks("Theorem 4.5", "R_a R_b = R_{a+b} (turning by the square of the position)")
@example(smallest)
@given(attention_cases(**both, rotated=st.just(True)))
def test_with_rotations_that_do_not_compose_theorem_4_5_fails(case):
    crooked = case._replace(rope=lambda positions: case.rope(positions * positions))
    assert_differ(converted(crooked), in_context(crooked))


@pytest.mark.breaks("Theorem 4.5", "Assumption 4.4 (the normalizer (Σ φ(k))², which does not separate)")
@example(smallest_normalized)
@given(attention_cases(**both, rotated=st.just(False), biased=st.just(False)))
def test_with_a_normalizer_that_does_not_separate_theorem_4_5_fails(case):
    def squared(q, k, v, bias, rope, normalize):
        o, _ = parallel_attention(q, k, v, bias, rope, normalize=False)
        z = k.cumsum(axis=-2)
        return o / (q * (z * z + (bias.d[..., None, :] if bias else 0))).sum(axis=-1, keepdims=True), None

    def squared_bias(k, v, bias, rope):
        z = k.sum(axis=-2)
        return Bias(key_value_matrix(k, v), z * z)

    assert_differ(converted(case, squared, squared_bias), in_context(case, squared))


# ---- Algorithm 1: whole transformers --------------------------------------------------------------------------------

ones, no_mlp = fractions([[[1, 1]]]), fractions(np.zeros((2, 1, 0), int))
layer_of_ones = Layer(ones, ones, fractions([[[1]]]), fractions([[[1]]]), no_mlp[0], no_mlp[1].T, fractions([["3/5", "4/5"]]))
tiny = Transformer(fractions([[1], [2]]), (layer_of_ones,) * 2, fractions([[1]]), identity, False, identity, identity,
                   rational_rope)


def texts(least=0):
    return st.lists(st.integers(0, 3), min_size=least, max_size=3)


@pytest.mark.proves("Algorithm 1", "§4.5, App D")
@given(transformers(), texts(), texts(1))
def test_algorithm_1_every_logit_of_the_prompt_is_the_same_with_the_context_as_biases(model, context, prompt):
    logits, state = forward(model, context + prompt, attend=attend)
    assert_exactly_equal(forward(model, prompt, iclca(model, context), attend), (logits[len(context):], state))


@pytest.mark.proves("contexts compose", "§8")
@given(transformers(), texts(), texts())
def test_contexts_compose_in_whole_transformers(model, first, second):
    assert_exactly_equal(iclca(model, second, iclca(model, first)), iclca(model, first + second))


@pytest.mark.proves("the empty context changes nothing", "§4.5")
@given(transformers(), texts(), texts(1))
def test_the_empty_context_changes_nothing(model, context, prompt):
    assert_exactly_equal(forward(model, prompt, iclca(model, [])), forward(model, prompt))
    biases = iclca(model, context)
    assert_exactly_equal(iclca(model, [], biases), biases)


@pytest.mark.proves("decoding = one pass", "§7, Eq 19")
@given(transformers(), texts(), texts(1))
def test_decoding_token_by_token_from_converted_biases_equals_one_pass(model, context, prompt):
    whole, _ = forward(model, context + prompt)
    biases = iclca(model, context)
    for i, token in enumerate(prompt):
        logits, biases = forward(model, [token], biases)
        assert_exactly_equal(logits[0], whole[len(context) + i])


@pytest.mark.breaks("the empty context changes nothing", "an empty context (one of one token)")
@example(tiny, [0], [1])
@given(transformers(), texts(1), texts(1))
def test_a_context_of_one_token_changes_the_logits(model, context, prompt):
    assert_differ(forward(model, prompt, iclca(model, context[:1]))[0], forward(model, prompt)[0])


@pytest.mark.breaks("decoding = one pass", "the state handed on (the context's biases again at every token)")
@example(tiny, [0], [1, 0])
@given(transformers(), texts(1), texts(2))
def test_decoding_with_the_same_biases_at_every_token_is_not_one_pass(model, context, prompt):
    whole, _ = forward(model, context + prompt)
    biases = iclca(model, context)
    assert_differ(forward(model, prompt[-1:], biases)[0], whole[-1:])


@given(transformers(), texts(), texts(1))
def test_conversion_is_reversible_dropping_the_biases_gives_the_old_model_back(model, context, prompt):
    before = forward(model, prompt)
    biases = iclca(model, context)
    forward(model, prompt, biases)
    assert_exactly_equal(forward(model, prompt), before)


def test_algorithm_1_takes_its_biases_from_the_closed_sum_which_does_not_drift():
    model = random_transformer(np.random.default_rng(0), 9, 8, 1, 2, dtype=np.float32)
    layer, tokens = model.layers[0], np.random.default_rng(1).integers(0, 9, 500)
    h = model.norm(model.embed[tokens])
    expected = attention_bias(model.phi(h @ layer.w_k), h @ layer.w_v, rope=partial(model.rope, theta=layer.theta))
    for a, b in zip(iclca(model, tokens)[0], expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.breaks("Algorithm 1", "Assumption 4.2 (a context token that sees the prompt)")
@example(tiny, [0], [1])
@given(transformers(n_layers=st.integers(2, 3)), texts(1), texts(1))
def test_when_context_tokens_see_the_prompt_algorithm_1_fails(model, context, prompt):
    def seeing_everything(q, k, v, bias, rope, normalize):
        bias = attention_bias(k, v, bias)
        return q @ bias.kv, bias

    logits, _ = forward(model, context + prompt, attend=seeing_everything)
    _, biases = forward(model, context, attend=seeing_everything)
    assert_differ(forward(model, prompt, biases, seeing_everything)[0], logits[len(context):])


@pytest.mark.breaks("Algorithm 1", "the bias of the first layer")
@example(tiny, [0], [1])
@given(transformers(), texts(1), texts(1))
def test_every_layer_needs_its_bias(model, context, prompt):
    biases = [None, *iclca(model, context)[1:]]
    assert_differ(forward(model, prompt, biases)[0], forward(model, context + prompt)[0][len(context):])


# ---- The same theorems in floating point, with elu + 1, GELU and layer normalization --------------------------------

floating = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@pytest.mark.proves("Algorithm 1", "§4.5, App D")
@floating
@given(rngs, st.booleans(), st.booleans(), st.sampled_from([0, None]))
def test_algorithm_1_holds_to_rounding_in_floating_point(dtype, rng, normalize, parallel, d_ff):
    model = random_transformer(rng, 100, 64, n_layers=3, n_heads=4, d_ff=d_ff, dtype=dtype)
    model = model._replace(normalize=normalize, parallel=parallel)
    text, m = rng.integers(0, 100, 80), 60
    logits = forward(model, text)[0][m:]
    # at most 6 in 400 such models: 3 layers that each sum 80 tokens in another order
    assert_close(forward(model, text[m:], iclca(model, text[:m]))[0], logits, ulps=50)


@pytest.mark.proves("Theorem 4.5", "Thm 4.5, Eq 14-16")
@floating
@given(rngs, st.integers(0, 300))
def test_theorem_4_5_holds_to_rounding_in_floating_point(dtype, rng, m):
    q, k, v, bias, rope = realistic(rng, dtype, n=m + 20)
    case = Case(q, k, v, m, bias, rope, True)
    assert_close(converted(case, chunked_attention), in_context(case, chunked_attention), ulps=500)  # 320 tokens
