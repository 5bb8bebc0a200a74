"""Softmax attention: exact with the features of a polynomial kernel, approximate with those of exp."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import Case, assert_close, assert_differ, assert_exactly_equal, attention_cases, fractions, rngs
from iclca_ref import (attention_bias, farthest_rows, gaussian_projection, iclaa, landmark_features,
                       orthogonal_projection, random_features, similarity_attention, softmax_attend,
                       softmax_attention_with_bias, softmax_bias)
from linear_transformer import Bias, forward, identity, random_transformer, softmax_attention

floating = pytest.mark.parametrize("dtype", [np.float64, np.float32])
projections = pytest.mark.parametrize("projection", [gaussian_projection, orthogonal_projection])


# ---- Over the rationals: with a kernel of finitely many features nothing is lost --------------------------------------

def squared_features(x):
    """The features of (1 + q·k)²: all products of two entries of (1, x)."""
    x = np.concatenate([0 * x[..., :1] + 1, x], axis=-1)
    return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], x.shape[-1] ** 2)


def kernel_attention(q, k, v, bias=None, features=squared_features):
    """Attention with the similarity (1 + q·k)², of a prompt after a context that has become a bias."""
    phi_q = features(q)
    return similarity_attention(np.tril((1 + q @ k.swapaxes(-1, -2)) ** 2), phi_q, v, bias)


@pytest.mark.proves("Eq 17 with exact features is exact", "§5, Eq 17-18")
@given(attention_cases(least_prompt=1, rotated=st.just(False)))
def test_with_the_features_of_its_own_kernel_the_conversion_of_kernel_attention_is_exact(case):
    whole = kernel_attention(case.q, case.k, case.v)
    _, k, v = case.context
    assert_exactly_equal(kernel_attention(*case.prompt, attention_bias(squared_features(k), v)), whole[..., case.m:, :])


smallest = Case(*fractions([[[1], [1]], [[1], [2]], [[1], [0]]]), 1, None, None)
cases = attention_cases(least_context=1, least_prompt=1, rotated=st.just(False))


@pytest.mark.breaks("Eq 17 with exact features is exact", "features of the kernel (those of (q·k)² in their place)")
@example(smallest)
@given(cases)
def test_with_the_features_of_another_kernel_it_fails(case):
    def without_one(x):
        return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)

    _, k, v = case.context
    bias = attention_bias(without_one(k), v)
    assert_differ(kernel_attention(*case.prompt, bias, without_one), kernel_attention(case.q, case.k, case.v)[..., case.m:, :])


@pytest.mark.breaks("Eq 17 with exact features is exact", "b_D (the bias added to the numerator alone)")
@example(smallest)
@given(cases)
def test_with_the_bias_added_to_the_numerator_alone_it_fails(case):
    _, k, v = case.context
    bias = attention_bias(squared_features(k), v)
    assert_differ(kernel_attention(*case.prompt, bias._replace(d=0 * bias.d)),
                  kernel_attention(case.q, case.k, case.v)[..., case.m:, :])


# ---- Random features ------------------------------------------------------------------------------------------------

@pytest.mark.proves("random features are unbiased", "§5; Performer Lemma 1")
@projections
@given(st.integers(0, 2**32 - 1))
def test_random_features_are_unbiased_within_six_standard_errors(projection, seed):
    """One feature's estimate has variance exp(2 q·k) (exp(‖q + k‖²) − 1); six standard errors: 2e-9 of false alarms."""
    rng = np.random.default_rng(seed)
    d, m = 4, 20_000
    q, k = rng.normal(0, 0.4, (2, 1, d))
    w = projection(rng, m, d)
    estimate = random_features(q, w) @ random_features(k, w).T
    standard_error = np.exp(q @ k.T) * np.sqrt(np.expm1(((q + k) ** 2).sum()) / m)
    assert abs(estimate - np.exp(q @ k.T)) < 6 * standard_error
    assert_close(estimate, np.exp(q @ k.T), ulps=6 * standard_error.item() / np.exp(q @ k.T).item() * 2**52)


@pytest.mark.breaks("random features are unbiased", "exp(−‖x‖²/2)")
@given(st.integers(0, 2**32 - 1))
def test_without_the_norm_the_features_are_biased(seed):
    rng = np.random.default_rng(seed)
    q = np.full((1, 4), 0.4)                    # ‖q‖² = 0.64, exp(q·q) = 1.90; without the norm twice as much
    w = gaussian_projection(rng, 20_000, 4)
    assert_close(random_features(q, w) @ random_features(q, w).T, np.exp(q @ q.T), ulps=2**49)
    assert (np.exp(q @ w.T) @ np.exp(w @ q.T)).item() / len(w) > 1.5 * np.exp(q @ q.T).item()


@given(rngs, st.integers(1, 20), st.integers(1, 6))
def test_orthogonal_directions_are_orthogonal_within_each_block_and_as_long_as_random_ones(rng, m, d):
    w = orthogonal_projection(rng, m, d)
    assert w.shape == (m, d)
    for block in (w[i:i + d] for i in range(0, m, d)):
        gram = block @ block.T
        assert abs(gram - np.diag(np.diag(gram))).max() < 1e-12 * gram.max()


def test_orthogonal_directions_have_the_distribution_of_random_ones():
    w = orthogonal_projection(np.random.default_rng(0), 40_000, 2)
    assert abs((w**2).sum(axis=1).mean() - 2) < 0.05 and abs((w**4).mean() - 3) < 0.15 and abs(w.mean()) < 0.02
    assert abs((w[:, 0] > 0).mean() - 0.5) < 0.02      # no corner is preferred, as it would be without the signs


@floating
def test_random_features_stay_finite_and_keep_their_type_however_large_the_input(dtype):
    w = gaussian_projection(np.random.default_rng(0), 64, 16)
    for norm in 1, 1e2, 1e6, 1e15:
        with np.errstate(over="raise", invalid="raise"):
            f = random_features(np.full((3, 16), norm, dtype), w)
        assert f.dtype == dtype and np.isfinite(f).all()


# ---- Landmarks ------------------------------------------------------------------------------------------------------

def assert_exact_on(z, q):
    """f(q)·f(z) = exp(q·z) up to √j exp((‖q‖² + ‖z‖²)/2), where j = 4 r eps is what is added to the diagonal.

    What Nyström's features leave out is a positive semidefinite kernel, at most j at a landmark and 1 elsewhere, in
    units of exp(‖x‖²/2); by Cauchy and Schwarz it is at most √j. The factor 2 is for rounding.
    """
    f = landmark_features(z)
    length = [np.exp((x * x).sum(axis=-1) / 2) for x in (q, z)]
    bound = np.sqrt(4 * z.shape[-2] * np.finfo(float).eps) * length[0][..., :, None] * length[1][..., None, :]
    product, expected = f(q) @ f(z).swapaxes(-1, -2), np.exp(q @ z.swapaxes(-1, -2))
    assert (abs(product - expected) <= 2 * bound).all()
    assert_close(product, expected, ulps=2 * bound.max() / expected.max() * 2**52)


@pytest.mark.proves("landmark features are exact on landmarks", "part E")
@given(rngs, st.integers(1, 12), st.integers(1, 8))
def test_landmark_features_are_exact_where_one_side_is_a_landmark(rng, r, d):
    assert_exact_on(rng.standard_normal((2, r, d)), rng.standard_normal((2, 5, d)))


@pytest.mark.breaks("landmark features are exact on landmarks", "a landmark (another key)")
@given(rngs)
def test_landmark_features_are_not_exact_elsewhere(rng):
    z, q, k = rng.standard_normal((3, 4, 8))
    f = landmark_features(z)
    assert_exact_on(z, q)
    assert (abs(f(q) @ f(k).T - np.exp(q @ k.T)) > 1e-3 * np.exp(q @ k.T)).any()


@given(rngs, st.integers(2, 6), st.sampled_from([0, 1e-16, 1e-12, 1e-9, 1e-6, 1e-3]))
def test_landmarks_may_repeat_or_nearly_coincide(rng, r, distance):
    z = rng.standard_normal((r, 4))
    assert_exact_on(np.concatenate([z, z + distance, z]), rng.standard_normal((5, 4)))


@floating
@given(rngs)
def test_a_single_landmark_is_the_tangent_of_exp(dtype, rng):
    z, x = rng.standard_normal((1, 3)), rng.standard_normal((4, 3)).astype(dtype)
    f = landmark_features(z)(x)
    assert f.shape == (4, 1)
    assert_close(f, np.exp(x @ z.T - (z @ z.T) / 2).astype(dtype), ulps=8)


def test_features_too_large_for_their_type_are_refused():
    f = landmark_features(np.full((1, 2), 10.0))
    assert np.isfinite(f(np.full((1, 2), 10.0))).all()
    with pytest.raises(ValueError, match="norm up to 14 .* float32"):
        f(np.full((1, 2), 10.0, np.float32))
    with pytest.raises(ValueError, match="float64"):
        f(np.full((1, 2), 100.0))


@given(rngs, st.integers(1, 8), st.integers(0, 5))
def test_farthest_rows_are_rows_that_spread_and_the_first_is_the_longest(rng, r, more):
    k = rng.standard_normal((2, r + more, 3))
    chosen = farthest_rows(k, r)
    for one, of_batch in zip(k, chosen):
        np.testing.assert_array_equal(farthest_rows(one, r), of_batch)
    for rows, picked in zip(k, chosen):
        picked = [int(np.flatnonzero((rows == p).all(axis=1))[0]) for p in picked]
        assert len(set(picked)) == r and picked[0] == np.linalg.norm(rows, axis=1).argmax()
        for i in range(1, r):
            to_chosen = np.linalg.norm(rows[:, None] - rows[picked[:i]], axis=-1).min(axis=1)
            assert to_chosen[picked[i]] == pytest.approx(to_chosen.max())


def test_landmarks_and_projections_that_do_not_fit_are_refused():
    for r in 0, 4, -1:
        with pytest.raises(ValueError, match="r must be"):
            farthest_rows(np.ones((3, 2)), r)
    for projection in np.ones((3, 1)), np.ones(2), np.ones((2, 3, 2)):
        with pytest.raises(ValueError, match="projection"):
            random_features(np.ones((4, 2)), projection)


# ---- The conversion of one layer ------------------------------------------------------------------------------------

def layer(rng, dtype, scale=1.0, m=20, n=7, d=8):
    """Queries, keys and values of a context and a prompt: whole, context, prompt."""
    q, k, v = rng.standard_normal((3, 2, m + n, d)).astype(dtype) * np.array([scale, scale, 1], dtype)[:, None, None, None]
    return (q, k, v), (k[:, :m], v[:, :m]), (q[:, m:], k[:, m:], v[:, m:])


@pytest.mark.proves("with every key a landmark nothing is lost", "§5, Eq 17-18; part E")
@floating
@given(rngs)
def test_with_all_of_the_context_as_landmarks_the_conversion_equals_the_context_to_rounding(dtype, rng):
    whole, (k, v), prompt = layer(rng, dtype)
    features = landmark_features(k / k.shape[-1] ** 0.25)
    converted = softmax_attention_with_bias(*prompt, softmax_bias(k, v, features), features)
    assert_close(converted, softmax_attention(*whole)[:, 20:], ulps=500)


def test_the_error_falls_as_features_are_added_and_landmarks_need_fewer():
    rng = np.random.default_rng(0)
    errors = {"random": [], "orthogonal": [], "landmark": [], "none": []}
    for _ in range(20):
        whole, (k, v), prompt = layer(rng, np.float64, m=64)
        expected = softmax_attention(*whole)[:, 64:]

        def error(features):
            converted = softmax_attention_with_bias(*prompt, softmax_bias(k, v, features), features)
            return np.linalg.norm(converted - expected) / np.linalg.norm(expected)

        errors["none"].append(np.linalg.norm(softmax_attention(*prompt) - expected) / np.linalg.norm(expected))
        errors["random"].append([error(partial(random_features, projection=gaussian_projection(rng, m, 8)))
                                 for m in (16, 128, 1024)])
        errors["orthogonal"].append([error(partial(random_features, projection=orthogonal_projection(rng, m, 8)))
                                     for m in (16, 128, 1024)])
        errors["landmark"].append([error(landmark_features(farthest_rows(k / 8**0.25, m))) for m in (16, 32, 64)])
    mean = {name: np.mean(e, axis=0) for name, e in errors.items()}
    for name in "random", "orthogonal", "landmark":
        assert mean["none"] > mean[name][0] > mean[name][1] > mean[name][2]
    assert mean["landmark"][1] < mean["random"][1] and mean["landmark"][2] < 1e-10


@floating
@given(rngs, st.sampled_from([1, 10, 100, 1000]))
def test_large_scores_do_not_overflow(dtype, rng, scale):
    whole, (k, v), prompt = layer(rng, dtype, scale)
    features = partial(random_features, projection=gaussian_projection(rng, 32, 8))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        o = softmax_attention_with_bias(*prompt, softmax_bias(k, v, features), features)
    assert o.dtype == dtype and np.isfinite(o).all() and abs(o).max() <= abs(v).max() + abs(prompt[2]).max()


def test_one_factor_on_all_four_sums_scores_of_hundreds_are_right():
    rng = np.random.default_rng(0)
    whole, (k, v), prompt = layer(rng, np.float64, scale=9.0)
    scores = whole[0] @ whole[1].swapaxes(-1, -2) / 8**0.5
    assert scores.max() > 300
    features = landmark_features(k / 8**0.25)
    converted = softmax_attention_with_bias(*prompt, softmax_bias(k, v, features), features)
    np.testing.assert_allclose(converted, softmax_attention(*whole)[:, 20:], rtol=0, atol=1e-9)


def test_the_exponent_of_a_feature_counts_the_size_of_its_own_bias():
    """A huge feature whose bias is 0 must not push the others, tiny but with a huge bias, below the smallest number."""
    def features(x):
        return np.array([[1e308, 1e-200]]) + 0 * x

    bias = Bias(np.array([[0.0], [3e100]]), np.array([0.0, 1e100]))
    q, k = np.array([[15.0, 1e-9]]), np.array([[-15.0 * 1.02 * 2**0.5, 1e-9]])               # one score, about -229.5
    s = (q @ k.T / 2**0.5).item()
    expected = (np.exp(s + 230) * 7 + np.exp(np.log(1e-100) + 230) * 3) / (np.exp(s + 230) + np.exp(np.log(1e-100) + 230))
    np.testing.assert_allclose(softmax_attention_with_bias(q, k, np.array([[7.0]]), bias, features), expected, rtol=1e-9)


def test_softmax_attention_without_rope_or_bias_is_softmax_attention():
    (q, k, v), _, _ = layer(np.random.default_rng(0), np.float64)
    o, state = softmax_attend(q, k, v)
    np.testing.assert_array_equal(o, softmax_attention(q, k, v))
    assert state is None


def test_an_empty_context_and_an_empty_prompt_are_no_trouble():
    (q, k, v), _, _ = layer(np.random.default_rng(0), np.float64, m=0)
    features = partial(random_features, projection=np.ones((3, 8)))
    bias = softmax_bias(k[:, :0], v[:, :0], features)
    np.testing.assert_allclose(softmax_attention_with_bias(q, k, v, bias, features), softmax_attention(q, k, v), rtol=1e-12)
    assert softmax_attention_with_bias(q[:, :0], k[:, :0], v[:, :0], bias, features).shape == (2, 0, 8)
    no_values = softmax_attention_with_bias(q, k, v[..., :0], bias._replace(kv=bias.kv[..., :0]), features)
    assert no_values.shape == (2, 7, 0)


def test_shapes_that_do_not_fit_are_refused():
    q, features = np.ones((2, 5, 4)), partial(random_features, projection=np.ones((3, 4)))
    bias = softmax_bias(q, q, features)
    for wrong in Bias(bias.kv[:, :2], bias.d[:, :2]), bias._replace(d=bias.d[:1]), Bias(bias.kv[..., :1], bias.d):
        with pytest.raises(ValueError, match="bias"):
            softmax_attention_with_bias(q, q, q, wrong, features)
    for arguments in (q, q[:, :1], q), (q, q, q[:1]), (q[:, :1], q, q), (q[..., :2], q, q):
        with pytest.raises(ValueError, match="must be"):
            softmax_attention_with_bias(*arguments, bias, features)
    with pytest.raises(ValueError):
        softmax_bias(q, q[:, :1], features)
    with pytest.raises(ValueError, match="similarity"):
        similarity_attention(np.ones((2, 1, 5)), q, q, None)


# ---- Whole softmax transformers -------------------------------------------------------------------------------------

def softmax_model(seed, dtype=np.float64):
    return random_transformer(np.random.default_rng(seed), 50, 32, 3, 2, dtype=dtype)._replace(phi=identity)


def relative_error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.proves("Algorithm 1 for softmax, all keys landmarks", "§5, App D")
@floating
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.booleans())
def test_a_softmax_transformer_is_converted_to_rounding_when_every_key_is_a_landmark(dtype, seed, m, parallel):
    model, text = softmax_model(seed, dtype)._replace(parallel=parallel), np.random.default_rng(seed).integers(0, 50, m + 6)
    logits, _ = forward(model, text, attend=softmax_attend)
    converted, _ = forward(model, text[m:], iclaa(model, text[:m], landmark_features), softmax_attend)
    assert_close(converted, logits[m:], ulps=1000)


@pytest.mark.breaks("Algorithm 1 for softmax, all keys landmarks", "Assumption 4.3 (the prompt counts on, the context is turned)")
@given(st.integers(0, 2**32 - 1))
def test_without_relative_positions_the_converted_softmax_transformer_answers_differently(seed):
    model, text, m = softmax_model(seed), np.random.default_rng(seed).integers(0, 50, 16), 10
    logits, _ = forward(model, text, attend=softmax_attend)
    converted = iclaa(model, text[:m], landmark_features)
    assert_close(forward(model, text[m:], converted, softmax_attend)[0], logits[m:], ulps=2**20)
    shifted = model._replace(rope=lambda positions, theta: model.rope(positions + m, theta))
    assert relative_error(forward(shifted, text[m:], converted, softmax_attend)[0], logits[m:]) > 1e-4


def test_random_features_come_closer_than_dropping_the_context():
    errors = []
    for seed in range(10):
        model, rng = softmax_model(seed), np.random.default_rng(seed)
        text = rng.integers(0, 50, 40)
        logits = forward(model, text, attend=softmax_attend)[0][30:]
        w = orthogonal_projection(rng, 256, 16)
        converted = iclaa(model, text[:30], lambda k: partial(random_features, projection=w))
        errors.append([relative_error(forward(model, text[30:], biases, softmax_attend)[0], logits)
                       for biases in (converted, None)])
    converted, dropped = np.mean(errors, axis=0)
    assert converted < dropped / 2
