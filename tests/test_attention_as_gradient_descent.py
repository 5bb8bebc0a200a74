"""Von Oswald et al.: linear self-attention layers, written by hand, that descend a gradient."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (assert_close, assert_differ, assert_exactly_equal, assert_proved, assert_refuted,
                   case_rngs, every, fractions, rates, rngs, shapes, square_plus_one, uniform)
from iclca_ref import (LSA, alternating_tokens, gd_plus_plus_weights, gd_weights, gradient_descent,
                       kernel_prediction, lsa, pairing_weights)
from linear_transformer import identity, mlp
from polynomials import unknown, variables
from test_dual_form import FEW, regressions, smallest, symbolic_regression

one = fractions(1)[()]
gamma_symbol = variables("gamma")
SMALL = every(n=(1, 2), d_in=(1, 2), d_out=(1,), tests=(1,))


def tokens_of(W0, X, Y, x):
    """The context tokens (x_i, y_i) and the query tokens (x, −W₀ x)."""
    return np.hstack([X, Y]), np.hstack([x, -x @ W0.T])


def through(layers, context, query):
    """Context and query tokens after layers of the given weights."""
    for weights in layers:
        context, query = lsa(context, query, weights)
    return context, query


def prediction(query, case):
    """Minus the y-part of the query tokens."""
    d_in, d_out = case[1].shape[1], case[2].shape[1]
    return -query[:, d_in:d_in + d_out]


# ---- Proposition 1, and K layers ----------------------------------------------------------------

def layers_and_steps(case, steps):
    """All tokens after so many layers, and after so many steps taken on the targets (Eq 4)."""
    W0, X, Y, x, eta = case
    W, _, _ = gradient_descent(W0, X, Y, eta, steps)
    expected = np.hstack([X, Y - X @ (W - W0).T]), np.hstack([x, -x @ W.T])
    return through([gd_weights(W0, eta, len(X))] * steps, *tokens_of(*case[:4])), expected


PROP_1 = "Prop 1: one layer is one step", "Prop 1, App A.1, Eq 4, 8"
K_LAYERS = "§3: K layers are K steps", "von Oswald §3"


@pytest.mark.proves(*PROP_1)
@given(regressions())
def test_proposition_1_one_layer_is_one_step_of_gradient_descent_for_all_tokens_at_once(case):
    assert_exactly_equal(*layers_and_steps(case, 1))


@pytest.mark.proves(*PROP_1)
def test_proposition_1_holds_for_all_data_weights_and_rates():
    for shape in FEW:
        assert_proved(*layers_and_steps(symbolic_regression(**shape), 1), **shape)


@pytest.mark.proves(*K_LAYERS)
@given(regressions(), st.integers(0, 3))
def test_k_layers_are_k_steps(case, steps):
    assert_exactly_equal(*layers_and_steps(case, steps))


@pytest.mark.proves(*K_LAYERS)
def test_two_layers_are_two_steps_and_three_are_three_for_all_data_weights_and_rates():
    for shape in SMALL + [dict(n=2, d_in=2, d_out=2, tests=2)]:
        for layers in (2, 3):
            case = symbolic_regression(**shape)
            assert_proved(*layers_and_steps(case, layers), **shape, layers=layers)


@pytest.mark.proves(*K_LAYERS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs)
def test_k_layers_are_k_steps_to_rounding_in_floating_point(dtype, rng):
    W0, X, Y, x = (rng.uniform(1, 2, s).astype(dtype) for s in ((2, 5), (20, 5), (20, 2), (4, 5)))
    assert_close(*layers_and_steps((W0, X, Y, x, 1e-3), 5), ulps=64)      # no sum cancels


def one_layer_more(case):
    """The second layer built from the stepped weights, and the second step."""
    W0, X, Y, x, eta = case
    W, _, _ = gradient_descent(W0, X, Y, eta)
    layers = [gd_weights(w, eta, len(X)) for w in (W0, W)]
    _, query = through(layers, *tokens_of(W0, X, Y, x))
    return prediction(query, case), x @ gradient_descent(W0, X, Y, eta, 2)[0].T


@pytest.mark.breaks(K_LAYERS[0], "building the second layer from the stepped weights")
@example(smallest)
@given(regressions())
def test_a_second_layer_built_from_the_stepped_weights_is_not_the_second_step(case):
    assert_differ(*one_layer_more(case))


@pytest.mark.breaks(K_LAYERS[0], "building the second layer from the stepped weights")
def test_a_second_layer_built_from_the_stepped_weights_is_another_polynomial():
    assert_refuted(*one_layer_more(symbolic_regression()))


def query_among_the_keys(case):
    """The prediction with the query token among the keys and values, and the stepped layer's."""
    W0, X, Y, x, eta = case
    context, query = tokens_of(W0, X, Y, x[:1])
    _, moved = lsa(np.concatenate([context, query]), query, gd_weights(W0, eta, len(X)))
    return prediction(moved, case), x[:1] @ gradient_descent(W0, X, Y, eta)[0].T


@pytest.mark.breaks(PROP_1[0], "the query token among the keys and values, though W₀ ≠ 0")
@example(smallest)
@given(regressions())
def test_with_the_query_among_the_keys_proposition_1_fails(case):
    assert_differ(*query_among_the_keys(case))


@pytest.mark.breaks(PROP_1[0], "the query token among the keys and values, though W₀ ≠ 0")
def test_with_the_query_among_the_keys_its_own_value_is_added_which_is_twice_w0_x():
    difference = assert_refuted(*query_among_the_keys(symbolic_regression()))
    assert str(difference) == "- 2*W0_0*eta*x0_0^3"


@pytest.mark.proves(*PROP_1)
def test_with_the_query_among_the_keys_proposition_1_holds_if_w0_is_zero():
    for shape in FEW:
        W0, *rest = symbolic_regression(**shape)
        assert_proved(*query_among_the_keys((0 * W0, *rest)), **shape, query_among_keys=True)


def climbing(case):
    """The prediction with −P in the place of P, and the stepped layer's."""
    W0, X, Y, x, eta = case
    weights = gd_weights(W0, eta, len(X))
    _, query = lsa(*tokens_of(W0, X, Y, x), weights._replace(p=-weights.p))
    return prediction(query, case), x @ gradient_descent(W0, X, Y, eta)[0].T


@pytest.mark.breaks(PROP_1[0], "the sign of P reversed")
@example(smallest)
@given(regressions())
def test_with_the_sign_of_p_reversed_the_layer_climbs(case):
    assert_differ(*climbing(case))
    W0, X, Y, x, eta = case
    assert_exactly_equal(climbing(case)[0], x @ gradient_descent(W0, X, Y, -eta)[0].T)


@pytest.mark.breaks(PROP_1[0], "the sign of P reversed")
def test_with_the_sign_of_p_reversed_the_layer_is_another_polynomial():
    assert_refuted(*climbing(symbolic_regression()))


# ---- GD++: one layer ----------------------------------------------------------------------------

def unit(n):
    return fractions(np.eye(n, dtype=int))


def moved_inputs(case, gamma, sign=1):
    """One GD++ layer, and what it does: inputs times I − γ Σ x_i x_iᵀ, and the step."""
    W0, X, Y, x, eta = case
    W, _, _ = gradient_descent(W0, X, Y, eta)
    move = unit(X.shape[1]) - gamma * X.T @ X
    layer = gd_plus_plus_weights(W0, eta, sign * gamma, len(X))
    expected = np.hstack([X @ move, Y - X @ (W - W0).T]), np.hstack([x @ move, -x @ W.T])
    return lsa(*tokens_of(W0, X, Y, x), layer), expected


def hessian(case, gamma, layer=gd_plus_plus_weights):
    """H = Σ x_i x_iᵀ after a layer, and H (I − γH)²: each λ becomes λ (1 − γλ)²."""
    W0, X, Y, x, eta = case
    context, _ = lsa(*tokens_of(W0, X, Y, x), layer(W0, eta, gamma, len(X)))
    X_new, H = context[:, :X.shape[1]], X.T @ X
    move = unit(len(H)) - gamma * H
    return X_new.T @ X_new, H @ move @ move


MOVES = "GD++ moves the inputs", "App A.10, Eq 23"
HESSIAN = "GD++: λ becomes λ (1 − γλ)²", "App A.10"


@pytest.mark.proves(*MOVES)
@given(regressions(), rates)
def test_gd_plus_plus_takes_the_step_and_moves_every_input_by_i_minus_gamma_x_xt(case, gamma):
    assert_exactly_equal(*moved_inputs(case, gamma))


@pytest.mark.proves(*MOVES)
def test_gd_plus_plus_takes_the_step_and_moves_the_inputs_for_all_data_weights_and_rates():
    for shape in FEW:
        assert_proved(*moved_inputs(symbolic_regression(**shape), gamma_symbol), **shape)


@pytest.mark.breaks(MOVES[0], "the sign of γ reversed")
@example(smallest, one)
@given(regressions(), rates)
def test_with_the_sign_of_gamma_reversed_the_inputs_move_the_other_way(case, gamma):
    assert_differ(*moved_inputs(case, gamma, sign=-1))


@pytest.mark.breaks(MOVES[0], "the sign of γ reversed")
def test_with_the_sign_of_gamma_reversed_an_input_is_twice_the_move_away():
    difference = assert_refuted(*moved_inputs(symbolic_regression(), gamma_symbol, sign=-1))
    assert str(difference) == "2*X0_0^3*gamma"


@pytest.mark.proves(*HESSIAN)
@given(regressions(), rates)
def test_the_hessian_becomes_h_times_i_minus_gamma_h_squared(case, gamma):
    assert_exactly_equal(*hessian(case, gamma))


@pytest.mark.proves(*HESSIAN)
def test_the_hessian_becomes_h_times_i_minus_gamma_h_squared_for_all_inputs():
    for shape in SMALL + [dict(n=2, d_in=3, d_out=1, tests=1), dict(n=3, d_in=3, d_out=1, tests=1)]:
        assert_proved(*hessian(symbolic_regression(**shape), gamma_symbol), **shape)


def without_upper_left(W0, eta, gamma, n):
    """GD++ with 0 in the upper left of W_V, as Proposition 1 has it."""
    return gd_plus_plus_weights(W0, eta, gamma, n)._replace(w_v=gd_weights(W0, eta, n).w_v)


@pytest.mark.breaks(HESSIAN[0], "0 for I in the upper left of W_V, as in Prop 1")
@example(smallest, one)
@given(regressions(), rates)
def test_without_the_upper_left_of_w_v_the_hessian_stays(case, gamma):
    assert_differ(*hessian(case, gamma, without_upper_left))


@pytest.mark.breaks(HESSIAN[0], "0 for I in the upper left of W_V, as in Prop 1")
def test_without_the_upper_left_of_w_v_the_hessian_is_another_polynomial():
    case = symbolic_regression()
    difference = assert_refuted(*hessian(case, gamma_symbol, without_upper_left))
    assert str(difference) == "2*X0_0^4*gamma - X0_0^6*gamma^2"


# ---- GD++: faster, if η is tuned again ----------------------------------------------------------

def slowest(eigenvalues, eta):
    """By how much the slowest mode of gradient descent shrinks in a step: max |1 − ηλ|."""
    return max(abs(1 - eta * eigenvalue) for eigenvalue in eigenvalues)


def best_rate(eigenvalues):
    """The η of the smallest `slowest`: 2 / (λ_min + λ_max)."""
    return 2 / (min(eigenvalues) + max(eigenvalues))


def one_step_after(move, X, eta):
    """Inputs and errors of a step of rate η after the inputs have moved.

    W₀ = 0 and every example has an output of its own, so the targets are the errors: first I.
    """
    n, zero = len(X), 0 * X
    context = np.hstack([X, unit(n)])
    layers = gd_plus_plus_weights(zero, 0 * one, move, n), gd_weights(zero, eta * n, n)
    after, _ = through(layers, context, context)
    return after[:, :n], after[:, n:]


FASTER = "GD++ goes faster with η tuned again", "App A.10"
two_sizes = case_rngs.map(lambda rng: uniform(rng, 2, low=1, high=2**32)).filter(
    lambda sizes: sizes[0] != sizes[1])
thirds = rates.map(lambda share: share / 3)


def speeds(sizes, share):
    """max |1 − ηλ|: plain, after a GD++ layer with the same η, and with η tuned again.

    Each eigenvalue, and what the step leaves of the error in its direction, is read off a layer;
    γ = share / λ_max.
    """
    X, before = unit(2) * sizes, (sizes * sizes).tolist()
    gamma = share / max(before)
    moved = [x * (1 - gamma * x) ** 2 for x in before]
    for move, eigenvalues, eta in ((0 * one, before, best_rate(before)),
                                   (gamma, moved, best_rate(before)),
                                   (gamma, moved, best_rate(moved))):
        inputs, errors = one_step_after(move, X, eta)
        assert_exactly_equal(inputs.T @ inputs, unit(2) * fractions(eigenvalues))
        assert_exactly_equal(errors, unit(2) * fractions([1 - eta * x for x in eigenvalues]))
        yield slowest(eigenvalues, eta)


@pytest.mark.proves(*FASTER)
@given(two_sizes, thirds)
def test_with_two_eigenvalues_and_gamma_below_a_third_of_the_inverse_tuned_descent_is_faster(
        sizes, share):
    plain, _, tuned_again = speeds(sizes, share)
    assert tuned_again < plain < 1


@pytest.mark.proves(*FASTER)
def test_the_ratio_of_two_eigenvalues_falls_by_factors_that_are_all_positive():
    """λ/μ − λ'/μ' = λ γ (λ − μ) (2 − γ (λ + μ)) / μ', for any two eigenvalues λ > μ > 0.

    It is positive if γ < 2 / (λ + μ); and the best rate shrinks errors by (κ − 1)/(κ + 1), κ = λ/μ.
    """
    sizes = variables("a", 2)
    inputs, _ = one_step_after(gamma_symbol, unit(2) * sizes, one)
    (l, m), (l_moved, m_moved) = sizes ** 2, np.diag(inputs.T @ inputs)
    factors = l * m * gamma_symbol * (l - m) * (2 - gamma_symbol * (l + m))
    assert_proved(l * m_moved - m * l_moved, factors, eigenvalues=2)


@pytest.mark.breaks(FASTER[0], "η left as it was")
@given(two_sizes, thirds)
def test_with_eta_left_as_it_was_the_slowest_mode_is_slower(sizes, share):
    plain, same_rate, _ = speeds(sizes, share)
    assert plain < same_rate < 1


@pytest.mark.breaks(FASTER[0], "equal eigenvalues")
@given(two_sizes, thirds)
def test_with_equal_eigenvalues_one_tuned_step_is_enough_with_gd_plus_plus_or_not(sizes, share):
    plain, _, tuned_again = speeds(sizes[[0, 0]], share)
    assert plain == tuned_again == 0


@pytest.mark.breaks(FASTER[0], "γ = 1/λ_max, which takes λ_max to 0")
@given(two_sizes)
def test_with_gamma_the_inverse_of_the_largest_eigenvalue_the_largest_mode_is_lost(sizes):
    plain, _, tuned_again = speeds(sizes, one)
    assert plain < tuned_again == 1


@pytest.mark.proves(*FASTER)
@given(rngs, st.integers(2, 6))
def test_with_gamma_a_third_of_the_inverse_the_condition_number_of_any_hessian_falls(rng, d):
    """(1 − λ/(3 λ_max))² is larger than 4/9 below λ_max, and λ (1 − λ/(3 λ_max))² grows with λ."""
    X, Y = rng.standard_normal((2 * d, d)), rng.standard_normal((2 * d, 1))
    w0 = np.zeros((1, d))
    before = np.linalg.eigvalsh(X.T @ X)
    layer = gd_plus_plus_weights(w0, 0.1, 1 / (3 * before[-1]), 2 * d)
    context, _ = lsa(*tokens_of(w0, X, Y, X[:1]), layer)
    moved = np.linalg.eigvalsh(context[:, :d].T @ context[:, :d])
    assert_close(moved, before * (1 - before / (3 * before[-1])) ** 2, ulps=100)
    assert moved[-1] / moved[0] < before[-1] / before[0]


# ---- GD++: several layers -----------------------------------------------------------------------

def preconditioned(W, X, Y, eta, gamma, steps):
    """W ← W − (η/n) Σ (W x_i − y_i) x_iᵀ M², with M the product of the moves made so far.

    The errors are those at the inputs themselves, and M²: inputs and test input have both moved.
    """
    M = unit(X.shape[1])
    for _ in range(steps):
        X_moved = X @ M
        W = W + (gradient_descent(W, X, Y, eta)[0] - W) @ M @ M
        M = M @ (unit(len(M)) - gamma * X_moved.T @ X_moved)
    return W


def stacked(case, gamma, layers):
    """What stacked GD++ layers predict, and the layer after preconditioned gradient descent."""
    W0, X, Y, x, eta = case
    layer = gd_plus_plus_weights(W0, eta, gamma, len(X))
    _, query = through([layer] * layers, *tokens_of(W0, X, Y, x))
    return prediction(query, case), x @ preconditioned(W0, X, Y, eta, gamma, layers).T


def stacked_on_residuals(case, gamma, layers):
    """The same from W₀ ≠ 0 with layers for W₀ = 0, on tokens (x_i, y_i − W₀ x_i): W₀ x is added."""
    W0, X, Y, x, eta = case
    predicted, _ = stacked((0 * W0, X, Y - X @ W0.T, x, eta), gamma, layers)
    return x @ W0.T + predicted, x @ preconditioned(W0, X, Y, eta, gamma, layers).T


def from_zero(case):
    return 0 * case[0], *case[1:]


STACKED = "GD++ layers are preconditioned descent, W₀ = 0", "App A.10"


@pytest.mark.proves(*STACKED)
@given(regressions(), rates, st.integers(0, 3))
def test_stacked_gd_plus_plus_from_zero_weights_is_preconditioned_descent(case, gamma, layers):
    assert_exactly_equal(*stacked(from_zero(case), gamma, layers))
    assert_exactly_equal(*stacked_on_residuals(case, gamma, layers))


@pytest.mark.proves(*STACKED)
def test_stacked_gd_plus_plus_from_zero_weights_is_preconditioned_descent_for_all_data_and_rates():
    for shape in shapes(every(n=(1, 2), d_in=(1, 2), d_out=(1,), tests=(1,), layers=range(3))
                        + [dict(n=1, d_in=1, d_out=1, tests=1, layers=3)],
                        every(n=(1, 2), d_in=(1, 2), d_out=(1, 2), tests=(1,), layers=range(3))
                        + every(n=(1, 2), d_in=(1,), d_out=(1,), tests=(1,), layers=(3,))):
        layers, sizes = shape["layers"], {k: v for k, v in shape.items() if k != "layers"}
        case = symbolic_regression(**sizes)
        assert_proved(*stacked(from_zero(case), gamma_symbol, layers), **shape)
        assert_proved(*stacked_on_residuals(case, gamma_symbol, layers), **shape)


@pytest.mark.breaks(STACKED[0], "two layers with W₀ ≠ 0, and tokens (x, −W₀ x)")
@example(smallest, one / 2)
@given(regressions(), rates)
def test_with_other_start_weights_the_second_layer_measures_errors_at_inputs_that_have_moved(
        case, gamma):
    assert_differ(*stacked(case, gamma, 2))


@pytest.mark.breaks(STACKED[0], "two layers with W₀ ≠ 0, and tokens (x, −W₀ x)")
def test_weights_that_fit_already_are_driven_away_by_the_second_layer():
    W0, X, _, *rest = symbolic_regression(n=2, d_in=2)
    predicted, expected = stacked((W0, X, X @ W0.T, *rest), gamma_symbol, 2)
    assert (expected == rest[0] @ W0.T).all()
    assert_refuted(predicted, expected)


def test_with_other_start_weights_the_layers_come_to_rest_at_a_wrong_answer():
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.standard_normal((6, 3)))[0] * [1.0, 0.9, 0.8]
    W0, W_true = rng.standard_normal((2, 2, 3))
    case = W0, X, X @ W_true.T, X, 6.0      # η/n = 1
    predicted = [stacked(case, 0.1, 40)[0], stacked(case, 0.1, 80)[0],
                 stacked(from_zero(case), 0.1, 40)[0], stacked_on_residuals(case, 0.1, 40)[0]]
    still_wrong, at_rest, right, right_again = (abs(p - X @ W_true.T).max() for p in predicted)
    assert min(still_wrong, at_rest) > 0.3 and max(right, right_again) < 1e-4


@pytest.mark.breaks(STACKED[0], "two layers with W₀ ≠ 0, and tokens (x, −W₀ x)")
def test_with_other_start_weights_the_second_layer_compares_w0_times_the_moved_inputs():
    """It takes W₀ x'_i for W₀ x_i in the error, x' = (1 − γX²) x: so much is missing, exactly."""
    case = W0, X, _, x, eta = symbolic_regression()
    predicted, expected = stacked(case, gamma_symbol, 2)
    assert_refuted(predicted, expected)
    move = 1 - gamma_symbol * X * X
    missing = eta * W0 * (X - move * X) * (move * X) * (move * x)
    assert ((predicted - expected) == missing).all()
    first, expected = stacked(case, gamma_symbol, 1)     # one layer has nothing moved before it
    assert (first == expected).all()


# ---- Proposition 2 ------------------------------------------------------------------------------

def after_an_mlp(case, m, layers):
    """The prediction of layers on (m(x), y), and of kernel least squares: W m(x) after descent."""
    W0, X, Y, x, eta = case
    return layers_and_steps((W0, m(X), Y, m(x), eta), layers)


def kernel_of(case, m, rate):
    """From W₀ = 0 one step predicts rate · Σ y_i k(x_i, x), with k(x, x') = m(x)·m(x')."""
    _, X, Y, x, eta = case
    zero = 0 * np.multiply.outer(Y[0], m(X)[0])
    on_features = zero, m(X), Y, m(x), eta
    _, query = lsa(*tokens_of(*on_features[:4]), gd_weights(zero, eta, len(X)))
    kernel = kernel_prediction(Y, X, x, lambda a, b: m(a) @ m(b))
    return prediction(query, on_features), rate * kernel


def two_unknowns(x):
    """Any function from rows (..., d) to rows (..., 2d)."""
    return np.concatenate([unknown("m")(x), unknown("n")(x)], axis=-1)


PROP_2 = "Prop 2: an MLP makes it kernel regression", "Prop 2, App A.8"


@pytest.mark.proves(*PROP_2)
@given(regressions(), rngs, st.integers(1, 3), st.integers(1, 2))
def test_proposition_2_after_an_mlp_the_layers_descend_kernel_least_squares(case, rng, d_m, layers):
    _, X, Y, _, eta = case
    w_1, w_2 = uniform(rng, X.shape[1], 2), uniform(rng, 2, d_m)
    m = partial(mlp, w_1=w_1, w_2=w_2, activation=square_plus_one)
    case = uniform(rng, Y.shape[1], d_m), *case[1:]
    assert_exactly_equal(*after_an_mlp(case, m, layers))
    assert_exactly_equal(*kernel_of(case, m, eta / len(X)))


@pytest.mark.proves(*PROP_2)
def test_proposition_2_holds_for_every_mlp():
    for shape in FEW:
        W0, *rest = symbolic_regression(**shape)
        for width, m in ("d", unknown("m")), ("2d", two_unknowns):
            case = W0 if width == "d" else variables("V", len(W0), 2 * shape["d_in"]), *rest
            for layers in (1, 2) if shape in SMALL else (1,):
                both = after_an_mlp(case, m, layers)
                assert_proved(*both, **shape, layers=layers, **{f"any m: ℝᵈ → ℝ^{width}": True})
            assert_proved(*kernel_of(case, m, rest[-1] / shape["n"]), **shape, from_zero=True,
                          **{f"any m: ℝᵈ → ℝ^{width}": True})


@pytest.mark.breaks(PROP_2[0], "leaving out η/N, as the paper's Eq 13 prints it")
@example((*fractions([[[1]], [[1]], [[1]], [[1]]]), one / 2))
@given(regressions())
def test_without_eta_over_n_equation_13_is_not_the_step(case):
    assert_differ(*kernel_of(case, square_plus_one, 1))


@pytest.mark.breaks(PROP_2[0], "leaving out η/N, as the paper's Eq 13 prints it")
def test_without_eta_over_n_equation_13_is_another_function():
    difference = assert_refuted(*kernel_of(symbolic_regression(), unknown("m"), 1))
    assert str(difference) == "Y0_0*eta*m(X0_0)*m(x0_0) - Y0_0*m(X0_0)*m(x0_0)"


# ---- Proposition 3 ------------------------------------------------------------------------------

def padded(weights, places):
    """The same layer for tokens with so many more entries, their positions, which it ignores."""
    def wide(w):
        return np.hstack([w, np.zeros((len(w), places), w.dtype)])

    return LSA(wide(weights.w_q), wide(weights.w_k), wide(weights.w_v), wide(weights.p.T).T)


def paired_and_descended(case, layers, first=identity):
    """The whole tokens after pairing and descending layers, with nothing cut off, and what is due.

    In come x_1, y_1, x_2, ... with their positions, and query tokens (x, −W₀ x) with none.
    """
    W0, X, Y, x, eta = case
    n, d_in, d_out = len(X), X.shape[1], Y.shape[1]
    tokens, nowhere = alternating_tokens(X, Y), np.zeros((len(x), 2 * n), int).astype(object)
    descend = padded(gd_weights(W0, eta, n), 2 * n)
    out = through([first(pairing_weights(d_in, d_out, n, object))] + [descend] * layers,
                  tokens, np.hstack([x, -x @ W0.T, nowhere]))
    W, _, _ = gradient_descent(W0, X, Y, eta, layers)
    expected = tokens.copy()
    expected[0::2, d_in:d_in + d_out] = Y - X @ (W - W0).T
    return out, (expected, np.hstack([x, -x @ W.T, nowhere]))


PROP_3 = "Prop 3: x and y in separate tokens", "Prop 3, App A.5"


@pytest.mark.proves(*PROP_3)
@given(regressions(), st.integers(0, 2))
def test_proposition_3_a_first_layer_pairs_alternating_tokens_and_then_proposition_1_goes_on(
        case, layers):
    assert_exactly_equal(*paired_and_descended(case, layers))


@pytest.mark.proves(*PROP_3)
def test_proposition_3_holds_for_all_data_weights_and_rates_with_two_descending_layers():
    for shape in FEW:
        for layers in (0, 1, 2) if shape in SMALL else (0, 1):
            both = paired_and_descended(symbolic_regression(**shape), layers)
            assert_proved(*both, **shape, layers=layers)


def unshifted(weights):
    return weights._replace(w_k=weights.w_q)


@pytest.mark.breaks(PROP_3[0], "positions not shifted, so that each token finds itself")
@example((*fractions([[[1]], [[1]], [[1]], [[1]]]), one), 1)
@given(regressions(), st.integers(0, 1))
def test_without_the_shift_the_first_layer_pairs_nothing(case, layers):
    assert_differ(*paired_and_descended(case, layers, unshifted))


@pytest.mark.breaks(PROP_3[0], "positions not shifted, so that each token finds itself")
def test_without_the_shift_y_is_added_to_itself():
    difference = assert_refuted(*paired_and_descended(symbolic_regression(), 0, unshifted))
    assert str(difference) in ("Y0_0", "- Y0_0")


# ---- Batches, arithmetic and bad input ----------------------------------------------------------

@given(rngs)
def test_batches_are_independent_tasks_and_one_query_may_come_without_an_axis(rng):
    context, query = uniform(rng, 2, 3, 2, 2), uniform(rng, 2, 3, 2, 2)
    one_layer = LSA(*(uniform(rng, 2, 2) for _ in range(4)))
    a_layer_each = LSA(*(uniform(rng, 2, 3, 2, 2) for _ in range(4)))
    shared, own = lsa(context, query, one_layer), lsa(context, query, a_layer_each)
    for task in np.ndindex(2, 3):
        part = context[task], query[task]
        own_layer = LSA(*(w[task] for w in a_layer_each))
        assert_exactly_equal([a[task] for a in shared], list(lsa(*part, one_layer)))
        assert_exactly_equal([a[task] for a in own], list(lsa(*part, own_layer)))
    assert_exactly_equal(lsa(context[0, 0], query[0, 0, 0], one_layer)[1], shared[1][0, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [float, np.float64, np.float32, np.array])
def test_float_tokens_and_weights_keep_their_type_whatever_the_type_of_the_rates(dtype, number):
    rng = np.random.default_rng(0)
    W0, X, Y, x = (rng.standard_normal(s).astype(dtype) for s in ((2, 3), (4, 3), (4, 2), (5, 3)))
    eta, gamma = number(0.1), number(0.01)
    for weights in gd_weights(W0, eta, 4), gd_plus_plus_weights(W0, eta, gamma, 4):
        results = *weights, *through([weights] * 2, *tokens_of(W0, X, Y, x))
        assert {a.dtype for a in results} == {np.dtype(dtype)}
    pairing = pairing_weights(3, 2, 4, dtype)
    tokens = alternating_tokens(X, Y)
    assert {a.dtype for a in (tokens, *pairing, *lsa(tokens, tokens, pairing))} == {np.dtype(dtype)}


def test_alternating_tokens_take_the_wider_of_two_types():
    X, Y = np.ones((4, 3), np.float32), np.ones((4, 2))
    assert alternating_tokens(X, Y).dtype == np.float64
    assert alternating_tokens(X.astype(np.float64), Y.astype(np.float32)).dtype == np.float64
    assert pairing_weights(3, 2, 4).p.dtype == np.float64


@pytest.mark.parametrize("context, query", [
    ((3, 2), (1, 2)), ((3, 3), (1, 2)), ((3, 2), (1, 3)), ((3,), (3,)), ((2, 3, 3), (1, 3)),
    ((2, 3, 3), (3,)), ((1, 3, 3), (2, 1, 3)), ((2, 3, 3), (1, 1, 3))])
def test_tokens_that_do_not_fit_are_refused(context, query):
    with pytest.raises(ValueError, match="query"):
        lsa(np.ones(context), np.ones(query), gd_weights(np.ones((1, 2)), 0.1, 3))


@pytest.mark.parametrize("w0, n", [(np.ones(2), 3), (np.ones((1, 2)), 0), (np.ones((2, 1, 2)), 3)])
@pytest.mark.parametrize("make", [
    gd_weights, lambda w0, eta, n: gd_plus_plus_weights(w0, eta, eta, n)])
def test_start_weights_and_numbers_of_tokens_that_make_no_layer_are_refused(make, w0, n):
    with pytest.raises(ValueError, match="w0"):
        make(w0, 0.1, n)


@pytest.mark.parametrize("x, y", [((2, 1), (3, 1)), ((2,), (2, 1)), ((2, 1), (2,))])
def test_inputs_and_targets_that_do_not_pair_are_refused(x, y):
    with pytest.raises(ValueError, match="x.*y"):
        alternating_tokens(np.ones(x), np.ones(y))
