"""The dual form: a trained linear layer is attention over its training data, and attention is a weight update."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exact import assert_close, assert_differ, assert_exactly_equal, fractions, rngs, uniform
from iclca_ref import (attention_bias, cosine, dual_form, gradient_descent, icl_weight_update, kernel_prediction,
                       key_value_matrix, lin_attn, linear_bias, rec_to_ftp, sim_am, sim_aou, weight_update)
from linear_transformer import gd_weights, lsa, parallel_attention, softmax

sizes, rates = st.integers(1, 3), st.fractions(-2, 2, max_denominator=9).filter(bool)


@st.composite
def regressions(draw, least=1, rates=rates):
    """W0 (d_out, d_in), X (n, d_in), Y (n, d_out), test inputs x (m, d_in), and a learning rate."""
    n, d_in, d_out, m, rng = draw(st.integers(least, 4)), draw(sizes), draw(sizes), draw(sizes), draw(rngs)
    return (uniform(rng, d_out, d_in), uniform(rng, n, d_in), uniform(rng, n, d_out), uniform(rng, m, d_in), draw(rates))


# The smallest case: W₀ = 1, one example x = 1, y = 0, tested at x = 1, with rate 1.
smallest = *fractions([[[1]], [[1]], [[0]], [[1]]]), Fraction(1)


# ---- Review Eq 1 to 4 -----------------------------------------------------------------------------------------------

@pytest.mark.proves("Dual form", "review Eq 1-4")
@given(regressions(least=0), rngs)
def test_each_line_of_the_dual_form_follows_from_the_one_before(case, rng):
    """F(x) = (W₀ + ΔW) x = W₀ x + (Σ e_i ⊗ x_i) x = W₀ x + Σ e_i (x_i·x) = W₀ x + LinAttn(E, X, x)."""
    W0, X, E, x, _ = case
    zero = 0 * W0
    line_1 = x @ (W0 + weight_update(E, X)).T
    line_2 = x @ W0.T + x @ sum((np.multiply.outer(e, x_i) for e, x_i in zip(E, X)), zero).T
    line_3 = x @ W0.T + np.stack([sum((e * (x_i @ q) for e, x_i in zip(E, X)), zero[:, 0]) for q in x])
    line_4 = x @ W0.T + lin_attn(E, X, x)
    assert_exactly_equal((line_2, line_3, line_4, dual_form(W0, E, X, x)), (line_1,) * 4)
    assert_exactly_equal(dual_form(W0, E, X, x[0]), line_1[0])


@given(rngs, sizes, sizes, sizes)
def test_the_dual_form_of_a_batch_is_that_of_its_rows(rng, n, d_in, d_out):
    W0, E, X, x = uniform(rng, d_out, d_in), uniform(rng, 2, n, d_out), uniform(rng, 2, n, d_in), uniform(rng, 2, 5, d_in)
    for task in range(2):
        assert_exactly_equal(lin_attn(E, X, x)[task], lin_attn(E[task], X[task], x[task]))
        assert_exactly_equal(dual_form(W0, E, X, x)[task], dual_form(W0, E[task], X[task], x[task]))


@pytest.mark.breaks("Dual form", "linear attention (softmax in its place)")
@given(rngs, sizes)
def test_softmax_attention_over_the_training_data_is_not_the_trained_layer(rng, n):
    W0, X, E, x = rng.standard_normal((2, 3)), rng.standard_normal((n, 3)), rng.standard_normal((n, 2)), np.ones(3)
    assert_close(dual_form(W0, E, X, x), (W0 + weight_update(E, X)) @ x, ulps=64)
    assert abs(W0 @ x + softmax(X @ x) @ E - dual_form(W0, E, X, x)).max() > 1e-6


def independent_descent(W, X, Y, eta, steps):
    """Gradient descent on 1/(2n) Σ ‖W x − y‖², entry by entry."""
    for _ in range(steps):
        gradient = 0 * W
        for x, y in zip(X, Y):
            for o in range(W.shape[0]):
                for i in range(W.shape[1]):
                    gradient[o, i] += (sum(W[o, j] * x[j] for j in range(len(x))) - y[o]) * x[i] * Fraction(1, len(X))
        W = W - eta * gradient
    return W


@pytest.mark.proves("Dual form of a whole training run", "Irie et al.; review Eq 4")
@given(regressions(), st.integers(0, 3))
def test_a_layer_after_any_number_of_steps_is_attention_over_all_inputs_it_saw(case, steps):
    W0, X, Y, x, eta = case
    W, E, X_seen = gradient_descent(W0, X, Y, eta, steps)
    assert_exactly_equal(W, independent_descent(W0, X, Y, eta, steps))
    assert_exactly_equal(dual_form(W0, E, X_seen, x), x @ W.T)
    assert E.shape == (steps * len(X), len(W0)) and X_seen.shape == (steps * len(X), X.shape[1])


@pytest.mark.breaks("Dual form of a whole training run", "the sign of the error signals")
@example(smallest)
@given(regressions())
def test_with_the_sign_of_the_errors_reversed_the_run_is_another_layer(case):
    W0, X, Y, x, eta = case
    W, E, X_seen = gradient_descent(W0, X, Y, eta)
    assert_differ(dual_form(W0, -E, X_seen, x), x @ W.T)


@pytest.mark.proves("Dual form of a whole training run", "Irie et al.; review Eq 4")
@given(regressions(), st.integers(0, 2))
def test_the_dual_form_holds_for_any_loss(case, steps):
    """Here Σ ‖F(x) − y‖⁴ / 4, whose gradient with respect to an output is ‖F(x) − y‖² (F(x) − y)."""
    def quartic_gradient(outputs, targets):
        r = outputs - targets
        return (r * r).sum(axis=-1, keepdims=True) * r

    W0, X, Y, x, eta = case
    W, E, X_seen = gradient_descent(W0, X, Y, eta, steps, quartic_gradient)
    assert_exactly_equal(dual_form(W0, E, X_seen, x), x @ W.T)
    if steps == 1:
        assert_exactly_equal(W, W0 - eta * quartic_gradient(X @ W0.T, Y).T @ X)


def squares(X):
    """φ(x) = (1, x, x ⊗ x): the finite features of the kernel 1 + x·x' + (x·x')²."""
    pairs = (X[..., :, None] * X[..., None, :]).reshape(*X.shape[:-1], X.shape[-1] ** 2)
    return np.concatenate([0 * X[..., :1] + 1, X, pairs], axis=-1)


def polynomial(a, b):
    return 1 + a @ b + (a @ b) ** 2


@pytest.mark.proves("Potential function", "Aizerman et al.")
@given(regressions(), st.integers(0, 2))
def test_gradient_descent_on_features_is_a_sum_of_kernels(case, steps):
    W0, X, Y, x, eta = case
    W, E, seen = gradient_descent(uniform(np.random.default_rng(0), len(W0), squares(X).shape[1]) * 0, squares(X), Y,
                                  eta, steps)
    inputs = np.concatenate([X[:0], *[X] * steps])
    assert_exactly_equal(kernel_prediction(E, inputs, x, polynomial) + 0 * Y[0], squares(x) @ W.T)
    if steps:
        assert_exactly_equal(kernel_prediction(E[:, 0], inputs, x[0], polynomial), (squares(x) @ W.T)[0, 0])


@pytest.mark.breaks("Potential function", "k(x, x') = φ(x)·φ(x') (another kernel)")
@example(smallest)
@given(regressions())
def test_with_the_kernel_of_other_features_the_sum_is_another_function(case):
    W0, X, Y, x, eta = case
    W, E, _ = gradient_descent(fractions(np.zeros((len(W0), squares(X).shape[1]), int)), squares(X), Y + 1, eta)
    assert_differ(kernel_prediction(E, X, x, lambda a, b: 1 + (a @ b) ** 2), squares(x) @ W.T)


# ---- Dai et al. -----------------------------------------------------------------------------------------------------

@st.composite
def demonstrations(draw):
    """Demonstrations (m, d), query tokens (n, d), w_k (d, d_k), w_v (d, d_v), a query (d_k,)."""
    d, d_k, d_v, rng = draw(sizes), draw(sizes), draw(sizes), draw(rngs)
    shapes = (draw(sizes), d), (draw(sizes), d), (d, d_k), (d, d_v), (d_k,)
    return tuple(uniform(rng, *shape) for shape in shapes)


@pytest.mark.proves("Demonstrations are a weight update", "Dai et al. §3")
@given(demonstrations())
def test_relaxed_attention_over_demonstrations_and_query_tokens_is_zero_shot_weights_plus_an_update(case):
    context, x, w_k, w_v, q = case
    both = np.concatenate([context, x])
    w_zsl = (x @ w_v).T @ (x @ w_k)
    assert_exactly_equal((w_zsl + icl_weight_update(context, w_k, w_v)) @ q, lin_attn(both @ w_v, both @ w_k, q))


@pytest.mark.breaks("Demonstrations are a weight update", "attention without a normalizer (normalized attention)")
@example((*fractions([[[1]], [[2]], [[1]], [[1]]]), fractions([1])))
@given(demonstrations())
def test_with_a_normalizer_the_zero_shot_weights_and_the_update_do_not_add(case):
    context, x, w_k, w_v, q = case
    k, v = np.concatenate([context, x]) @ w_k, np.concatenate([context, x]) @ w_v
    w_zsl = (x @ w_v).T @ (x @ w_k)
    assert_differ((w_zsl + icl_weight_update(context, w_k, w_v)) @ q / (x @ w_k @ q).sum(),
                  lin_attn(v, k, q) / (k @ q).sum())


# ---- One sum, three names -------------------------------------------------------------------------------------------

def regression_tokens(case):
    """The tokens (x_i, y_i), and von Oswald's key and value weights as rows are multiplied with them, w_k and w_v."""
    W0, X, Y, x, eta = case
    weights = gd_weights(W0, eta, len(X))
    return np.concatenate([X, Y], axis=1), weights.w_k.T[:, :X.shape[1]], weights.w_v.T[:, X.shape[1]:]


@pytest.mark.proves("One sum, three names", "ICLCA, Dai, von Oswald")
@given(regressions())
def test_b_kv_and_the_icl_weight_update_and_the_gradient_step_are_one_array(case):
    W0, X, Y, x, eta = case
    n, (tokens, w_k, w_v) = len(X), regression_tokens(case)
    b_kv = linear_bias(tokens, w_k, w_v, 0 * W0.T)
    step = gradient_descent(W0, X, Y, eta)[0] - W0
    assert_exactly_equal(b_kv, key_value_matrix(X, X @ W0.T - Y))
    assert_exactly_equal(b_kv, attention_bias(tokens @ w_k, tokens @ w_v).kv)
    assert_exactly_equal(b_kv, icl_weight_update(tokens, w_k, w_v).T)
    assert_exactly_equal(b_kv, -(n / eta) * step.T)


@pytest.mark.breaks("One sum, three names", "the values W₀ x − y (y itself, with W₀ ≠ 0)")
@example(smallest)
@given(regressions())
def test_with_the_targets_as_values_the_sum_is_no_gradient_step(case):
    W0, X, Y, x, eta = case
    assert_differ(key_value_matrix(X, -Y), -(len(X) / eta) * (gradient_descent(W0, X, Y, eta)[0] - W0).T)


@pytest.mark.proves("Converting a regression context is a step", "Thm 4.1, 4.5, Prop 1")
@given(regressions())
def test_converting_a_regression_context_by_iclca_is_a_gradient_step(case):
    """Attention from the bias that ICLCA makes of the context answers as the layer that took the step, and as the LSA."""
    W0, X, Y, x, eta = case
    tokens, w_k, w_v = regression_tokens(case)
    bias = attention_bias(tokens @ w_k, tokens @ w_v)
    W, _, _ = gradient_descent(W0, X, Y, eta)
    for x_test in x[:, None]:
        nothing = 0 * x_test, 0 * bias.kv[:1]     # the test input attends to the bias alone
        answer, _ = parallel_attention(x_test, *nothing, bias, normalize=False)
        assert_exactly_equal(x_test @ W0.T - eta / len(X) * answer, x_test @ W.T)
        query = np.concatenate([x_test, -x_test @ W0.T], axis=1)
        _, moved = lsa(tokens, query, gd_weights(W0, eta, len(X)))
        assert_exactly_equal(-moved[:, X.shape[1]:], x_test @ W.T)


@pytest.mark.breaks("Converting a regression context is a step", "W₀ x beside the attention (the attention alone)")
@example(smallest)
@given(regressions().filter(lambda case: case[0].any()))
def test_without_the_start_of_the_weights_the_converted_context_is_not_the_stepped_layer(case):
    W0, X, Y, x, eta = case
    tokens, w_k, w_v = regression_tokens(case)
    b_kv = attention_bias(tokens @ w_k, tokens @ w_v).kv
    assert_differ(-eta / len(X) * (x @ b_kv), x @ gradient_descent(W0, X, Y, eta)[0].T)


# ---- Dai et al.'s measures ------------------------------------------------------------------------------------------

def test_the_three_measures_take_their_known_values():
    zero_shot = np.array([[[1.0, 0.0]], [[2.0, 0.0]]])              # two examples, one layer, width 2
    icl, tuned = np.array([[[0.0, 3.0]], [[0.0, 5.0]]]), np.array([[[0.0, 1.0]], [[0.0, -1.0]]])
    # updates (−1, 1) and (−1, ±1): cosines 1 and 0
    assert sim_aou(icl, tuned, zero_shot) == pytest.approx(0.5)
    assert sim_aou(icl, icl, zero_shot) == pytest.approx(1)
    weights = np.array([[[[1.0, 0.0]], [[3.0, 4.0]]]])              # one example, two layers, one head, two tokens
    assert sim_am(weights, np.array([[[[0.0, 2.0]], [[6.0, 8.0]]]])) == pytest.approx(0.5)
    yes, no = True, False
    assert rec_to_ftp(np.array([yes, no, yes, yes]), np.array([yes, yes, yes, no]), np.array([no, no, yes, no])) == 0.5


def test_the_measures_do_not_depend_on_the_scale_and_keep_float32():
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 4, 2, 5)).astype(np.float32)
    assert sim_aou(a, b, c).dtype == np.float32
    assert sim_aou(7 * a, b, c / 3) == pytest.approx(sim_aou(a, b, c), rel=1e-5)
    assert sim_am(a, -2 * a) == pytest.approx(-1)


def test_the_measures_refuse_zero_vectors_and_nothing_corrected_and_shapes_that_differ():
    one, zero = np.ones((1, 1, 2)), np.zeros((1, 1, 2))
    for arguments in (zero, one, one), (one, one, one), (one, one, one[..., :1]), (one[:0],) * 3:
        with pytest.raises(ValueError):
            sim_aou(*arguments)
    for arguments in (zero, one), (one, one[..., :1]), (one[:, :0], one[:, :0]):
        with pytest.raises(ValueError):
            sim_am(*arguments)
    yes = np.array([True])
    with pytest.raises(ValueError, match="corrects none"):
        rec_to_ftp(yes, yes, yes)
    for arguments in (yes, yes, ~np.array([True, True])), (yes[:0], yes, ~yes):
        with pytest.raises(ValueError, match="one shape"):
            rec_to_ftp(*arguments)


# ---- Arithmetic and bad input ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_data_keep_their_type(dtype):
    rng = np.random.default_rng(0)
    W0, X, Y, x = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 3), (4, 3), (4, 2), (5, 3)))
    W, E, seen = gradient_descent(W0, X, Y, 0.1, 3)
    results = [W, E, seen, dual_form(W0, E, seen, x), lin_attn(Y, X, x), weight_update(Y, X), *gd_weights(W0, 0.1, 4),
               icl_weight_update(X, X[:3], Y[:3]), kernel_prediction(Y, X, x, lambda a, b: a @ b), cosine(X, X)]
    assert {a.dtype for a in results} == {np.dtype(dtype)}
    assert_close(dual_form(W0, E, seen, x), x @ W.T, ulps=64)


@pytest.mark.parametrize("call", [
    lambda a: lin_attn(a(3, 2), a(4, 2), a(2)), lambda a: lin_attn(a(3, 2), a(3, 2), a(3)),
    lambda a: lin_attn(a(1, 2), a(3, 2), a(2)), lambda a: weight_update(a(3, 2), a(1, 2)),
    lambda a: dual_form(a(2, 2), a(3, 1), a(3, 2), a(2)), lambda a: dual_form(a(1, 2), a(3, 1), a(1, 2), a(2)),
    lambda a: gradient_descent(a(1, 2), a(3, 2), a(1, 1), 1), lambda a: gradient_descent(a(1, 2), a(3, 2), a(3), 1),
    lambda a: gradient_descent(a(1, 1), a(3, 2), a(3, 1), 1), lambda a: gradient_descent(a(1, 2), a(0, 2), a(0, 1), 1),
    lambda a: gradient_descent(a(1, 2), a(3, 2), a(3, 1), 1, steps=-1),
    lambda a: kernel_prediction(a(3), a(2, 2), a(2), np.dot), lambda a: kernel_prediction(a(3), a(3, 2), a(3), np.dot),
    lambda a: icl_weight_update(a(3, 2), a(3, 2), a(2, 2)), lambda a: cosine(a(3, 2), a(1, 2))])
def test_data_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError):
        call(lambda *shape: np.ones(shape))
