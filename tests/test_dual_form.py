"""The dual form: a trained linear layer is attention to its data, attention is a weight update."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import (assert_close, assert_differ, assert_exactly_equal, assert_proved, assert_refuted,
                   every, fractions, rates, case_rngs, rngs, shapes, uniform)
from iclca_ref import (attention_bias, dual_form, gd_weights, gradient_descent, icl_weight_update,
                       kernel_prediction, key_value_matrix, lin_attn, linear_bias, lsa,
                       mean_squared_gradient, weight_update)
from linear_transformer import parallel_attention, softmax
from polynomials import Polynomial, unknown, variables

sizes = st.integers(1, 3)


def regression_shapes(n, d_in, d_out, tests):
    return dict(W=(d_out, d_in), X=(n, d_in), Y=(n, d_out), x=(tests, d_in))


@st.composite
def regressions(draw, least=1, rates=rates):
    """W0 (d_out, d_in), X (n, d_in), Y (n, d_out), test inputs x (tests, d_in), a learning rate."""
    shape = regression_shapes(draw(st.integers(least, 3)), draw(sizes), draw(sizes), draw(sizes))
    rng = draw(case_rngs)
    return *(uniform(rng, *s) for s in shape.values()), draw(rates)


def symbolic_regression(n=1, d_in=1, d_out=1, tests=1):
    """The same, of variables."""
    shape = regression_shapes(n, d_in, d_out, tests)
    return *(variables(name, *s) for name, s in shape.items()), variables("eta")


# The smallest case: W₀ = 1, one example x = 1, y = 0, tested at x = 1, with rate 1.
smallest = *fractions([[[1]], [[1]], [[0]], [[1]]]), fractions(1)[()]
FEW = shapes(every(n=(1, 2), d_in=(1, 2), d_out=(1, 2), tests=(1,))
             + [dict(n=3, d_in=3, d_out=2, tests=2)],
             every(n=range(1, 4), d_in=(1, 2, 3), d_out=(1, 2, 3), tests=(1, 2)))


# ---- Review Eq 1 to 4 ---------------------------------------------------------------------------

def four_lines(W0, X, E, x, _):
    """(W₀ + ΔW) x = W₀ x + (Σ e_i ⊗ x_i) x = W₀ x + Σ e_i (x_i·x) = W₀ x + LinAttn(E, X, x)."""
    zero = 0 * W0
    line_1 = x @ (W0 + weight_update(E, X)).T
    line_2 = x @ W0.T + x @ sum((np.multiply.outer(e, x_i) for e, x_i in zip(E, X)), zero).T
    sums = [sum((e * (x_i @ q) for e, x_i in zip(E, X)), zero[:, 0]) for q in x]
    line_3 = x @ W0.T + np.stack(sums)
    line_4 = x @ W0.T + lin_attn(E, X, x)
    return (line_2, line_3, line_4, dual_form(W0, E, X, x)), (line_1,) * 4


@pytest.mark.proves("Dual form", "review Eq 1-4")
@given(regressions(least=0))
def test_each_line_of_the_dual_form_follows_from_the_one_before(case):
    assert_exactly_equal(*four_lines(*case))


@pytest.mark.proves("Dual form", "review Eq 1-4")
def test_the_dual_form_holds_for_all_weights_errors_and_inputs():
    for shape in [dict(n=0, d_in=2, d_out=2, tests=1), *FEW]:
        assert_proved(*four_lines(*symbolic_regression(**shape)), **shape)


def normalized_dual_form(W0, X, E, x, _):
    """The trained layer, and the dual form with attention weights divided by their sum."""
    weights = x @ X.T
    return x @ W0.T + weights / weights.sum(axis=-1, keepdims=True) @ E, dual_form(W0, E, X, x)


@pytest.mark.breaks("Dual form", "attention weights divided by their sum")
@given(regressions())
def test_attention_with_a_normalizer_is_not_the_trained_layer(case):
    assert_differ(*normalized_dual_form(*case))


@pytest.mark.breaks("Dual form", "attention weights divided by their sum")
def test_attention_with_a_normalizer_is_another_function_than_the_trained_layer():
    difference = assert_refuted(*normalized_dual_form(*symbolic_regression()))
    assert str(difference) == "- X0_0*Y0_0*x0_0 + Y0_0"     # a weight of 1 in the place of X x


@pytest.mark.breaks("Dual form", "softmax attention in its place")
@given(rngs, sizes)
def test_at_the_input_zero_softmax_gives_the_mean_error_and_the_trained_layer_zero(rng, n):
    W0, X, E = rng.random((2, 3)), rng.standard_normal((n, 3)), rng.random((n, 2)) + 1
    zero = np.zeros(3)
    assert_close(dual_form(W0, E, X, zero), np.zeros(2), ulps=0)
    assert_close(W0 @ zero + softmax(X @ zero) @ E, E.mean(axis=0), ulps=8)   # from 1 to 2


# ---- A whole run --------------------------------------------------------------------------------

def unknown_loss(outputs, targets):
    """The gradient at the outputs of a loss that may be any function of all outputs and targets."""
    everything = np.concatenate([outputs.ravel(), targets.ravel()])
    return unknown("loss")(everything)[:outputs.size].reshape(outputs.shape)


def coupled_gradient(outputs, targets):
    """The gradient of (Σ ‖F(x_i) − y_i‖²)² / 4, a loss that no sum over the examples is."""
    return ((outputs - targets) ** 2).sum() * (outputs - targets)


def trained(W, X, Y, eta, steps, gradient):
    """Gradient descent by the chain rule, entry by entry: ∂L/∂W_oi = Σ_j ∂L/∂F(x_j)_o x_ji."""
    for _ in range(steps):
        g = gradient(np.array([[row @ x for row in W] for x in X]), Y)
        W = np.array([[W[o, i] - eta * sum(e[o] * x[i] for e, x in zip(g, X))
                       for i in range(W.shape[1])] for o in range(len(W))])
    return W


def whole_run(W0, X, Y, x, eta, steps, gradient=mean_squared_gradient):
    """Weights and dual form of a recorded run, and the weights by `trained`, applied to x."""
    W, E, X_seen = gradient_descent(W0, X, Y, eta, steps, gradient)
    expected = trained(W0, X, Y, eta, steps, gradient)
    return (W, dual_form(W0, E, X_seen, x)), (expected, x @ expected.T)


RUN = "Dual form of a whole training run", "Irie et al.; review Eq 4"


@pytest.mark.proves(*RUN)
@given(regressions(), st.integers(0, 3), st.sampled_from([mean_squared_gradient, coupled_gradient]))
def test_a_layer_after_any_number_of_steps_is_attention_to_all_inputs_it_saw(case, steps, gradient):
    assert_exactly_equal(*whole_run(*case, steps, gradient))


@pytest.mark.proves(*RUN)
def test_the_dual_form_of_a_run_holds_for_every_loss():
    for shape in FEW:
        case = symbolic_regression(**shape)
        for steps in range(4):
            assert_proved(*whole_run(*case, steps, unknown_loss), **shape, steps=steps)


@pytest.mark.proves(*RUN)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs)
def test_the_dual_form_of_a_run_holds_to_rounding_in_floating_point(dtype, rng):
    shape = regression_shapes(20, 5, 3, 4).values()
    W0, X, Y, x = (rng.uniform(1, 2, s).astype(dtype) for s in shape)     # sums that do not cancel
    W, E, X_seen = gradient_descent(W0, X, Y, 1e-3, 5)
    assert_close(dual_form(W0, E, X_seen, x), x @ W.T, ulps=64)


@pytest.mark.breaks(*RUN[:1], "the sign of the error signals reversed")
@example(smallest)
@given(regressions())
def test_with_the_sign_of_the_errors_reversed_the_run_is_another_layer(case):
    W0, X, Y, x, eta = case
    W, E, X_seen = gradient_descent(W0, X, Y, eta)
    assert_differ(dual_form(W0, -E, X_seen, x), x @ W.T)


@pytest.mark.breaks(*RUN[:1], "the sign of the error signals reversed")
def test_with_the_sign_of_the_errors_reversed_the_smallest_difference_is_twice_the_step():
    W0, X, Y, x, eta = symbolic_regression()
    W, E, X_seen = gradient_descent(W0, X, Y, eta)
    difference = assert_refuted(dual_form(W0, -E, X_seen, x), x @ W.T)
    assert str(difference) == "2*W0_0*X0_0^2*eta*x0_0 - 2*X0_0*Y0_0*eta*x0_0"


@pytest.mark.breaks(*RUN[:1], "the errors of the first step again at the second")
@given(regressions())
def test_with_the_errors_of_the_first_step_in_both_steps_the_run_is_another_layer(case):
    W0, X, Y, x, eta = case
    _, E, _ = gradient_descent(W0, X, Y, eta)
    W, _, X_seen = gradient_descent(W0, X, Y, eta, 2)
    assert_differ(dual_form(W0, np.concatenate([E, E]), X_seen, x), x @ W.T)


@pytest.mark.breaks(*RUN[:1], "the errors of the first step again at the second")
def test_with_the_errors_of_the_first_step_in_both_steps_the_run_is_another_polynomial():
    W0, X, Y, x, eta = symbolic_regression()
    _, E, _ = gradient_descent(W0, X, Y, eta)
    W, _, X_seen = gradient_descent(W0, X, Y, eta, 2)
    assert_refuted(dual_form(W0, np.concatenate([E, E]), X_seen, x), x @ W.T)


# ---- The loss of a linear layer -----------------------------------------------------------------

def derivative(p, name):
    """∂p/∂name of a polynomial."""
    powers = ((dict(monomial), c) for monomial, c in p.terms.items())
    return Polynomial({frozenset((x, n - (x == name)) for x, n in m.items() if (x, n) != (name, 1)):
                       c * m[name] for m, c in powers if name in m})


def one_step(W0, X, Y, _, eta, divisor):
    """W after a step, and W₀ − η ∂L/∂W for L = Σ ‖W x_i − y_i‖² / divisor."""
    loss = ((X @ W0.T - Y) ** 2).sum() / divisor
    gradient = np.frompyfunc(lambda w: derivative(loss, str(w)), 1, 1)(W0)
    return gradient_descent(W0, X, Y, eta)[0], W0 - eta * gradient


@pytest.mark.proves("a step descends 1/(2n) Σ ‖Wx − y‖²", "von Oswald Eq 2-3")
def test_a_step_is_minus_eta_times_the_derivative_of_the_loss_by_every_weight():
    for shape in FEW:
        assert_proved(*one_step(*symbolic_regression(**shape), 2 * shape["n"]), **shape)


@pytest.mark.breaks("a step descends 1/(2n) Σ ‖Wx − y‖²", "the loss without the 1/n")
def test_the_derivative_of_the_sum_over_the_examples_is_another_step():
    assert_refuted(*one_step(*symbolic_regression(n=2), 2))


# ---- Potential functions ------------------------------------------------------------------------

def potential(case, phi, kernel, steps=1, gradient=mean_squared_gradient):
    """A sum of kernels, and the layer on the features φ(x) after a run from W₀ = 0."""
    _, X, Y, x, eta = case
    zero = 0 * np.multiply.outer(Y[0], phi(X)[0])
    W, E, _ = gradient_descent(zero, phi(X), Y, eta, steps, gradient)
    inputs = np.concatenate([X[:0], *[X] * steps])
    return kernel_prediction(E, inputs, x, kernel), phi(x) @ W.T


def squares(X):
    """φ(x) = (1, x, x, x ⊗ x), the features of the kernel (1 + x·x')²."""
    pairs = (X[..., :, None] * X[..., None, :]).reshape(*X.shape[:-1], X.shape[-1] ** 2)
    return np.concatenate([0 * X[..., :1] + 1, X, X, pairs], axis=-1)


def square_of_one_plus(a, b):
    return (1 + a @ b) ** 2


@pytest.mark.proves("Potential function", "Aizerman et al.")
@given(regressions(), st.integers(1, 2))
def test_gradient_descent_on_features_is_a_sum_of_kernels(case, steps):
    assert_exactly_equal(*potential(case, squares, square_of_one_plus, steps))


@pytest.mark.proves("Potential function", "Aizerman et al.")
def test_gradient_descent_on_any_features_is_a_sum_of_their_kernel_for_every_loss():
    phi, psi = unknown("phi"), unknown("psi")
    maps = {"any φ: ℝᵈ → ℝᵈ": (phi, lambda a, b: phi(a) @ phi(b)),
            "any φ: ℝᵈ → ℝ²ᵈ": (lambda x: np.concatenate([phi(x), psi(x)], axis=-1),
                               lambda a, b: phi(a) @ phi(b) + psi(a) @ psi(b)),
            "(1 + x·x')²": (squares, square_of_one_plus)}
    for shape in FEW:
        case = symbolic_regression(**shape)
        for name, (features, kernel) in maps.items():
            for steps in (1, 2):
                both = potential(case, features, kernel, steps, unknown_loss)
                assert_proved(*both, **shape, steps=steps, **{name: True})


def other_kernel(a, b):
    return 1 + a @ b + (a @ b) ** 2


@pytest.mark.breaks("Potential function", "a kernel of other features")
@example((*smallest[:2], *fractions([[[1]], [[1]]]), smallest[-1]))
@given(regressions())
def test_with_the_kernel_of_other_features_the_sum_is_another_function(case):
    assert_differ(*potential(case, squares, other_kernel))


@pytest.mark.breaks("Potential function", "a kernel of other features")
def test_with_the_kernel_of_other_features_the_smallest_difference_is_what_it_leaves_out():
    difference = assert_refuted(*potential(symbolic_regression(), squares, other_kernel))
    assert str(difference) == "- X0_0*Y0_0*eta*x0_0"


# ---- Dai et al. ---------------------------------------------------------------------------------

def demonstration_shapes(m, n, d, d_k, d_v):
    return dict(c=(m, d), x=(n, d), k=(d, d_k), v=(d, d_v), q=(d_k,))


@st.composite
def demonstrations(draw):
    """Demonstrations (m, d), query tokens (n, d), w_k (d, d_k), w_v (d, d_v), a query (d_k,)."""
    rng = draw(case_rngs)
    shape = demonstration_shapes(*(draw(sizes) for _ in range(5)))
    return tuple(uniform(rng, *s) for s in shape.values())


def symbolic_demonstrations(**shape):
    return [variables(name, *s) for name, s in demonstration_shapes(**shape).items()]


def relaxed_attention(context, x, w_k, w_v, q, normalized=False):
    """(W_ZSL + ΔW_ICL) q, and attention to [demonstrations; query tokens]."""
    both = np.concatenate([context, x])
    answer = (weight_update(x @ w_v, x @ w_k) + icl_weight_update(context, w_k, w_v)) @ q
    attention = lin_attn(both @ w_v, both @ w_k, q)
    if normalized:
        return answer / (x @ w_k @ q).sum(), attention / (both @ w_k @ q).sum()
    return answer, attention


@pytest.mark.proves("Demonstrations are a weight update", "Dai et al. §3")
@given(demonstrations())
def test_attention_to_demonstrations_and_query_tokens_is_zero_shot_weights_plus_an_update(case):
    assert_exactly_equal(*relaxed_attention(*case))


@pytest.mark.proves("Demonstrations are a weight update", "Dai et al. §3")
def test_all_demonstrations_are_a_weight_update_for_all_weights_and_queries():
    for shape in shapes(every(m=range(3), n=(1, 2), d=(1, 2), d_k=(1, 2), d_v=(1,))
                        + [dict(m=3, n=2, d=2, d_k=2, d_v=2)],
                        every(m=range(4), n=range(1, 4), d=(1, 2), d_k=(1, 2), d_v=(1, 2))):
        assert_proved(*relaxed_attention(*symbolic_demonstrations(**shape)), **shape)


@pytest.mark.breaks("Demonstrations are a weight update", "dividing by Σ q·k on both sides")
@example((*fractions([[[1]], [[2]], [[1]], [[1]]]), fractions([1])))
@given(demonstrations())
def test_with_a_normalizer_the_zero_shot_weights_and_the_update_do_not_add(case):
    assert_differ(*relaxed_attention(*case, normalized=True))


@pytest.mark.breaks("Demonstrations are a weight update", "dividing by Σ q·k on both sides")
def test_with_a_normalizer_the_update_leads_to_another_function():
    case = symbolic_demonstrations(m=1, n=1, d=1, d_k=1, d_v=1)
    assert_refuted(*relaxed_attention(*case, normalized=True))


# ---- One sum, three names -----------------------------------------------------------------------

def regression_tokens(case):
    """The tokens (x_i, y_i), and von Oswald's key and value weights as rows take them."""
    W0, X, Y, _, eta = case
    weights = gd_weights(W0, eta, len(X))
    tokens = np.concatenate([X, Y], axis=1)
    return tokens, weights.w_k.T[:, :X.shape[1]], weights.w_v.T[:, X.shape[1]:]


def three_names(case):
    """b_KV, by Theorem 4.1, 4.5 and its sum, Dai's ΔWᵀ, and −(n/η) times von Oswald's ΔWᵀ."""
    W0, X, Y, _, eta = case
    tokens, w_k, w_v = regression_tokens(case)
    step = gradient_descent(W0, X, Y, eta)[0] - W0
    b_kv = linear_bias(tokens, w_k, w_v, 0 * W0.T)
    return (attention_bias(tokens @ w_k, tokens @ w_v).kv, key_value_matrix(X, X @ W0.T - Y),
            icl_weight_update(tokens, w_k, w_v).T, -(len(X) / eta) * step.T), (b_kv,) * 4


def targets_as_values(case):
    """The sum with −y in the place of W₀ x − y, and −(n/η) times the step."""
    W0, X, Y, _, eta = case
    step = gradient_descent(W0, X, Y, eta)[0] - W0
    return key_value_matrix(X, -Y), -(len(X) / eta) * step.T


@pytest.mark.proves("One sum, three names", "ICLCA, Dai, von Oswald")
@given(regressions())
def test_b_kv_and_the_icl_weight_update_and_the_gradient_step_are_one_array(case):
    assert_exactly_equal(*three_names(case))


@pytest.mark.proves("One sum, three names", "ICLCA, Dai, von Oswald")
def test_b_kv_and_the_icl_weight_update_and_the_gradient_step_are_the_same_polynomials():
    for shape in FEW:
        assert_proved(*three_names(symbolic_regression(**shape)), **shape)


@pytest.mark.breaks("One sum, three names", "values −y, though W₀ ≠ 0")
@example(smallest)
@given(regressions())
def test_with_the_targets_as_values_the_sum_is_no_gradient_step(case):
    assert_differ(*targets_as_values(case))


@pytest.mark.breaks("One sum, three names", "values −y, though W₀ ≠ 0")
def test_with_the_targets_as_values_what_is_missing_is_w0_times_the_hessian():
    difference = assert_refuted(*targets_as_values(symbolic_regression()))
    assert str(difference) == "- W0_0*X0_0^2"


def converted_regression(case, start=1):
    """Attention from the converted context, beside start · W₀ x, and LSA; the stepped layer."""
    W0, X, Y, x, eta = case
    tokens, w_k, w_v = regression_tokens(case)
    bias = attention_bias(tokens @ w_k, tokens @ w_v)
    nothing = 0 * x, 0 * (x @ W0.T)       # the test inputs attend to the bias alone
    attention, _ = parallel_attention(x, *nothing, bias, normalize=False)
    query = np.concatenate([x, -x @ W0.T], axis=1)
    _, moved = lsa(tokens, query, gd_weights(W0, eta, len(X)))
    W, _, _ = gradient_descent(W0, X, Y, eta)
    from_bias = start * (x @ W0.T) - eta / len(X) * attention
    return (from_bias, -moved[:, X.shape[1]:]), (x @ W.T,) * 2


@pytest.mark.proves("Converting a regression context is a step", "Thm 4.1, 4.5, Prop 1")
@given(regressions())
def test_converting_a_regression_context_by_iclca_is_a_gradient_step(case):
    assert_exactly_equal(*converted_regression(case))


@pytest.mark.proves("Converting a regression context is a step", "Thm 4.1, 4.5, Prop 1")
def test_converting_any_regression_context_is_a_gradient_step_of_any_rate():
    for shape in FEW:
        assert_proved(*converted_regression(symbolic_regression(**shape)), **shape)


@pytest.mark.breaks("Converting a regression context is a step", "leaving out W₀ x")
@example(smallest)
@given(regressions())
def test_without_the_start_of_the_weights_the_converted_context_is_not_the_stepped_layer(case):
    assert_differ(*converted_regression(case, start=0))


@pytest.mark.breaks("Converting a regression context is a step", "leaving out W₀ x")
def test_without_the_start_of_the_weights_w0_x_is_missing():
    difference = assert_refuted(*converted_regression(symbolic_regression(), start=0))
    assert str(difference) == "- W0_0*x0_0"


# ---- Batches ------------------------------------------------------------------------------------

@given(rngs, sizes, sizes, sizes)
def test_each_entry_of_a_batch_is_the_function_of_its_parts(rng, n, d, d_v):
    tasks = 2, 3
    K, V, q, W0 = (uniform(rng, *tasks, *s) for s in ((n, d), (n, d_v), (2, d), (d_v, d)))
    w_k, w_v, one = uniform(rng, d, 2), uniform(rng, d, 1), q[0, 0, 0]
    results = [(lin_attn(V, K, q), lambda t: lin_attn(V[t], K[t], q[t])),
               (lin_attn(V, K, one), lambda t: lin_attn(V[t], K[t], q[0, 0, 0])),
               (lin_attn(V[0, 0], K[0, 0], q), lambda t: lin_attn(V[0, 0], K[0, 0], q[t])),
               (lin_attn(V[0], K[0], q), lambda t: lin_attn(V[0, t[1]], K[0, t[1]], q[t])),
               (dual_form(W0, V, K, q), lambda t: dual_form(W0[t], V[t], K[t], q[t])),
               (dual_form(W0, V, K, one), lambda t: dual_form(W0[t], V[t], K[t], q[0, 0, 0])),
               (dual_form(W0[0, 0], V, K, q), lambda t: dual_form(W0[0, 0], V[t], K[t], q[t])),
               (weight_update(V, K), lambda t: weight_update(V[t], K[t])),
               (icl_weight_update(K, w_k, w_v), lambda t: icl_weight_update(K[t], w_k, w_v))]
    for batch, part in results:
        for task in np.ndindex(tasks):
            assert_exactly_equal(batch[task], part(task))


@given(rngs, sizes, sizes, sizes)
def test_one_query_is_one_row(rng, n, d, d_v):
    W0, K, V, q = (uniform(rng, *s) for s in ((d_v, d), (n, d), (n, d_v), (5, d)))
    assert lin_attn(V, K, q[0]).shape == (d_v,)
    assert_exactly_equal(lin_attn(V, K, q[0]), lin_attn(V, K, q)[0])
    assert_exactly_equal(lin_attn(V, K, q[0]), sum(v * (k @ q[0]) for k, v in zip(K, V)))
    assert_exactly_equal(dual_form(W0, V, K, q[0]), dual_form(W0, V, K, q)[0])


@given(rngs, sizes, sizes, sizes)
def test_a_potential_function_takes_any_axes_one_output_or_several_and_any_kernel(rng, n, d, d_out):
    X, alpha, x = uniform(rng, n, d), uniform(rng, n, d_out), uniform(rng, 2, 3, d)

    def asymmetric(a, b):
        return a[0] * a[0] * b[-1] + a.sum()

    predicted = kernel_prediction(alpha, X, x, asymmetric)
    for place in np.ndindex(2, 3):
        expected = sum(a * asymmetric(x_i, x[place]) for a, x_i in zip(alpha, X))
        assert_exactly_equal(predicted[place], expected)
        assert_exactly_equal(kernel_prediction(alpha, X, x[place], asymmetric), expected)
    assert_exactly_equal(kernel_prediction(alpha[:, 0], X, x, asymmetric), predicted[..., 0])


def test_a_kernel_may_return_an_integer_first_and_a_fraction_of_one_later():
    X, x = np.array([[0.0], [1.0]]), np.array([1.0])
    predicted = kernel_prediction(np.array([1.0, 1.0]), X, x, lambda a, b: 0.7 if a @ b else 0)
    assert predicted == 0.7


# ---- Arithmetic and bad input -------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("eta", [0.1, np.float64(0.1), np.array(0.1), np.float32(0.1)])
def test_float_data_keep_their_type_whatever_the_type_of_the_rate(dtype, eta):
    rng = np.random.default_rng(0)
    shape = regression_shapes(4, 3, 2, 5).values()
    W0, X, Y, x = (rng.standard_normal(s).astype(dtype) for s in shape)
    W, E, seen = gradient_descent(W0, X, Y, eta, 3)
    results = [W, E, seen, dual_form(W0, E, seen, x), lin_attn(Y, X, x), weight_update(Y, X),
               icl_weight_update(X, X[:3], Y[:3]), mean_squared_gradient(Y, Y),
               kernel_prediction(Y, X, x, lambda a, b: a @ b)]
    assert {a.dtype for a in results} == {np.dtype(dtype)}


def test_no_step_leaves_the_weights_and_records_nothing_and_the_arguments_stay_as_they_are():
    W0, X, Y = (np.ones(s) for s in ((2, 3), (4, 3), (4, 2)))
    W, E, seen = gradient_descent(W0, X, Y, 0.1, 0)
    assert E.shape == (0, 2) and seen.shape == (0, 3) and W is not W0
    np.testing.assert_array_equal(W, W0)
    _, E, seen = gradient_descent(W0, X, Y, 0.1, 3)
    assert E.shape == (12, 2) and seen.shape == (12, 3)
    assert (W0 == 1).all() and (X == 1).all() and (Y == 1).all()


@pytest.mark.parametrize("call", [
    lambda a: lin_attn(a(3, 2), a(4, 2), a(2)),
    lambda a: lin_attn(a(3, 2), a(3, 2), a(3)),
    lambda a: lin_attn(a(1, 2), a(3, 2), a(2)),
    lambda a: lin_attn(a(2, 3, 2), a(2, 3, 2), a(5, 2)),
    lambda a: lin_attn(a(2, 3, 2), a(2, 3, 2), a(3, 5, 2)),
    lambda a: weight_update(a(3, 2), a(1, 2)),
    lambda a: dual_form(a(2, 2), a(3, 1), a(3, 2), a(2)),
    lambda a: dual_form(a(1, 2), a(3, 1), a(1, 2), a(2)),
    lambda a: mean_squared_gradient(a(3, 2), a(1, 2)),
    lambda a: gradient_descent(a(1, 2), a(3, 2), a(1, 1), 1),
    lambda a: gradient_descent(a(1, 2), a(3, 2), a(3), 1),
    lambda a: gradient_descent(a(1, 1), a(3, 2), a(3, 1), 1),
    lambda a: gradient_descent(a(1, 2), a(0, 2), a(0, 1), 1),
    lambda a: gradient_descent(a(2, 1, 2), a(2, 3, 2), a(2, 3, 1), 1),
    lambda a: gradient_descent(a(1, 2), a(3, 2), a(3, 1), 1, steps=-1),
    lambda a: kernel_prediction(a(3), a(2, 2), a(2), np.dot),
    lambda a: kernel_prediction(a(3), a(3, 2), a(3), np.dot),
    lambda a: kernel_prediction(a(2, 3), a(2, 3, 2), a(2), np.dot),
    lambda a: icl_weight_update(a(3, 2), a(3, 2), a(2, 2))])
def test_data_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError):
        call(lambda *shape: np.ones(shape))
