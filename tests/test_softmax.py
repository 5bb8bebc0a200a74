"""Softmax attention: exact with the features of its own kernel, approximate with fewer."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arguments import a, assert_arguments_stay, batches, case, float_types, refused
from exact import (Case, assert_close, assert_within_chance, attention_cases, case_rngs, every,
                   fractions, rngs, symbolic_case, uniform)
from iclca_ref import (attention_bias, fitted_bias, iclaa, log_random_features,
                       similarity_attention, softmax_attend, softmax_attention_with_bias,
                       softmax_bias)
from linear_transformer import (Bias, forward, identity, random_transformer, softmax,
                                softmax_attention)
from polynomials import unknown, variables
from theorem import broken, theorem

floating = pytest.mark.parametrize("dtype", [np.float64, np.float32])


# ---- Eq 17: exact with the features of the kernel -----------------------------------------------

def squared_features(x):
    """The features of (1 + q·k)²: all products of two entries of (1, x)."""
    return without_one(np.concatenate([0 * x[..., :1] + 1, x], axis=-1))


def without_one(x):
    """The features of (q·k)² alone."""
    return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], x.shape[-1] ** 2)


cases = attention_cases(least_context=1, least_prompt=1, rotated=st.just(False))
smallest = Case(*fractions([[[1], [1]], [[1], [2]], [[1], [0]]]), 1, None, None)


@theorem("Eq 17, the kernel's features", "§5, Eq 17-18",
         attention_cases(least_prompt=1, rotated=st.just(False)).map(lambda c: (c, squared_features)),
         every(m=range(3), n=(1, 2), heads=(1, 2), pairs=(1,), d_v=(1, 2)),
         lambda **shape: (symbolic_case(**shape), unknown("phi")))
def equation_17(case, features, of_bias=None, keep=identity):
    """The prompt's rows, with the context as a bias of features  =  with it in front."""
    (_, k, v), (q, k_x, v_x), of_bias = case.context, case.prompt, of_bias or features
    similarity, whole = (np.tril(features(x) @ features(y).mT) for x, y in ((q, k_x),
                                                                           (case.q, case.k)))
    return (similarity_attention(similarity, of_bias(q), v_x, keep(attention_bias(of_bias(k), v))),
            similarity_attention(whole, features(case.q), case.v, None)[..., case.m:, :])


@broken(equation_17, "the features of (q·k)² for (1 + q·k)²", cases, [symbolic_case(1, 1)], smallest)
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
    """With every key its own landmark nothing is lost, for any similarity at all."""
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

@st.composite
def shares(draw):
    """How one query attends to m tokens, their values, its own value, and how R share them."""
    m, r, d_v, rng = (*(draw(st.integers(1, 3)) for _ in range(3)), draw(case_rngs))
    return *(uniform(rng, *s) for s in ((1, m), (m, d_v), (1, d_v), (min(r, m), m))),


def any_shares(m, r, d_v):
    """The same of variables; E's last entry is such that the denominator is a variable t ≠ 0."""
    attention, v, own, e = (variables(n, *s) for n, s in zip("avoe", ((1, m), (m, d_v), (1, d_v), (r, m))))
    of_others = 1 - attention.sum() + (attention[:, :r] @ e).sum() - attention[0, 0] * e[0, -1]
    e[0, -1] = (variables("t") - of_others) / attention[0, 0]
    return attention, v, own, e


@theorem("the error of shared-out tokens", "ours", shares(),
         every(m=(1, 2, 3), r=(1,), d_v=(1, 2)) + every(m=(2, 3), r=(2,), d_v=(1, 2)), any_shares)
def error_of_a_share(attention, v, own, e, of_denominator=1):
    """ô − o = (e_N − o e_D) / (1 + e_D) with (e_N, e_D) = (A_R E − A) [v, 1], rows R the first ones.

    The prompt's own token takes what is left, 1 − A 1, so that every row sums to 1.
    """
    A_R, left = attention[:, :len(e)], 1 - attention.sum(axis=-1, keepdims=True)
    o = attention @ v + left @ own
    converted = similarity_attention(left, A_R, own, Bias(e @ v, e.sum(axis=-1)))
    missed = A_R @ e - attention
    e_N, e_D = missed @ v, missed.sum(axis=-1, keepdims=True) * of_denominator
    return converted - o, (e_N - o * e_D) / (1 + e_D)


@broken(error_of_a_share, "leaving out the denominator's error e_D", shares(),
        [any_shares(m=2, r=1, d_v=1)])
def with_the_error_of_the_numerator_alone(*case):
    return error_of_a_share(*case, of_denominator=0)


def reference(rng, n=40, m=12, d=4, dtype=np.float64):
    """How n queries attend to m tokens of a context, a quarter of it on the prompt; their values."""
    scores = 2 * rng.standard_normal((2, n, d)) @ rng.standard_normal((2, d, m))
    return (softmax(scores) * 0.75).astype(dtype), rng.standard_normal((2, m, 3)).astype(dtype)


def shared_out(attention, rows):
    """E of fitted_bias: its b_KV for the values e_1, ..., e_m."""
    m = attention.shape[-1]
    unit = np.eye(m, dtype=attention.dtype) + np.zeros((*attention.shape[:-2], m, m), attention.dtype)
    return fitted_bias(attention, unit, rows).kv


@floating
@given(rngs)
def test_with_all_rows_kept_the_fitted_bias_is_the_context_whatever_the_queries(dtype, rng):
    attention, v = reference(rng, dtype=dtype)
    order = rng.permutation(12)
    kv, d = fitted_bias(attention, v, order)
    np.testing.assert_array_equal(kv, v[:, order], strict=True)
    np.testing.assert_array_equal(d, np.ones((2, 12), dtype), strict=True)
    # so softmax with it is softmax with the context in front, for queries that it has not seen
    q, k = 3 * rng.standard_normal((2, 2, 20, 4)).astype(dtype)
    values = np.concatenate([v, rng.standard_normal((2, 8, 3)).astype(dtype)], axis=-2)
    landmarks = k[:, order] / 4**0.25
    o = softmax_attention_with_bias(q[:, 12:], k[:, 12:], values[:, 12:], Bias(kv, d),
                                    lambda x: x @ landmarks.mT)
    expected = softmax_attention(q, k, values)[:, 12:]
    np.testing.assert_allclose(o, expected, rtol=0, atol=300 * np.finfo(dtype).eps * abs(v).max())


@given(rngs, st.integers(1, 6))
def test_a_kept_token_stands_for_itself_and_the_others_are_shared_out_positively(rng, r):
    attention, v = reference(rng)
    rows = np.stack([rng.permutation(12)[:r] for _ in range(2)])   # other rows for each head
    e, bias = shared_out(attention, rows), fitted_bias(attention, v, rows)
    for h in range(2):
        np.testing.assert_array_equal(e[h][:, rows[h]], np.eye(r))
        alone = fitted_bias(attention[h], v[h], rows[h])
        np.testing.assert_allclose(bias.kv[h], alone.kv, rtol=1e-9)
        np.testing.assert_allclose(bias.kv[h], e[h] @ v[h], atol=1e-12)
    assert (e >= 0).all() and (bias.d >= 1).all()
    np.testing.assert_allclose(bias.d, e.sum(axis=-1), rtol=1e-12)


def missed(attention, rows, e):
    return np.linalg.norm(attention[..., rows] @ e - attention)


@given(rngs, st.integers(1, 6))
def test_no_merging_onto_the_same_rows_is_better_on_the_reference_queries(rng, r):
    attention, _ = reference(rng)
    attention, rows = attention[0], rng.permutation(12)[:r]
    e, unit = shared_out(attention, rows), np.eye(12)[rows]
    fitted = missed(attention, rows, e)
    for _ in range(50):
        merged = np.where(unit.any(axis=0), unit, np.eye(r)[rng.integers(0, r, 12)].T)
        assert fitted <= missed(attention, rows, merged)
    best = unit + 1 / r   # near its optimum: with 50 times as many updates little is gained
    A_R = attention[:, rows]
    for _ in range(5000):
        best = best * (A_R.T @ attention) / (A_R.T @ A_R @ best)
    assert fitted <= 1.05 * missed(attention, rows, np.where(unit.any(axis=0), unit, best)) + 1e-9


def test_a_token_that_no_query_attends_to_is_no_trouble():
    attention = np.array([[0.5, 0.0, 0.2], [0.3, 0.0, 0.4]])
    for rows in [0], [1], [1, 2]:
        with np.errstate(all="raise", under="ignore"):
            bias = fitted_bias(attention, np.eye(3), np.array(rows))
        assert np.isfinite(bias.kv).all() and (bias.d >= 1).all()


# ---- Random features ----------------------------------------------------------------------------

def random_features(x, projection):
    return np.exp(log_random_features(x, projection))


@pytest.mark.proves("random features are unbiased", "§5; Performer")
@pytest.mark.parametrize("seed", range(20))
def test_random_features_are_unbiased_within_five_standard_errors(seed):
    """One feature's estimate has variance exp(2 q·k) (exp(‖q + k‖²) − 1). Fixed seeds: no chance."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(0, 0.4, (2, 1, 4))
    w = rng.standard_normal((20_000, 4))
    estimate = random_features(q, w) @ random_features(k, w).T
    standard_error = np.exp(q @ k.T) * np.sqrt(np.expm1(((q + k) ** 2).sum()) / len(w))
    assert_within_chance(estimate, np.exp(q @ k.T), 5 * standard_error)


@pytest.mark.breaks("random features are unbiased", "leaving out exp(−‖x‖²/2)")
@pytest.mark.parametrize("seed", range(20))
def test_without_the_norm_the_features_are_biased(seed):
    q = np.full((1, 4), 0.4)         # ‖q‖² = 0.64, exp(q·q) = 1.90; without the norm twice as much
    w = np.random.default_rng(seed).standard_normal((20_000, 4))
    right = random_features(q, w)
    without = right * np.exp((q * q).sum() / 2)
    standard_error = np.exp(q @ q.T) * np.sqrt(np.expm1(4 * (q * q).sum()) / len(w))
    assert_within_chance(right @ right.T, np.exp(q @ q.T), 5 * standard_error)
    assert abs(without @ without.T - np.exp(q @ q.T)) > 10 * standard_error


@floating
def test_random_features_stay_finite_and_keep_their_type_however_large_the_input(dtype):
    w = np.random.default_rng(0).standard_normal((64, 16)).astype(dtype)
    for norm in 1, 1e2, 1e6, 1e15:
        with np.errstate(over="raise", invalid="raise"):
            f = random_features(np.full((3, 16), norm, dtype), w)
        assert f.dtype == dtype and np.isfinite(f).all()


def test_the_number_of_random_features_scales_them():
    w, x = np.random.default_rng(0).standard_normal((1, 3)), np.array([[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(random_features(x, w.repeat(7, 0)),
                               random_features(x, w).repeat(7, 1) / 7**0.5, rtol=1e-14)


# ---- The conversion of one layer ----------------------------------------------------------------

def layer(rng, dtype, scale=1.0, m=20, n=7, d=8):
    """Queries, keys and values of a context and a prompt: whole, context, prompt."""
    q, k, v = rng.standard_normal((3, 2, m + n, d)).astype(dtype)
    q, k = dtype(scale) * q, dtype(scale) * k
    return (q, k, v), (k[:, :m], v[:, :m]), (q[:, m:], k[:, m:], v[:, m:])


def kept(k, v, r=10**9):
    """The first r keys of a context with what else it holds shared out evenly: an `iclaa` convert."""
    m = k.shape[-2]
    r = min(r, m)
    landmarks, shares = k[..., :r, :] / k.shape[-1] ** 0.25, np.eye(r, m, dtype=k.dtype)
    shares[:, r:] = 1 / r
    return (Bias(shares @ v, shares.sum(axis=-1) + 0 * k[..., :r, 0]), lambda x: x @ landmarks.mT)


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
    _, context, (q, k, v) = layer(rng, np.float64)
    scores = np.tril(np.exp(q @ k.mT / 8**0.5))
    for bias, features in kept(*context, 5), projected(rng.standard_normal((9, 8)))(*context):
        for scale in 1e-9, 1e-2, 1, 1e9:
            scaled = Bias(scale * bias.kv, scale * bias.d)
            expected = similarity_attention(scores, np.exp(features(q / 8**0.25)), v, scaled)
            o = softmax_attention_with_bias(q, k, v, scaled, features)
            np.testing.assert_allclose(o, expected, rtol=1e-12)


def test_the_features_of_a_softmax_bias_see_keys_divided_by_the_fourth_root_of_their_width():
    k, v = np.random.default_rng(0).standard_normal((2, 5, 16))
    bias = softmax_bias(k, v, lambda x: x)                       # features exp(k / 2): 16^(1/4) = 2
    np.testing.assert_allclose(bias.kv, np.exp(k / 2).T @ v, rtol=1e-13)
    np.testing.assert_allclose(bias.d, np.exp(k / 2).sum(axis=0), rtol=1e-13)


def test_the_error_falls_as_features_are_added_and_fitted_rows_need_fewer():
    rng, errors = np.random.default_rng(0), {"none": [], "random": [], "fitted": []}
    for _ in range(20):
        (q, k, v), context, prompt = layer(rng, np.float64, m=64, n=40)
        expected = softmax_attention(q, k, v)[:, 64:]
        attention = softmax(np.where(np.tri(104), q @ k.mT / 8**0.5, -np.inf))[:, 84:, :64]

        def error(converted):   # fitted to the last 20 tokens, measured on the 20 before
            o = softmax_attention_with_bias(*prompt, *converted) if converted else softmax_attention(
                *prompt)
            return np.linalg.norm((o - expected)[:, :20]) / np.linalg.norm(expected[:, :20])

        def fitted(r):
            landmarks = context[0][:, :r] / 8**0.25
            return (fitted_bias(attention, context[1], np.arange(r)), lambda x: x @ landmarks.mT)

        errors["none"].append(error(None))
        errors["random"].append([error(projected(rng.standard_normal((m, 8)))(*context))
                                 for m in (16, 128, 1024)])
        errors["fitted"].append([error(fitted(r)) for r in (8, 32, 64)])
    mean = {name: np.mean(e, axis=0) for name, e in errors.items()}
    for name in "random", "fitted":
        assert mean["none"] > mean[name][0] > mean[name][1] > mean[name][2]
    assert mean["fitted"][1] < mean["random"][1] and mean["fitted"][2] < 1e-14


@floating
@given(rngs, st.sampled_from([1, 10, 100, 1000]))
def test_large_scores_do_not_overflow(dtype, rng, scale):
    _, context, prompt = layer(rng, dtype, scale)
    for converted in kept(*context, 5), projected(rng.standard_normal((32, 8)).astype(dtype))(*context):
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


def test_an_empty_context_and_an_empty_prompt_are_no_trouble():
    (q, k, v), _, _ = layer(np.random.default_rng(0), np.float64, m=0)
    features = partial(log_random_features, projection=np.ones((3, 8)))
    bias = softmax_bias(k[:, :0], v[:, :0], features)
    np.testing.assert_allclose(softmax_attention_with_bias(q, k, v, bias, features),
                               softmax_attention(q, k, v), rtol=1e-12)
    none = (q[:, :0], k[:, :0], v[:, :0])
    assert softmax_attention_with_bias(*none, bias, features).shape == (2, 0, 8)
    o, state = softmax_attend(q, k, v)
    np.testing.assert_array_equal(o, softmax_attention(q, k, v))
    assert state is None


# ---- Whole softmax transformers -----------------------------------------------------------------

@theorem("Algorithm 1 for softmax, all kept", "§5, App D", floats=lambda rng, dtype: (
    rng, random_transformer(rng, 50, 32, 3, 2, dtype=dtype)._replace(
        phi=identity, parallel=bool(rng.integers(2)))), ulps=300)
def softmax_algorithm_1(rng, model, shift=0):
    """The prompt's logits, every key of the context kept  =  with the context in front."""
    text, m = rng.integers(0, 50, int(rng.integers(7, 37))), -6
    logits, _ = forward(model, text, attend=softmax_attend)
    converted = iclaa(model, text[:m], kept)
    prompt = model._replace(rope=lambda positions, theta: model.rope(positions + shift, theta))
    return forward(prompt, text[m:], converted, softmax_attend)[0], logits[m:]


@pytest.mark.breaks("Algorithm 1 for softmax, all kept",
                    "positions that count on (against Assumption 4.3)")
@given(rngs)
def test_without_relative_positions_the_converted_softmax_transformer_answers_differently(rng):
    model = random_transformer(rng, 50, 32, 3, 2)._replace(phi=identity)
    same, expected = softmax_algorithm_1(rng, model)
    assert_close(same, expected, ulps=300)
    shifted, expected = softmax_algorithm_1(rng, model, shift=10)
    assert np.linalg.norm(shifted - expected) > 1e-5 * np.linalg.norm(expected)


def test_with_few_features_a_softmax_transformer_is_closer_than_with_its_context_dropped():
    errors = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        model = random_transformer(rng, 50, 32, 3, 2)._replace(phi=identity)
        text = rng.integers(0, 50, 40)
        logits = forward(model, text, attend=softmax_attend)[0][30:]
        converters = partial(kept, r=10), projected(rng.standard_normal((256, 16)))
        starts = [*(iclaa(model, text[:30], convert) for convert in converters), None]
        errors.append([np.linalg.norm(forward(model, text[30:], start, softmax_attend)[0] - logits)
                       for start in starts])
    of_kept, of_random, dropped = np.mean(errors, axis=0)
    assert max(of_kept, of_random) < 0.7 * dropped


# ---- What the functions do with their arguments -------------------------------------------------

W = np.random.default_rng(1).standard_normal((6, 2))
log_features = partial(log_random_features, projection=W)
qkv = "q:nk k:nk v:nv"
FLOATS = [
    case("softmax_bias", lambda k, v: softmax_bias(k, v, partial(log_features, projection=W.astype(
        k.dtype))), "k:nk v:nv", float),
    case("softmax_attention_with_bias", lambda q, k, v, z, *b: softmax_attention_with_bias(
        q, k, v, Bias(*b), lambda x: x @ z.mT), f"{qkv} z?:rk kv?:rv d?:r", float),
    case("log_random_features", lambda x: log_features(x, projection=W.astype(x.dtype)), "x:nk", float),
    case("fitted_bias", lambda attention, v: fitted_bias(attention, v, np.array([2, 0])),
         "attention:nd v:dv", float)]
EXACT = case("similarity_attention", lambda v, sim, phi_q, *b: similarity_attention(
    sim, phi_q, v, Bias(*b)), "v:nv similarity:nn phi_q:nr kv?:rv d?:r", Fraction)
test_batches, test_types = batches(EXACT, *FLOATS), float_types(EXACT, *FLOATS)

q = a(2, 5, 4)
bias = softmax_bias(q, q, partial(log_random_features, projection=a(3, 4)))


def with_bias(*qkv, bias=bias):
    return softmax_attention_with_bias(*qkv, bias, partial(log_random_features, projection=a(3, 4)))


def fitted(rows, attention=a(2, 5, 4), v=a(2, 4, 3)):
    return lambda: fitted_bias(attention, v, np.asarray(rows))


test_mistakes = refused(
    *[(f"projection {s}", lambda s=s, x=x: log_random_features(a(*x), a(*s)))
      for s, x in [((3, 1), (4, 2)), ((2,), (4, 2)), ((5, 3, 2), (4, 2)), ((5, 3), (3, 5, 2))]],
    *[("bias", lambda b=b: with_bias(q, q, q, bias=b)) for b in (
        Bias(bias.kv[:, :2], bias.d[:, :2]), bias._replace(d=bias.d[..., :1]),
        Bias(bias.kv[..., :1], bias.d))],
    ("b_D (2, 3); positive", lambda: with_bias(q, q, q, bias=bias._replace(d=-bias.d))),
    ("b_D (2, 3); positive", lambda: with_bias(q, q, q, bias=bias._replace(
        d=bias.d * [[1, 1, 1], [1, -1e-9, 1]]))),
    ("b_KV (2, 3, 4) is 0", lambda: with_bias(q, q, q, bias=bias._replace(d=bias.d * [1, 0, 1]))),
    *[("must be", lambda qkv=qkv: with_bias(*qkv)) for qkv in (
        (q, q[:, :1], q), (q, q, q[:1]), (q[:, :1], q, q), (q[..., :2], q, q))],
    ("similarity (2, 1)", lambda: similarity_attention(a(2, 1), a(2, 3), a(2, 3), None)),
    ("similarity (2, 1, 5)", lambda: similarity_attention(a(2, 1, 5), q, q, None)),
    ("phi_q (3, 3)", lambda: similarity_attention(a(2, 2), a(3, 3), a(2, 3), None)),
    ("normalizer; 0", lambda: similarity_attention(0 * a(2, 2), a(2, 3), a(2, 3), None)),
    *[("rows; 0 to 3", fitted(rows)) for rows in ([0, 4], [-1], [1, 1], [0.5], np.zeros(0, int),
                                                  [[0, 1], [2, 2]])],
    ("rows (3, 2)", fitted(np.zeros((3, 2), int))), ("rows; bool", fitted([True])),
    ("attention (5, 4), v (2, 4, 3)", fitted([0], a(5, 4))), ("v (2, 3, 3)", fitted([0], v=a(2, 3, 3))))


def test_arguments_stay_as_they_are():
    assert_arguments_stay(lambda q, *b: softmax_attention_with_bias(
        q, q, q, Bias(*b), lambda x: -x), a(2, 3, 4), a(4, 4), a(4))
    assert_arguments_stay(lambda sim, phi_q, v, *b: similarity_attention(sim, phi_q, v, Bias(*b)),
                          np.tril(a(3, 3)), a(3, 2), a(3, 4), a(2, 4), a(2))
    assert_arguments_stay(fitted_bias, a(2, 5, 4), a(2, 4, 4), np.array([0, 1, 2, 3]))
