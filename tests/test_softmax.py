"""Softmax attention: exact with the features of its own kernel, approximate with random and merged ones."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (Case, assert_close, assert_differ, assert_exactly_equal, assert_proved, assert_refuted,
                   assert_within_chance, attention_cases, every, fractions, rngs, symbolic_case)
from iclca_ref import (attention_bias, farthest_rows, iclaa, log_landmark_features, log_random_features, merged_bias,
                       orthogonal_projection, random_features, similarity_attention, softmax_attend,
                       softmax_attention_with_bias, softmax_bias)
from linear_transformer import Bias, forward, identity, random_transformer, softmax_attention
from polynomials import unknown

floating = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def independent_projection(rng, m, d):
    return rng.standard_normal((m, d))


projections = pytest.mark.parametrize("projection", [independent_projection, orthogonal_projection])


# ---- Eq 17: exact with the features of the kernel ---------------------------------------------------

def squared_features(x):
    """The features of (1 + q·k)²: all products of two entries of (1, x)."""
    x = np.concatenate([0 * x[..., :1] + 1, x], axis=-1)
    return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], x.shape[-1] ** 2)


def kernel_attention(features, q, k, v, bias=None):
    """Eq 17 with the similarity φ(q)·φ(k): a prompt, after a context that has become a bias."""
    return similarity_attention(np.tril(features(q) @ features(k).swapaxes(-1, -2)), features(q), v, bias)


def equation_17(case, features=squared_features, bias_features=None, kernel=kernel_attention):
    """The prompt's rows: with the context as a bias of features, and with it in front."""
    (_, k, v), of_bias = case.context, bias_features or features
    bias = attention_bias(of_bias(k), v)
    q, k_x, v_x = case.prompt
    similarity = np.tril(features(q) @ features(k_x).swapaxes(-1, -2))
    return (similarity_attention(similarity, of_bias(q), v_x, bias),
            kernel(features, case.q, case.k, case.v)[..., case.m:, :])


@pytest.mark.proves("Eq 17 with the kernel's features is exact", "§5, Eq 17-18")
@given(attention_cases(least_prompt=1, rotated=st.just(False)))
def test_with_the_features_of_its_own_kernel_the_conversion_of_kernel_attention_is_exact(case):
    assert_exactly_equal(*equation_17(case))


@pytest.mark.proves("Eq 17 with the kernel's features is exact", "§5, Eq 17-18")
def test_equation_17_is_exact_for_every_kernel_of_finitely_many_features():
    for shape in every(m=range(3), n=(1, 2), heads=(1, 2), pairs=(1,), d_v=(1, 2)):
        assert_proved(*equation_17(symbolic_case(**shape), unknown("phi")), **shape)


smallest = Case(*fractions([[[1], [1]], [[1], [2]], [[1], [0]]]), 1, None, None)
cases = attention_cases(least_context=1, least_prompt=1, rotated=st.just(False))


def without_one(x):
    """The features of (q·k)² alone."""
    return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)


@pytest.mark.breaks("Eq 17 with the kernel's features is exact", "the features of (q·k)² for (1 + q·k)²")
@example(smallest)
@given(cases)
def test_with_the_features_of_another_kernel_it_fails(case):
    assert_differ(*equation_17(case, bias_features=without_one))


@pytest.mark.breaks("Eq 17 with the kernel's features is exact", "the features of (q·k)² for (1 + q·k)²")
def test_with_the_features_of_another_kernel_both_sides_are_other_functions():
    assert_refuted(*equation_17(symbolic_case(1, 1), bias_features=without_one))


@pytest.mark.breaks("Eq 17 with the kernel's features is exact", "leaving out b_D")
@example(smallest)
@given(cases)
def test_with_the_bias_added_to_the_numerator_alone_it_fails(case):
    (_, k, v), (q, k_x, v_x) = case.context, case.prompt
    bias = attention_bias(squared_features(k), v)
    assert_differ(kernel_attention(squared_features, q, k_x, v_x, bias._replace(d=0 * bias.d)),
                  kernel_attention(squared_features, case.q, case.k, case.v)[..., case.m:, :])


# ---- Merged landmarks: exact when every key is its own ----------------------------------------------

def any_kernel(q, k):
    """An unknown similarity of rows: k(q_i, k_j), the same unknown for the same pair."""
    pairs = np.concatenate(np.broadcast_arrays(q[..., :, None, :], k[..., None, :, :]), axis=-1)
    return unknown("similarity")(pairs)[..., 0]


def merged_into_itself(case, landmarks=None):
    """Attention with any similarity, its context's keys as landmarks and e_j as their features; and in front."""
    (_, k, v), (q, k_x, v_x) = case.context, case.prompt
    one_hot = np.eye(case.m, dtype=int).astype(object) + np.zeros((len(k), 1, 1), object)
    landmarks = k if landmarks is None else landmarks
    return (similarity_attention(np.tril(any_kernel(q, k_x)), any_kernel(q, landmarks), v_x, attention_bias(one_hot, v)),
            similarity_attention(np.tril(any_kernel(case.q, case.k)), any_kernel(case.q, k[..., :0, :]), case.v,
                                 None)[..., case.m:, :])


@pytest.mark.proves("Eq 17 with one feature per key is exact", "§5, Eq 17")
def test_with_every_key_its_own_landmark_nothing_is_lost_for_any_similarity_at_all():
    for shape in every(m=range(3), n=(1, 2), heads=(1, 2), pairs=(1,), d_v=(1, 2)):
        assert_proved(*merged_into_itself(symbolic_case(**shape)), **shape)


def layer(rng, dtype, scale=1.0, m=20, n=7, d=8):
    """Queries, keys and values of a context and a prompt: whole, context, prompt."""
    q, k, v = rng.standard_normal((3, 2, m + n, d)).astype(dtype) * np.array([scale, scale, 1], dtype)[:, None, None, None]
    return (q, k, v), (k[:, :m], v[:, :m]), (q[:, m:], k[:, m:], v[:, m:])


def merged(k, v, r=10**9):
    """A context merged at its r farthest keys: what `iclaa` takes as convert."""
    z = farthest_rows(k / k.shape[-1] ** 0.25, min(r, k.shape[-2]))
    return merged_bias(k, v, z), partial(log_landmark_features, landmarks=z)


def projected(w):
    """Random features with the directions w, as `convert`."""
    features = partial(log_random_features, projection=w)
    return lambda k, v: (softmax_bias(k, v, features), features)


@pytest.mark.proves("merged_bias: every key a landmark loses nothing", "§5, Eq 17; ours")
@floating
@given(rngs, st.sampled_from([1.0, 9.0]))
def test_with_every_key_a_landmark_the_conversion_equals_the_context_to_rounding(dtype, rng, scale):
    whole, context, prompt = layer(rng, dtype, scale)
    scores = abs(whole[0] @ whole[1].swapaxes(-1, -2)).max() / 8**0.5     # their rounding is amplified by exp
    converted = softmax_attention_with_bias(*prompt, *merged(*context))
    assert_close(converted, softmax_attention(*whole)[:, 20:], ulps=30 + 30 * float(scores))


@pytest.mark.breaks("Eq 17 with one feature per key is exact", "one key counted at another")
def test_with_one_landmark_fewer_the_conversion_is_not_exact():
    case = symbolic_case(2, 1)
    landmarks = case.k[:, [0, 0]]                  # both keys of the context counted at the first
    assert_refuted(*merged_into_itself(case, landmarks))


@given(rngs, st.integers(1, 5))
def test_merging_counts_every_token_once_at_its_nearest_landmark(rng, r):
    k, v = rng.standard_normal((2, 6, 4)), rng.standard_normal((2, 6, 3))
    z = farthest_rows(k / 4**0.25, r)
    kv, d = merged_bias(k, v, z)
    nearest = [[min(range(r), key=lambda c: np.linalg.norm(key / 4**0.25 - z[h, c])) for key in k[h]] for h in range(2)]
    for h in range(2):
        for c in range(r):
            members = [j for j in range(6) if nearest[h][j] == c]
            assert d[h, c] == len(members)
            np.testing.assert_allclose(kv[h, c], v[h, members].sum(axis=0), atol=1e-12)


def test_where_signed_features_had_a_vanishing_denominator_merged_ones_are_right():
    """Landmarks 0 and 1, keys 0, 1, 3, query −1: Nyström's signed features gave −3.65 for 2.42, and −6e15 nearby."""
    k, v = np.array([[0.0], [1.0], [3.0]]), np.array([[1.0], [2.0], [3.0]])
    bias, features = merged_bias(k, v, k[:2]), partial(log_landmark_features, landmarks=k[:2])
    for query in -1.0, -0.40104:
        e = np.exp(query)
        o = softmax_attention_with_bias(np.array([[query]]), np.array([[0.0]]), np.array([[0.0]]), bias, features)
        np.testing.assert_allclose(o, [[(1 + 5 * e) / (1 + 2 * e + 1)]], rtol=1e-14)


def test_equal_keys_share_a_landmark_and_an_unused_landmark_counts_nothing():
    k, v = np.array([[1.0], [1.0], [2.0]]), np.array([[1.0], [2.0], [4.0]])
    bias, features = merged(k, v)
    assert bias.d.tolist() == [1, 2, 0]
    q, k_x, v_x = np.array([[0.5]]), np.array([[0.3]]), np.array([[7.0]])
    whole = [np.concatenate([a, b]) for a, b in zip((q.repeat(3, 0), k, v), (q, k_x, v_x))]
    np.testing.assert_allclose(softmax_attention_with_bias(q, k_x, v_x, bias, features), softmax_attention(*whole)[3:])


# ---- Random features --------------------------------------------------------------------------------

@pytest.mark.proves("random features are unbiased", "§5; Performer Lemma 1")
@projections
@pytest.mark.parametrize("seed", range(20))
def test_random_features_are_unbiased_within_five_standard_errors(projection, seed):
    """One feature's estimate has variance exp(2 q·k) (exp(‖q + k‖²) − 1). The seeds are fixed: no chance."""
    rng = np.random.default_rng(seed)
    d, m = 4, 20_000
    q, k = rng.normal(0, 0.4, (2, 1, d))
    w = projection(rng, m, d)
    estimate = random_features(q, w) @ random_features(k, w).T
    standard_error = np.exp(q @ k.T) * np.sqrt(np.expm1(((q + k) ** 2).sum()) / m)
    assert_within_chance(estimate, np.exp(q @ k.T), 5 * standard_error)


@pytest.mark.breaks("random features are unbiased", "leaving out exp(−‖x‖²/2)")
@pytest.mark.parametrize("seed", range(20))
def test_without_the_norm_the_features_are_biased(seed):
    q = np.full((1, 4), 0.4)                    # ‖q‖² = 0.64, exp(q·q) = 1.90; without the norm twice as much
    w = np.random.default_rng(seed).standard_normal((20_000, 4))
    without = random_features(q, w) * np.exp((q * q).sum() / 2)
    standard_error = np.exp(q @ q.T) * np.sqrt(np.expm1(4 * (q * q).sum()) / len(w))
    assert_within_chance(random_features(q, w) @ random_features(q, w).T, np.exp(q @ q.T), 5 * standard_error)
    assert abs(without @ without.T - np.exp(q @ q.T)) > 10 * standard_error


@given(rngs, st.integers(1, 20), st.integers(1, 6))
def test_orthogonal_directions_are_orthogonal_within_each_block(rng, m, d):
    w = orthogonal_projection(rng, m, d)
    assert w.shape == (m, d)
    for block in (w[i:i + d] for i in range(0, m, d)):
        unit = block / np.linalg.norm(block, axis=1, keepdims=True)
        np.testing.assert_allclose(unit @ unit.T, np.eye(len(block)), atol=1e-12)


def test_orthogonal_directions_have_the_distribution_of_random_ones():
    w = orthogonal_projection(np.random.default_rng(0), 100_000, 2)
    assert abs((w**2).sum(axis=1).mean() - 2) < 0.02 and abs((w**4).mean() - 3) < 0.1 and abs(w.mean()) < 0.02
    assert abs((w[:, 0] > 0).mean() - 0.5) < 0.02      # no corner is preferred, as it would be without the signs


@floating
def test_random_features_stay_finite_and_keep_their_type_however_large_the_input(dtype):
    w = np.random.default_rng(0).standard_normal((64, 16))
    for norm in 1, 1e2, 1e6, 1e15:
        with np.errstate(over="raise", invalid="raise"):
            f = random_features(np.full((3, 16), norm, dtype), w)
        assert f.dtype == dtype and np.isfinite(f).all()


def test_the_number_of_random_features_scales_them():
    w = np.random.default_rng(0).standard_normal((1, 3))
    x = np.array([[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(random_features(x, w.repeat(7, 0)), random_features(x, w).repeat(7, 1) / 7**0.5, rtol=1e-14)


# ---- The conversion of one layer --------------------------------------------------------------------

def test_softmax_attention_with_a_bias_is_equation_17_with_the_exponential():
    rng = np.random.default_rng(0)
    _, context, (q, k, v) = layer(rng, np.float64)
    for bias, features in merged(*context, 5), projected(rng.standard_normal((9, 8)))(*context):
        scores = np.tril(np.exp(q @ k.swapaxes(-1, -2) / 8**0.5))
        expected = similarity_attention(scores, np.exp(features(q / 8**0.25)), v, bias)
        np.testing.assert_allclose(softmax_attention_with_bias(q, k, v, bias, features), expected, rtol=1e-13)


def test_a_bias_however_small_or_large_counts_as_equation_17_says():
    rng = np.random.default_rng(0)
    _, context, (q, k, v) = layer(rng, np.float64)
    bias, features = projected(rng.standard_normal((9, 8)))(*context)
    for scale in 1e-9, 1e-2, 1, 1e9:
        scaled = Bias(scale * bias.kv, scale * bias.d)
        expected = similarity_attention(np.tril(np.exp(q @ k.swapaxes(-1, -2) / 8**0.5)), np.exp(features(q / 8**0.25)), v, scaled)
        np.testing.assert_allclose(softmax_attention_with_bias(q, k, v, scaled, features), expected, rtol=1e-12)


def test_the_features_of_a_softmax_bias_see_keys_divided_by_the_fourth_root_of_their_width():
    k, v = np.random.default_rng(0).standard_normal((2, 5, 16))
    bias = softmax_bias(k, v, lambda x: x)                       # features exp(k / 2), since 16^(1/4) = 2
    np.testing.assert_allclose(bias.kv, np.exp(k / 2).T @ v, rtol=1e-13)
    np.testing.assert_allclose(bias.d, np.exp(k / 2).sum(axis=0), rtol=1e-13)


def test_the_error_falls_as_features_are_added_and_merging_needs_fewer():
    rng = np.random.default_rng(0)
    errors = {"none": [], "random": [], "orthogonal": [], "merged": []}
    for _ in range(20):
        whole, context, prompt = layer(rng, np.float64, m=64)
        expected = softmax_attention(*whole)[:, 64:]

        def error(converted):
            o = softmax_attention_with_bias(*prompt, *converted) if converted else softmax_attention(*prompt)
            return np.linalg.norm(o - expected) / np.linalg.norm(expected)

        errors["none"].append(error(None))
        for name, projection in ("random", independent_projection), ("orthogonal", orthogonal_projection):
            errors[name].append([error(projected(projection(rng, m, 8))(*context)) for m in (16, 128, 1024)])
        errors["merged"].append([error(merged(*context, m)) for m in (16, 32, 64)])
    mean = {name: np.mean(e, axis=0) for name, e in errors.items()}
    for name in "random", "orthogonal", "merged":
        assert mean["none"] > mean[name][0] > mean[name][1] > mean[name][2]
    assert mean["merged"][1] < mean["random"][1] and mean["merged"][2] < 1e-14


@floating
@given(rngs, st.sampled_from([1, 10, 100, 1000]))
def test_large_scores_do_not_overflow(dtype, rng, scale):
    _, context, prompt = layer(rng, dtype, scale)
    for converted in merged(*context, 5), projected(rng.standard_normal((32, 8)))(*context):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            o = softmax_attention_with_bias(*prompt, *converted)
        assert o.dtype == dtype and np.isfinite(o).all() and abs(o).max() <= abs(context[1]).max() + abs(prompt[2]).max()


def test_a_huge_feature_whose_bias_is_zero_does_not_hide_a_tiny_one():
    bias, log_features = Bias(np.array([[0.0], [3e100]]), np.array([0.0, 1e100])), lambda x: np.array([[700.0, -460.0]]) + 0 * x
    q, k = np.array([[15.0, 0.0]]), np.array([[-15.0 * 1.02 * 2**0.5, 0.0]])           # one score, about -229.5
    s, f = (q @ k.T / 2**0.5).item(), -460 + np.log(1e100)
    expected = (np.exp(s - f) * 7 + 3) / (np.exp(s - f) + 1)
    np.testing.assert_allclose(softmax_attention_with_bias(q, k, np.array([[7.0]]), bias, log_features), expected, rtol=1e-12)


def test_softmax_attend_without_rope_or_bias_is_softmax_attention():
    (q, k, v), _, _ = layer(np.random.default_rng(0), np.float64)
    o, state = softmax_attend(q, k, v)
    np.testing.assert_array_equal(o, softmax_attention(q, k, v))
    assert state is None


def test_an_empty_context_and_an_empty_prompt_are_no_trouble():
    (q, k, v), _, _ = layer(np.random.default_rng(0), np.float64, m=0)
    features = partial(log_random_features, projection=np.ones((3, 8)))
    bias = softmax_bias(k[:, :0], v[:, :0], features)
    np.testing.assert_allclose(softmax_attention_with_bias(q, k, v, bias, features), softmax_attention(q, k, v), rtol=1e-12)
    assert softmax_attention_with_bias(q[:, :0], k[:, :0], v[:, :0], bias, features).shape == (2, 0, 8)


@given(rngs, st.integers(1, 8), st.integers(0, 5))
def test_farthest_rows_are_rows_that_spread_and_the_first_is_the_longest(rng, r, more):
    k = rng.standard_normal((2, r + more, 3))
    for rows, picked in zip(k, farthest_rows(k, r)):
        picked = [int(np.flatnonzero((rows == p).all(axis=1))[0]) for p in picked]
        assert len(set(picked)) == r and picked[0] == np.linalg.norm(rows, axis=1).argmax()
        for i in range(1, r):
            to_chosen = np.linalg.norm(rows[:, None] - rows[picked[:i]], axis=-1).min(axis=1)
            assert to_chosen[picked[i]] == pytest.approx(to_chosen.max())


def test_what_does_not_fit_is_refused():
    for r in 0, 4, -1:
        with pytest.raises(ValueError, match="r must be"):
            farthest_rows(np.ones((3, 2)), r)
    for projection in np.ones((3, 1)), np.ones(2), np.ones((5, 3, 2)):
        with pytest.raises(ValueError, match="projection"):
            random_features(np.ones((4, 2)), projection)
    q, features = np.ones((2, 5, 4)), partial(log_random_features, projection=np.ones((3, 4)))
    bias = softmax_bias(q, q, features)
    for wrong in Bias(bias.kv[:, :2], bias.d[:, :2]), bias._replace(d=bias.d[..., :1]), Bias(bias.kv[..., :1], bias.d):
        with pytest.raises(ValueError, match="bias"):
            softmax_attention_with_bias(q, q, q, wrong, features)
    with pytest.raises(ValueError, match="negative"):
        softmax_attention_with_bias(q, q, q, bias._replace(d=-bias.d), features)
    for arguments in (q, q[:, :1], q), (q, q, q[:1]), (q[:, :1], q, q), (q[..., :2], q, q):
        with pytest.raises(ValueError, match="must be"):
            softmax_attention_with_bias(*arguments, bias, features)
    with pytest.raises(ValueError, match="landmarks"):
        merged_bias(q, q, np.ones((3, 3, 4)))
    with pytest.raises(ValueError, match="similarity"):
        similarity_attention(np.ones((2, 1, 5)), q, q, None)


# ---- Whole softmax transformers ---------------------------------------------------------------------

def softmax_model(rng, dtype=np.float64):
    return random_transformer(rng, 50, 32, 3, 2, dtype=dtype)._replace(phi=identity)


def relative_error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.proves("Algorithm 1 for softmax, every key a landmark", "§5, App D")
@floating
@given(rngs, st.integers(1, 30), st.booleans())
def test_a_softmax_transformer_is_converted_to_rounding_when_every_key_is_a_landmark(dtype, rng, m, parallel):
    model, text = softmax_model(rng, dtype)._replace(parallel=parallel), rng.integers(0, 50, m + 6)
    logits, _ = forward(model, text, attend=softmax_attend)
    assert_close(forward(model, text[m:], iclaa(model, text[:m], merged), softmax_attend)[0], logits[m:], ulps=300)


@pytest.mark.breaks("Algorithm 1 for softmax, every key a landmark", "positions that count on (against Assumption 4.3)")
@given(rngs)
def test_without_relative_positions_the_converted_softmax_transformer_answers_differently(rng):
    model, text, m = softmax_model(rng), rng.integers(0, 50, 16), 10
    logits, _ = forward(model, text, attend=softmax_attend)
    converted = iclaa(model, text[:m], merged)
    assert_close(forward(model, text[m:], converted, softmax_attend)[0], logits[m:], ulps=300)
    shifted = model._replace(rope=lambda positions, theta: model.rope(positions + m, theta))
    assert relative_error(forward(shifted, text[m:], converted, softmax_attend)[0], logits[m:]) > 1e-5


def test_converted_with_few_features_a_softmax_transformer_is_closer_than_with_its_context_dropped():
    errors = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        model, text = softmax_model(rng), rng.integers(0, 50, 40)
        logits = forward(model, text, attend=softmax_attend)[0][30:]
        converters = partial(merged, r=10), projected(orthogonal_projection(rng, 256, 16))
        errors.append([relative_error(forward(model, text[30:], biases, softmax_attend)[0], logits)
                       for biases in (*(iclaa(model, text[:30], convert) for convert in converters), None)])
    of_merged, of_random, dropped = np.mean(errors, axis=0)
    assert max(of_merged, of_random) < 0.7 * dropped
