"""The rank-one patch: a context as a weight update for one query, and when one serves them all."""

from fractions import Fraction
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (angles, arrays, assert_close, every, fractions, random_arrays, rngs, rngs_of,
                   square_plus_one, symbolic_rope, transformers, uniform)
from iclca_ref import LSA, implicit_weight_update, key_value_matrix, lsa, softmax_attend
from linear_transformer import block, chunked_attention, forward, random_transformer, softmax
from polynomials import unknown, variables
from theorem import broken, theorem

activation = unknown("f", elementwise=True)
patch = implicit_weight_update
serial = transformers(n_layers=st.integers(1, 2), parallel=st.just(False), d_ff=st.integers(1, 2))
texts = st.lists(st.integers(0, 3), min_size=2, max_size=3)
any_matrix = rngs_of(3).map(lambda rng: uniform(rng, 4, 4))


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

# w, b, z and z_in_context; with an activation
PATCH = dict(W="d_out d", b="d_out", z="d", c="d")
patches = lambda **least: random_arrays(PATCH, **least).map(lambda x: (*x, square_plus_one))

def any_patch(d, d_out, z=any_vector):
    """The same, of variables, for every z but 0."""
    w, b, _, c = arrays(variables, PATCH, d=d, d_out=d_out)
    return w, b, z("z", d), c, activation

def float_patch(rng, dtype):
    numbers = lambda _, *shape: rng.uniform(1, 2, shape).astype(dtype)
    return *arrays(numbers, PATCH, d=9, d_out=5), square_plus_one


@theorem("the rank-one patch, one query", "Dherin et al.", patches(),
         every(d=(1, 2, 3), d_out=(1, 2, 3)), any_patch, floats=float_patch, ulps=64)
def patched(w, b, z, z_in_context, f):
    """The patched MLP without the context  =  the MLP with it."""
    return mlp(z, w + patch(w, z, z_in_context), b, f), mlp(z_in_context, w, b, f)

@broken(patched, "the patch of one query used for another",
        st.tuples(patches(), rngs_of(3).map(lambda rng: uniform(rng, 2, 4))),
        [((*any_patch(1, 1)[:4], lambda x: x), np.array([variables("y", 1), variables("e", 1)]))],
        ((*map(fractions, ([[1]], [0], [1], [2])), square_plus_one), fractions([[3], [4]])),
        difference="W0_0*c0*y0*z0^-1 - W0_0*e0")
def used_for_another(case, others):
    (w, b, z, z_in_context, f), (y, y_in_context) = case, others[:, :len(case[2])]
    return mlp(y, w + patch(w, z, z_in_context), b, f), mlp(y_in_context, w, b, f)


# ---- Skip connections, norms, whole models ------------------------------------------------------

def any_block(d, d_out, normed):
    """Variables; an unknown norm may send u and u_C to any z ≠ 0 and z_C."""
    w, b, z, z_in_context, f = any_patch(d, d_out)
    u, u_in_context = (variables("u", d), variables("v", d)) if normed else (z, z_in_context)
    return u, z, u_in_context, z_in_context, w, b, variables("w", d, d_out), variables("a", d), f


@theorem("the patch with skip and any norm", "Dherin et al.", None,
         every(d=(1, 2, 3), d_out=(1, 2), normed=(False, True)), any_block)
def patched_block(u, z, u_in_context, z_in_context, w, b, w_2, b_2, f):
    """u + W_2 M(z) + b_2 with both patches and without the context  =  in context.

    u = x + A is the stream after attention, z what the MLP reads of it: u, or any norm of u. The
    second patch adds u_C − u to b_2.
    """
    alone = u + w_2 @ mlp(z, w + patch(w, z, z_in_context), b, f)
    return alone + (b_2 + u_in_context - u), u_in_context + w_2 @ mlp(z_in_context, w, b, f) + b_2


@theorem("the patch with skip and any norm", "Dherin et al.", st.tuples(serial, texts))
def last_token(model, tokens, attend=chunked_attention, skip=1):
    """The logits of the last token alone, every layer patched  =  with the whole text.

    Each layer takes what the one before it gave: x alone, patched, and the rows of the text.
    """
    rows = model.embed[tokens]
    x = rows[-1:]
    for layer in model.layers:
        attention = layer._replace(w_1=layer.w_1[:, :0], w_2=layer.w_2[:0])
        u, u_in_context = (block(r, attention, model, None, attend)[0][-1:] for r in (x, rows))
        delta = patch(layer.w_1.T, model.norm(u)[0], model.norm(u_in_context)[0])
        with_patch = layer._replace(w_1=layer.w_1 + delta.T)
        x = block(x, with_patch, model, None, attend)[0] + skip * (u_in_context - u)
        rows = block(rows, layer, model, None, attend)[0]
    return model.norm(x) @ model.unembed, forward(model, tokens, attend=attend)[0][-1:]

@broken(patched_block, "the second layer's bias left as it was", st.tuples(serial, texts))
def without_the_patch_of_the_second_bias(*case):
    return last_token(*case, skip=0)

@pytest.mark.proves("the patch with skip and any norm", "Dherin et al.")
@given(rngs)
def test_a_softmax_model_with_every_layer_patched_answers_as_in_context(rng):
    model, tokens = random_transformer(rng, 50, 32, n_layers=4, n_heads=4), rng.integers(0, 50, 30)
    assert_close(*last_token(model, tokens, softmax_attend), ulps=200)


# ---- Its rank and its size ----------------------------------------------------------------------

def minors(x, order):
    """The determinants of all square parts of this order: all are 0 if and only if rank < order."""
    def determinant(m):
        return m[0, 0] if len(m) == 1 else sum(
            (-1) ** j * m[0, j] * determinant(np.delete(m[1:], j, axis=1)) for j in range(len(m)))

    places = [list(combinations(range(n), order)) for n in x.shape]
    return np.array([determinant(x[np.ix_(i, j)]) for i in places[0] for j in places[1]], object)


@theorem("its rank is at most one", "Dherin et al.", None, every(d=(2, 3), d_out=(2, 3)),
         partial(any_patch, z=variables), zero=True)
def rank(w, _, z, c, f, more=0):
    """Every minor of order two  =  0."""
    two = minors(patch(w, z, c) + more, 2)
    return two, 0 * two

@broken(rank, "the patches of two queries, summed", patches(d=2, d_out=2),
        [any_patch(2, 2, variables)])
def sum_of_two_patches(w, b, z, c, f):
    return rank(w, b, z, c, f, patch(w, z[::-1] + 1, c))


@theorem("it is the smallest, in Frobenius", "Dherin et al.", st.tuples(patches(), any_matrix),
         every(d=(1, 2, 3), d_out=(1, 2)),
         lambda d, d_out: (any_patch(d, d_out), variables("p", d_out, d)))
def pythagoras(case, P, patch=patch):
    """ΔW z, N z, ‖ΔW + N‖²  =  W (z_C − z), 0, ‖ΔW‖² + ‖N‖² for any N, P (z·z − z zᵀ)."""
    w, b, z, c, _ = case
    delta, P = patch(w, z, c), P[:len(b), :len(z)]
    N = P @ (z @ z * np.eye(len(z), dtype=int) - np.multiply.outer(z, z))
    return ((delta @ z, N @ z, ((delta + N) ** 2).sum()),
            (w @ (c - z), 0 * b, (delta ** 2).sum() + (N ** 2).sum()))

@broken(pythagoras, "another direction in the place of z",
        st.tuples(patches(d=2), any_matrix), [(any_patch(2, 1), variables("p", 1, 2))])
def in_another_direction(*case):
    """ΔW = W (z_C − z) e_1ᵀ / z_1 does the same for z."""
    return pythagoras(*case, lambda w, z, c: np.multiply.outer(
        w @ (c - z), np.eye(len(z), dtype=int)[0] / z[0]))

@pytest.mark.proves("it is the smallest, in Frobenius", "Dherin et al.")
@given(rngs)
def test_the_patch_is_the_least_squares_solution_that_numpy_finds(rng):
    w, _, z, c, _ = float_patch(rng, float)
    least = np.linalg.lstsq(z[None], (w @ (c - z))[None], rcond=None)[0].T
    assert_close(1 + patch(w, z, c), 1 + least, ulps=1000)


# ---- One patch for every query ------------------------------------------------------------------
# Linear attention without a normalizer, keys and values from the context alone, a skip connection
# and no norm: the layer is `lsa`, and z_C = (I + (W_Q b_KV)ᵀ) x for every x. ICLCA's bias, moved
# into the MLP. Rows are tokens, so W_Q is weights.w_qᵀ, and P takes the values back to the stream.

ONE = "one patch serves every query", "ours; Dherin"


# queries; a context, w_q, w_k, w_v, p, the MLP's w and b
LAYER = dict(x="queries d", c="m d", q="d_k d", k="d_k d", v="d_v d", p="d d_v", W="d_out d",
             b="d_out")
layers, any_layer = random_arrays(LAYER), partial(arrays, variables, LAYER)
smallest = any_layer()


def one_patch(context, w_q, w_k, w_v, p, w, b):
    """ΔW = W (W_Q b_KV)ᵀ, with b_KV = Σ k_j v_jᵀ in the stream; no query goes into it."""
    b_kv = key_value_matrix(context @ w_k.T, context @ w_v.T @ p.T)
    return w @ (w_q.T @ b_kv).T


@theorem(*ONE, layers, every(m=(0, 1, 2), d=(1, 2), d_k=(1, 2), d_v=(1, 2), d_out=(1, 2),
                             queries=(2,)), any_layer)
def every_query(x, *layer):
    """M_{W+ΔW}(x) for rows x without the context  =  M_W(z_C) with it; f is any function."""
    context, *weights, w, b = layer
    f = activation if isinstance(x[0, 0], type(variables("x"))) else square_plus_one
    _, z_in_context = lsa(context, x, LSA(*weights))
    return f(x @ (w + one_patch(*layer)).T + b), f(z_in_context @ w.T + b)

@theorem(*ONE, None, every(m=(1, 2), d=(1, 2, 3), d_k=(1,), d_v=(1,), d_out=(1, 2)), any_layer)
def along_each_query(x, *layer):
    """The patch of one query x  =  ΔW x xᵀ / ‖x‖²: the patches of all are parts of one matrix."""
    context, *weights, w, b = layer
    _, z_in_context = lsa(context, x, LSA(*weights))
    return (patch(w, x[0], z_in_context[0]),
            one_patch(*layer) @ (np.multiply.outer(x[0], x[0]) / (x[0] @ x[0])))


def any_keys_and_values(m, d):
    """The context's keys and values may be any rows: W_K and W_V read them from two halves."""
    k, v, w_q, w = (variables(n, *s) for n, s in zip("kvqW", ((m, d), (m, d), (d, d), (d, d))))
    eye = np.eye(d, dtype=int)
    return np.hstack([k, v]), w_q, np.hstack([eye, 0 * eye]), np.hstack([0 * eye, eye]), eye, w, 0


@theorem(*ONE, None, [dict(m=0, d=1), dict(m=0, d=2), dict(m=1, d=2), dict(m=1, d=3),
                      dict(m=2, d=3)], any_keys_and_values, zero=True)
def rank_of_the_one_patch(*layer):
    """At most that of the context: all minors of order m + 1 are 0, some of order m are not."""
    m, delta = len(layer[0]), one_patch(*layer)
    assert not m or (minors(delta, m) != 0).any()
    return minors(delta, m + 1), 0 * minors(delta, m + 1)


@broken(every_query, "the query among the keys and values", layers, [smallest],
        difference="W0_0*c0_0^2*k0_0^2*p0_0^2*q0_0^2*v0_0^2*x0_0^3")
def with_the_query_among_the_keys(x, *layer):
    """Every query attends to itself too: z without the context is not x any more."""
    context, *weights, w, b = layer
    _, z = lsa(x[:1], x[:1], LSA(*weights))
    _, z_in_context = lsa(np.concatenate([context, x[:1]]), x[:1], LSA(*weights))
    return z @ (w + one_patch(*layer)).T, z_in_context @ w.T

@broken(every_query, "attention divided by Σ q·k", layers, [smallest],
        difference="- W0_0*c0_0*p0_0*v0_0")
def with_a_normalizer(x, *layer):
    """Twice the query has the same change W (z_C − z), and no matrix does that."""
    def change(x):
        context, w_q, w_k, w_v, p, w, _ = layer
        q, k, v = x @ w_q.T, context @ w_k.T, context @ w_v.T
        return q @ key_value_matrix(k, v) / (q @ k.sum(axis=0))[:, None] @ p.T @ w.T

    return change(2 * x), 2 * change(x)


@pytest.mark.breaks(ONE[0], "softmax attention in its place")
def test_with_softmax_the_best_single_patch_for_many_queries_leaves_most_of_the_change():
    """Least squares over queries (Mazzawi et al. 2025): in linear attention it is our one patch."""
    def best_patch(x, change):
        delta = np.linalg.lstsq(x, change, rcond=None)[0]
        return delta.T, np.linalg.norm(change - x @ delta) / np.linalg.norm(change)

    rng = np.random.default_rng(0)
    x, *layer = arrays(lambda _, *shape: rng.standard_normal(shape), LAYER, queries=1000, m=20, d=8,
                       d_k=8, d_v=8, d_out=16)
    context, w_q, w_k, w_v, p, w, _ = layer
    found, left = best_patch(x, (lsa(context, x, LSA(w_q, w_k, w_v, p))[1] - x) @ w.T)
    assert_close(found, one_patch(*layer), ulps=1e4)     # least squares finds it: nothing is left
    assert left < 1e-12
    scores = (x @ w_q.T) @ (context @ w_k.T).T / np.sqrt(8)
    _, left = best_patch(x, softmax(scores) @ context @ w_v.T @ p.T @ w.T)
    assert left > 0.5


# ---- What the function does with its arguments --------------------------------------------------

CASE = case("patch", lambda z, c, w: patch(w, z, c), "z:d z_in_context:d w?:od", Fraction)
test_batches, test_types = batches(CASE), types_and_layouts(CASE)

test_mistakes = refused(
    *[("z·z is 0 for z (2,); multiply", lambda z=z: patch(a(3, 2).astype(z.dtype), z, z + 1))
      for z in (0 * a(2), 0 * a(2).astype(object), 1e-200 * a(2))],
    *calls(patch, "w z z_in_context", "32 3 2", "32 2 3", "32 1 1", "2 2 2", "32 2 1", "432 2 2",
           "32 42 2"))
