"""Von Oswald et al.: linear self-attention layers, written down by hand, that descend a gradient."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import assert_close, assert_differ, assert_exactly_equal, fractions, rngs, square_plus_one, uniform
from iclca_ref import gradient_descent, kernel_prediction
from linear_transformer import (LSA, alternating_tokens, gd_plus_plus_weights, gd_weights, lsa, mlp, pairing_weights)
from test_dual_form import regressions, smallest

rates = st.fractions(-2, 2, max_denominator=9)


def tokens_of(W0, X, Y, x):
    """The context tokens (x_i, y_i) and the query tokens (x, −W₀ x)."""
    return np.concatenate([X, Y], axis=-1), np.concatenate([x, -x @ W0.T], axis=-1)


def after(layers, W0, X, Y, x, weights):
    """Context and query tokens after so many layers with the same weights."""
    context, query = tokens_of(W0, X, Y, x)
    for _ in range(layers):
        context, query = lsa(context, query, weights)
    return context, query


@pytest.mark.proves("Prop 1: one layer is one step", "Prop 1, App A.1, Eq 4, 8")
@given(regressions())
def test_proposition_1_one_layer_is_one_step_of_gradient_descent_for_all_tokens_at_once(case):
    W0, X, Y, x, eta = case
    W, _, _ = gradient_descent(W0, X, Y, eta)
    moved = Y - X @ (W - W0).T                                     # Eq 4: the step, taken on the targets
    expected = np.concatenate([X, moved], axis=1), np.concatenate([x, -x @ W.T], axis=1)
    assert_exactly_equal(after(1, W0, X, Y, x, gd_weights(W0, eta, len(X))), expected)


@pytest.mark.proves("§3: K layers are K steps", "von Oswald §3")
@given(regressions(), st.integers(0, 3))
def test_k_layers_are_k_steps(case, steps):
    W0, X, Y, x, eta = case
    W, _, _ = gradient_descent(W0, X, Y, eta, steps)
    _, query = after(steps, W0, X, Y, x, gd_weights(W0, eta, len(X)))
    assert_exactly_equal(-query[:, X.shape[1]:], x @ W.T)


@pytest.mark.breaks("§3: K layers are K steps", "the same W₀ in every layer (the second built from the stepped weights)")
@example(smallest)
@given(regressions().filter(lambda case: case[0].any()))
def test_a_second_layer_built_from_the_stepped_weights_is_not_the_second_step(case):
    W0, X, Y, x, eta = case
    W, _, _ = gradient_descent(W0, X, Y, eta)
    context, query = after(1, W0, X, Y, x, gd_weights(W0, eta, len(X)))
    _, query = lsa(context, query, gd_weights(W, eta, len(X)))
    assert_differ(-query[:, X.shape[1]:], x @ gradient_descent(W0, X, Y, eta, 2)[0].T)


@given(rngs, rates)
def test_batches_are_independent_tasks_and_one_query_may_come_without_an_axis(rng, eta):
    context, query, w0 = uniform(rng, 2, 5, 4, 3), uniform(rng, 2, 5, 2, 3), uniform(rng, 1, 2)
    weights = gd_weights(w0, eta, 4)
    moved, answers = lsa(context, query, weights)
    for task in np.ndindex(2, 5):
        assert_exactly_equal((moved[task], answers[task]), lsa(context[task], query[task], weights))
    assert_exactly_equal(lsa(context[0, 0], query[0, 0, 0], weights)[1], answers[0, 0, 0])


@pytest.mark.breaks("Prop 1: one layer is one step", "a query token kept out of the keys and values (W₀ ≠ 0)")
@example(smallest)
@given(regressions())
def test_with_the_query_among_the_keys_proposition_1_fails_unless_w0_is_zero(case):
    W0, X, Y, x, eta = case
    x, n = x[:1], len(X)
    context, query = tokens_of(W0, X, Y, x)
    weights, (W, _, _) = gd_weights(W0, eta, n), gradient_descent(W0, X, Y, eta)
    _, moved = lsa(np.concatenate([context, query]), query, weights)
    assert_differ(-moved[:, X.shape[1]:], x @ W.T)
    # The query's own value is W₀ x − (−W₀ x) = 2 W₀ x: nothing if W₀ = 0.
    zero, (W, _, _) = gd_weights(0 * W0, eta, n), gradient_descent(0 * W0, X, Y, eta)
    _, moved = lsa(np.concatenate(tokens_of(0 * W0, X, Y, x)), tokens_of(0 * W0, X, Y, x)[1], zero)
    assert_exactly_equal(-moved[:, X.shape[1]:], x @ W.T)


@pytest.mark.breaks("Prop 1: one layer is one step", "the sign of P")
@example(smallest)
@given(regressions())
def test_with_the_sign_of_p_reversed_the_layer_climbs(case):
    W0, X, Y, x, eta = case
    weights = gd_weights(W0, eta, len(X))
    _, query = after(1, W0, X, Y, x, weights._replace(p=-weights.p))
    assert_differ(-query[:, X.shape[1]:], x @ gradient_descent(W0, X, Y, eta)[0].T)
    assert_exactly_equal(-query[:, X.shape[1]:], x @ gradient_descent(W0, X, Y, -eta)[0].T)


# ---- GD++ -----------------------------------------------------------------------------------------------------------

@pytest.mark.proves("GD++ moves the inputs", "App A.10, Eq 23")
@given(regressions(), rates)
def test_gd_plus_plus_takes_the_step_and_moves_every_input_by_i_minus_gamma_x_xt(case, gamma):
    W0, X, Y, x, eta = case
    move = fractions(np.eye(X.shape[1], dtype=int)) - gamma * X.T @ X          # I − γ X Xᵀ with tokens as columns
    context, query = after(1, W0, X, Y, x, gd_plus_plus_weights(W0, eta, gamma, len(X)))
    plain = after(1, W0, X, Y, x, gd_weights(W0, eta, len(X)))
    for new, old, inputs in zip((context, query), plain, (X, x)):
        assert_exactly_equal(new[:, :X.shape[1]], inputs @ move)
        assert_exactly_equal(new[:, X.shape[1]:], old[:, X.shape[1]:])


@pytest.mark.breaks("GD++ moves the inputs", "the sign of −γ in P")
@example(smallest, Fraction(1))
@given(regressions(), rates.filter(bool))
def test_with_the_sign_of_gamma_reversed_the_inputs_move_the_other_way(case, gamma):
    W0, X, Y, x, eta = case
    context, _ = after(1, W0, X, Y, x, gd_plus_plus_weights(W0, eta, -gamma, len(X)))
    assert_differ(context[:, :X.shape[1]], X @ (fractions(np.eye(X.shape[1], dtype=int)) - gamma * X.T @ X))


@pytest.mark.proves("GD++: λ becomes λ (1 − γλ)²", "App A.10")
@given(regressions(), rates)
def test_each_eigenvalue_of_the_hessian_becomes_lambda_times_one_minus_gamma_lambda_squared(case, gamma):
    """H' = H (I − γH)²: with the same eigenvectors, every eigenvalue λ of H = X Xᵀ becomes λ (1 − γλ)²."""
    W0, X, Y, x, eta = case
    context, _ = after(1, W0, X, Y, x, gd_plus_plus_weights(W0, eta, gamma, len(X)))
    X_new, H = context[:, :X.shape[1]], X.T @ X
    move = fractions(np.eye(len(H), dtype=int)) - gamma * H
    assert_exactly_equal(X_new.T @ X_new, H @ move @ move)


@pytest.mark.breaks("GD++: λ becomes λ (1 − γλ)²", "W_V's upper left I (0, as in Prop 1)")
@example(smallest, Fraction(1))
@given(regressions(), rates.filter(bool))
def test_without_the_upper_left_of_w_v_the_hessian_stays(case, gamma):
    W0, X, Y, x, eta = case
    weights = gd_plus_plus_weights(W0, eta, gamma, len(X))._replace(w_v=gd_weights(W0, eta, len(X)).w_v)
    X_new, H = after(1, W0, X, Y, x, weights)[0][:, :X.shape[1]], X.T @ X
    move = fractions(np.eye(len(H), dtype=int)) - gamma * H
    assert_differ(X_new.T @ X_new, H @ move @ move)


@pytest.mark.proves("GD++ lowers the condition number", "App A.10")
@given(rngs, st.integers(2, 6))
def test_with_gamma_one_third_of_the_inverse_largest_eigenvalue_the_condition_number_falls(rng, n_x):
    """On [0, λ_max] the map λ (1 − γλ)² grows, and (1 − λ/(3 λ_max))² is larger than 4/9 below λ_max."""
    X, Y, w0 = rng.standard_normal((2 * n_x, n_x)), rng.standard_normal((2 * n_x, 1)), np.zeros((1, n_x))
    before = np.linalg.eigvalsh(X.T @ X)
    context, _ = lsa(*tokens_of(w0, X, Y, X[:1]), gd_plus_plus_weights(w0, 0.1, 1 / (3 * before[-1]), 2 * n_x))
    moved = np.linalg.eigvalsh(context[:, :n_x].T @ context[:, :n_x])
    assert_close(moved, before * (1 - before / (3 * before[-1])) ** 2, ulps=100)
    assert moved[-1] / moved[0] < before[-1] / before[0]


@pytest.mark.breaks("GD++ lowers the condition number", "a suitable γ (1/λ_max, which takes λ_max to 0)")
@given(rngs, st.integers(2, 6))
def test_with_gamma_the_inverse_of_the_largest_eigenvalue_the_condition_number_rises(rng, n_x):
    X, w0 = rng.standard_normal((2 * n_x, n_x)), np.zeros((1, n_x))
    before = np.linalg.eigvalsh(X.T @ X)
    context, _ = lsa(*tokens_of(w0, X, X[:, :1], X[:1]), gd_plus_plus_weights(w0, 0.1, 1 / before[-1], 2 * n_x))
    moved = np.linalg.eigvalsh(context[:, :n_x].T @ context[:, :n_x])
    assert_close(moved[-1:] + 1, np.max(before * (1 - before / before[-1]) ** 2, keepdims=True) + 1, ulps=1000)
    assert moved[0] < 1e-9 * moved[-1] and before[0] > 1e-9 * before[-1]


@given(regressions(), rates, st.integers(0, 2))
def test_gd_plus_plus_layer_after_layer_is_gradient_descent_on_the_moving_inputs(case, gamma, layers):
    W0, X, Y, x, eta = case
    expected_x, expected_y, query_x, query_y = X, Y, x, -x @ W0.T
    for _ in range(layers):
        step = gradient_descent(W0, expected_x, expected_y, eta)[0] - W0
        move = fractions(np.eye(X.shape[1], dtype=int)) - gamma * expected_x.T @ expected_x
        expected_y, query_y = expected_y - expected_x @ step.T, query_y - query_x @ step.T
        expected_x, query_x = expected_x @ move, query_x @ move
    assert_exactly_equal(after(layers, W0, X, Y, x, gd_plus_plus_weights(W0, eta, gamma, len(X))),
                         (np.concatenate([expected_x, expected_y], 1), np.concatenate([query_x, query_y], 1)))


# ---- Propositions 2 and 3 -------------------------------------------------------------------------------------------

@pytest.mark.proves("Prop 2: an MLP makes it kernel regression", "Prop 2, App A.8")
@given(regressions(), rngs, st.integers(1, 3), st.integers(0, 2))
def test_proposition_2_after_an_mlp_the_layers_descend_kernel_least_squares(case, rng, d_m, steps):
    W0, X, Y, x, eta = case
    w_1, w_2 = uniform(rng, X.shape[1], 2), uniform(rng, 2, d_m)
    m, W0 = (lambda z: mlp(z, w_1, w_2, square_plus_one)), uniform(rng, Y.shape[1], d_m)
    _, query = after(steps, W0, m(X), Y, m(x), gd_weights(W0, eta, len(X)))
    assert_exactly_equal(-query[:, d_m:], m(x) @ gradient_descent(W0, m(X), Y, eta, steps)[0].T)
    # From W₀ = 0 one step predicts (η/N) Σ y_i k(x_i, x); the paper's Eq 13 leaves η/N out.
    _, query = after(1, 0 * W0, m(X), Y, m(x), gd_weights(0 * W0, eta, len(X)))
    kernel = kernel_prediction(Y, X, x, lambda a, b: m(a) @ m(b))
    assert_exactly_equal(-query[:, d_m:], eta / len(X) * kernel)


@pytest.mark.breaks("Prop 2: an MLP makes it kernel regression", "η/N (as the paper's Eq 13 prints it)")
@example((*fractions([[[1]], [[1]], [[1]], [[1]]]), Fraction(1, 2)))
@given(regressions().filter(lambda case: case[-1] != len(case[1])))
def test_without_eta_over_n_equation_13_is_not_the_step(case):
    W0, X, Y, x, eta = case
    _, query = after(1, 0 * W0, X, Y, x, gd_weights(0 * W0, eta, len(X)))
    assert_differ(-query[:, X.shape[1]:], kernel_prediction(Y, X, x, np.dot))


def paired(X, Y, weights):
    """The odd tokens after the pairing layer, without their positions."""
    tokens = alternating_tokens(X, Y)
    return lsa(tokens, tokens[:0], weights)[0][0::2, :X.shape[1] + Y.shape[1]]


@pytest.mark.proves("Prop 3: x and y in separate tokens", "Prop 3, App A.5")
@given(regressions())
def test_proposition_3_a_first_layer_pairs_alternating_tokens_and_then_proposition_1_goes_on(case):
    W0, X, Y, x, eta = case
    n, n_x, n_y = len(X), X.shape[1], Y.shape[1]
    context = paired(X, Y, pairing_weights(n_x, n_y, n, object))
    assert_exactly_equal(context, np.concatenate([X, Y], axis=1))
    query = np.concatenate([x, -x @ W0.T], axis=1)
    _, query = lsa(context, query, gd_weights(W0, eta, n))
    assert_exactly_equal(-query[:, n_x:], x @ gradient_descent(W0, X, Y, eta)[0].T)


@pytest.mark.proves("Prop 3: x and y in separate tokens", "Prop 3, App A.5")
@given(regressions())
def test_the_pairing_layer_leaves_the_query_and_the_targets_tokens_alone(case):
    W0, X, Y, x, eta = case
    tokens = alternating_tokens(X, Y)
    query = fractions(np.zeros((1, tokens.shape[1]), int))
    query[:, :X.shape[1]] = x[:1]
    context, moved = lsa(tokens, query, pairing_weights(X.shape[1], Y.shape[1], len(X), object))
    assert_exactly_equal((context[1::2], moved), (tokens[1::2], query))


@pytest.mark.breaks("Prop 3: x and y in separate tokens", "the shift of the positions (each token finds itself)")
@example((*fractions([[[1]], [[1]], [[1]], [[1]]]), Fraction(1)))
@given(regressions())
def test_without_the_shift_the_first_layer_pairs_nothing(case):
    W0, X, Y, x, eta = case
    weights = pairing_weights(X.shape[1], Y.shape[1], len(X), object)
    assert_differ(paired(X, Y, weights._replace(w_k=weights.w_q)), np.concatenate([X, Y], axis=1))


# ---- Arithmetic and bad input ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_tokens_and_weights_keep_their_type(dtype):
    rng = np.random.default_rng(0)
    W0, X, Y, x = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 3), (4, 3), (4, 2), (5, 3)))
    for weights in gd_weights(W0, 0.1, 4), gd_plus_plus_weights(W0, 0.1, 0.01, 4):
        results = *weights, *after(2, W0, X, Y, x, weights)
        assert {a.dtype for a in results} == {np.dtype(dtype)}
    _, query = after(2, W0, X, Y, x, gd_weights(W0, 0.1, 4))
    assert_close(-query[:, 3:], x @ gradient_descent(W0, X, Y, 0.1, 2)[0].T, ulps=64)
    assert alternating_tokens(X.astype(np.float32), Y.astype(np.float64)).dtype == np.float64
    assert alternating_tokens(X.astype(np.float64), Y.astype(np.float32)).dtype == np.float64
    assert alternating_tokens(X, Y).dtype == dtype and paired(X, Y, pairing_weights(3, 2, 4, dtype)).dtype == dtype


def test_tokens_and_weights_that_do_not_fit_are_refused():
    one = np.ones
    weights = gd_weights(one((1, 2)), 0.1, 3)
    for context, query in [((3, 2), (1, 2)), ((3, 3), (1, 2)), ((3, 2), (1, 3)), ((3,), (3,)), ((2, 3, 3), (1, 3)),
                           ((2, 3, 3), (3,)), ((1, 3, 3), (2, 1, 3)), ((2, 3, 3), (1, 1, 3))]:
        with pytest.raises(ValueError, match="query"):
            lsa(one(context), one(query), weights)
    for w0, n in (one(2), 3), (one((1, 2)), 0):
        for make in (lambda: gd_weights(w0, 0.1, n)), (lambda: gd_plus_plus_weights(w0, 0.1, 0.1, n)):
            with pytest.raises(ValueError, match="w0"):
                make()
    for x, y in (one((2, 1)), one((3, 1))), (one(2), one((2, 1))), (one((2, 1)), one(2)):
        with pytest.raises(ValueError, match="x and y"):
            alternating_tokens(x, y)
    assert LSA._fields == ("w_q", "w_k", "w_v", "p")
