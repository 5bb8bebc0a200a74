"""The rank-one patch: a context as a weight update for one query, and when one serves them all."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (angles, assert_close, assert_differ, assert_exactly_equal, assert_proved,
                   assert_refuted, every, fractions, case_rngs, rngs, square_plus_one, symbolic_rope,
                   transformers, uniform)
from iclca_ref import LSA, implicit_weight_update, key_value_matrix, lsa, softmax_attend
from linear_transformer import block, chunked_attention, forward, random_transformer, softmax
from polynomials import unknown, variables

activation = unknown("f", elementwise=True)


def any_vector(name, d):
    """Every vector of ℝᵈ but 0, in spherical coordinates: (cos α, sin α cos β, ...) times a length.

    So z·z is the length squared and 1/(z·z) its negative power: no fact about it is forgotten.
    """
    cos, sin = symbolic_rope(np.array([1]), angles(name + "angle", d - 1))
    direction, rest = [], 1
    for c, s in zip(cos[0], sin[0]):
        direction, rest = [*direction, rest * c], rest * s
    return variables(name, 1)[0] * np.array([*direction, rest], object)


# ---- One query ----------------------------------------------------------------------------------

def mlp(z, w, b, f):
    """M(z) = f(W z + b), with any bias and any activation."""
    return f(w @ z + b)


def patched(w, b, z, z_in_context, f):
    """The patched MLP without the context, and the MLP with it."""
    delta = implicit_weight_update(w, z, z_in_context)
    return mlp(z, w + delta, b, f), mlp(z_in_context, w, b, f)


def patch_shapes(d, d_out):
    return dict(W=(d_out, d), b=(d_out,), z=(d,), c=(d,))


@st.composite
def patches(draw):
    """w (d_out, d), b (d_out,), z and z_in_context (d,)."""
    rng, d, d_out = draw(case_rngs), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return tuple(uniform(rng, *s) for s in patch_shapes(d, d_out).values())


def symbolic_patch(d, d_out):
    """The same, of variables, for every z but 0."""
    case = {name: variables(name, *s) for name, s in patch_shapes(d, d_out).items()}
    return tuple({**case, "z": any_vector("z", d)}.values())


PATCH = "the rank-one patch, one query", "Dherin et al. 2025"
SHAPES = every(d=(1, 2, 3), d_out=(1, 2, 3))


@pytest.mark.proves(*PATCH)
@given(patches())
def test_the_patched_mlp_without_the_context_answers_as_the_mlp_with_it(case):
    assert_exactly_equal(*patched(*case, square_plus_one))


@pytest.mark.proves(*PATCH)
def test_the_patched_mlp_answers_as_in_context_for_any_vectors_weights_bias_and_activation():
    for shape in SHAPES:
        assert_proved(*patched(*symbolic_patch(**shape), activation), **shape)


@pytest.mark.proves(*PATCH)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs)
def test_the_patched_mlp_answers_as_in_context_to_rounding(dtype, rng):
    case = (rng.uniform(1, 2, s).astype(dtype) for s in patch_shapes(9, 5).values())
    assert_close(*patched(*case, square_plus_one), ulps=64)


def for_another_query(w, b, z, z_in_context, y, y_in_context, f):
    """The MLP at y with the patch of z, and with the context."""
    delta = implicit_weight_update(w, z, z_in_context)
    return mlp(y, w + delta, b, f), mlp(y_in_context, w, b, f)


@pytest.mark.breaks(PATCH[0], "the patch of one query used for another")
@example(tuple(map(fractions, ([[1]], [0], [1], [2]))), fractions([[3], [4]]))
@given(patches(), rngs.map(lambda rng: uniform(rng, 2, 4)))
def test_the_patch_of_one_query_does_not_serve_another(case, others):
    y, y_in_context = others[:, :len(case[2])]
    assert_differ(*for_another_query(*case, y, y_in_context, square_plus_one))


@pytest.mark.breaks(PATCH[0], "the patch of one query used for another")
def test_the_patch_of_one_query_scales_another_by_z_in_context_over_z():
    w, b, z, c = symbolic_patch(d=1, d_out=1)
    y, y_in_context = variables("y", 1), variables("yC", 1)
    difference = assert_refuted(*for_another_query(w, b, z, c, y, y_in_context, lambda x: x))
    assert str(difference) == "W0_0*c0*y0*z0^-1 - W0_0*yC0"


def test_a_query_of_zero_is_refused():
    for dtype in float, object:
        w, z, z_in_context = np.ones((3, 2), dtype), np.array([0, 0], dtype), np.ones(2, dtype)
        with pytest.raises(ValueError, match="z .2,. is 0"):
            implicit_weight_update(w, z, z_in_context)


@given(patches(), rngs)
def test_a_query_with_a_single_entry_that_is_not_zero_is_served(case, rng):
    w, b, z, z_in_context = case
    z = z * fractions(np.eye(len(z), dtype=int))[rng.integers(len(z))]
    assert_exactly_equal(*patched(w, b, z, z_in_context, square_plus_one))


@pytest.mark.parametrize("w, z, z_in_context", [
    ((3, 2), (3,), (2,)), ((3, 2), (2,), (3,)), ((3, 2), (1,), (1,)), ((3, 2), (2,), (1,)),
    ((2,), (2,), (2,))])
def test_vectors_that_do_not_fit_are_refused(w, z, z_in_context):
    with pytest.raises(ValueError):
        implicit_weight_update(np.ones(w), np.ones(z), np.ones(z_in_context))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_patch_keeps_its_type_and_its_arguments(dtype):
    w, z, z_in_context = np.ones((3, 2), dtype), np.ones(2, dtype), np.arange(2).astype(dtype)
    assert implicit_weight_update(w, z, z_in_context).dtype == dtype
    assert (w == 1).all() and (z == 1).all() and (z_in_context == [0, 1]).all()


# ---- Skip connections, norms, whole models ------------------------------------------------------

def patched_block(u, z, u_in_context, z_in_context, w, b, w_2, b_2, f):
    """u + W_2 M(z) + b_2 with both patches and without the context, and in context.

    u = x + A is the stream after attention, z what the MLP reads of it: u, or any norm of u. The
    second patch adds u_C − u to b_2.
    """
    alone = u + w_2 @ mlp(z, w + implicit_weight_update(w, z, z_in_context), b, f)
    return alone + (b_2 + u_in_context - u), u_in_context + w_2 @ mlp(z_in_context, w, b, f) + b_2


SKIP = "the patch with a skip connection and any norm", "Dherin et al. 2025"


def symbolic_block(d, d_out, normed):
    """Variables for `patched_block`; an unknown norm may send u and u_C to any z ≠ 0 and z_C."""
    w, b, z, z_in_context = symbolic_patch(d, d_out)
    u, u_in_context = (variables("u", d), variables("v", d)) if normed else (z, z_in_context)
    return u, z, u_in_context, z_in_context, w, b, variables("w", d, d_out), variables("a", d)


@pytest.mark.proves(*SKIP)
def test_with_a_skip_connection_and_any_norm_the_second_bias_takes_the_rest():
    for shape in every(d=(1, 2, 3), d_out=(1, 2), normed=(False, True)):
        assert_proved(*patched_block(*symbolic_block(**shape), activation), **shape)


def last_token(model, tokens, attend=chunked_attention, skip=1):
    """The logits of the last token alone, every layer patched, and those with the whole text.

    Each layer takes what the one before it gave: x alone, patched, and the rows of the text.
    """
    rows = model.embed[tokens]
    x = rows[-1:]
    for layer in model.layers:
        attention = layer._replace(w_1=layer.w_1[:, :0], w_2=layer.w_2[:0])
        u, u_in_context = (block(r, attention, model, None, attend)[0][-1:] for r in (x, rows))
        z, z_in_context = model.norm(u)[0], model.norm(u_in_context)[0]
        delta = implicit_weight_update(layer.w_1.T, z, z_in_context)
        with_patch = layer._replace(w_1=layer.w_1 + delta.T)
        x = block(x, with_patch, model, None, attend)[0] + skip * (u_in_context - u)
        rows = block(rows, layer, model, None, attend)[0]
    return model.norm(x) @ model.unembed, forward(model, tokens, attend=attend)[0][-1:]


serial = partial(transformers, n_layers=st.integers(1, 2), parallel=st.just(False),
                 d_ff=st.integers(1, 2))
texts = st.lists(st.integers(0, 3), min_size=2, max_size=3)


@pytest.mark.proves(*SKIP)
@given(serial(), texts)
def test_a_model_with_every_layer_patched_answers_the_last_token_alone_as_in_context(model, tokens):
    assert_exactly_equal(*last_token(model, tokens))


@pytest.mark.proves(*SKIP)
@given(rngs)
def test_a_softmax_model_with_every_layer_patched_answers_the_last_token_alone_as_in_context(rng):
    model = random_transformer(rng, 50, 32, n_layers=4, n_heads=4)
    tokens = rng.integers(0, 50, 30)
    assert_close(*last_token(model, tokens, softmax_attend), ulps=200)


@pytest.mark.breaks(SKIP[0], "the second layer's bias left as it was")
@given(serial(), texts)
def test_without_the_patch_of_the_second_bias_the_stream_is_the_old_one(model, tokens):
    assert_differ(*last_token(model, tokens, skip=0))


# ---- Its rank and its size ----------------------------------------------------------------------

def minors(a, order):
    """The determinants of all square parts of this order: all are 0 if and only if rank < order."""
    def determinant(m):
        return m[0, 0] if len(m) == 1 else sum(
            (-1) ** j * m[0, j] * determinant(np.delete(m[1:], j, axis=1)) for j in range(len(m)))

    places = [list(combinations(range(n), order)) for n in a.shape]
    return np.array([determinant(a[np.ix_(i, j)]) for i in places[0] for j in places[1]], object)


RANK = "the patch of one query has rank one", "Dherin et al. 2025"


@pytest.mark.proves(*RANK)
def test_every_minor_of_order_two_of_the_patch_is_zero():
    for shape in every(d=(2, 3), d_out=(2, 3)):
        w, _, z, c = (variables(name, *s) for name, s in patch_shapes(**shape).items())
        two = minors(implicit_weight_update(w, z, c), 2)
        assert_proved(two, 0 * two, zero=True, **shape)


@pytest.mark.breaks(RANK[0], "the patches of two queries, summed")
def test_the_sum_of_the_patches_of_two_queries_has_rank_two():
    w, _, z, c = (variables(name, *s) for name, s in patch_shapes(2, 2).items())
    y, e = variables("y", 2), variables("e", 2)
    two = minors(implicit_weight_update(w, z, c) + implicit_weight_update(w, y, e), 2)
    assert_refuted(two, 0 * two)


def another_patch(w, _, z, c, anything):
    """The patch and another that does the same: N = P (z·z − z zᵀ) is any N with N z = 0."""
    delta = implicit_weight_update(w, z, c)
    return delta, anything @ (z @ z * np.eye(len(z), dtype=int) - np.multiply.outer(z, z))


LEAST = "the patch is the smallest, in Frobenius norm", "Dherin et al. 2025"


def pythagoras(case, anything):
    """N z = 0, and ‖ΔW + N‖² = ‖ΔW‖² + ‖N‖²."""
    z, (delta, N) = case[2], another_patch(*case, anything)
    squares = (delta ** 2).sum() + (N ** 2).sum()
    return (N @ z, ((delta + N) ** 2).sum()), (0 * case[1], squares)


@pytest.mark.proves(*LEAST)
@given(patches(), rngs)
def test_every_other_patch_that_does_it_is_larger_by_what_it_adds(case, rng):
    assert_exactly_equal(*pythagoras(case, uniform(rng, *case[0].shape)))


@pytest.mark.proves(*LEAST)
def test_every_other_patch_that_does_it_is_larger_by_what_it_adds_for_all_vectors_and_weights():
    for shape in every(d=(1, 2, 3), d_out=(1, 2)):
        w, b, z, c = symbolic_patch(**shape)
        assert_proved(*pythagoras((w, b, z, c), variables("p", *w.shape)), **shape)


@pytest.mark.proves(*LEAST)
@given(rngs)
def test_the_patch_is_the_least_squares_solution_that_numpy_finds(rng):
    w, _, z, c = (rng.uniform(1, 2, s) for s in patch_shapes(6, 4).values())
    least = np.linalg.lstsq(z[None], (w @ (c - z))[None], rcond=None)[0].T
    delta = implicit_weight_update(w, z, c)
    assert_close(1 + delta, 1 + least, ulps=1000)
    for other in rng.standard_normal((20, 4, 6)):
        other = other - np.multiply.outer(other @ z, z) / (z @ z)
        np.testing.assert_allclose((delta + other) @ z, w @ (c - z), atol=1e-12)
        assert np.linalg.norm(delta + other) > np.linalg.norm(delta)


@pytest.mark.breaks(LEAST[0], "another direction in the place of z")
@given(patches().filter(lambda case: len(case[2]) > 1))
def test_a_patch_in_another_direction_does_it_too_and_is_larger(case):
    w, b, z, c = case
    first = fractions(np.eye(len(z), dtype=int))[0]
    delta, other = implicit_weight_update(w, z, c), np.multiply.outer(w @ (c - z), first / z[0])
    assert_differ(other, delta)
    assert ((other @ z) == (delta @ z)).all()
    assert (other ** 2).sum() > (delta ** 2).sum()


# ---- One patch for every query ------------------------------------------------------------------
#
# Linear attention without a normalizer, keys and values from the context alone, a skip connection
# and no norm: the layer is `lsa`, and z_C = (I + (W_Q b_KV)ᵀ) x for every x. ICLCA's bias, moved
# into the MLP. Rows are tokens, so W_Q is weights.w_qᵀ, and P takes the values back to the stream.

def layer_shapes(m, d, d_k, d_v, d_out):
    return dict(c=(m, d), q=(d_k, d), k=(d_k, d), v=(d_v, d), p=(d, d_v), W=(d_out, d), b=(d_out,))


def one_patch(context, w_q, w_k, w_v, p, w, b):
    """ΔW = W (W_Q b_KV)ᵀ, with b_KV = Σ k_j v_jᵀ in the stream; no query goes into it."""
    b_kv = key_value_matrix(context @ w_k.T, context @ w_v.T @ p.T)
    return w @ (w_q.T @ b_kv).T


def every_query(case, x, f, delta=None):
    """M_{W+ΔW}(x) for rows x without the context, and M_W(z_C) with it."""
    context, w_q, w_k, w_v, p, w, b = case
    _, z_in_context = lsa(context, x, LSA(w_q, w_k, w_v, p))
    delta = one_patch(*case) if delta is None else delta
    return f(x @ (w + delta).T + b), f(z_in_context @ w.T + b)


@st.composite
def layers(draw):
    """context, w_q, w_k, w_v, p, the MLP's w and b; and five queries x."""
    rng, sizes = draw(case_rngs), [draw(st.integers(1, 3)) for _ in range(5)]
    shape = layer_shapes(*sizes)
    return tuple(uniform(rng, *s) for s in shape.values()), uniform(rng, 5, sizes[1])


def symbolic_layer(**shape):
    return tuple(variables(name, *s) for name, s in layer_shapes(**shape).items())


ONE = "one patch for every query: linear attention", "ours; Thm 4.1 and Dherin et al."


@pytest.mark.proves(*ONE)
@given(layers())
def test_in_linear_attention_one_patch_serves_every_query(case):
    assert_exactly_equal(*every_query(*case, square_plus_one))


@pytest.mark.proves(*ONE)
def test_in_linear_attention_one_patch_serves_every_query_whatever_the_weights_and_activation():
    for shape in every(m=(0, 1, 2), d=(1, 2), d_k=(1, 2), d_v=(1, 2), d_out=(1, 2)):
        case, x = symbolic_layer(**shape), variables("x", 2, shape["d"])
        assert_proved(*every_query(case, x, activation), **shape, queries=2)


@pytest.mark.proves(*ONE)
def test_the_patch_of_one_query_is_the_one_patch_along_that_query():
    """ΔW x xᵀ / ‖x‖²: so the patches of all queries are parts of one matrix."""
    for shape in every(m=(1, 2), d=(1, 2, 3), d_k=(1,), d_v=(1,), d_out=(1, 2)):
        case, x = symbolic_layer(**shape), variables("x", shape["d"])
        context, *weights, w, b = case
        _, z_in_context = lsa(context, x, LSA(*weights))
        along = one_patch(*case) @ (np.multiply.outer(x, x) / (x @ x))
        assert_proved(implicit_weight_update(w, x, z_in_context), along, **shape, queries=1)


@pytest.mark.proves(*ONE)
def test_the_one_patch_has_at_most_the_rank_of_the_context():
    for m, d in (0, 1), (0, 2), (1, 2), (1, 3), (2, 3):
        shape = dict(m=m, d=d, d_k=d, d_v=d, d_out=d)
        k, v, w_q, w = (variables(n, *s) for n, s in zip("kvqW", ((m, d), (m, d), (d, d), (d, d))))
        eye = np.eye(d, dtype=int)
        # the context's keys and values may be any rows: W_K and W_V read them from two halves
        w_k, w_v = np.hstack([eye, 0 * eye]), np.hstack([0 * eye, eye])
        case = np.hstack([k, v]), w_q, w_k, w_v, eye, w, 0
        too_large, largest = (minors(one_patch(*case), order) for order in (m + 1, m))
        assert_proved(too_large, 0 * too_large, zero=True, **shape, order=m + 1)
        if m:
            assert (largest != 0).any()


def with_the_query_among_the_keys(case, x):
    """Every query attends to itself too: z without the context is not x any more."""
    context, *weights, w, b = case
    layer = LSA(*weights)
    _, z = lsa(x[:1], x[:1], layer)
    _, z_in_context = lsa(np.concatenate([context, x[:1]]), x[:1], layer)
    return z @ (w + one_patch(*case)).T, z_in_context @ w.T


@pytest.mark.breaks(ONE[0], "the query among the keys and values")
@given(layers())
def test_with_the_query_among_the_keys_the_one_patch_fails(case):
    assert_differ(*with_the_query_among_the_keys(*case))


@pytest.mark.breaks(ONE[0], "the query among the keys and values")
def test_with_the_query_among_the_keys_both_sides_are_other_polynomials():
    case = symbolic_layer(m=1, d=1, d_k=1, d_v=1, d_out=1)
    difference = assert_refuted(*with_the_query_among_the_keys(case, variables("x", 1, 1)))
    assert str(difference) == "W0_0*c0_0^2*k0_0^2*p0_0^2*q0_0^2*v0_0^2*x0_0^3"


def normalized_change(case, x):
    """W (z_C − z) if attention is divided by Σ q·k."""
    context, w_q, w_k, w_v, p, w, _ = case
    q, k, v = x @ w_q.T, context @ w_k.T, context @ w_v.T
    return q @ key_value_matrix(k, v) / (q @ k.sum(axis=0))[:, None] @ p.T @ w.T


@pytest.mark.breaks(ONE[0], "attention divided by Σ q·k")
@given(layers())
def test_with_a_normalizer_twice_the_query_has_the_same_change_and_no_matrix_does_that(case):
    case, x = case
    change = normalized_change(case, x)
    assert_exactly_equal(normalized_change(case, 2 * x), change)
    assert_differ(normalized_change(case, 2 * x), 2 * change)


@pytest.mark.breaks(ONE[0], "attention divided by Σ q·k")
def test_with_a_normalizer_the_change_is_not_linear_in_the_query():
    case, x = symbolic_layer(m=1, d=1, d_k=1, d_v=1, d_out=1), variables("x", 1, 1)
    difference = assert_refuted(normalized_change(case, 2 * x), 2 * normalized_change(case, x))
    assert str(difference) == "- W0_0*c0_0*p0_0*v0_0"


def best_patch(x, change):
    """The ΔW of the smallest Σ ‖ΔW x − change‖², and the share of the change that it leaves."""
    delta = np.linalg.lstsq(x, change, rcond=None)[0]
    return delta.T, np.linalg.norm(change - x @ delta) / np.linalg.norm(change)


@pytest.mark.breaks(ONE[0], "softmax attention in its place")
def test_with_softmax_the_best_single_patch_for_many_queries_leaves_most_of_the_change():
    rng = np.random.default_rng(0)
    case = *(rng.standard_normal(s) for s in layer_shapes(20, 8, 8, 8, 16).values()),
    context, w_q, w_k, w_v, p, w, _ = case
    x = rng.standard_normal((1000, 8))
    _, z_in_context = lsa(context, x, LSA(w_q, w_k, w_v, p))
    found, left = best_patch(x, (z_in_context - x) @ w.T)
    assert_close(found, one_patch(*case), ulps=1e4)     # least squares finds it: nothing is left
    assert left < 1e-12
    scores = (x @ w_q.T) @ (context @ w_k.T).T / np.sqrt(8)
    _, left = best_patch(x, softmax(scores) @ context @ w_v.T @ p.T @ w.T)
    assert left > 0.5
