"""One law: a context is one affine map of the state, for every linear recurrence of the table.

Beside A and B of each row stands its paper's step as loops over numbers: s[feature][value].
"""

from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy import diag, outer

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (assert_close, case_rngs, every, numbers, rational_rope, realistic, rotations,
                   shapes, symbolic_rope)
from iclca_ref import (attention_bias, compose, context_map, gradient_descent, key_value_matrix,
                       linear_recurrence, parallel_scan)
from linear_transformer import Bias, chunked_attention, recurrent_attention, rotate
from polynomials import angles, variables
from theorem import broken, theorem

# A text of n tokens, k features, v values: queries, keys, gates; values, their gates; decays of
# channels; numbers; turns (cos, sin, cos, ...); starts of two parts, of a normalizer; a constant.
AXES = dict(name.split(":") for name in """q:nk k:nk p:nk a:nk b:nk v:nv u:nv d:nkv alpha:n beta:n
    eta:n turn:nk s:kv r:kv z:k gamma:""".split())

def text_of(entries, rope, angles, n, pairs, d_v):
    sizes = dict(n=n, k=2 * pairs, v=d_v)
    arrays = {name: entries(name, *map(sizes.get, axes)) for name, axes in AXES.items()}
    turn = np.stack(rope(np.array([1]), angles("phase", n * pairs)), axis=-1).reshape(n, -1)
    return SimpleNamespace(**arrays | dict(turn=turn, rope=partial(rope, theta=angles("w", pairs))))

def tokens(text):
    return [SimpleNamespace(**{name: x[i] if AXES.get(name, "")[:1] == "n" else x
                               for name, x in vars(text).items()}) for i in range(len(text.k))]

texts = lambda least=1: st.builds(lambda rng, *sizes: text_of(
    numbers(rng), rational_rope, lambda _, n: rotations(rng, n, of=257), *sizes),
    case_rngs, st.integers(least, 3), st.integers(1, 2), st.integers(1, 3))
symbolic_text = lambda n, pairs=1, d_v=1: text_of(variables, symbolic_rope, angles, n, pairs, d_v)


# ---- Every row of the table is its paper's recurrence -------------------------------------------

eye = lambda t: np.eye(len(t.k), dtype=object)
kv = lambda t: outer(t.k, t.v)
back = lambda t: rotate(eye(t), *t.rope(np.array([-1]))).T             # R_{−1}: one place back
own = lambda t: rotate(eye(t), t.turn[None, ::2], -t.turn[None, 1::2]).T    # its own turn, back
erase = lambda t: eye(t) - t.beta * outer(t.k, t.k)
second = lambda t: SimpleNamespace(k=t.p, v=t.u, beta=t.eta)    # another step of the same token
# As loops over the entries of the state
grid = lambda s, entry: [[entry(x, y) for y in range(len(s[0]))] for x in range(len(s))]
read = lambda k, s: [sum(k[x] * s[x][y] for x in range(len(s))) for y in range(len(s[0]))]
write = lambda s, k, v: grid(s, lambda x, y: s[x][y] + k[x] * v[y])
add = lambda t, s: write(s, t.k, t.v)
error = lambda s, k, v: [v[y] - seen for y, seen in enumerate(read(k, s))]
delta = lambda t, s: write(s, t.beta * t.k, error(s, t.k, t.v))        # the delta rule
times = lambda c, s: grid(s, lambda x, y: (c[x] if np.ndim(c) else c) * s[x][y])
plus = lambda r, s: grid(s, lambda x, y: r[x][y] + s[x][y])
turned = lambda x, turn: [z for a, b, cos, sin in zip(x[::2], x[1::2], turn[::2], turn[1::2])
                          for z in (a * cos - b * sin, a * sin + b * cos)]
momentum = lambda t, M, S: write(times(t.eta, S), t.beta * t.k, error(M, t.k, t.v))

ROWS = {   # A and B of a token; what its paper makes of the state
    "linear attention": (lambda t: (eye(t), kv(t)), add),
    "rotary": (lambda t: (back(t), kv(t)), add),
    "RetNet": (lambda t: (t.gamma * back(t), kv(t)), lambda t, s: add(t, times(t.gamma, s))),
    "Mamba-2": (lambda t: (t.alpha * eye(t), kv(t)), lambda t, s: add(t, times(t.alpha, s))),
    "GLA": (lambda t: (diag(t.a), kv(t)), lambda t, s: add(t, times(t.a, s))),
    "DeltaNet": (lambda t: (erase(t), t.beta * kv(t)), delta),
    "Gated DeltaNet": (lambda t: (t.alpha * erase(t), t.beta * kv(t)),
                       lambda t, s: delta(t, times(t.alpha, s))),
    "KDA": (lambda t: (erase(t) @ diag(t.a), t.beta * kv(t)), lambda t, s: delta(t, times(t.a, s))),
    "Comba": (lambda t: (t.alpha * eye(t) - t.beta * outer(t.k, t.p), t.beta * kv(t)),
              lambda t, s: write(times(t.alpha, s), t.beta * t.k, error(s, t.p, t.v))),
    "Gated DeltaNet-2": (
        lambda t: ((eye(t) - outer(t.k, t.b * t.k)) @ diag(t.a), outer(t.k, t.u * t.v)),
        lambda t, s: write(times(t.a, s), t.k, error(times(t.a, s), t.b * t.k, t.u * t.v))),
    "RWKV-7": (lambda t: (diag(t.a) - outer(t.b * t.p, t.p), kv(t)),   # p is κ, of any length
               lambda t, s: add(t, write(times(t.a, s), -t.b * t.p, read(t.p, s)))),
    "DPLR": (lambda t: (diag(t.a) + outer(t.b, t.p), kv(t)),           # with a = 1 it is IPLR
             lambda t, s: add(t, write(times(t.a, s), t.b, read(t.p, s)))),
    "DeltaProduct": (   # two steps of DeltaNet in a token, behind a decay
        lambda t: context_map(np.array([t.alpha * erase(t), erase(second(t))]),
                              np.array([t.beta * kv(t), t.eta * kv(second(t))])),
        lambda t, s: delta(second(t), delta(t, times(t.alpha, s)))),
    "mLSTM C, n": (lambda t: (t.alpha * eye(t), t.beta * outer(t.k, [*t.v, 1])),   # n is a column
                   lambda t, s: write(times(t.alpha, s), t.beta * t.k, [*t.v, 1])),
    "Mamba-1": (  # each channel is a head with one value; d is exp(Δ a), u is Δ
        lambda t: (np.array([diag(d) for d in t.d.T]), ((t.u * t.v)[:, None] * t.k)[..., None]),
        lambda t, h: grid(h, lambda x, y: t.d[x][y] * h[x][y] + t.u[y] * t.k[x] * t.v[y])),
    "Mamba-3 h; k vᵀ": (   # the trapezoidal rule: what the last token wrote is written once more
        lambda t: (np.block([[t.alpha * own(t), t.beta * own(t)], [0 * eye(t), 0 * eye(t)]]),
                   np.vstack([t.eta * kv(t), kv(t)])),
        lambda t, h, last: (write(plus(times(t.alpha, h), times(t.beta, last)), t.eta * t.k, t.v),
                            add(t, times(0, last)))),
    "momentum M; S": (   # S ← η S − θ ∇ of ½ ‖Mᵀk − v‖², then M ← (1 − α) M + S
        lambda t: (np.block([[erase(t) - t.alpha * eye(t), t.eta * eye(t)],
                             [erase(t) - eye(t), t.eta * eye(t)]]),
                   t.beta * np.vstack([kv(t), kv(t)])),
        lambda t, M, S: (plus(times(1 - t.alpha, M), momentum(t, M, S)), momentum(t, M, S))),
    "RWKV-6 read; s": (   # it reads one token earlier, and a bonus b for its own key
        lambda t: (np.block([[0 * eye(t), eye(t)], [0 * eye(t), diag(t.a)]]),
                   np.vstack([outer(t.b * t.k, t.v), kv(t)])),
        lambda t, _, s: (write(s, t.b * t.k, t.v), add(t, times(t.a, s))))}
NAMES = list(ROWS)

def law(name, text):
    """The row's q, A, B and start. Of a state of two parts q reads the first."""
    q, s, (A, B) = text.q, text.s, map(np.array, zip(*map(ROWS[name][0], tokens(text))))
    if name == "Mamba-1":
        return q + 0 * s.T[:, :1, None], *(X.swapaxes(0, 1) for X in (A, B)), s.T[..., None]
    if ";" in name:
        return np.hstack([q, 0 * q]), A, B, np.vstack([s, text.r])
    return q, A, B, np.hstack([s, text.z[:, None]])[:, :B.shape[-1]]

def paper(name, text):
    """The paper's outputs and last state. Where it turns q and k, seen from the last token."""
    s = np.hstack([text.s, text.z[:, None]]) if "," in name else text.s
    parts, o, turn = (s, text.r) if ";" in name else (s,), [], [1, 0] * (len(s) // 2)
    for i, t in enumerate(tokens(text), 1):
        if name in ("rotary", "RetNet"):      # by the position
            turn = np.stack(t.rope(np.array([i])), axis=-1).ravel()
        if "Mamba-3" in name:                 # by the angles of the tokens so far
            turn = turned(turn, t.turn)
        t.q, t.k = (np.array(turned(x, turn)) for x in (t.q, t.k))
        parts = ROWS[name][1](t, *parts) if ";" in name else [ROWS[name][1](t, *parts)]
        o.append(read(t.q, parts[0]))
    back = np.array(turn) * ([1, -1] * (len(s) // 2))
    columns = [[turned(x, back) for x in zip(*s)] for s in parts]
    return np.array(o), np.concatenate(np.array(columns, object), axis=-1).T

run = lambda *law: [x[..., 0].T if x.ndim > 2 else x for x in linear_recurrence(*law)]  # no heads
SHAPES = every(n=(1, 2), pairs=(1, 2), d_v=(1, 2)) + shapes(
    [], every(n=(1, 2), pairs=(1, 2), d_v=(3,)) + every(n=(3,), pairs=(1,), d_v=(1, 2, 3)))


@theorem("every row is its paper's loop", "RetNet...Mamba-3", texts().map(lambda t: (NAMES, t)),
         [dict(row=row, **shape) for row in range(len(NAMES)) for shape in SHAPES],
         lambda row, **shape: ([NAMES[row]], symbolic_text(**shape)))
def row(names, text, change=lambda A: A):
    """The recurrence of a row's A and B  =  the loops of its paper."""
    laws = [(q, change(A), B, s) for q, A, B, s in (law(name, text) for name in names)]
    return [run(*each) for each in laws], [paper(name, text) for name in names]

one_of = lambda names: st.tuples(st.sampled_from(names).map(lambda name: [name]), texts(least=2))
each_of = lambda names: [([name], symbolic_text(2)) for name in names]
turning = [name for name in NAMES if (lambda A: A != A.mT)(law(name, symbolic_text(1))[1]).any()]
row_transposed = broken(row, "A transposed, where A ≠ Aᵀ", one_of(turning), each_of(turning))(
    lambda names, text: row(names, text, np.matrix_transpose))
row_above = broken(row, "the row above in its place", one_of(NAMES[1:]), each_of(NAMES[1:]))(
    lambda names, text: [o[:, :text.v.shape[1]] for o in (
        run(*law(NAMES[NAMES.index(*names) - 1], text))[0], paper(*names, text)[0])])


# ---- The map replaces the context; maps compose; all prefixes at once; packed texts -------------

def steps_of(entries, m, n, d_k, d_v):
    """The length of a context; q, A, B of it and of n tokens after it; a start."""
    return m, *(entries(*x) for x in (("q", m + n, d_k), ("A", m + n, d_k, d_k),
                                      ("B", m + n, d_k, d_v), ("s", d_k, d_v)))

def float_steps(rng, dtype):
    """KDA with unit keys, β up to 2 (a reflection), decays of exactly 1 or, at some tokens, e⁻⁸."""
    q, k, v, start, _ = realistic(rng, dtype, n=(m := int(rng.integers(1, 20))) + 5)
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta = rng.choice([0, 0.5, 1, 2], k.shape[:-1]).astype(dtype)[..., None, None]
    decay = np.where(rng.random(k.shape) < rng.choice([0, 0.1, 1]), np.exp(-8), 1).astype(dtype)
    A = np.eye(k.shape[-1], dtype=dtype) - beta * k[..., None] * k[..., None, :]
    return m, q, A * decay[..., None, :], beta * k[..., None] * v[..., None, :], start.kv

steps = lambda least=0: st.builds(lambda rng, *n: steps_of(numbers(rng), *n), case_rngs,
                                  st.integers(least, 4), *[st.integers(1, 3)] * 3)
symbolic_steps = partial(steps_of, variables)
smallest = [symbolic_steps(1, 1, 1, 1)]


@theorem("a context is one affine map", "ICLCA §7", steps(), every(
    m=range(3), n=(0, 1), d_k=(1, 2), d_v=(1, 2)) + [dict(m=3, n=2, d_k=1, d_v=2)], symbolic_steps,
    floats=float_steps, ulps=200)
def replaced(m, q, A, B, state, start=lambda A, B, state: A @ state + B):
    """What follows, from the start that the context's map gives  =  with the context in front."""
    before, after = ([X[..., part, :, :] for X in (A, B)] for part in np.s_[:m, m:])
    o, last = linear_recurrence(q, A, B, state)
    state = start(*context_map(*before), state)
    return linear_recurrence(q[..., m:, :], *after, state), (o[..., m:, :], last)

one_step_is_the_induction = theorem("a context is one affine map", "ICLCA §7", None, every(
    m=(1,), n=(0,), d_k=(1, 2, 3), d_v=(1, 2, 3)), symbolic_steps)(
    lambda _, q, A, B, s: (linear_recurrence(q, A, B, s), (q @ (A[0] @ s + B[0]), A[0] @ s + B[0])))

added = partial(broken, replaced, "b + B in the place of A b + B")
start_added = added(steps(least=1), smallest)(
    lambda *case: [o for o, _ in replaced(*case, start=lambda A, B, state: state + B)])
start_added_in_each_row = added(one_of(NAMES[1:]), each_of(NAMES[1:]))(
    lambda names, text: start_added(1, *law(*names, text)))
right_factor = broken(replaced, "the pair (A, B) for s ↦ A s C + B", None,
                      [symbolic_steps(1, 0, 1, 2)])(   # for d_v = 1 it is a row, (A C, B)
    lambda _, q, A, B, s: (linear_recurrence(q, A, B, s)[1],
                           A[0] @ s @ variables("C", 2, 2) + B[0]))


def test_in_the_first_row_the_start_may_be_added_and_in_eleven_rows_A_is_not_symmetric():
    o, expected = start_added(1, *law(NAMES[0], symbolic_text(3)))
    assert (o == expected).all() and len(turning) == 11


@theorem("maps compose, associatively", "Martin, Cundy '18", steps(), every(
    m=range(3), n=range(3), d_k=(1, 2), d_v=(1, 2)) + [dict(m=40, n=30, d_k=1, d_v=1)],
    symbolic_steps)
def composed(m, _, A, B, __, order=1):
    """The later context's map after the earlier one's  =  the map of both."""
    return compose(*[context_map(A[i], B[i]) for i in np.s_[m:, :m]][::order]), context_map(A, B)

composed_in_the_other_order = broken(composed, "the two contexts in the other order", steps(1),
    smallest, difference="A0_0_0*B1_0_0 - A1_0_0*B0_0_0 + B0_0_0 - B1_0_0")(
    lambda *case: composed(*case, order=-1))
associative = theorem("maps compose, associatively", "Martin, Cundy '18", None, every(
    d_k=(1, 2, 3), d_v=(1, 2)), lambda d_k, d_v: tuple(
        (variables("A" + x, d_k, d_k), variables("B" + x, d_k, d_v)) for x in "xyz"))(
    lambda x, y, z: (compose(x, compose(y, z)), compose(compose(x, y), z)))


@theorem("the parallel scan: all prefixes", "Hillis, Steele 86", steps(), every(
    m=range(16), n=(1,), d_k=(1,), d_v=(1,)) + every(m=range(4), n=(1,), d_k=(2,), d_v=(1, 2)),
    symbolic_steps, floats=float_steps, ulps=200)
def scanned(m, _, A, B, __):
    """Entry i  =  context_map of the first i + 1 tokens, whatever follows, such as bad guesses."""
    maps = [context_map(A[..., :i, :, :], B[..., :i, :, :]) for i in range(1, A.shape[-3] + 1)]
    return parallel_scan(A, B), tuple(np.stack(X, axis=-3) for X in zip(*maps))

@broken(scanned, "composing in the other order", steps(least=1), smallest)
def scanned_in_the_other_order(*case):
    with patch("iclca_ref.compose", lambda later, earlier: compose(earlier, later)):
        scan = parallel_scan(*case[2:4])
    return scan, scanned(*case)[1]


@pytest.mark.parametrize("m", [1, 2, 3, 8, 9, 1000])
def test_the_scan_has_log_m_rounds_of_fewer_than_m_compositions(m):
    with patch("iclca_ref.compose", wraps=compose) as counted:
        assert parallel_scan(a(m, 1, 1), a(m, 1, 1))[1].ravel().tolist() == [*range(1, m + 1)]
    rounds = (m - 1).bit_length()   # ⌈log₂ m⌉
    assert [len(c.args[0][0]) for c in counted.call_args_list] == [m - 2**r for r in range(rounds)]


@pytest.mark.parametrize("rate, good", [(1, 40), (10, 8)])   # e^(−90) is no normal float32
def test_two_cumulative_sums_overflow_where_the_scan_does_not(rate, good):
    B = np.random.default_rng(0).uniform(1, 2, (40, 2, 3)).astype(np.float32)
    A = np.eye(2, dtype=np.float32) * np.full((40, 1, 1), np.exp(-rate), np.float32)
    expected, D = parallel_scan(A.astype(float), B.astype(float))[1], np.cumprod(A[:, :1, :1], 0)
    with np.errstate(all="ignore"):
        trick = D * np.cumsum(B / D, axis=0)   # s_i = D_i Σ_j B_j / D_j with D_i = e^(−rate i)
    np.testing.assert_allclose(trick[:good], expected[:good], rtol=1e-5)
    assert not np.isfinite(trick[good:]).any()
    np.testing.assert_allclose(parallel_scan(A, B)[1], expected, rtol=1e-6)


texts_of = lambda entries, lengths, d_k, d_v: (lengths, entries("r", len(lengths), d_k, d_v),
                                               *steps_of(entries, 0, sum(lengths), d_k, d_v)[1:])

@theorem("packed texts: A = 0 at the first", "§15", st.builds(
    lambda lengths, rng: texts_of(numbers(rng), lengths, 2, 2),
    st.lists(st.integers(0, 2), min_size=1, max_size=5).filter(any), case_rngs),
    every(lengths=[(1, 1), (2, 0, 1), (0, 1, 0, 0, 2), (2, 1, 0)], d_k=(1, 2), d_v=(1, 2)),
    partial(texts_of, variables))
def packed(lengths, starts, q, A, B, before, kept=0):
    """Texts in one run, the start of each in its first B  =  each by itself, empty ones too."""
    n, ends = np.array(lengths), np.cumsum(lengths)
    alone = [linear_recurrence(*(X[end - m:end] for X in (q, A, B)), s)
             for m, end, s in zip(n, ends, starts) if m]
    first, (A_0, B_0) = (ends - n)[n > 0], (A.copy(), B.copy())
    A_0[first], B_0[first] = kept * A[first], A[first] @ starts[n > 0] + B[first]
    o, last = linear_recurrence(q, A_0, B_0, before)[0], parallel_scan(A_0, B_0)[1][ends[n > 0] - 1]
    return (o, *last), (np.concatenate([o for o, _ in alone]), *(s for _, s in alone))

packed_without_forgetting = broken(packed, "A as it is at a text's first token", None, [texts_of(
    variables, (1, 1), 1, 1)])(lambda *case: packed(*case, kept=1))


# ---- Theorem 4.5 and online gradient descent are cases; least squares ---------------------------

@theorem("Theorem 4.5 is the row A = R_{−1}", "Thm 4.5, §7", texts(), SHAPES, symbolic_text)
def theorem_4_5_as_a_row(t, change=lambda A: A):
    """attention_bias, and attention  =  the map of the row, applied to the start, and the row."""
    q, A, B, s = law("rotary", t)
    start, (a, b) = Bias(s, 0 * s[:, 0]), context_map(change(A), B)
    o, state = recurrent_attention(t.q, t.k, t.v, start, t.rope, normalize=False)
    return ((attention_bias(t.k, t.v, start, t.rope).kv, o, state.kv),
            (a @ s + b, *linear_recurrence(q, change(A), B, s)))

turned_forward = broken(theorem_4_5_as_a_row, "R_1 in the place of R_{−1}", texts(),
                        [symbolic_text(1)])(lambda t: theorem_4_5_as_a_row(t, lambda A: A.mT))


@theorem("DeltaNet = online gradient descent", "Schlag et al. '21", texts(), SHAPES, symbolic_text)
def online_descent(t, change=lambda A: A):
    """DeltaNet's state  =  the weights after a step of rate β per token, on ½ ‖W k − v‖²."""
    (q, A, B, s), W = law("DeltaNet", t), t.s.T
    for x in tokens(t):
        W, _, _ = gradient_descent(W, x.k[None], x.v[None], x.beta)
    return linear_recurrence(q, change(A), B, s)[1], W.T

without_the_error = broken(online_descent, "linear attention with values β v: no error", texts(),
    [symbolic_text(1)], difference="beta0*k0_0*k0_1*s1_0 + beta0*k0_0^2*s0_0")(   # β k (kᵀs) stays
    lambda t: online_descent(t, lambda A: 0 * A + np.eye(A.shape[-1], dtype=int)))


@theorem("least squares: (H, G) adds", "MesaNet", texts(least=2), every(n=(2, 3, 4), pairs=(1,),
         d_v=(1, 2)), symbolic_text)
def least_squares(t):
    """(H, G) = Σ β k [k; v]ᵀ of two parts  =  of both; (H + λ) W − G  =  the gradient at any W."""
    wk, parts = t.beta[:, None] * t.k, np.s_[:, :1, 1:]
    H, G, H_1, G_1, H_2, G_2 = (key_value_matrix(wk[i], x[i]) for i in parts for x in (t.k, t.v))
    gradient = wk.T @ (t.k @ t.s - t.v) + t.gamma * t.s
    return (H_1 + H_2, G_1 + G_2, gradient), (H, G, H @ t.s + t.gamma * t.s - G)

@broken(least_squares, "adding the two regressions", texts(least=2), [symbolic_text(2)])
def regressions_added(t):
    k, wk = t.k[:, 0], t.beta * t.k[:, 0]
    first, rest, both = (wk[i] @ t.v[i] / (wk[i] @ k[i] + t.gamma) for i in np.s_[:1, 1:, :])
    return first + rest, both


# ---- What the functions do with their arguments -------------------------------------------------

compose_pair = lambda *x: compose(x[:2], x[2:])
CASES = [case(f.__name__, f, "A:nkk B:nkv") for f in (context_map, parallel_scan)] + [
    *[case(spec, linear_recurrence, spec) for spec in (
        "q:nk A:nkk B:nkv state?:kv", "q:nk A:nkk B:nkk state?:kk", "q:zk A:zkk B:zkv state?:kv")],
    case("compose", compose_pair, "A_2:kk B_2:kv A_1?:kk B_1?:kv"),
    case("compose, one later map", lambda *x: compose(x[2:], x[:2]), "A:kk B:kv A_2?:kk B_2=:kv")]
test_batches, test_types = batches(*CASES), types_and_layouts(*CASES)
test_mistakes = refused(
    *calls(context_map, "A B", "422 123", "22 23"),
    *calls(parallel_scan, "A B", "422 123", "22 23"),
    *calls(linear_recurrence, "_ A _ state", "32 322 321 11", "32 122 321 21"),
    *calls(compose_pair, "A_2 B_2 A_1 B_1", "22 23 22 13", "22 23 22 21", "13 32 33 32"))


@pytest.mark.parametrize("half", range(4))
def test_whole_numbers_do_not_cut_the_others_down(half):
    rng, sizes = np.random.default_rng(0), [(2, 5, 2), (2, 5, 2, 2), (2, 5, 2, 2), (2, 2)]
    q, A, B, s = (rng.integers(-9, 9, x) + (0.5 if i == half else 0) for i, x in enumerate(sizes))
    for function, *x in (linear_recurrence, q, A, B, s), (context_map, A, B), (parallel_scan, A, B):
        np.testing.assert_equal(function(*x), function(*(y.astype(float) for y in x)))


def test_complex_factors_are_rotations():
    """The complex state s ↦ e^(−iθ) s + k v, of half the features, is rotary attention."""
    q, k, v, start, turn = realistic(np.random.default_rng(0), np.float64, n=50)
    c = [x[..., ::2] + 1j * x[..., 1::2] for x in (q, k, start.kv.mT)]
    A = np.tile(np.diag(np.exp(-1j * turn.keywords["theta"])), (*k.shape[:-1], 1, 1))
    o, _ = linear_recurrence(c[0].conj(), A, c[1][..., None] * v[..., None, :], c[2].mT)
    assert_close(o.real, chunked_attention(q, k, v, start, turn, normalize=False)[0], ulps=200)
