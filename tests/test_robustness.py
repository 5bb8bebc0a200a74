"""Shapes that do not fit, arguments that must stay as they are, memory layouts, and large values."""

from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exact import fractions, realistic, rngs, rotations, rational_rope
from iclca_ref import (attention_bias, cosine, delta_rule, dual_form, farthest_rows, gradient_descent, iclca,
                       kernel_prediction, key_value_matrix, landmark_features, lin_attn, linear_bias, random_features,
                       rec_to_ftp, retention, retention_bias, save_biases, sim_aou, similarity_attention,
                       softmax_attention_with_bias, softmax_bias)
from linear_transformer import (Bias, alternating_tokens, chunked_attention, forward, gd_weights, generate,
                                induction_transformer, lsa, parallel_attention, random_transformer, recurrent_attention,
                                rope, rope_frequencies, rotate, softmax_attention)

features = partial(random_features, projection=np.ones((3, 2)))
shapes = st.lists(st.sampled_from([0, 1, 2, 3]), min_size=0, max_size=4).map(tuple)
nearby = st.tuples(st.sampled_from([(), (1,), (2,), (2, 1)]), st.integers(0, 3), st.integers(1, 2)).map(
    lambda parts: (*parts[0], *parts[1:]))

ATTENTION = {
    "recurrent": recurrent_attention, "parallel": parallel_attention, "chunked": chunked_attention,
    "softmax": softmax_attention, "retention": lambda q, k, v: retention(q, k, v, 0.5),
    "delta rule": lambda q, k, v: delta_rule(q, k, v, np.ones(k.shape[:-1])),
    "softmax with bias": lambda q, k, v: softmax_attention_with_bias(
        q, k, v, Bias(np.ones((*k.shape[:-2], 3, *v.shape[-1:])), np.ones((*k.shape[:-2], 3))), features)}


@pytest.mark.parametrize("attend", ATTENTION.values(), ids=ATTENTION)
@given(st.one_of(st.tuples(shapes, shapes, shapes), st.tuples(nearby, nearby, nearby)))
def test_no_three_shapes_that_do_not_fit_ever_give_an_answer(attend, qkv):
    q, k, v = qkv
    assume(not (q == k and len(k) >= 2 and k[:-1] == v[:-1]))
    with pytest.raises(ValueError):
        attend(np.ones(q), np.ones(k), np.ones(v))


@given(st.one_of(st.tuples(shapes, shapes), st.tuples(nearby, nearby)))
def test_no_keys_and_values_of_other_lengths_ever_give_a_bias(kv):
    k, v = kv
    assume(not (len(k) >= 2 and k[:-1] == v[:-1]))
    for convert in attention_bias, partial(retention_bias, gamma=0.5):
        with pytest.raises(ValueError, match="must be"):
            convert(np.ones(k), np.ones(v))
    with pytest.raises((ValueError, IndexError)):
        softmax_bias(np.ones(k), np.ones(v), features=lambda x: x)
    if k[:-1] != v[:-1]:
        with pytest.raises(ValueError, match="agree"):
            key_value_matrix(np.ones(k), np.ones(v))


@given(st.one_of(shapes, nearby), st.one_of(shapes, nearby))
def test_no_bias_of_another_shape_ever_gives_an_answer(kv, d):
    x = np.ones((2, 3, 2, 2))
    fits = len(kv) >= 2 and kv == (2, 3, 2, 2)[-len(kv):] and d == kv[:-1]
    assume(not fits)
    for attend in recurrent_attention, parallel_attention, chunked_attention:
        with pytest.raises(ValueError, match="bias must be"):
            attend(x, x, x, Bias(np.ones(kv), np.ones(d)))
    with pytest.raises(ValueError, match="bias must be"):
        attention_bias(x, x, Bias(np.ones(kv), np.ones(d)))


def a(*shape):
    return np.ones(shape)


model = random_transformer(np.random.default_rng(0), 9, 8, 2, 2)


@pytest.mark.parametrize("error, message, call", [
    (ValueError, "d must be even to rotate pairs, got 3", lambda: rope_frequencies(3)),
    (ValueError, "cos (3, 2) and sin (3, 2) must have half the width of x (3, 2)", lambda: rotate(a(3, 2), a(3, 2), a(3, 2))),
    (ValueError, "q, k must be (..., n, d_k) and v (..., n, d_v), got q (5, 2), k (1, 2), v (1, 3)",
     lambda: parallel_attention(a(5, 2), a(1, 2), a(1, 3))),
    (ValueError, "bias must be kv (4, 2, 3) and d (4, 2), got kv (2, 2) and d (2,)",
     lambda: attention_bias(a(4, 5, 2), a(4, 5, 3), Bias(a(2, 2), a(2)))),
    (ValueError, "the normalizer φ(q)·(Σ φ(k) + b_D) is 0 for a token: take positive features or no normalizer",
     lambda: parallel_attention(a(1, 1), 0 * a(1, 1), a(1, 1))),
    (ValueError, "chunk must be at least 1, got 0", lambda: chunked_attention(a(2, 2), a(2, 2), a(2, 2), chunk=0)),
    (TypeError, "tokens must be an array of integers, got float64 of shape (1,)", lambda: forward(model, [1.0])),
    (IndexError, "tokens must be from 0 to 8, got -1 to 3", lambda: forward(model, [3, -1])),
    (ValueError, "tokens must not be empty, got shape (2, 0)", lambda: forward(model, [[], []])),
    (ValueError, "tokens (4,): the model was built for at most 3", lambda: forward(induction_transformer(2, 3), [0] * 4)),
    (ValueError, "biases must be one per layer: got 1 for 2 layers", lambda: forward(model, [1], [None])),
    (ValueError, "tokens must be (m,) and n at least 0, got tokens (1, 1) and n = 1", lambda: generate(model, [[1]], 1)),
    (ValueError, "n_heads = 3 must divide d_model = 8 into even widths",
     lambda: random_transformer(np.random.default_rng(0), 9, 8, 2, 3)),
    (ValueError, "vocab_size 2, max_length 0 and n_gram 2 must be at least 1", lambda: induction_transformer(2, 0)),
    (ValueError, "context and query must be rows as wide as w_k (3, 3), got (2, 3), (1, 4)",
     lambda: lsa(a(2, 3), a(1, 4), gd_weights(a(1, 2), 1, 2))),
    (ValueError, "query (1, 3) must have the batch axes of context (5, 2, 3)",
     lambda: lsa(a(5, 2, 3), a(1, 3), gd_weights(a(1, 2), 1, 2))),
    (ValueError, "w0 must be (n_y, n_x) and n at least 1, got w0 (1, 2) and n = 0", lambda: gd_weights(a(1, 2), 1, 0)),
    (ValueError, "x and y must be (n, n_x) and (n, n_y), got (2, 1) and (3, 1)", lambda: alternating_tokens(a(2, 1), a(3, 1))),
    (ValueError, "k (..., m, d_k) and v (..., m, d_v) must agree but for the width, got k (2, 3), v (1, 3)",
     lambda: key_value_matrix(a(2, 3), a(1, 3))),
    (ValueError, "b_kv must be (3, 2), got (1, 1)", lambda: linear_bias(a(4, 5), a(5, 3), a(5, 2), a(1, 1))),
    *[(ValueError, f"V (..., n, d_v), K (..., n, d_k) and q (..., d_k) do not fit: V {V}, K {K}, q {q}",
       lambda V=V, K=K, q=q: lin_attn(a(*V), a(*K), a(*q)))
      for V, K, q in [((3, 2), (4, 2), (2,)), ((3, 2), (3, 4), (2,)), ((1, 3, 4), (2, 3, 4), (4,)), ((3,), (3, 2), (2,))]],
    (ValueError, "W0 must be (d_out, d_in) for E (3, 1) and X (3, 2), got (2, 2)",
     lambda: dual_form(a(2, 2), a(3, 1), a(3, 2), a(2))),
    (ValueError, "need W0 (d_out, d_in), X (n, d_in), Y (n, d_out), n at least 1 and steps at least 0, "
     "got W0 (1, 2), X (3, 2), Y (1, 1), steps = 1", lambda: gradient_descent(a(1, 2), a(3, 2), a(1, 1), 1)),
    *[(ValueError, f"need alpha (n, ...), X (n, d_in), x (..., d_in), got {alpha}, {X}, {x}",
       lambda alpha=alpha, X=X, x=x: kernel_prediction(a(*alpha), a(*X), a(*x), np.dot))
      for alpha, X, x in [((3,), (2, 2), (2,)), ((3,), (3, 2), (3,)), ((2,), (2, 2, 2), (2,)), ((3,), (3, 2), (3, 3))]],
    (ValueError, "an array (0, 2) without vectors or with a vector of norm 0 has no direction", lambda: cosine(a(0, 2), a(0, 2))),
    (ValueError, "a cosine needs two arrays of one shape, got (3, 2) and (1, 2)", lambda: cosine(a(3, 2), a(1, 2))),
    (ValueError, "need three arrays of one shape, got (1, 1, 2), (1, 1, 2), (1, 2, 2)",
     lambda: sim_aou(a(1, 1, 2), a(1, 1, 2), a(1, 2, 2))),
    (ValueError, "need three arrays of one shape, got (2,), (1,), (2,)", lambda: rec_to_ftp(a(2) > 0, a(1) > 0, a(2) > 0)),
    (ValueError, "fine-tuning corrects none of the 2 examples: there is nothing to compare with",
     lambda: rec_to_ftp(a(2) > 0, a(2) > 0, a(2) > 0)),
    (ValueError, "gamma must be a number or (2,), one per head of k (2, 5, 4), got (3,)", lambda: retention(*[a(2, 5, 4)] * 3, a(3))),
    (ValueError, "beta must be (2, 5), one for each token of k (2, 5, 4), got (5,)", lambda: delta_rule(*[a(2, 5, 4)] * 3, a(5))),
    (ValueError, "projection must be (m, 2) for x (3, 5, 2), got (5, 3)", lambda: random_features(a(3, 5, 2), a(5, 3))),
    (ValueError, "x (1, 2, 2) of norm up to 14 has features too large for float32",
     lambda: landmark_features(10 * a(1, 2))(np.array([[[10, 10], [6, 6]]], np.float32))),
    (ValueError, "r must be from 1 to 3, the rows of k (3, 2), got 4", lambda: farthest_rows(a(3, 2), 4)),
    (ValueError, "similarity must be (..., n, n) for v (2, 3), got (2, 1)",
     lambda: similarity_attention(a(2, 1), a(2, 3), a(2, 3), None)),
    (ValueError, "the denominator Σ sim(q, k) + φ(q)·b_D is 0 for some token",
     lambda: similarity_attention(0 * a(2, 2), a(2, 3), a(2, 3), None)),
    (TypeError, "kv_0 (1, 1) has dtype object, which a .npz file cannot hold without a pickle",
     lambda: save_biases("never", [Bias(fractions([[1]]), fractions([1]))]))])
def test_a_mistake_is_named_with_its_shapes_word_for_word(error, message, call):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("b_kv", [(1, 1), (3, 1), (2, 3, 2), (2, 3)])
def test_linear_bias_refuses_a_bias_of_another_shape(b_kv):
    with pytest.raises(ValueError, match="b_kv"):
        linear_bias(np.ones((4, 5)), np.ones((5, 3)), np.ones((5, 2)), np.ones(b_kv))


def test_an_odd_width_cannot_be_rotated():
    x = np.ones((4, 3))
    for attend in recurrent_attention, parallel_attention, chunked_attention:
        with pytest.raises(ValueError, match="half the width"):
            attend(x, x, x, rope=partial(rope, theta=np.ones(1)))


# ---- Arguments stay as they are -------------------------------------------------------------------------------------

def calls(q, k, v, bias, turn):
    """Results of the functions that take arrays of features."""
    yield from (form(q, k, v, bias, turn) for form in (recurrent_attention, parallel_attention, chunked_attention))
    yield attention_bias(k, v, bias, turn)
    yield retention(q, k, v, 0.9, bias.kv, turn)
    yield retention_bias(k, v, 0.9, bias.kv, turn)
    yield delta_rule(q, k, v, k[..., 0], bias.kv)


def arrays_in(result):
    return [result] if isinstance(result, np.ndarray) else [a for r in result for a in arrays_in(r)]


@given(rngs, st.sampled_from([0, 1, 40]), st.booleans())
def test_read_only_arguments_work_and_no_result_shares_memory_with_them(rng, n, rotated):
    q, k, v, bias, turn = realistic(rng, np.float64, n=n)
    arguments = [q, k, v, *bias]
    for a in arguments:
        a.setflags(write=False)
    for result in calls(q, k, v, bias, turn if rotated else None):
        for a in arrays_in(result):
            assert a.flags.writeable and not any(np.shares_memory(a, b) for b in arguments)


def test_a_model_and_training_data_are_not_modified_and_not_returned():
    model = random_transformer(np.random.default_rng(0), 9, 8, 2, 2)
    data = [np.random.default_rng(1).standard_normal(shape) for shape in ((2, 3), (4, 3), (4, 2), (4, 5), (1, 5))]
    tokens = np.array([1, 2, 3])
    arrays = [model.embed, model.unembed, tokens, *data, *(w for layer in model.layers for w in layer)]
    for a in arrays:
        a.setflags(write=False)
    biases = iclca(model, tokens)
    for a in arrays_in(biases):
        a.setflags(write=False)
    W0, X, Y, context, query = data
    results = [forward(model, tokens, biases), iclca(model, [], biases), generate(model, tokens, 3, biases),
               lsa(context, query, gd_weights(W0, 0.1, 4)), *(gradient_descent(W0, X, Y, 0.1, steps) for steps in (0, 2))]
    for a in arrays_in(results):
        assert not any(np.shares_memory(a, b) for b in arrays + arrays_in(biases))


# ---- Memory layouts and empty batches -------------------------------------------------------------------------------

@given(rngs, st.booleans())
def test_the_layout_in_memory_does_not_matter(rng, rotated):
    q, k, v, bias, turn = realistic(rng, np.float64, n=40)
    turn = turn if rotated else None
    spread = [np.repeat(x, 2, axis=-1)[..., ::2] for x in (q, k, v)]          # every other entry of a wider array
    fortran = [np.asfortranarray(x) for x in (q, k, v)]
    for layout in spread, fortran:
        assert not any(x.flags.c_contiguous for x in layout)
        for changed, plain in zip(calls(*layout, Bias(*map(np.asfortranarray, bias)), turn), calls(q, k, v, bias, turn)):
            for a, b in zip(arrays_in(changed), arrays_in(plain), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * abs(b).max())


def test_batches_of_length_zero_give_results_of_length_zero():
    x, bias = np.ones((0, 3, 4)), Bias(np.ones((0, 4, 4)), np.ones((0, 4)))
    for form in recurrent_attention, parallel_attention, chunked_attention:
        o, state = form(x, x, x, bias, partial(rope, theta=rope_frequencies(4)))
        assert (o.shape, state.kv.shape, state.d.shape) == ((0, 3, 4), (0, 4, 4), (0, 4))
    assert softmax_attention(x, x, x).shape == (0, 3, 4) and delta_rule(x, x, x, x[..., 0])[0].shape == (0, 3, 4)
    assert forward(random_transformer(np.random.default_rng(0), 9, 8, 2, 2), np.ones((0, 5), int))[0].shape == (0, 5, 9)


@given(rngs)
def test_a_normalizer_of_zero_is_refused_over_the_rationals_too(rng):
    k = fractions([[1, 0], [-1, 0]])
    for form in recurrent_attention, parallel_attention, chunked_attention:
        with pytest.raises(ValueError, match="normalizer"):
            form(k, k, k, rope=partial(rational_rope, theta=rotations(rng, 1)))


# ---- Large values ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rotated, bound", [(False, 20), (True, 1000)])
def test_100_000_tokens_with_features_up_to_10_000_stay_within_the_stated_error_of_float64(rotated, bound):
    """In units of eps: docs/results.md has the theory, the square root of the chunks, and 0.003 a token with rotation."""
    rng, n = np.random.default_rng(0), 100_000
    q, k = rng.random((2, n, 4), np.float32) * np.float32(1e4)
    v, theta = rng.standard_normal((n, 2), np.float32), rope_frequencies(4).astype(np.float32)
    results = []
    for dtype in np.float32, np.float64:
        turn = partial(rope, theta=theta.astype(dtype)) if rotated else None
        arguments = [x.astype(dtype) for x in (q, k, v)]
        o, state = chunked_attention(*arguments, rope=turn, chunk=64)
        results.append((state.kv, o[-100:], attention_bias(*arguments[1:], rope=turn).kv))
    for single, double, limit in zip(*results, (bound, bound, 20)):
        assert np.isfinite(single).all() and single.dtype == np.float32
        assert np.linalg.norm(single - double) <= limit * np.finfo(np.float32).eps * np.linalg.norm(double)
