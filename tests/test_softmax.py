"""Softmax attention: exact with the features of its own kernel, approximate with fewer."""

from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (Case, arrays, assert_close, attention_cases, every, fractions, random_arrays,
                   rngs, symbolic_case)
from iclca_ref import (attention_bias, fitted_bias, iclaa, log_random_features,
                       similarity_attention, softmax_attend, softmax_attention_with_bias,
                       softmax_bias)
from linear_transformer import (Bias, forward, identity, random_transformer, softmax,
                                softmax_attention)
from polynomials import unknown, variables
from theorem import broken, theorem

floating = pytest.mark.parametrize("dtype", [np.float64, np.float32])
never = st.just(False)
cases = attention_cases(least_context=1, least_prompt=1, rotated=never)
smallest = Case(*fractions([[[1], [1]], [[1], [2]], [[1], [0]]]), 1, None, None)


# ---- Eq 17: exact with the features of the kernel -----------------------------------------------

def without_one(x):
    """The features of (q·k)²: all products of two entries of x."""
    return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], x.shape[-1] ** 2)

def squared_features(x):
    """The features of (1 + q·k)²: those of (1, x)."""
    return without_one(np.concatenate([0 * x[..., :1] + 1, x], axis=-1))


@theorem("Eq 17, the kernel's features", "§5, Eq 17-18",
         st.tuples(attention_cases(least_prompt=1, rotated=never), st.just(squared_features)),
         every(m=range(3), n=(1, 2), heads=(1, 2), pairs=(1,), d_v=(1, 2)),
         lambda **shape: (symbolic_case(**shape), unknown("phi")))
def equation_17(case, features, of_bias=None, keep=identity):
    """The prompt's rows, by φ(q)·φ(k), with the context as a bias  =  with the context in front."""
    (_, k, v), (q, k_x, v_x), of_bias = case.context, case.prompt, of_bias or features
    prompt, whole = (np.tril(features(x) @ features(y).mT) for x, y in ((q, k_x), (case.q, case.k)))
    return (similarity_attention(prompt, of_bias(q), v_x, keep(attention_bias(of_bias(k), v))),
            similarity_attention(whole, features(case.q), case.v, None)[..., case.m:, :])

@broken(equation_17, "the features of (q·k)² for (1 + q·k)²", cases, [symbolic_case(1, 1)],
        smallest)
def with_the_features_of_another_kernel(case):
    return equation_17(case, squared_features, without_one)

@broken(equation_17, "leaving out b_D", cases, [symbolic_case(1, 1)], smallest)
def with_the_bias_of_the_numerator_alone(case):
    return equation_17(case, squared_features, keep=lambda bias: bias._replace(d=0 * bias.d))


def any_kernel(q, k):
    """An unknown similarity of rows: k(q_i, k_j), the same unknown for the same pair."""
    pairs = np.concatenate(np.broadcast_arrays(q[..., :, None, :], k[..., None, :, :]), axis=-1)
    return unknown("similarity")(pairs)[..., 0]


@theorem("Eq 17, one feature per key", "§5, Eq 17", None,
         every(m=range(3), n=(1, 2), heads=(1, 2), pairs=(1,), d_v=(1, 2)))
def one_feature_for_each_key(case, landmarks=None):
    """The prompt's rows with one feature for each key of the context  =  with it in front."""
    (_, k, v), (q, k_x, v_x) = case.context, case.prompt
    one_hot = np.eye(case.m, dtype=int).astype(object) + np.zeros((len(k), 1, 1), object)
    of_prompt, whole = (np.tril(any_kernel(x, y)) for x, y in ((q, k_x), (case.q, case.k)))
    features = any_kernel(q, k if landmarks is None else landmarks)
    return (similarity_attention(of_prompt, features, v_x, attention_bias(one_hot, v)),
            similarity_attention(whole, case.q[..., :0], case.v, None)[..., case.m:, :])

@broken(one_feature_for_each_key, "one key counted at another", None, [symbolic_case(2, 1)])
def both_keys_at_the_first(case):
    return one_feature_for_each_key(case, case.k[:, [0, 0]])


# ---- The best bias for given rows ---------------------------------------------------------------

# how one query attends to m tokens, their values, its own value, a bias for the first r of them
KEPT = dict(a="query m", v="m d_v", o="query d_v", kv="r d_v", d="r")
kept_tokens = random_arrays(KEPT).map(lambda x: (
    x[0][:1], x[1], x[2][:1], Bias(*(part[:len(x[1])] for part in x[3:]))))


def any_bias(**shape):
    """The same of variables; b_D's first entry is such that the denominator is a variable t ≠ 0."""
    attention, v, own, kv, d = arrays(variables, KEPT, **shape)
    of_others = 1 - attention.sum() + (attention[0, 1:len(d)] * d[1:]).sum()
    d[0] = (variables("t") - of_others) / attention[0, 0]
    return attention, v, own, Bias(kv, d)


@theorem("the error of a bias on kept tokens", "ours", kept_tokens,
         every(m=(1, 2, 3), r=(1,), d_v=(1, 2)) + every(m=(2, 3), r=(2,), d_v=(1, 2)), any_bias)
def error_of_a_bias(attention, v, own, bias, of_denominator=1):
    """ô − o  =  (e_N − o e_D) / (1 + e_D),    e_N = A_R b_KV − A v,    e_D = A_R b_D − A 1."""
    A_R, left = attention[:, :len(bias.d)], 1 - attention.sum(axis=-1, keepdims=True)
    o = attention @ v + left @ own   # the prompt's own token takes what is left
    e_N = A_R @ bias.kv - attention @ v
    e_D = (A_R @ bias.d - attention.sum(axis=-1))[:, None] * of_denominator
    return similarity_attention(left, A_R, own, bias) - o, (e_N - o * e_D) / (1 + e_D)

@broken(error_of_a_bias, "leaving out the denominator's error e_D", kept_tokens,
        [any_bias(m=2, r=1, d_v=1)])
def with_the_error_of_the_numerator_alone(*case):
    return error_of_a_bias(*case, of_denominator=0)


def reference(rng):
    """How 40 queries attend to 12 tokens of a context, a quarter of it elsewhere; their values."""
    scores = 2 * rng.standard_normal((2, 40, 4)) @ rng.standard_normal((2, 4, 12))
    return softmax(scores) * 0.75, rng.standard_normal((2, 12, 3))

def shared_out(attention, rows):
    """E of fitted_bias: its b_KV for the values e_1, ..., e_m."""
    return fitted_bias(attention, np.eye(12) + np.zeros((*attention.shape[:-2], 1, 1)), rows).kv


@given(rngs, st.sampled_from([1, 2, 3, 6, 12]))   # 12: all of them, nothing is lost
def test_a_kept_token_stands_for_itself_and_the_others_are_shared_out_positively(rng, r):
    attention, v = reference(rng)
    rows = np.stack([rng.permutation(12)[:r] for _ in range(2)])   # other rows for each head
    e, bias = shared_out(attention, rows), fitted_bias(attention, v, rows)
    for h in range(2):
        np.testing.assert_array_equal(e[h][:, rows[h]], np.eye(r))
    assert (e >= 0).all() and (bias.d >= 1).all()
    np.testing.assert_allclose(bias.kv, e @ v, atol=1e-12)
    np.testing.assert_allclose(bias.d, e.sum(axis=-1), rtol=1e-12)


@given(rngs, st.integers(1, 6))
def test_no_merging_onto_the_same_rows_is_better_on_the_reference_queries(rng, r):
    attention, rows = reference(rng)[0][0], rng.permutation(12)[:r]
    A_R, unit = attention[:, rows], np.eye(12)[rows]

    def missed(e):   # by a share in which the kept tokens stand for themselves
        return np.linalg.norm(A_R @ np.where(unit.any(axis=0), unit, e) - attention)

    fitted, best = missed(shared_out(attention, rows)), unit + 1 / r
    for _ in range(50):
        assert fitted <= missed(np.eye(r)[rng.integers(0, r, 12)].T)
    for update in range(5000):   # near its optimum: with 50 times as many little is gained
        if update == 100:
            np.testing.assert_allclose(fitted, missed(best), rtol=1e-12)
        best = best * (A_R.T @ attention) / (A_R.T @ A_R @ best)
    assert fitted <= 1.0001 * missed(best) + 1e-9


def test_a_token_that_no_query_attends_to_is_no_trouble():
    attention = np.array([[0.5, 0.0, 0.2], [0.3, 0.0, 0.4]])
    for rows in [0], [1], [1, 2]:
        with np.errstate(all="raise", under="ignore"):
            bias = fitted_bias(attention, np.eye(3), np.array(rows))
        assert np.isfinite(bias.kv).all() and (bias.d >= 1).all()


# ---- Random features ----------------------------------------------------------------------------

def estimate(seed, q, k, norm=1):
    """exp(q·k) from 20,000 random features, with their norm or without; itself; the standard error,
    by which chance is off, in units of its eps."""
    w = np.random.default_rng([seed, 1]).standard_normal((20_000, 4))
    phi_q, phi_k = (np.exp(log_random_features(x, w) + (1 - norm) / 2 * x @ x.T) for x in (q, k))
    error = np.sqrt(np.expm1(((q + k) ** 2).sum()) / len(w))   # of exp(q·k) itself
    return phi_q @ phi_k.T, np.exp(q @ k.T), error / np.finfo(float).eps


@pytest.mark.proves("random features are unbiased", "§5; Performer")
@pytest.mark.parametrize("seed", range(20))   # fixed seeds: no chance
def test_random_features_are_unbiased_within_five_standard_errors(seed):
    mean, expected, error = estimate(seed, *np.random.default_rng(seed).normal(0, 0.4, (2, 1, 4)))
    assert_close(mean, expected, 5 * error)

@pytest.mark.breaks("random features are unbiased", "leaving out exp(−‖x‖²/2)")
@pytest.mark.parametrize("seed", range(20))
def test_without_the_norm_the_features_are_biased(seed):
    q = np.full((1, 4), 0.4)         # ‖q‖² = 0.64, exp(q·q) = 1.90; without the norm twice as much
    right, expected, error = estimate(seed, q, q)
    assert_close(right, expected, 5 * error)
    with pytest.raises(AssertionError):
        assert_close(estimate(seed, q, q, norm=0)[0], expected, 10 * error)


# ---- The conversion of one layer ----------------------------------------------------------------

def layer(rng, dtype, scale=1.0, m=20, n=7, d=8):
    """Queries, keys and values of a context and a prompt: whole, context, prompt."""
    q, k, v = rng.standard_normal((3, 2, m + n, d)).astype(dtype)
    q, k = dtype(scale) * q, dtype(scale) * k
    return (q, k, v), (k[:, :m], v[:, :m]), (q[:, m:], k[:, m:], v[:, m:])

def landmarks(k, r):
    """The features exp(k_a·q), a < r."""
    scaled = k[..., :r, :] / k.shape[-1] ** 0.25
    return lambda x: x @ scaled.mT

def kept(k, v, r=10**9):
    """An `iclaa` convert: the first r keys, with the rest shared out among them evenly."""
    r = min(r, k.shape[-2])
    shares = np.eye(r, k.shape[-2], dtype=k.dtype)
    shares[:, r:] = 1 / r
    return Bias(shares @ v, shares.sum(axis=-1) + 0 * k[..., :r, 0]), landmarks(k, r)

def projected(w):
    """Random features with the directions w, as `convert`."""
    features = partial(log_random_features, projection=w)
    return lambda k, v: (softmax_bias(k, v, features), features)


@pytest.mark.proves("Eq 17, one feature per key", "§5, Eq 17")
@floating
@given(rngs, st.sampled_from([1.0, 9.0]))
def test_with_every_key_kept_softmax_is_exact_to_rounding(dtype, rng, scale):
    whole, context, prompt = layer(rng, dtype, scale)
    scores = abs(whole[0] @ whole[1].mT).max() / 8**0.5     # their rounding is amplified by exp
    converted = softmax_attention_with_bias(*prompt, *kept(*context))
    assert_close(converted, softmax_attention(*whole)[:, 20:], ulps=30 + 30 * float(scores))


def test_softmax_attention_with_a_bias_is_equation_17_with_the_exponential():
    rng = np.random.default_rng(0)
    _, (k_c, v_c), (q, k, v) = layer(rng, np.float64)
    scores = np.tril(np.exp(q @ k.mT / 8**0.5))
    by_random = projected(rng.standard_normal((9, 8)))(k_c, v_c)
    assert_close(by_random[0], attention_bias(np.exp(by_random[1](k_c / 8**0.25)), v_c), ulps=50)
    for (bias, features), scale in product((kept(k_c, v_c, 5), by_random), (1e-9, 1e-2, 1, 1e9)):
        scaled = Bias(scale * bias.kv, scale * bias.d)
        expected = similarity_attention(scores, np.exp(features(q / 8**0.25)), v, scaled)
        o = softmax_attention_with_bias(q, k, v, scaled, features)
        np.testing.assert_allclose(o, expected, rtol=1e-12)


@floating
@given(rngs, st.sampled_from([1, 10, 100, 1000]))
def test_large_scores_do_not_overflow(dtype, rng, scale):
    _, context, prompt = layer(rng, dtype, scale)
    w = rng.standard_normal((32, 8)).astype(dtype)
    for converted in kept(*context, 5), projected(w)(*context):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            o = softmax_attention_with_bias(*prompt, *converted)
        largest = abs(context[1]).max() + abs(prompt[2]).max()
        assert o.dtype == dtype and np.isfinite(o).all() and abs(o).max() <= largest


def test_a_huge_feature_whose_bias_is_zero_does_not_hide_a_tiny_one():
    bias = Bias(np.array([[0.0], [3e100]]), np.array([0.0, 1e100]))
    q, k = np.array([[15.0, 0.0]]), np.array([[-15.0 * 1.02 * 2**0.5, 0.0]])   # one score, −229.5
    s, f = (q @ k.T / 2**0.5).item(), -460 + np.log(1e100)
    o = softmax_attention_with_bias(q, k, np.array([[7.0]]), bias,
                                    lambda x: np.array([[700.0, -460.0]]) + 0 * x)
    np.testing.assert_allclose(o, [[(np.exp(s - f) * 7 + 3) / (np.exp(s - f) + 1)]], rtol=1e-12)


def test_an_empty_context_is_no_trouble():
    q, k, v = layer(np.random.default_rng(0), np.float64, m=0)[0]
    bias, features = projected(np.ones((3, 8)))(k[:, :0], v[:, :0])
    o, state = softmax_attend(q, k, v)
    assert_close(o, softmax_attention_with_bias(q, k, v, bias, features), ulps=100)
    assert state is None


# ---- Whole softmax transformers -----------------------------------------------------------------

@theorem("Algorithm 1 for softmax, all kept", "§5, App D", floats=lambda rng, dtype: (
    rng, random_transformer(rng, 50, 32, 3, 2, dtype=dtype)._replace(
        phi=identity, parallel=bool(rng.integers(2)))), ulps=300)
def softmax_algorithm_1(rng, model, count_on=False):
    """The prompt's logits, every key of the context kept  =  with the context in front."""
    text = rng.integers(0, 50, int(rng.integers(7, 37)))
    context, prompt, shift = text[:-6], text[-6:], count_on * (len(text) - 6)
    placed = model._replace(rope=lambda positions, theta: model.rope(positions + shift, theta))
    return (forward(placed, prompt, iclaa(model, context, kept), softmax_attend)[0],
            forward(model, text, attend=softmax_attend)[0][-6:])

@pytest.mark.breaks("Algorithm 1 for softmax, all kept",
                    "positions that count on (against Assumption 4.3)")
@given(rngs)
def test_without_relative_positions_the_converted_softmax_transformer_answers_differently(rng):
    model = random_transformer(rng, 50, 32, 3, 2)._replace(phi=identity)
    assert_close(*softmax_algorithm_1(rng, model), ulps=300)
    shifted, expected = softmax_algorithm_1(rng, model, count_on=True)
    assert np.linalg.norm(shifted - expected) > 1e-5 * np.linalg.norm(expected)


# ---- What the functions do with their arguments -------------------------------------------------

W = np.random.default_rng(1).standard_normal((6, 2))
FLOATS = [
    case("softmax_bias", lambda k, v: projected(W.astype(k.dtype))(k, v)[0], "k:nk v:nv", float),
    case("softmax_attention_with_bias", lambda q, k, v, z, *b: softmax_attention_with_bias(
        q, k, v, Bias(*b), lambda x: x @ z.mT), "q:nk k:nk v:nv z?:rk kv?:rv d?:r", float),
    case("log_random_features", lambda x: log_random_features(x, W.astype(x.dtype)), "x:nk", float),
    case("fitted_bias", lambda attention, v: fitted_bias(attention, v, np.array([2, 0])),
         "attention:nd v:dv", float)]
EXACT = case("similarity_attention", lambda v, sim, phi_q, *b: similarity_attention(
    sim, phi_q, v, Bias(*b)), "v:nv similarity:nn phi_q:nr kv?:rv d?:r", Fraction)
test_batches, test_types = batches(EXACT, *FLOATS), types_and_layouts(EXACT, *FLOATS)

q = a(2, 5, 4)
(kv, d), log_ones = projected(a(3, 4))(q, q)


def with_bias(*qkv, kv=kv, d=d):
    return softmax_attention_with_bias(*qkv, Bias(kv, d), log_ones)

def fitted(rows, attention=a(2, 5, 4), v=a(2, 4, 3)):
    return lambda: fitted_bias(attention, v, np.asarray(rows))


test_mistakes = refused(
    *calls(log_random_features, "x projection", "42 31", "42 2", "42 532", "352 53"),
    *[("bias", lambda b=b: with_bias(q, q, q, **b)) for b in (
        dict(kv=kv[:, :2], d=d[:, :2]), dict(d=d[..., :1]), dict(kv=kv[..., :1]))],
    *[("b_D (2, 3); positive", lambda sign=sign: with_bias(q, q, q, d=d * sign))
      for sign in (-1, [[1, 1, 1], [1, -1e-9, 1]])],
    ("b_KV (2, 3, 4) is 0", lambda: with_bias(q, q, q, d=d * [1, 0, 1])),
    *[("must be", lambda qkv=qkv: with_bias(*qkv)) for qkv in (
        (q, q[:, :1], q), (q, q, q[:1]), (q[:, :1], q, q), (q[..., :2], q, q))],
    *calls(partial(similarity_attention, bias=None), "similarity phi_q v", "21 23 23",
           "215 254 254", "22 33 23"),
    ("φ(q)·(Σ φ(k) + b_D) is 0", lambda: similarity_attention(0 * a(2, 2), a(2, 3), a(2, 3), None)),
    *[("attention (2, 5, 4)", fitted([0], x * a(2, 5, 4))) for x in (-1, np.nan)],
    *[("rows (; of v", fitted(rows)) for rows in (
        [0, 4], [-1], [1, 1], [0.5], np.zeros(0, int), [[0, 1], [2, 2]])],
    ("rows (3, 2)", fitted(np.zeros((3, 2), int))), ("rows must be; bool", fitted([True])),
    ("attention (5, 4)", fitted([0], a(5, 4))), ("v (2, 3, 3)", fitted([0], v=a(2, 3, 3))))
