"""Shapes that do not fit, arguments that must stay as they are, layouts, dtypes, extremes."""

import warnings
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exact import flat, fractions, rational_rope, realistic, rngs, rotations
from iclca_ref import (alternating_tokens, attention_bias, compose, context_map, dual_form,
                       farthest_rows,
                       gd_plus_plus_weights, gd_weights, gradient_descent, icl_weight_update, iclca,
                       implicit_weight_update, kernel_prediction, key_value_matrix, lin_attn,
                       linear_bias, linear_recurrence, log_landmark_features, log_random_features,
                       lsa, mean_squared_gradient, merged_bias, random_features,
                       similarity_attention, softmax_attention_with_bias, softmax_bias,
                       weight_update)
from linear_transformer import (Bias, block, check_shapes, chunked_attention, elu_plus_one,
                                forward, generate, parallel_attention, random_transformer,
                                recurrent_attention, rope, rope_frequencies, rotate, softmax,
                                softmax_attention)

REFUSED = ValueError, TypeError, IndexError
FORMS = recurrent_attention, parallel_attention, chunked_attention
log_features = partial(log_random_features, projection=np.ones((3, 2)))
shapes = st.lists(st.sampled_from([0, 1, 2, 3]), min_size=0, max_size=4).map(tuple)
nearby = st.tuples(st.sampled_from([(), (1,), (2,), (2, 1)]), st.integers(0, 3),
                   st.integers(1, 2)).map(lambda parts: (*parts[0], *parts[1:]))


def a(*shape):
    return np.ones(shape)


def recurrence(q, k, v):
    A = np.broadcast_to(np.eye(*k.shape[-1:]), (*k.shape, *k.shape[-1:]))
    return linear_recurrence(q, A, k[..., None] * v[..., None, :], np.zeros((2, 2)))


def with_bias(q, k, v):
    bias = Bias(a(*k.shape[:-2], 3, *v.shape[-1:]), a(*k.shape[:-2], 3))
    return softmax_attention_with_bias(q, k, v, bias, log_features)


# ---- Shapes that do not fit are refused ---------------------------------------------------------

@pytest.mark.parametrize("attend", [*FORMS, softmax_attention, with_bias])
@given(st.one_of(st.tuples(shapes, shapes, shapes), st.tuples(nearby, nearby, nearby)))
def test_no_three_shapes_that_do_not_fit_ever_give_an_answer(attend, qkv):
    q, k, v = qkv
    assume(not (q == k and len(k) >= 2 and k[:-1] == v[:-1]))
    with pytest.raises(REFUSED):
        attend(a(*q), a(*k), a(*v))


@given(st.one_of(st.tuples(shapes, shapes), st.tuples(nearby, nearby)))
def test_no_keys_and_values_of_other_lengths_ever_give_a_sum(kv):
    k, v = kv
    assume(not (len(k) >= 2 and k[:-1] == v[:-1]))
    for convert in (attention_bias, key_value_matrix, weight_update, merged_with(a(1, 2)),
                    partial(softmax_bias, log_features=lambda x: x)):
        with pytest.raises(REFUSED):
            convert(a(*k), a(*v))


def merged_with(landmarks):
    return lambda k, v: merged_bias(k, v, landmarks)


@given(st.one_of(shapes, nearby), st.one_of(shapes, nearby))
def test_no_bias_of_another_shape_ever_gives_an_answer(kv, d):
    x = a(2, 3, 2, 2)
    fits = kv[-2:] == (2, 2) and d[-1:] == (2,) and all(
        lead == (2, 3)[2 - len(lead):] for lead in (kv[:-2], d[:-1]))
    assume(not fits)
    bias = Bias(a(*kv), a(*d))
    for attend in FORMS:
        with pytest.raises(ValueError, match="bias.kv"):
            attend(x, x, x, bias)
    with pytest.raises(ValueError, match="bias.kv"):
        attention_bias(x, x, bias)
    with pytest.raises(ValueError, match="bias.kv"):
        softmax_attention_with_bias(x, x, x, bias, lambda x: x)
    with pytest.raises(ValueError, match="bias.kv"):
        similarity_attention(x, x, x, bias)


model = random_transformer(np.random.default_rng(0), 9, 8, 2, 2)
layer = model.layers[0]
gd = gd_weights(a(1, 2), 1, 2)


def one_layer(x, **weights):
    return lambda: block(x, layer._replace(**weights), model)


def descend(W0, X, Y, **options):
    return lambda: gradient_descent(W0, X, Y, 1.0, **options)


BAD_CALLS = [  # what the message must hold, and the call
    ("got 3", lambda: rope_frequencies(3)),
    ("cos (3, 2)", lambda: rotate(a(3, 2), a(3, 2), a(3, 2))),
    ("sin (3, 1)", lambda: rotate(a(3, 4), a(3, 2), a(3, 1))),
    ("cos (3, 2)", lambda: rotate(a(1, 4), a(3, 2), a(3, 2))),
    ("cos (5, 2)", lambda: rotate(a(3, 4), a(5, 2), a(5, 2))),
    ("q (5, 2), k (1, 2), v (1, 3)", lambda: parallel_attention(a(5, 2), a(1, 2), a(1, 3))),
    ("q (1, 5, 2), k (2, 5, 2)", lambda: chunked_attention(a(1, 5, 2), a(2, 5, 2), a(2, 5, 3))),
    ("cos (4, 1)", lambda: recurrent_attention(*[a(4, 3)] * 3, rope=partial(rope, theta=a(1)))),
    ("bias.kv (2, 2), bias.d (2,)",
     lambda: attention_bias(a(4, 5, 2), a(4, 5, 3), Bias(a(2, 2), a(2)))),
    ("bias.kv (1, 2, 3)", lambda: attention_bias(a(4, 5, 2), a(4, 5, 3), Bias(a(1, 2, 3), a(2)))),
    ("v (1, 5, 3)", lambda: recurrent_attention(a(2, 5, 2), a(2, 5, 2), a(1, 5, 3))),
    ("v (1, 5, 3)", lambda: softmax_attention(a(2, 5, 2), a(2, 5, 2), a(1, 5, 3))),
    ("v (1, 5, 3)", lambda: with_bias(a(2, 5, 2), a(2, 5, 2), a(1, 5, 3))),
    ("chunk; 0", lambda: chunked_attention(a(2, 2), a(2, 2), a(2, 2), chunk=0)),
    ("normalizer; 0", lambda: parallel_attention(a(1, 1), 0 * a(1, 1), a(1, 1))),
    ("tokens; float64 (1,)", lambda: forward(model, [1.0])),
    ("tokens; ()", lambda: forward(model, 1)),
    ("tokens; bool", lambda: forward(model, [True])),
    ("tokens; 0 to 8; -1 to 3", lambda: forward(model, [3, -1])),
    ("tokens; 0 to 8; 0 to 9", lambda: forward(model, [0, 9])),
    ("tokens; (2, 0)", lambda: forward(model, [[], []])),
    ("unembed (8,)", lambda: forward(model._replace(unembed=a(8)), [1])),
    ("tokens (4,); 3", lambda: forward(model._replace(max_length=3), [0] * 4)),
    ("biases; 2; 1", lambda: forward(model, [1], [None])),
    ("biases; 2; 3", lambda: iclca(model, [1], [None] * 3)),
    ("tokens; (1, 1)", lambda: generate(model, [[1]], 1)),
    ("tokens; n = -1", lambda: generate(model, [1], -1)),
    ("n_heads = 3; d_model = 8", lambda: random_transformer(np.random.default_rng(0), 9, 8, 2, 3)),
    ("x (8,)", one_layer(a(8))),
    ("w_q (1, 8, 4)", one_layer(a(5, 8), w_q=a(1, 8, 4))),
    ("w_o (1, 4, 8)", one_layer(a(5, 8), w_o=a(1, 4, 8))),
    ("w_o (2, 4, 1)", one_layer(a(5, 8), w_o=a(2, 4, 1))),
    ("w_2 (32, 1)", one_layer(a(5, 8), w_2=a(32, 1))),
    ("w_2 (3, 32, 8)", one_layer(a(5, 8), w_2=a(3, 32, 8))),
    ("size 32; 1", one_layer(a(5, 8), w_1=a(8, 1))),
    ("cos (5, 1)", one_layer(a(5, 8), theta=a(1))),
    ("context (2, 3), query (1, 4)", lambda: lsa(a(2, 3), a(1, 4), gd)),
    ("context (5, 2, 3), query (1, 3)", lambda: lsa(a(5, 2, 3), a(1, 3), gd)),
    ("p (1, 3)", lambda: lsa(a(2, 3), a(3), gd._replace(p=a(1, 3)))),
    ("p (1, 3, 3)", lambda: lsa(a(2, 3), a(3), gd._replace(p=a(1, 3, 3)))),
    ("w_v (1, 1)", lambda: lsa(a(2, 3), a(3), gd._replace(w_v=a(1, 1)))),
    ("w0; (1, 2); n = 0", lambda: gd_weights(a(1, 2), 1, 0)),
    ("w0; (1, 1, 2)", lambda: gd_plus_plus_weights(a(1, 1, 2), 1, 1, 3)),
    ("k (2, 3), v (1, 3)", lambda: key_value_matrix(a(2, 3), a(1, 3))),
    *[("b_kv " + str(shape), lambda shape=shape: linear_bias(a(4, 5), a(5, 3), a(5, 2), a(*shape)))
      for shape in [(1, 1), (3, 1), (2, 3, 2), (2, 3)]],
    ("A (4, 2, 2), B (1, 2, 3)", lambda: context_map(a(4, 2, 2), a(1, 2, 3))),
    ("A (2, 2), B (2, 3)", lambda: context_map(a(2, 2), a(2, 3))),
    ("state (1, 1)", lambda: linear_recurrence(a(3, 2), a(3, 2, 2), a(3, 2, 1), a(1, 1))),
    ("A (1, 2, 2)", lambda: linear_recurrence(a(3, 2), a(1, 2, 2), a(3, 2, 1), a(2, 1))),
    ("(2, 3); (1, 3)", lambda: compose((a(2, 2), a(2, 3)), (a(2, 2), a(1, 3)))),
    *[(f"q {q if len(q) > 1 else (1, *q)}, K {K}, V {V}",
       lambda V=V, K=K, q=q: lin_attn(a(*V), a(*K), a(*q)))
      for V, K, q in [((3, 2), (4, 2), (2,)), ((3, 2), (3, 4), (2,)),
                      ((2, 3, 6), (2, 3, 4), (2, 4))]],
    ("K (2, 3, 4), V (1, 3, 4)", lambda: lin_attn(a(1, 3, 4), a(2, 3, 4), a(4))),
    ("K (3, 2), V (3,)", lambda: lin_attn(a(3), a(3, 2), a(2))),
    ("E (4, 2), X (1, 3)", lambda: weight_update(a(4, 2), a(1, 3))),
    ("W0 (2, 2)", lambda: dual_form(a(2, 2), a(3, 1), a(3, 2), a(2))),
    ("W0 (1, 4)", lambda: dual_form(a(1, 4), a(3, 6), a(3, 4), a(4))),
    ("q (2, 4), K (2, 3, 4)", lambda: dual_form(a(6, 4), a(2, 3, 6), a(2, 3, 4), a(2, 4))),
    ("outputs (3,), targets (3, 1)", lambda: mean_squared_gradient(a(3), a(3, 1))),
    ("outputs (3, 1), targets (3, 2)", lambda: mean_squared_gradient(a(3, 1), a(3, 2))),
    ("W0 (1, 2), X (3, 2), Y (1, 1)", descend(a(1, 2), a(3, 2), a(1, 1))),
    ("X (0, 2)", descend(a(1, 2), a(0, 2), a(0, 1))),
    ("steps = -1", descend(a(1, 2), a(3, 2), a(3, 1), steps=-1)),
    ("X (4, 3, 2)", descend(a(4, 1, 2), a(4, 3, 2), a(4, 3, 1))),
    ("dimension 1", descend(a(2, 2), a(3, 2), a(3, 2), gradient=lambda o, y: a(3, 1))),
    ("1", lambda: gradient_descent(a(1, 2), a(3, 2), a(3, 1), a(3, 1))),
    *[(f"X {X}; {other}", lambda alpha=alpha, X=X, x=x: kernel_prediction(a(*alpha), a(*X), a(*x),
                                                                        np.dot))
      for alpha, X, x, other in [((3,), (2, 2), (2,), "alpha (3,)"), ((3,), (3, 2), (3,), "x (3,)"),
                                 ((2,), (2, 2, 2), (2,), "alpha (2,)"), ((1,), (3, 2), (2,), ""),
                                 ((2, 2, 1), (2, 2, 2), (2,), "x (2,)")]],
    ("projection (5, 3)", lambda: random_features(a(3, 5, 2), a(5, 3))),
    ("projection (2,)", lambda: random_features(a(5, 2), a(2))),
    *[(f"landmarks {z}", lambda z=z: log_landmark_features(a(2, 5, 3), a(*z)))
      for z in [(3, 4, 3), (1, 4, 3), (3,), (4, 1)]],
    *[(f"landmarks {z}", lambda z=z: merged_bias(a(2, 5, 3), a(2, 5, 3), a(*z)))
      for z in [(3, 4, 3), (1, 4, 3), (3,), (4, 1)]],
    ("r must; k (3, 2); 4", lambda: farthest_rows(a(3, 2), 4)),
    ("r must; k (3, 2); 0", lambda: farthest_rows(a(3, 2), 0)),
    ("similarity (2, 1)", lambda: similarity_attention(a(2, 1), a(2, 3), a(2, 3), None)),
    ("similarity (3, 2, 2)", lambda: similarity_attention(a(3, 2, 2), a(2, 3), a(2, 3), None)),
    ("(4, 3, 2)", lambda: alternating_tokens(a(4, 3, 2), a(4, 3, 1))),
    ("B_2 (2, 3); B_1 (2, 1)", lambda: compose((a(2, 2), a(2, 3)), (a(2, 2), a(2, 1)))),
    ("phi_q (3, 3)", lambda: similarity_attention(a(2, 2), a(3, 3), a(2, 3), None)),
    ("normalizer; 0", lambda: similarity_attention(0 * a(2, 2), a(2, 3), a(2, 3), None)),
    ("b_D (3,)", lambda: softmax_attention_with_bias(*[a(2, 2)] * 3, Bias(a(3, 2), -a(3)),
                                                     log_features)),
    ("z (2,); 0", lambda: implicit_weight_update(a(3, 2), 0 * a(2), a(2))),
    ("z (3,), z_in_context (2,)", lambda: implicit_weight_update(a(3, 2), a(3), a(2))),
]


@pytest.mark.parametrize("words, call", [
    pytest.param(words, call, id=f"{i}, {words}") for i, (words, call) in enumerate(BAD_CALLS)])
def test_a_mistake_is_named_with_the_argument_and_its_shape(words, call):
    with pytest.raises(REFUSED) as raised:
        call()
    for word in words.split("; "):
        assert word in str(raised.value)


def test_the_check_of_shapes_reads_lengths_leading_axes_and_what_may_leave_them_out():
    good = [[(2, 3), (2, 4), (3, 4)], [(5, 2, 3), (5, 2, 4), (3, 4)], [(5, 2, 3), (5, 2, 4),
            (5, 3, 4)], [(6, 5, 2, 3), (6, 5, 2, 4), (5, 3, 4)], [(0, 2, 3), (0, 2, 4), (3, 4)]]
    bad = [[(2, 3), (2, 4), (5, 3, 4)], [(2, 3), (5, 2, 4), (3, 4)], [(3,), (2, 4), (3, 4)],
           [(2, 3), (3, 4), (3, 4)], [(2, 3), (2, 4), (4, 3)], [(5, 2, 3), (2, 4), (3, 4)],
           [(5, 2, 3), (5, 2, 4), (1, 3, 4)], [(6, 5, 2, 3), (6, 5, 2, 4), (6, 3, 4)],
           [(2, 3), (2, 4), (4,)], [(1, 3), (2, 4), (3, 4)], [(2, 3), (1, 2, 4), (3, 4)],
           [(6, 5, 2, 3), (6, 5, 2, 4), (7, 6, 5, 3, 4)]]
    for given_shapes in good:
        check_shapes("q:nk k:nd v?:kd", *map(np.zeros, given_shapes))
    for given_shapes in bad:
        with pytest.raises(ValueError, match=r"q \(.*\), k \(.*\), v \("):
            check_shapes("q:nk k:nd v?:kd", *map(np.zeros, given_shapes))


# ---- Arguments stay as they are -----------------------------------------------------------------

def calls(q, k, v, bias, turn):
    """Results of the functions that take arrays of features."""
    yield from (form(q, k, v, bias, turn) for form in FORMS)
    yield attention_bias(k, v, bias, turn)
    yield similarity_attention(np.tril(q @ k.swapaxes(-1, -2)), q, v, bias)
    yield softmax_attention_with_bias(q, k, v, bias, lambda x: -x)
    A = np.broadcast_to(np.eye(k.shape[-1]) / 2, (*k.shape, k.shape[-1]))
    yield linear_recurrence(q, A, k[..., None] * v[..., None, :], bias.kv)
    yield context_map(A, k[..., None] * v[..., None, :])
    yield compose((A[..., 0, :, :], bias.kv), (A[..., 0, :, :], 2 * bias.kv)) if k.size else ()
    yield lin_attn(v, k, q), weight_update(v, k), key_value_matrix(k, v)


def assert_apart(arrays, others=()):
    """No two arrays share memory, and none of them with any of the others."""
    for x, y in [*combinations(arrays, 2), *((x, y) for x in arrays for y in others)]:
        assert not np.shares_memory(x, y)


@given(rngs, st.sampled_from([0, 1, 40]), st.booleans())
def test_read_only_arguments_work_and_no_result_shares_memory_with_them(rng, n, rotated):
    q, k, v, bias, turn = realistic(rng, np.float64, n=n, d_k=4, d_v=3)
    arguments = [q, k, v, *bias]
    for x in arguments:
        x.setflags(write=False)
    for result in calls(q, k, v, bias, turn if rotated else None):
        assert_apart(flat(result), arguments)
        assert all(x.flags.writeable for x in flat(result))


def test_the_state_after_no_tokens_is_a_copy_of_the_start():
    none, bias = np.ones((0, 2)), Bias(a(2, 2), a(2))
    for form in FORMS:
        assert_apart(flat(form(none, none, none, bias)[1]), bias)
    assert_apart(attention_bias(none, none, bias), bias)
    state = a(2, 2)
    assert_apart([linear_recurrence(none, a(0, 2, 2), a(0, 2, 2), state)[1]], [state])
    A, B = context_map(a(0, 2, 2), a(0, 2, 2))
    np.testing.assert_array_equal(A, np.eye(2))
    np.testing.assert_array_equal(B, 0 * A)


def test_one_bias_for_a_batch_becomes_a_state_for_each_that_can_be_written_to():
    x, bias = a(2, 0, 2), Bias(a(2, 2), a(2))
    for state in (*(form(x, x, x, bias)[1] for form in FORMS), attention_bias(x, x, bias)):
        for array, start in zip(state, bias):
            array[0] = 7
            np.testing.assert_array_equal(array[1], start)
            assert (start == 1).all()
    _, state = linear_recurrence(x, a(2, 0, 2, 2), a(2, 0, 2, 2), bias.kv)
    state[0] = 7
    assert (state[1] == 1).all() and (bias.kv == 1).all()


def test_a_model_and_training_data_are_not_modified_and_not_returned():
    rng = np.random.default_rng(1)
    data = [rng.standard_normal(s) for s in ((2, 3), (4, 3), (4, 2), (4, 5), (1, 5), (2, 2))]
    tokens = np.array([1, 2, 3])
    weights = (w for layer in model.layers for w in layer)
    arrays = [x.copy() for x in (model.embed, model.unembed, tokens, *data)]
    originals = [model.embed, model.unembed, tokens, *data, *weights]
    for x in originals:
        x.setflags(write=False)
    biases = iclca(model, tokens)
    for x in flat(biases):
        x.setflags(write=False)
    W0, X, Y, context, query, w = data
    results = [forward(model, tokens, biases), iclca(model, [], biases),
               generate(model, tokens, 3, biases), lsa(context, query, gd_weights(W0, 0.1, 4)),
               farthest_rows(X, 4), implicit_weight_update(w, Y[0], Y[1]),
               icl_weight_update(context, context.T, context.T),
               *(gradient_descent(W0, X, Y, 0.1, steps) for steps in (0, 1, 2))]
    for result in results:
        assert_apart(flat(result), originals + flat(biases))
    for x, y in zip(arrays, originals):
        np.testing.assert_array_equal(x, y)


def test_the_list_of_biases_handed_in_is_not_changed():
    biases = [None, None]
    forward(model, [1, 2], biases)
    iclca(model, [1, 2], biases)
    assert biases == [None, None]


# ---- Memory layouts, empty batches --------------------------------------------------------------

@given(rngs, st.booleans())
def test_the_layout_in_memory_does_not_matter(rng, rotated):
    q, k, v, bias, turn = realistic(rng, np.float64, n=40, d_k=4, d_v=3)
    turn = turn if rotated else None
    every_other = [np.repeat(x, 2, axis=-1)[..., ::2] for x in (q, k, v)]
    backwards = [x[..., ::-1].copy()[..., ::-1] for x in (q, k, v)]
    fortran = [np.asfortranarray(x) for x in (q, k, v)]
    for layout in every_other, backwards, fortran:
        assert not any(x.flags.c_contiguous for x in layout)
        changed = flat(list(calls(*layout, Bias(*map(np.asfortranarray, bias)), turn)))
        for x, y in zip(changed, flat(list(calls(q, k, v, bias, turn))), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * abs(y).max())


def test_batches_of_length_zero_give_results_of_length_zero():
    x, bias = a(0, 3, 4), Bias(a(0, 4, 4), a(0, 4))
    for form in FORMS:
        o, state = form(x, x, x, bias, partial(rope, theta=rope_frequencies(4)))
        assert (o.shape, state.kv.shape, state.d.shape) == ((0, 3, 4), (0, 4, 4), (0, 4))
    assert softmax_attention(x, x, x).shape == (0, 3, 4)
    assert softmax_attention_with_bias(x, x, x, bias, lambda x: x).shape == (0, 3, 4)
    o, state = linear_recurrence(x, a(0, 3, 4, 4), a(0, 3, 4, 4), a(4, 4))
    assert (o.shape, state.shape) == ((0, 3, 4), (0, 4, 4))
    assert forward(model, np.ones((0, 5), int))[0].shape == (0, 5, 9)
    assert iclca(model, np.ones((0, 5), int))[1].kv.shape == (0, 2, 4, 4)
    assert farthest_rows(x, 2).shape == (0, 2, 4)
    assert merged_bias(x, x, a(2, 4)).kv.shape == (0, 2, 4)
    assert kernel_prediction(a(3), a(3, 2), a(0, 2), np.dot).shape == (0,)


def test_no_tokens_leave_the_start_as_it_is_and_give_no_outputs():
    none, bias = a(3, 0, 4), Bias(np.arange(16.0).reshape(4, 4), np.arange(4.0))
    for rotation in None, partial(rope, theta=rope_frequencies(4)):
        for form in FORMS:
            o, state = form(none, none, none, bias, rotation)
            assert o.shape == (3, 0, 4)
            np.testing.assert_array_equal(state.kv, np.broadcast_to(bias.kv, (3, 4, 4)))
            np.testing.assert_array_equal(state.d, np.broadcast_to(bias.d, (3, 4)))


# ---- What used to be answered silently and wrongly ----------------------------------------------

def test_a_kernel_may_return_a_whole_number_first_and_a_fraction_later():
    def kernel(x_i, x):
        return 0 if x_i[0] == 0 else 0.75

    assert kernel_prediction(a(2), np.array([[0.0], [1.0]]), a(1), kernel) == 0.75


def test_rotations_by_whole_numbers_of_radians_are_not_whole_numbers():
    for got, expected in zip(rope(np.array([1, 2]), np.array([1, 3])),
                             rope(np.array([1, 2]), np.array([1.0, 3.0]))):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("as_given", [float, np.float64, np.float32, np.array])
def test_a_learning_rate_of_any_float_type_leaves_float32_what_it_is(as_given):
    W0, X, Y = (np.ones(shape, np.float32) for shape in ((1, 2), (3, 2), (3, 1)))
    eta, gamma = as_given(0.125), as_given(0.25)
    results = flat([gradient_descent(W0, X, Y, eta), gd_weights(W0, eta, 3),
                    gd_plus_plus_weights(W0, eta, gamma, 3)])
    assert {x.dtype for x in results} == {np.dtype(np.float32)}
    assert gd_weights(W0, eta, 3).p[0, 0] == np.float32(0.125 / 3)


def test_a_text_as_long_as_the_model_allows_is_read():
    assert forward(model._replace(max_length=3), [1, 2, 3])[0].shape == (3, 9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused_by_generate(bad):
    unembed = model.unembed.copy()
    unembed[:, 3] = bad
    with pytest.raises(ValueError, match=r"logits.*\(2,\)"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        generate(model._replace(unembed=unembed), [1, 2], 3)


def test_values_that_are_whole_numbers_do_not_cut_the_outputs_down_to_whole_numbers():
    q, k, v = a(3, 1), np.array([[0.5], [1.0], [2.0]]), np.array([[3], [1], [7]])
    bias = Bias(np.array([[1]]), np.array([1]))
    for form in FORMS:
        o, state = form(q, k, v, bias)
        np.testing.assert_allclose(o[:, 0], [2.5 / 1.5, 3.5 / 2.5, 17.5 / 4.5], rtol=1e-15)
        np.testing.assert_array_equal(state.kv, [[17.5]])
    o, state = linear_recurrence(q, 0.5 * a(3, 1, 1), v[..., None], np.array([[1]]))
    np.testing.assert_array_equal(o[:, 0], [3.5, 2.75, 8.375])


@given(rngs)
def test_a_normalizer_of_exactly_zero_is_refused_over_the_rationals_too(rng):
    k = fractions([[1, 0], [-1, 0]])
    for form in FORMS:
        with pytest.raises(ValueError, match="normalizer"):
            form(k, k, k, rope=partial(rational_rope, theta=rotations(rng, 1)))


def test_a_normalizer_that_is_small_but_not_zero_is_a_normalizer():
    """Nothing is refused below a threshold, also where features of both signs nearly cancel."""
    for tiny in 1e-30, 1e-300, -1e-300:
        for form in FORMS:
            o, _ = form(a(1, 1), np.array([[tiny]]), np.array([[3.0]]))
            np.testing.assert_allclose(o, 3, rtol=1e-15)
    k = np.array([[0.1], [0.2], [-0.3]])
    for form in FORMS:
        assert abs(form(a(3, 1), k, a(3, 1) * [[1], [2], [3]])[0][-1]) > 1e15


@pytest.mark.parametrize("dtype, lowest", [(np.float32, -43), (np.float64, -354)])
def test_elu_plus_one_keeps_its_digits_in_a_product_down_to_the_stated_bound(dtype, lowest):
    x = np.array([[lowest]], dtype)
    phi = elu_plus_one(x)
    values = np.array([[2.0]], dtype)
    for form in FORMS:
        np.testing.assert_allclose(form(phi, phi, values)[0], 2, rtol=8 * np.finfo(dtype).eps)
    assert 0 < (phi * phi).item() < 100 * np.finfo(dtype).tiny     # not far from the bound


# ---- Large values -------------------------------------------------------------------------------

def test_softmax_does_not_overflow_and_ignores_what_is_minus_infinity():
    x = np.array([[1e300, 1e300, -1e300], [-1e308, -1e308, -np.inf], [0, -np.inf, -np.inf]])
    np.testing.assert_array_equal(softmax(x), [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0]])


def test_softmax_attention_with_a_bias_does_not_overflow():
    q = k = np.array([[1e3, 0.0], [0.0, 1e3]])
    v, z = np.eye(2), 1e3 * np.eye(2)
    o = softmax_attention_with_bias(q, k, v, merged_bias(k, v, z / 2 ** 0.25),
                                    partial(log_landmark_features, landmarks=z / 2 ** 0.25))
    np.testing.assert_array_equal(o, np.eye(2))


# in eps; theory and figures: docs/results.md, the square root of the chunks, 0.003 a token with
# rotation; the closed sum has the order of the BLAS and its threads, at most the square root of n
@pytest.mark.parametrize("rotated, bound", [(False, 20), (True, 1000)])
def test_100_000_tokens_with_features_up_to_10_000_stay_within_the_stated_error(rotated, bound):
    rng, n = np.random.default_rng(0), 100_000
    q, k = rng.random((2, n, 4), np.float32) * np.float32(1e4)
    v, theta = rng.standard_normal((n, 2), np.float32), rope_frequencies(4).astype(np.float32)
    results = []
    for dtype in np.float32, np.float64:
        turn = partial(rope, theta=theta.astype(dtype)) if rotated else None
        arguments = [x.astype(dtype) for x in (q, k, v)]
        o, state = chunked_attention(*arguments, rope=turn, chunk=64)
        results.append((state.kv, o[-100:], attention_bias(*arguments[1:], rope=turn).kv))
    for single, double, limit in zip(*results, (bound, bound, 316)):
        assert np.isfinite(single).all() and single.dtype == np.float32
        allowed = limit * np.finfo(np.float32).eps * np.linalg.norm(double)
        assert np.linalg.norm(single - double) <= allowed


# ---- What a second hostile test found ---------------------------------------------------------------

def test_arrays_of_the_other_byte_order_turn_alike():
    x, table = np.random.default_rng(0).standard_normal((3, 4)), rope(np.arange(3), rope_frequencies(4))
    np.testing.assert_allclose(rotate(x.astype(">f8"), *table), rotate(x, *table), rtol=1e-15)


def test_a_projection_is_not_truncated_for_whole_numbers_and_may_be_one_for_each_batch():
    x, w = np.array([[1, 0, 2]]), np.random.default_rng(0).standard_normal((2, 3))
    np.testing.assert_allclose(random_features(x, w), random_features(x.astype(float), w), rtol=1e-15)
    x, w = np.random.default_rng(0).standard_normal((2, 2, 4, 3))
    both = log_random_features(x, w)
    for one, alone, projection in zip(both, x, w):
        np.testing.assert_allclose(one, log_random_features(alone, projection), rtol=1e-13)


def test_numpy_integers_as_sizes_keep_float32():
    assert gd_weights(np.ones((1, 2), np.float32), 0.5, np.int64(4)).p.dtype == np.float32
    model = random_transformer(np.random.default_rng(0), 5, np.int64(4), np.int64(1), 2, dtype=np.float32)
    assert {w.dtype for w in (model.embed, model.unembed, *model.layers[0])} == {np.dtype(np.float32)}


def test_maps_that_are_not_square_and_frequencies_with_an_axis_too_many_are_refused():
    with pytest.raises(ValueError, match=r"A_2 \(1, 3\)"):
        compose((np.ones((1, 3)), np.ones((3, 2))), (np.ones((3, 3)), np.ones((3, 2))))
    with pytest.raises(ValueError, match=r"theta \(1, 2\)"):
        rope(np.arange(3), np.ones((1, 2)))
