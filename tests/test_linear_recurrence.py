"""One law: a context is one affine map of the state, for every linear recurrence of the table."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact import (angles, assert_close, assert_differ, assert_exactly_equal, assert_proved,
                   assert_refuted, every, fractions, rational_rope, realistic, case_rngs, rngs, rotations,
                   shapes, symbolic_rope, uniform)
from iclca_ref import (attention_bias, compose, context_map, gradient_descent, key_value_matrix,
                       linear_recurrence)
from linear_transformer import chunked_attention, recurrent_attention, rotate
from polynomials import variables


class Tokens(NamedTuple):
    """Queries, keys (n, d_k), values (n, d_v), a decay α and a rate β per token, a decay of every feature, γ, R."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    a: np.ndarray
    gamma: object
    rope: object
    state: np.ndarray

    def cut(self, part):
        return self._replace(**{name: getattr(self, name)[part] for name in ("q", "k", "v", "alpha", "beta", "a")})


def outer(a, b):
    """a_i b_iᵀ for each row."""
    return a[..., :, None] * b[..., None, :]


def one(t):
    return np.broadcast_to(np.eye(t.k.shape[1], dtype=int).astype(object), outer(t.k, t.k).shape)


def turned_back(t):
    """R_{−1} as a matrix, for every token."""
    return rotate(one(t)[0], *t.rope(np.array([-1]))).T + 0 * one(t) if len(t.k) else one(t)


def per_token(x):
    return x[:, None, None]


def erased(t):
    """I − β k kᵀ."""
    return one(t) - per_token(t.beta) * outer(t.k, t.k)


# The table of linear_recurrence, row by row: A_i and B_i for all tokens.
TABLE = {
    "linear attention": lambda t: (one(t), outer(t.k, t.v)),
    "rotary": lambda t: (turned_back(t), outer(t.k, t.v)),
    "RetNet": lambda t: (t.gamma * turned_back(t), outer(t.k, t.v)),
    "Mamba-2": lambda t: (per_token(t.alpha) * one(t), outer(t.k, t.v)),
    "GLA": lambda t: (one(t) * t.a[:, None, :], outer(t.k, t.v)),
    "DeltaNet": lambda t: (erased(t), per_token(t.beta) * outer(t.k, t.v)),
    "Gated DeltaNet": lambda t: (per_token(t.alpha) * erased(t), per_token(t.beta) * outer(t.k, t.v)),
    "KDA": lambda t: (erased(t) * t.a[:, None, :], per_token(t.beta) * outer(t.k, t.v)),
}


def paper(name, t):
    """The recurrence of a paper, entry by entry: outputs (n, d_v) and the last state, in its own frame."""
    (n, d_k), d_v, s, outputs = t.k.shape, t.v.shape[1], t.state, []
    rq, rk = t.q, t.k
    if name in ("rotary", "RetNet"):           # these papers turn queries and keys by their positions
        rq, rk = (rotate(x, *t.rope(np.arange(1, n + 1))) for x in (t.q, t.k))
    for i in range(n):
        decay = {"RetNet": [t.gamma] * d_k, "Mamba-2": [t.alpha[i]] * d_k, "Gated DeltaNet": [t.alpha[i]] * d_k,
                 "GLA": t.a[i], "KDA": t.a[i]}.get(name, [1] * d_k)
        s = [[decay[x] * s[x][y] for y in range(d_v)] for x in range(d_k)]
        value, rate = t.v[i], 1
        if name in ("DeltaNet", "Gated DeltaNet", "KDA"):     # the delta rule writes the error of what is read
            value = [t.v[i][y] - sum(t.k[i][x] * s[x][y] for x in range(d_k)) for y in range(d_v)]
            rate = t.beta[i]
        s = [[s[x][y] + rate * rk[i][x] * value[y] for y in range(d_v)] for x in range(d_k)]
        outputs.append([sum(rq[i][x] * s[x][y] for x in range(d_k)) for y in range(d_v)])
    state = np.array(s, object)
    if name in ("rotary", "RetNet"):           # seen from the last token: turned back by n places
        state = rotate(state.T, *t.rope(np.array([-n]))).T
    return np.array(outputs, object).reshape(n, d_v), state


@st.composite
def token_cases(draw, least=0):
    n, pairs, d_v, rng = draw(st.integers(least, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(case_rngs)
    u = partial(uniform, rng)
    return Tokens(u(n, 2 * pairs), u(n, 2 * pairs), u(n, d_v), u(n), u(n), u(n, 2 * pairs), u()[()],
                  partial(rational_rope, theta=rotations(rng, pairs)), u(2 * pairs, d_v))


def symbolic_tokens(n, pairs=1, d_v=1):
    return Tokens(variables("q", n, 2 * pairs), variables("k", n, 2 * pairs), variables("v", n, d_v),
                  variables("alpha", n), variables("beta", n), variables("a", n, 2 * pairs), variables("gamma"),
                  partial(symbolic_rope, theta=angles("w", pairs)), variables("s", 2 * pairs, d_v))


rows = pytest.mark.parametrize("name", TABLE)
SHAPES = shapes(every(n=(1, 2), pairs=(1, 2), d_v=(1, 2)), every(n=(1, 2, 3), pairs=(1, 2), d_v=(1, 2, 3)))


# ---- Every row of the table is its paper's recurrence -----------------------------------------------

def recurrence(name, t):
    return linear_recurrence(t.q, *TABLE[name](t), t.state)


@rows
@given(token_cases(least=1))
def test_a_row_of_the_table_is_its_papers_recurrence(name, t):
    assert_exactly_equal(recurrence(name, t), paper(name, t))


@rows
def test_a_row_of_the_table_is_its_papers_recurrence_for_every_input(name):
    for shape in SHAPES:
        t = symbolic_tokens(**shape)
        assert_proved(recurrence(name, t), paper(name, t), row=list(TABLE).index(name) + 1, **shape)


for test in (test_a_row_of_the_table_is_its_papers_recurrence,
             test_a_row_of_the_table_is_its_papers_recurrence_for_every_input):
    pytest.mark.proves("every row of the table is its paper", "RetNet ... Kimi Linear")(test)


@pytest.mark.breaks("every row of the table is its paper", "the row above in its place")
@pytest.mark.parametrize("name, above", list(zip(list(TABLE)[1:], TABLE)))
def test_a_row_of_the_table_is_not_the_recurrence_of_the_row_above(name, above):
    t = symbolic_tokens(2)
    assert_refuted(recurrence(above, t)[0], paper(name, t)[0], row=list(TABLE).index(name) + 1)


# ---- The map replaces the context, for every start and every A, B -----------------------------------

def random_steps(rng, m, n, d_k, d_v):
    return [uniform(rng, *s) for s in ((m + n, d_k), (m + n, d_k, d_k), (m + n, d_k, d_v), (d_k, d_v))]


def symbolic_steps(m, n, d_k, d_v):
    sizes = dict(q=(m + n, d_k), A=(m + n, d_k, d_k), B=(m + n, d_k, d_v), s=(d_k, d_v))
    return [variables(name, *size) for name, size in sizes.items()]


def replaced(m, q, A, B, state):
    """Outputs after a context and the last state: from the start that its map gives, and with it in front."""
    o, last = linear_recurrence(q, A, B, state)
    a, b = context_map(A[:m], B[:m])
    return linear_recurrence(q[m:], A[m:], B[m:], a @ state + b), (o[m:], last)


def bias_added(m, q, A, B, state):
    """The same with b + B in place of A b + B: as if the start were not moved by the context."""
    a, b = context_map(A[:m], B[:m])
    return linear_recurrence(q[m:], A[m:], B[m:], state + b)[0], linear_recurrence(q, A, B, state)[0][m:]


small = st.integers(1, 3)


@pytest.mark.proves("a context is one affine map", "ICLCA §7")
@given(rngs, st.integers(0, 4), small, small, small)
def test_the_map_of_a_context_replaces_it_for_every_start(rng, m, n, d_k, d_v):
    assert_exactly_equal(*replaced(m, *random_steps(rng, m, n, d_k, d_v)))


@pytest.mark.proves("a context is one affine map", "ICLCA §7")
def test_the_map_of_a_context_replaces_it_for_every_start_every_a_and_every_b():
    for shape in every(m=range(3), n=(1,), d_k=(1, 2), d_v=(1, 2)) + [dict(m=3, n=2, d_k=1, d_v=2)]:
        assert_proved(*replaced(shape["m"], *symbolic_steps(**shape)), **shape)


@pytest.mark.proves("a context is one affine map", "ICLCA §7")
def test_one_step_from_any_state_is_the_induction_over_the_length():
    for shape in every(m=(1,), n=(0,), d_k=(1, 2, 3), d_v=(1, 2, 3)):
        q, A, B, s = symbolic_steps(**shape)
        after = A[0] @ s + B[0]
        assert_proved(linear_recurrence(q, A, B, s), (q @ after, after), **shape)


@pytest.mark.breaks("a context is one affine map", "starting from b + B in place of A b + B")
@given(rngs, small, small, small, small)
def test_starting_from_b_plus_B_the_context_is_not_replaced(rng, m, n, d_k, d_v):
    assert_differ(*bias_added(m, *random_steps(rng, m, n, d_k, d_v)))


@pytest.mark.breaks("a context is one affine map", "starting from b + B in place of A b + B")
@pytest.mark.parametrize("name", list(TABLE)[1:])
def test_starting_from_b_plus_B_fails_in_every_row_of_the_table_but_the_first(name):
    t = symbolic_tokens(2)
    assert_refuted(*bias_added(1, t.q, *TABLE[name](t), t.state), row=list(TABLE).index(name) + 1)


def test_starting_from_b_plus_B_is_right_in_the_first_row_of_the_table():
    t = symbolic_tokens(3)
    added, in_context = bias_added(1, t.q, *TABLE["linear attention"](t), t.state)
    assert (added == in_context).all()


# ---- Maps compose -----------------------------------------------------------------------------------

def of_both(m, q, A, B, state):
    """The map of two contexts composed, and the map of the whole."""
    return compose(context_map(A[m:], B[m:]), context_map(A[:m], B[:m])), context_map(A, B)


@pytest.mark.proves("maps compose, associatively", "Martin and Cundy 2018")
@given(rngs, st.integers(0, 3), st.integers(0, 3), small, small)
def test_the_composition_of_two_contexts_maps_is_the_map_of_both(rng, m, n, d_k, d_v):
    assert_exactly_equal(*of_both(m, *random_steps(rng, m, n, d_k, d_v)))


@pytest.mark.proves("maps compose, associatively", "Martin and Cundy 2018")
def test_composition_is_associative_and_the_map_of_both_for_every_a_and_b():
    for shape in every(m=range(3), n=range(3), d_k=(1, 2), d_v=(1, 2)) + [dict(m=40, n=30, d_k=1, d_v=1)]:
        assert_proved(*of_both(shape["m"], *symbolic_steps(**shape)), **shape)
    for shape in every(d_k=(1, 2, 3), d_v=(1, 2)):
        maps = [(variables("A" + x, shape["d_k"], shape["d_k"]), variables("B" + x, *shape.values())) for x in "xyz"]
        assert_proved(compose(maps[0], compose(maps[1], maps[2])), compose(compose(maps[0], maps[1]), maps[2]),
                      **shape)


@pytest.mark.breaks("maps compose, associatively", "the two contexts in the other order")
def test_in_the_other_order_the_composition_is_another_map():
    (_, A, B, _), m = symbolic_steps(1, 1, 1, 1), 1
    difference = assert_refuted(compose(context_map(A[:m], B[:m]), context_map(A[m:], B[m:])), context_map(A, B))
    assert str(difference) == "A0_0_0*B1_0_0 - A1_0_0*B0_0_0 + B0_0_0 - B1_0_0"


# ---- Theorem 4.5 and online gradient descent are cases ----------------------------------------------

def theorem_4_5_as_a_row(t):
    """attention_bias and the map of the row A = R_{−1}, applied to the start; and the attention itself."""
    a, b = context_map(*TABLE["rotary"](t))
    start = attention_bias(t.k[:0], t.v[:0])._replace(kv=t.state)
    o, state = recurrent_attention(t.q, t.k, t.v, start, t.rope, normalize=False)
    return ((attention_bias(t.k, t.v, start, t.rope).kv, o, state.kv),
            (a @ t.state + b, *recurrence("rotary", t)))


@pytest.mark.proves("Theorem 4.5 is the row A = R_{−1}", "Thm 4.5, §7")
@given(token_cases(least=1))
def test_theorem_4_5_is_the_row_of_the_table_that_turns_the_state_back_before_each_token(t):
    assert_exactly_equal(*theorem_4_5_as_a_row(t))


@pytest.mark.proves("Theorem 4.5 is the row A = R_{−1}", "Thm 4.5, §7")
def test_theorem_4_5_is_the_row_a_for_every_key_value_start_and_angle():
    for shape in SHAPES:
        assert_proved(*theorem_4_5_as_a_row(symbolic_tokens(**shape)), **shape)


@pytest.mark.breaks("Theorem 4.5 is the row A = R_{−1}", "R_1 in the place of R_{−1}")
def test_with_the_state_turned_forward_the_map_is_another_polynomial():
    t = symbolic_tokens(1)
    A, B = TABLE["rotary"](t)
    a, b = context_map(A.swapaxes(-1, -2), B)
    assert_refuted(a @ t.state + b, theorem_4_5_as_a_row(t)[0][0])


@pytest.mark.breaks("Theorem 4.5 is the row A = R_{−1}", "R_1 in the place of R_{−1}")
@given(token_cases(least=1))
def test_with_the_state_turned_forward_it_is_not_theorem_4_5(t):
    A, B = TABLE["rotary"](t)
    a, b = context_map(A.swapaxes(-1, -2), B)
    assert_differ(a @ t.state + b, theorem_4_5_as_a_row(t)[0][0])


def online_descent(t):
    """DeltaNet's state, and the weight matrix after one gradient step per token on ½ ‖W k − v‖²."""
    W = t.state.T
    for k, v, rate in zip(t.k, t.v, t.beta):
        W, _, _ = gradient_descent(W, k[None], v[None], rate)
    return recurrence("DeltaNet", t)[1], W.T


@pytest.mark.proves("DeltaNet = online gradient descent", "Schlag et al. 2021")
@given(token_cases(least=1))
def test_the_state_of_deltanet_is_the_weight_matrix_of_online_gradient_descent(t):
    assert_exactly_equal(*online_descent(t))


@pytest.mark.proves("DeltaNet = online gradient descent", "Schlag et al. 2021")
def test_the_state_of_deltanet_is_online_gradient_descent_for_every_key_value_rate_and_start():
    for shape in SHAPES:
        assert_proved(*online_descent(symbolic_tokens(**shape)), **shape)


@pytest.mark.breaks("DeltaNet = online gradient descent", "linear attention with values β v: no error is taken")
def test_linear_attention_is_not_online_gradient_descent():
    t = symbolic_tokens(1)
    plain = linear_recurrence(t.q, one(t), per_token(t.beta) * outer(t.k, t.v), t.state)[1]
    difference = assert_refuted(plain, online_descent(t)[1])
    assert len(difference.terms) == 2          # β k (kᵀ s): what the delta rule erases


# ---- Least squares in context (MesaNet): an additive pair -------------------------------------------

def ridge(k, v, beta):
    """(H, G) = (Σ β k kᵀ, Σ β k vᵀ): with (H + Λ)⁻¹ G the context's weighted ridge regression."""
    return key_value_matrix(beta[:, None] * k, k), key_value_matrix(beta[:, None] * k, v)


@pytest.mark.proves("least squares: (H, G) adds", "MesaNet")
@given(token_cases(least=1), st.integers(0, 4))
def test_the_pair_of_least_squares_adds_and_its_gradient_is_zero_at_the_solution(t, m):
    parts = [ridge(t.k[cut], t.v[cut], t.beta[cut]) for cut in (np.s_[:m], np.s_[m:])]
    H, G = ridge(t.k, t.v, t.beta)
    assert_exactly_equal([a + b for a, b in zip(*parts)], [H, G])
    W = t.state                                   # at any W: Σ β k (kᵀW − v)ᵀ + ΛW = (H + Λ) W − G
    gradient = (t.beta[:, None] * t.k).T @ (t.k @ W - t.v) + t.gamma * W
    assert_exactly_equal(gradient, (H + t.gamma * one(t)[0]) @ W - G)


@pytest.mark.proves("least squares: (H, G) adds", "MesaNet")
def test_the_pair_of_least_squares_adds_and_gives_the_gradient_for_all_contexts():
    for shape in every(m=(1, 2), n=(1, 2), pairs=(1,), d_v=(1, 2)):
        t = symbolic_tokens(shape["m"] + shape["n"], d_v=shape["d_v"])
        parts = [ridge(t.k[c], t.v[c], t.beta[c]) for c in (np.s_[:shape["m"]], np.s_[shape["m"]:])]
        H, G = ridge(t.k, t.v, t.beta)
        assert_proved([a + b for a, b in zip(*parts)], [H, G], **shape)
        gradient = (t.beta[:, None] * t.k).T @ (t.k @ t.state - t.v) + t.gamma * t.state
        assert_proved(gradient, (H + t.gamma * one(t)[0]) @ t.state - G, **shape)


@pytest.mark.breaks("least squares: (H, G) adds", "adding the two regressions instead of their pairs")
def test_the_regressions_of_two_contexts_do_not_add():
    t = symbolic_tokens(2)
    k, v, beta, ridge_1 = t.k[:, :1], t.v, t.beta, t.gamma
    solve = [(G / (H + ridge_1)) for H, G in (ridge(k[c], v[c], beta[c]) for c in (np.s_[:1], np.s_[1:], np.s_[:]))]
    assert_refuted(solve[0] + solve[1], solve[2])


# ---- Floating point and types -----------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs, st.integers(1, 40))
def test_the_map_replaces_the_context_to_rounding_in_floating_point(dtype, rng, m):
    q, k, v, start, rope = realistic(rng, dtype, n=m + 10)
    k = k / k.shape[-1]
    beta = rng.random(k.shape[:-1]).astype(dtype)[..., None, None]
    A = np.eye(k.shape[-1], dtype=dtype) - beta * outer(k, k)
    B = beta * outer(k, v)
    whole, last = linear_recurrence(q, A, B, start.kv)
    a, b = context_map(A[..., :m, :, :], B[..., :m, :, :])
    o, state = linear_recurrence(q[..., m:, :], A[..., m:, :, :], B[..., m:, :, :], a @ start.kv + b)
    assert {x.dtype for x in (o, state, a, b)} == {np.dtype(dtype)}
    assert_close((o, state), (whole[..., m:, :], last), ulps=200)


def test_the_rotated_row_agrees_with_attention_in_floating_point_too():
    q, k, v, start, rope = realistic(np.random.default_rng(0), np.float64, n=50)
    R = rotate(np.eye(16), *rope(np.array([-1]))).T
    o, state = linear_recurrence(q, np.broadcast_to(R, (*k.shape, 16)), outer(k, v), start.kv)
    expected, last = chunked_attention(q, k, v, start, rope, normalize=False)
    assert_close((o, state), (expected, last.kv), ulps=200)


def test_an_empty_context_is_the_identity_map():
    A, B = fractions(np.ones((0, 2, 2))), fractions(np.ones((0, 2, 3)))
    a, b = context_map(A, B)
    assert (a == np.eye(2)).all() and (b == 0).all() and b.shape == (2, 3)
