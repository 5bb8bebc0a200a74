"""One law: a context is one affine map of the state, for every linear recurrence of the table.

A and B of a row are matrices, as in the docstring of linear_recurrence; beside them stands a step
of its paper as loops over numbers: s[x][y] is the state at feature x and value y.
"""

from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy import diag, outer

import iclca_ref
from arguments import a, assert_apart, assert_arguments_stay, batches, case, float_types, refused
from exact import (case_rngs, every, rational_rope, realistic, rotations, shapes, symbolic_rope,
                   uniform)
from iclca_ref import (attention_bias, compose, context_map, gradient_descent, key_value_matrix,
                       linear_recurrence, parallel_scan)
from linear_transformer import Bias, recurrent_attention, rope, rotate
from polynomials import angles, variables
from theorem import broken, theorem

# ---- Texts --------------------------------------------------------------------------------------

# n tokens, k features, v values, j pairs. Of every token: queries, keys, decays and gates of its
# features, values and gates of these, decays of every channel, numbers, its own turn. Two starts,
# for a stacked state; where a normalizer starts; a constant.
AXES = {**dict.fromkeys("qkpab", "nk"), **dict.fromkeys("vu", "nv"), "d": "nvk", "s": "kv",
        "r": "kv", **dict.fromkeys(["alpha", "beta", "eta"], "n"), "cos": "nj", "sin": "nj",
        "z": "k", "gamma": ""}


class Text(SimpleNamespace):
    """Arrays with these axes, and a rope."""

    def __iter__(self):
        for i in range(len(self.k)):
            yield Text(i=i + 1, **{name: x[i] if AXES.get(name, "")[:1] == "n" else x
                                   for name, x in vars(self).items()})


def text_of(entries, rope, turns, n, pairs, d_v):
    sizes = dict(n=n, k=2 * pairs, v=d_v, j=pairs)
    arrays = {name: entries(name, *map(sizes.get, axes)) for name, axes in AXES.items()}
    return Text(**{**arrays, "cos": turns[0], "sin": turns[1]}, rope=rope)


@st.composite
def texts(draw, least=1):
    n, pairs, d_v = draw(st.integers(least, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    rng = draw(case_rngs)
    turns = np.moveaxis(rotations(rng, n * pairs, of=257).reshape(n, pairs, 2), -1, 0)
    rope = partial(rational_rope, theta=rotations(rng, pairs))
    return text_of(lambda _, *shape: uniform(rng, *shape)[()], rope, turns, n, pairs, d_v)


def symbolic_text(n, pairs=1, d_v=1):
    turns = symbolic_rope(np.array([1]), angles("turn", n, pairs))
    return text_of(variables, partial(symbolic_rope, theta=angles("w", pairs)), turns, n, pairs, d_v)


# ---- Every row of the table is its paper's recurrence -------------------------------------------

def eye(t):
    return np.eye(len(t.k), dtype=object)


def back(t):
    """R_{−1}: one place back."""
    return rotate(eye(t), *t.rope(np.array([-1]))).T


def erase(k, beta):
    """I − β k kᵀ."""
    return np.eye(len(k), dtype=object) - beta * outer(k, k)


def own_steps(t):
    """DeltaProduct: a token's own steps of DeltaNet, here two, behind a decay."""
    return context_map(np.array([t.alpha * erase(t.k, t.beta), erase(t.p, t.eta)]),
                       np.array([t.beta * outer(t.k, t.v), t.eta * outer(t.p, t.u)]))


def mamba_3(t):
    R, kv = rotate(eye(t), t.cos[None], -t.sin[None]).T, outer(t.k, t.v)   # its own turn, back
    return np.block([[t.alpha * R, t.beta * R], [0 * R, 0 * R]]), np.vstack([t.eta * kv, kv])


def momentum(t):
    kk, kv, I = t.beta * outer(t.k, t.k), t.beta * outer(t.k, t.v), eye(t)
    return np.block([[(1 - t.alpha) * I - kk, t.eta * I], [-kk, t.eta * I]]), np.vstack([kv, kv])


def reads_first(t):
    """RWKV-6 reads s and its bonus, s + (u∘k) vᵀ, before it writes: the state [what is read; s]."""
    return (np.block([[0 * eye(t), eye(t)], [0 * eye(t), diag(t.a)]]),
            np.vstack([outer(t.b * t.k, t.v), outer(t.k, t.v)]))


def grid(s, entry):
    return [[entry(x, y) for y in range(len(s[0]))] for x in range(len(s))]


def read(u, s, y):
    """Σ_x u[x] s[x][y]."""
    return sum(u[x] * s[x][y] for x in range(len(u)))


def each(entry):
    """A paper's step s[x][y] ← entry(t, s, x, y); a second state r stays as it is."""
    return lambda t, s, r: (grid(s, partial(entry, t, s)), r)


def own_steps_paper(t, s, r):
    s = grid(s, lambda x, y: t.alpha * s[x][y])
    for k, v, rate in (t.k, t.v, t.beta), (t.p, t.u, t.eta):
        s = grid(s, lambda x, y: s[x][y] + rate * k[x] * (v[y] - read(k, s, y)))
    return s, r


def mamba_3_paper(t, s, last):
    """The trapezoidal rule: what the token before wrote is written once more."""
    new = grid(s, lambda x, y: t.k[x] * t.v[y])
    return grid(s, lambda x, y: t.alpha * s[x][y] + t.beta * last[x][y] + t.eta * new[x][y]), new


def momentum_paper(t, M, S):
    """S ← η S − θ ∇ of ½ ‖Mᵀk − v‖², then M ← (1 − α) M + S."""
    S = grid(S, lambda x, y: t.eta * S[x][y] - t.beta * t.k[x] * (read(t.k, M, y) - t.v[y]))
    return grid(M, lambda x, y: (1 - t.alpha) * M[x][y] + S[x][y]), S


def reads_first_paper(t, _, s):
    return (grid(s, lambda x, y: s[x][y] + t.b[x] * t.k[x] * t.v[y]),
            grid(s, lambda x, y: t.a[x] * s[x][y] + t.k[x] * t.v[y]))


ROWS = {   # A and B of a token; a step of the paper
    "linear attention": (lambda t: (eye(t), outer(t.k, t.v)),
                         each(lambda t, s, x, y: s[x][y] + t.k[x] * t.v[y])),
    "rotary": (lambda t: (back(t), outer(t.k, t.v)),
               each(lambda t, s, x, y: s[x][y] + t.k[x] * t.v[y])),
    "RetNet": (lambda t: (t.gamma * back(t), outer(t.k, t.v)),
               each(lambda t, s, x, y: t.gamma * s[x][y] + t.k[x] * t.v[y])),
    "Mamba-2": (lambda t: (t.alpha * eye(t), outer(t.k, t.v)),
                each(lambda t, s, x, y: t.alpha * s[x][y] + t.k[x] * t.v[y])),
    "GLA": (lambda t: (diag(t.a), outer(t.k, t.v)),
            each(lambda t, s, x, y: t.a[x] * s[x][y] + t.k[x] * t.v[y])),
    "DeltaNet": (lambda t: (erase(t.k, t.beta), t.beta * outer(t.k, t.v)), each(
        lambda t, s, x, y: s[x][y] + t.beta * t.k[x] * (t.v[y] - read(t.k, s, y)))),
    "Gated DeltaNet": (lambda t: (t.alpha * erase(t.k, t.beta), t.beta * outer(t.k, t.v)), each(
        lambda t, s, x, y: t.alpha * s[x][y] + t.beta * t.k[x] * (
            t.v[y] - t.alpha * read(t.k, s, y)))),
    "KDA": (lambda t: (erase(t.k, t.beta) @ diag(t.a), t.beta * outer(t.k, t.v)), each(
        lambda t, s, x, y: t.a[x] * s[x][y] + t.beta * t.k[x] * (
            t.v[y] - sum(t.k[z] * t.a[z] * s[z][y] for z in range(len(s)))))),
    "Comba": (lambda t: (t.alpha * eye(t) - t.beta * outer(t.k, t.p), t.beta * outer(t.k, t.v)),
              each(lambda t, s, x, y: t.alpha * s[x][y] + t.beta * t.k[x] * (
                  t.v[y] - read(t.p, s, y)))),
    "Gated DeltaNet-2": (lambda t: ((eye(t) - outer(t.k, t.b * t.k)) @ diag(t.a),
                                    outer(t.k, t.u * t.v)), each(
        lambda t, s, x, y: t.a[x] * s[x][y] + t.k[x] * (
            t.u[y] * t.v[y] - sum(t.b[z] * t.k[z] * t.a[z] * s[z][y] for z in range(len(s)))))),
    "RWKV-7": (lambda t: (diag(t.a) - outer(t.b * t.p, t.p), outer(t.k, t.v)), each(
        lambda t, s, x, y: t.a[x] * s[x][y] - t.b[x] * t.p[x] * read(t.p, s, y)
        + t.k[x] * t.v[y])),
    "DPLR": (lambda t: (diag(t.a) + outer(t.b, t.p), outer(t.k, t.v)), each(
        lambda t, s, x, y: t.a[x] * s[x][y] + t.b[x] * read(t.p, s, y) + t.k[x] * t.v[y])),
    "IPLR": (lambda t: (eye(t) + outer(t.b, t.p), outer(t.k, t.v)), each(
        lambda t, s, x, y: s[x][y] + t.b[x] * read(t.p, s, y) + t.k[x] * t.v[y])),
    "DeltaProduct": (own_steps, own_steps_paper),
    "Mamba-3; the last k vᵀ": (mamba_3, mamba_3_paper),       # the state has two parts, behind a ;
    "momentum M; S": (momentum, momentum_paper),
    "RWKV-6 with bonus; s": (reads_first, reads_first_paper),
    "mLSTM C, n": (lambda t: (t.alpha * eye(t), t.beta * outer(t.k, [*t.v, 1])), each(
        lambda t, s, x, y: t.alpha * s[x][y] + t.beta * (     # n ← f n + i k is the last column
            t.k[x] * t.v[y] if y < len(t.v) else t.k[x])))}
NAMES = list(ROWS)
SYMMETRIC = "linear attention", "Mamba-2", "GLA", "DeltaNet", "Gated DeltaNet", "mLSTM C, n"


def law(name, text):
    """The row's q, A, B and start. Of a state with two parts q reads the first."""
    two, wider = ";" in name, "," in name
    return (np.hstack([text.q, 0 * text.q]) if two else text.q,
            *map(np.array, zip(*map(ROWS[name][0], text))),
            np.vstack([text.s, text.r]) if two else
            np.hstack([text.s, text.z[:, None]]) if wider else text.s)


def turned(x, cos, sin):
    """Every pair of x turned."""
    return [z for j, (c, s) in enumerate(zip(cos, sin))
            for z in (x[2 * j] * c - x[2 * j + 1] * s, x[2 * j] * s + x[2 * j + 1] * c)]


def paper(name, text):
    """The paper's outputs and last state. Where it turns q and k, seen from the last token."""
    (s, r), o = np.array_split(law(name, text)[3], [len(text.s)]), []
    cos, sin = [1] * text.cos.shape[1], [0] * text.cos.shape[1]
    for t in text:
        if name in ("rotary", "RetNet"):      # by the position
            cos, sin = (x[0] for x in t.rope(np.array([t.i])))
        if "Mamba-3" in name:                 # by the angles of the tokens so far
            cos, sin = ([c * C - s * S for c, s, C, S in zip(t.cos, t.sin, cos, sin)],
                        [s * C + c * S for c, s, C, S in zip(t.cos, t.sin, cos, sin)])
        t.q, t.k = turned(t.q, cos, sin), turned(t.k, cos, sin)
        s, r = ROWS[name][1](t, s, r)
        o.append([read(t.q, s, y) for y in range(len(s[0]))])
    columns = [[turned(x, cos, [-z for z in sin]) for x in zip(*s)] for s in (s, r) if len(s)]
    return np.array(o, object), np.concatenate(np.array(columns, object), axis=-1).T


sizes = dict(pairs=(1, 2), d_v=(1, 2))
SHAPES = shapes(every(n=(1, 2), **sizes), every(n=(1, 2, 3), pairs=(1, 2), d_v=(1, 2, 3)))


@theorem("every row is its paper's loop", "RetNet...Mamba-3", texts().map(lambda t: (NAMES, t)),
         [dict(row=row, **shape) for row in range(len(NAMES)) for shape in SHAPES],
         lambda row, **shape: ([NAMES[row]], symbolic_text(**shape)))
def row(names, text, change=lambda A: A):
    """The recurrence of a row's A and B  =  the loops of its paper."""
    laws = [(q, change(A), B, s) for q, A, B, s in (law(name, text) for name in names)]
    return [linear_recurrence(*of_row) for of_row in laws], [paper(name, text) for name in names]


def one_of(names):
    return st.tuples(st.sampled_from(names).map(lambda name: [name]), texts(least=2))


def each_of(names):
    return [([name], symbolic_text(2)) for name in names]


turning = [name for name in NAMES if name not in SYMMETRIC]


@broken(row, "A transposed, where A is not Aᵀ", one_of(turning), each_of(turning))
def row_transposed(names, text):
    return row(names, text, lambda A: A.mT)


@broken(row, "the row above in its place", one_of(NAMES[1:]), each_of(NAMES[1:]))
def row_above(names, text):
    above = linear_recurrence(*law(NAMES[NAMES.index(*names) - 1], text))[0]
    return [o[:, :text.v.shape[1]] for o in (above, paper(*names, text)[0])]


def channels(text):
    """Mamba-1: each channel is a head with one value; all have the same queries and keys."""
    A = np.moveaxis(text.d, 1, 0)[..., None] * np.eye(len(text.s), dtype=object)
    B = ((text.u * text.v).T[..., None] * text.k)[..., None]
    return text.q + 0 * text.v.T[..., None], A, B, text.s.T[..., None]


@theorem("Mamba-1: channels are heads", "2312.00752", texts(), every(n=(1, 2), **sizes),
         symbolic_text)
def mamba_1(text):
    """The recurrence with a head for every channel  =  the selective scan; d is exp(Δ a), u Δ."""
    (o, last), h, expected = linear_recurrence(*channels(text)), text.s, []
    for t in text:
        h = grid(h, lambda x, y: t.d[y][x] * h[x][y] + t.u[y] * t.k[x] * t.v[y])
        expected.append([read(t.q, h, y) for y in range(len(t.v))])
    return (o[..., 0].T, last[..., 0].T), (np.array(expected), np.array(h))


# ---- The map replaces the context, for every start and every A, B -------------------------------

def cut(part, *arrays):
    return [X[..., part, :, :] for X in arrays]


def steps_of(entries, m, n, d_k, d_v):
    """The length of a context; q, A, B of it and of n tokens after it; a start."""
    return m, *(entries(*x) for x in (("q", m + n, d_k), ("A", m + n, d_k, d_k),
                                      ("B", m + n, d_k, d_v), ("s", d_k, d_v)))


symbolic_steps = partial(steps_of, variables)


@st.composite
def steps(draw, least=0):
    m, rng = draw(st.integers(least, 4)), draw(case_rngs)
    return steps_of(lambda _, *shape: uniform(rng, *shape), m, *(draw(st.integers(1, 3))
                                                                 for _ in range(3)))


def float_steps(rng, dtype):
    """KDA with unit keys, β up to 2 (a reflection), decays of exactly 1 or, at some tokens, e⁻⁸."""
    m = int(rng.integers(1, 40))
    q, k, v, start, _ = realistic(rng, dtype, n=m + 10)
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta = rng.choice([0, 0.5, 1, 2], k.shape[:-1]).astype(dtype)[..., None, None]
    decay = np.where(rng.random(k.shape) < rng.choice([0, 0.1, 1]), np.exp(-8), 1).astype(dtype)
    A = np.eye(k.shape[-1], dtype=dtype) - beta * k[..., None] * k[..., None, :]
    return m, q, A * decay[..., None, :], beta * k[..., None] * v[..., None, :], start.kv


@theorem("a context is one affine map", "ICLCA §7", steps(), every(
    m=range(3), n=(1,), d_k=(1, 2), d_v=(1, 2)) + [dict(m=3, n=2, d_k=1, d_v=2)], symbolic_steps,
    floats=float_steps, ulps=200)
def replaced(m, q, A, B, state, start=lambda A, B, state: A @ state + B):
    """What follows, from the start that the context's map gives  =  with the context in front."""
    o, last = linear_recurrence(q, A, B, state)
    state = start(*context_map(*cut(np.s_[:m], A, B)), state)
    return linear_recurrence(q[..., m:, :], *cut(np.s_[m:], A, B), state), (o[..., m:, :], last)


@theorem("a context is one affine map", "ICLCA §7", None,
         every(m=(1,), n=(0,), d_k=(1, 2, 3), d_v=(1, 2, 3)), symbolic_steps)
def one_step_is_the_induction(_, q, A, B, s):
    after = A[0] @ s + B[0]
    return linear_recurrence(q, A, B, s), (q @ after, after)


@broken(replaced, "b + B in the place of A b + B", steps(least=1), [symbolic_steps(1, 1, 1, 1)])
def start_added(*case):
    (o, _), (expected, _) = replaced(*case, start=lambda A, B, state: state + B)
    return o, expected


@broken(replaced, "b + B in the place of A b + B", one_of(NAMES[1:]), each_of(NAMES[1:]))
def start_added_in_each_row(names, text):
    return start_added(1, *law(*names, text))


@broken(replaced, "b + B in the place of A b + B", texts(least=2), [symbolic_text(2)])
def start_added_in_mamba_1(text):
    return start_added(1, *channels(text))


def test_only_in_the_first_row_the_start_may_be_added_and_in_six_rows_A_is_symmetric():
    o, expected = start_added(1, *law(NAMES[0], symbolic_text(3)))
    assert (o == expected).all()
    for _, A, _, _ in (law(name, symbolic_text(2)) for name in SYMMETRIC):
        assert (A == A.mT).all()


# ---- Maps compose; all prefixes at once ---------------------------------------------------------

@theorem("maps compose, associatively", "Martin, Cundy '18", steps(), every(
    m=range(3), n=range(3), d_k=(1, 2), d_v=(1, 2)) + [dict(m=40, n=30, d_k=1, d_v=1)],
    symbolic_steps)
def composed(m, _, A, B, __, order=1):
    """The later context's map after the earlier one's  =  the map of both."""
    maps = [context_map(*cut(part, A, B)) for part in (np.s_[m:], np.s_[:m])]
    return compose(*maps[::order]), context_map(A, B)


@broken(composed, "the two contexts in the other order", steps(least=1),
        [symbolic_steps(1, 1, 1, 1)],
        difference="A0_0_0*B1_0_0 - A1_0_0*B0_0_0 + B0_0_0 - B1_0_0")
def composed_in_the_other_order(*case):
    return composed(*case, order=-1)


@theorem("maps compose, associatively", "Martin, Cundy '18", None, every(
    d_k=(1, 2, 3), d_v=(1, 2)), lambda d_k, d_v: tuple(
        (variables("A" + x, d_k, d_k), variables("B" + x, d_k, d_v)) for x in "xyz"))
def associative(x, y, z):
    return compose(x, compose(y, z)), compose(compose(x, y), z)


@theorem("the parallel scan: all prefixes", "Hillis, Steele 86", steps(), every(
    m=range(16), n=(1,), d_k=(1,), d_v=(1,)) + every(m=range(4), n=(1,), d_k=(2,), d_v=(1, 2)),
    symbolic_steps)
def scanned(m, _, A, B, __):
    """Entry i of the scan  =  context_map of the first i + 1 tokens."""
    maps = [context_map(A[:i + 1], B[:i + 1]) for i in range(len(A))]
    return parallel_scan(A, B), tuple(map(np.array, zip(*maps)))


@broken(scanned, "composing in the other order", steps(least=1), [symbolic_steps(1, 1, 1, 1)])
def scanned_in_the_other_order(*case):
    with patch.object(iclca_ref, "compose", lambda later, earlier: compose(earlier, later)):
        scan = parallel_scan(*case[2:4])
    return scan, scanned(*case)[1]


@theorem("the parallel scan: all prefixes", "Hillis, Steele 86", floats=float_steps, ulps=200)
def scanned_and_read(_, q, A, B, s):
    """The outputs of all tokens at once  =  one after the other."""
    A_all, B_all = parallel_scan(A, B)
    o = q[..., None, :] @ (A_all @ s[..., None, :, :] + B_all)
    return o[..., 0, :], linear_recurrence(q, A, B, s)[0]


@pytest.mark.parametrize("m", [0, 1, 2, 3, 8, 9, 1000])
def test_the_scan_has_log_m_rounds_of_fewer_than_m_compositions(m):
    with patch.object(iclca_ref, "compose", wraps=compose) as counted:
        parallel_scan(a(m, 1, 1), a(m, 1, 1))
    rounds = max(m - 1, 0).bit_length()   # ⌈log₂ m⌉
    assert [len(c.args[0][0]) for c in counted.call_args_list] == [m - 2**r for r in range(rounds)]


@pytest.mark.parametrize("rate, good", [(1, 40), (10, 8)])   # e^(−90) is no normal float32
def test_two_cumulative_sums_overflow_where_the_scan_does_not(rate, good):
    """s_i = D_i Σ_j B_j / D_j with D_i = e^(−rate i)."""
    B = np.random.default_rng(0).uniform(1, 2, (40, 2, 3)).astype(np.float32)
    A = np.eye(2, dtype=np.float32) * np.full((40, 1, 1), np.exp(-rate), np.float32)
    expected, D = parallel_scan(A.astype(float), B.astype(float))[1], np.cumprod(A[:, :1, :1], 0)
    with np.errstate(all="ignore"):
        trick = D * np.cumsum(B / D, axis=0)
    np.testing.assert_allclose(trick[:good], expected[:good], rtol=1e-5)
    assert not np.isfinite(trick[good:]).any()
    np.testing.assert_allclose(parallel_scan(A, B)[1], expected, rtol=1e-6)


# ---- Packed texts, reading before writing, a factor on the right --------------------------------

def texts_of(entries, lengths, d_k, d_v):
    starts = entries("r", len(lengths), d_k, d_v)
    return lengths, starts, *steps_of(entries, 0, sum(lengths), d_k, d_v)[1:]


@theorem("packed texts: A = 0 at the first", "§15", st.builds(
    lambda lengths, rng: texts_of(lambda _, *shape: uniform(rng, *shape), lengths, 2, 2),
    st.lists(st.integers(0, 2), min_size=1, max_size=5).filter(any), case_rngs),
    every(lengths=[(1, 1), (2, 0, 1), (0, 1, 0, 0, 2), (2, 1, 0)], d_k=(1, 2), d_v=(1, 2)),
    partial(texts_of, variables))
def packed(lengths, starts, q, A, B, before, kept=0):
    """Texts in one run, the start of each in its first B  =  each by itself, empty ones too."""
    parts = [np.s_[end - n:end] for end, n in zip(np.cumsum(lengths), lengths)]
    alone = [linear_recurrence(q[i], A[i], B[i], s) for i, s in zip(parts, starts)]
    joined, written, filled = A.copy(), B.copy(), [i for i, n in enumerate(lengths) if n]
    for i in filled:
        joined[parts[i].start] = kept * A[parts[i].start]
        written[parts[i].start] += A[parts[i].start] @ starts[i]
    last = parallel_scan(joined, written)[1][[parts[i].stop - 1 for i in filled]]
    return ((linear_recurrence(q, joined, written, before)[0], last),
            (np.concatenate([o for o, _ in alone]), np.array([alone[i][1] for i in filled])))


@broken(packed, "A as it is at a text's first token", None, [texts_of(variables, (1, 1), 1, 1)])
def packed_without_forgetting(*case):
    return packed(*case, kept=1)


@theorem("read one token earlier", "RWKV-6", texts(), every(n=(1, 2, 3), pairs=(1,), d_v=(1, 2)),
         symbolic_text)
def read_earlier(text, bonus=1):
    """The recurrence read one token earlier, and the bonus of the token itself  =  RWKV-6."""
    q, A, B, _ = law("GLA", text)
    first = np.eye(len(text.s), dtype=object)[None], 0 * B[:1]
    A, B = (np.concatenate([x, X[:-1]]) for x, X in zip(first, (A, B)))
    of_token = (text.q * text.b * text.k).sum(axis=-1, keepdims=True) * text.v
    expected, _ = paper("RWKV-6 with bonus; s", text)
    return linear_recurrence(q, A, B, text.r)[0] + bonus * of_token, expected


@broken(read_earlier, "no bonus", texts(), [symbolic_text(1)])
def read_earlier_without_bonus(text):
    return read_earlier(text, bonus=0)


def with_right_factors(d_k, d_v):
    maps = [(variables("A" + x, d_k, d_k), variables("B" + x, d_k, d_v), variables("C" + x, d_v, d_v))
            for x in "xy"]
    return *maps, variables("s", d_k, d_v)


@theorem("a factor on the right: triples", "§15", None, every(d_k=(1, 2), d_v=(1, 2)),
         with_right_factors)
def right_factor(later, earlier, s):
    """s ↦ A s C + B twice  =  once, with A₂A₁, A₂B₁C₂ + B₂, C₁C₂."""
    (A_2, B_2, C_2), (A_1, B_1, C_1) = later, earlier
    return (A_2 @ (A_1 @ s @ C_1 + B_1) @ C_2 + B_2,
            A_2 @ A_1 @ s @ C_1 @ C_2 + A_2 @ B_1 @ C_2 + B_2)


@broken(right_factor, "the pair that leaves the factor out", None, [with_right_factors(1, 1)])
def right_factor_as_a_pair(later, earlier, s):
    A, B = compose(later[:2], earlier[:2])
    return A @ s + B, right_factor(later, earlier, s)[1]
