"""The dual form: a trained linear layer is attention to its data, attention is a weight update."""

from collections import namedtuple
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (arrays, assert_close, assert_exactly_equal, every, fractions, random_arrays,
                   rates, rngs, shapes, uniform)
from iclca_ref import (attention_bias, dual_form, gd_weights, gradient_descent, icl_weight_update,
                       kernel_prediction, key_value_matrix, lin_attn, linear_bias, lsa,
                       weight_update)
from linear_transformer import parallel_attention, softmax
from polynomials import derivative, unknown, variables
from theorem import broken, theorem

sizes = st.integers(1, 3)
DATA = dict(W="d_out d_in", X="n d_in", Y="n d_out", x="tests d_in")


class Regression(namedtuple("Regression", "W0 X Y x eta")):
    """Weights, training inputs, targets and test inputs of the shapes in DATA, a learning rate."""

    def trained(self, steps=1):   # W after so many steps
        return gradient_descent(self.W0, self.X, self.Y, self.eta, steps)[0]


def symbolic_regression(**shape):
    return Regression(*arrays(variables, DATA, **shape), variables("eta"))


def float_regression(rng, dtype):
    """From 20 to 100 examples, with sums that do not cancel."""
    return Regression(*arrays(lambda _, *shape: rng.uniform(1, 2, shape).astype(dtype), DATA,
                              n=int(rng.integers(20, 101)), d_in=5, d_out=3, tests=4), 1e-3)


def along(shapes, **sizes):
    """Each of the shapes with each of the further sizes."""
    return [shape | more for shape in shapes for more in every(**sizes)]


cases = st.builds(lambda data, eta: Regression(*data, eta), random_arrays(DATA), rates)
symbols = [symbolic_regression()]
# The smallest case: W₀ = 1, one example x = 1, y = 0, tested at x = 1, with rate 1.
smallest = Regression(*fractions([[[1]], [[1]], [[0]], [[1]]]), fractions(1))
mean_squared = lambda outputs, targets: (outputs - targets) / len(targets)     # its gradient
FEW = shapes(every(n=(1, 2), d_in=(1, 2), d_out=(1, 2)) + [dict(n=3, d_in=3, d_out=2, tests=2)],
             every(n=range(1, 4), d_in=(1, 2, 3), d_out=(1, 2, 3), tests=(1, 2)))


# ---- Review Eq 1 to 4 ---------------------------------------------------------------------------

@theorem("Dual form", "review Eq 1-4", cases, [dict(n=0, d_in=2, d_out=2, tests=1), *FEW],
         symbolic_regression)
def four_lines(case):
    """(W₀ + ΔW) x = W₀ x + (Σ e_i ⊗ x_i) x = W₀ x + Σ e_i (x_i·x) = W₀ x + LinAttn(E, X, x)."""
    W0, X, E, x, _ = case
    line_1 = x @ (W0 + weight_update(E, X)).T
    line_2 = x @ W0.T + x @ sum((np.multiply.outer(e, x_i) for e, x_i in zip(E, X)), 0 * W0).T
    line_3 = np.stack([sum((e * (x_i @ q) for e, x_i in zip(E, X)), W0 @ q) for q in x])
    line_4, one_input = (q @ W0.T + lin_attn(E, X, q) for q in (x, x[0]))
    together = line_2, line_3, line_4, dual_form(W0, E, X, x)
    return (*together, one_input, dual_form(W0, E, X, x[0])), (line_1,) * 4 + (line_1[0],) * 2

@broken(four_lines, "attention weights divided by their sum", cases, symbols,
        difference="- X0_0*Y0_0*x0_0 + Y0_0")     # a weight of 1 in the place of X x
def with_a_normalizer_it_is_not_the_trained_layer(case):
    W0, X, E, x, _ = case
    weights = x @ X.T
    return x @ W0.T + weights / weights.sum(axis=-1, keepdims=True) @ E, dual_form(W0, E, X, x)


@pytest.mark.breaks("Dual form", "softmax attention in its place")
@given(rngs, sizes)
def test_at_the_input_zero_softmax_gives_the_mean_error(rng, n):
    W0, X, E, zero = rng.random((2, 3)), rng.random((n, 3)), rng.random((n, 2)) + 1, np.zeros(3)
    assert_close(dual_form(W0, E, X, zero), np.zeros(2), ulps=0)
    assert_close(W0 @ zero + softmax(X @ zero) @ E, E.mean(axis=0), ulps=8)   # from 1 to 2


# ---- A step, and a whole run --------------------------------------------------------------------

def unknown_loss(F, Y):
    """The gradient at the outputs F of a loss that may be any function of all of F and Y."""
    return unknown("loss")(np.concatenate([F, Y], axis=None))[:F.size].reshape(F.shape)


def gradient_of(loss, W):
    """∂L/∂W, found mechanically."""
    return np.frompyfunc(lambda w: derivative(loss, str(w)), 1, 1)(W)


@theorem("a step is −η times ∂L/∂W", "von Oswald Eq 2-3", None, FEW, symbolic_regression)
def a_step(case, n=None):
    """W after a step  =  W₀ − η ∂L/∂W for L = 1/(2n) Σ_i ‖W x_i − y_i‖²."""
    loss = ((case.X @ case.W0.T - case.Y) ** 2).sum() / (2 * (n or len(case.X)))
    return case.trained(), case.W0 - case.eta * gradient_of(loss, case.W0)

@broken(a_step, "the loss without the 1/n", None, [symbolic_regression(n=2)])
def without_the_number_of_examples(case):
    return a_step(case, n=1)


@theorem("Dual form of a whole training run", "Irie; review Eq 4",
         st.tuples(cases, st.integers(0, 3)), along(FEW, steps=range(4)),
         lambda steps, **shape: (symbolic_regression(**shape), steps, unknown_loss),
         floats=lambda rng, dtype: (float_regression(rng, dtype), 9), ulps=64)
def whole_run(case, steps, gradient=mean_squared, recorded=lambda E: E):
    """Weights and dual form of a recorded run  =  the weights by ∂L/∂W = Σ_j ∂L/∂F(x_j) ⊗ x_j."""
    expected, X, Y, x, eta = case
    W, E, X_seen = gradient_descent(case.W0, X, Y, eta, steps, gradient)
    for _ in range(steps):
        errors = gradient(np.array([expected @ row for row in X]), Y)
        expected = expected - eta * sum(map(np.multiply.outer, errors, X))
    return (W, dual_form(case.W0, recorded(E), X_seen, x)), (expected, x @ expected.T)

@broken(whole_run, "the sign of the error signals reversed", cases, symbols, smallest,
        difference="2*W0_0*X0_0^2*eta*x0_0 - 2*X0_0*Y0_0*eta*x0_0")     # twice the step
def with_the_sign_of_the_errors_reversed(case):
    return whole_run(case, 1, recorded=lambda E: -E)

@broken(whole_run, "the errors of the first step again at the second", cases, symbols)
def with_the_errors_of_the_first_step_in_both_steps(case):
    return whole_run(case, 2, recorded=lambda E: np.tile(E[:len(E) // 2], (2, 1)))


# ---- Potential functions ------------------------------------------------------------------------

def squares(X):
    """φ(x) = (1, x, x, x ⊗ x), the features of the kernel (1 + x·x')²."""
    pairs = (X[..., :, None] * X[..., None, :]).reshape(*X.shape[:-1], X.shape[-1] ** 2)
    return np.concatenate([0 * X[..., :1] + 1, X, X, pairs], axis=-1)


def any_features(steps, width, **shape):
    """Every loss, and those features or, of so many times the width, every φ."""
    def phi(x):
        return np.concatenate([unknown(name)(x) for name in ("phi", "psi")[:width]], axis=-1)

    case = symbolic_regression(**shape), steps, unknown_loss
    return (*case, phi, lambda a, b: phi(a) @ phi(b)) if width else case


@theorem("Potential function", "Aizerman et al.", st.tuples(cases, st.integers(1, 2)),
         along(FEW, steps=(1, 2), width=range(3)), any_features)
def potential(case, steps=1, loss=mean_squared, phi=squares, kernel=lambda a, b: (1 + a @ b) ** 2):
    """A sum of kernels  =  the layer on the features φ(x) after a run from W₀ = 0."""
    _, X, Y, x, eta = case
    zero = 0 * np.multiply.outer(Y[0], phi(X)[0])
    W, E, _ = gradient_descent(zero, phi(X), Y, eta, steps, loss)
    return kernel_prediction(E, np.tile(X, (steps, 1)), x, kernel), phi(x) @ W.T

@broken(potential, "a kernel of other features", cases, symbols,
        smallest._replace(Y=fractions([[1]])), difference="- X0_0*Y0_0*eta*x0_0")
def with_the_kernel_of_other_features(case):
    return potential(case, kernel=lambda a, b: 1 + a @ b + (a @ b) ** 2)


# ---- Dai et al. ---------------------------------------------------------------------------------

# demonstrations, query tokens, w_k, w_v, a query
DEMONSTRATIONS = dict(c="m d", x="n d", k="d d_k", v="d d_v", q="d_k")
DAI = "Demonstrations are a weight update", "Dai et al. §3"
symbolic = partial(arrays, variables, DEMONSTRATIONS)


@theorem(*DAI, random_arrays(DEMONSTRATIONS), shapes(
    every(m=range(3), n=(1, 2), d=(1, 2), d_k=(1, 2)) + [dict(m=3, n=2, d=2, d_k=2, d_v=2)],
    every(m=range(4), n=range(1, 4), d=(1, 2), d_k=(1, 2), d_v=(1, 2))), symbolic)
def relaxed_attention(context, x, w_k, w_v, q):
    """(W_ZSL + ΔW_ICL) q  =  attention to [demonstrations; query tokens]."""
    tokens = np.concatenate([context, x])
    updated = weight_update(x @ w_v, x @ w_k) + icl_weight_update(context, w_k, w_v)
    return updated @ q, lin_attn(tokens @ w_v, tokens @ w_k, q)


@theorem(*DAI, None, every(m=(1, 2), n=[1], d=[2], d_k=(1, 2), d_v=(1, 2), step=[True]),
         lambda step, **shape: symbolic(**shape))
def the_update_is_a_step_of_rate_1(context, x, w_k, w_v, q):
    """On L = −Σ_i v_i·W k_i, whose error signals are the values, from any W."""
    K, V, W = context @ w_k, context @ w_v, variables("W", w_v.shape[1], w_k.shape[1])
    step, E, _ = gradient_descent(W, K, V, 1, gradient=lambda outputs, V: -V)
    expected = W - gradient_of(-(V * (K @ W.T)).sum(), W)
    return (step, W + icl_weight_update(context, w_k, w_v), E), (expected, expected, V)

@broken(relaxed_attention, "each side divided by its own Σ q·k",
        random_arrays(DEMONSTRATIONS), [symbolic()],
        (*fractions([[[1]], [[2]], [[1]], [[1]]]), fractions([1])))
def with_a_normalizer_the_weights_and_the_update_do_not_add(context, x, w_k, w_v, q):
    answer, attention = relaxed_attention(context, x, w_k, w_v, q)
    scores = np.concatenate([context, x]) @ w_k @ q
    return answer / scores[len(context):].sum(), attention / scores.sum()


# ---- One sum, three names -----------------------------------------------------------------------

def regression_tokens(case):
    """The tokens (x_i, y_i), and von Oswald's key and value weights as rows take them."""
    weights, d_in = gd_weights(case.W0, case.eta, len(case.X)), case.X.shape[1]
    return np.hstack([case.X, case.Y]), weights.w_k.T[:, :d_in], weights.w_v.T[:, d_in:]


@theorem("One sum, three names", "all three papers", cases, FEW, symbolic_regression)
def three_names(case):
    """b_KV by Theorem 4.1 and 4.5, Dai's ΔWᵀ, the sum itself, −(n/η) times von Oswald's ΔWᵀ."""
    W0, X, Y, _, eta = case
    tokens, w_k, w_v = regression_tokens(case)
    b_kv = linear_bias(tokens, w_k, w_v, 0 * W0.T)
    return (attention_bias(tokens @ w_k, tokens @ w_v).kv, icl_weight_update(tokens, w_k, w_v).T,
            key_value_matrix(X, X @ W0.T - Y), -len(X) / eta * (case.trained() - W0).T), (b_kv,) * 4

@broken(three_names, "values −y, though W₀ ≠ 0", cases, symbols, smallest,
        difference="- W0_0*X0_0^2")     # W₀ times the Hessian
def with_the_targets_as_values(case):
    W0, X, Y, _, eta = case
    return key_value_matrix(X, -Y), -(len(X) / eta) * (case.trained() - W0).T


@theorem("Converting a context is a step", "Thm 4.5, Prop 1", cases, FEW, symbolic_regression)
def converted_regression(case, start=1):
    """Attention of x to the converted context alone, beside W₀ x, and LSA  =  the stepped layer."""
    W0, X, _, x, eta = case
    tokens, w_k, w_v = regression_tokens(case)
    bias = attention_bias(tokens @ w_k, tokens @ w_v)
    attention, _ = parallel_attention(x, 0 * x, 0 * x @ W0.T, bias, normalize=False)
    _, moved = lsa(tokens, np.hstack([x, -x @ W0.T]), gd_weights(W0, eta, len(X)))
    from_bias = start * (x @ W0.T) - eta / len(X) * attention
    return (from_bias, -moved[:, X.shape[1]:]), (x @ case.trained().T,) * 2

@broken(converted_regression, "leaving out W₀ x", cases, symbols, smallest,
        difference="- W0_0*x0_0")
def without_the_start_of_the_weights(case):
    return converted_regression(case, start=0)


# ---- What the functions do with their arguments -------------------------------------------------

kernel = lambda a, b: (a[0] + a[1] * b[0] + b[1] * b[1]) * (a[1] + b[0] * b[1])  # not symmetric
attention, predict = lambda q, K, V: lin_attn(V, K, q), partial(kernel_prediction, kernel=kernel)
CASES = [
    case("lin_attn", attention, "q:rk K?:nk V?:nv"), case("one query", attention, "q!:k K:nk V:nv"),
    case("one context", attention, "q:rk K!:nk V!:nv"), case("update", weight_update, "E:no X:ni"),
    case("icl_weight_update", icl_weight_update, "context:nd w_k?:dk w_v?:dv"),
    case("dual_form", dual_form, "W0?:oi E:no X:ni x:ri"),
    case("dual_form, one input", dual_form, "W0?:oi E:no X:ni x!:i"),
    case("dual_form, one layer", dual_form, "W0!:oi E?:no X=:ni x:ri"),
    *[case(f"gradient_descent, {n} steps", partial(gradient_descent, eta=1, steps=n),
           "W0!:oi X!:hi Y!:ho", float) for n in (0, 1, 2)],
    case("potential", predict, "alpha!:ho X!:hi x:i"), case("rows", predict, "alpha!:h X!:hi x:ri")]
test_batches, test_types = batches(*CASES), types_and_layouts(*CASES)


def test_each_output_of_a_potential_function_has_its_own_weights():
    K, V, q = (uniform(np.random.default_rng(n), n, 2) for n in (3, 3, 5))
    expected = np.stack([sum(v * kernel(k, x) for k, v in zip(K, V)) for x in q])
    assert_exactly_equal([predict(V, K, q), predict(V[:, 1], K, q)], [expected, expected[:, 1]])
    for one in 0.75, fractions(0.75):     # a kernel may return whole numbers before others
        X = np.array([[0], [1]], type(one))
        assert kernel_prediction(X[:, 0], X, X[1], lambda x_i, _: one if x_i[0] else 0) == one


def test_numpys_promotion_decides_the_types_and_whole_numbers_are_not_cut():
    W0, X, Y = (np.ones(s, np.float32) for s in ((1, 2), (3, 2), (3, 1)))
    for eta, dtype in (0.125, np.float32), (1, np.float32), (np.float64(0.125), np.float64):
        assert [x.dtype for x in gradient_descent(W0, X, Y, eta)] == [dtype, dtype, np.float32]
    assert [x.shape for x in gradient_descent(W0, X, Y, 1, 0)] == [(1, 2), (0, 1), (0, 2)]
    _, X, Y = data = [np.arange(np.prod(s)).reshape(s) for s in ((2, 3), (4, 3), (4, 2))]
    expected = gradient_descent(*(x.astype(float) for x in data), 0.3, 2)
    for types in (int, int, int), (int, float, float), (np.float32, int, float), (float, int, int):
        run = gradient_descent(*map(np.ndarray.astype, data, types), 0.3, 2)
        assert_close(run[:2], expected[:2], ulps=64)
    np.testing.assert_array_equal(lin_attn(Y / 2, X, X.astype(np.float32)), X @ (X.T @ Y) / 2)


descend = partial(gradient_descent, eta=1.0)
test_mistakes = refused(
    *calls(attention, "q K V", "2 42 32", "2 34 32", "3 32 32", "2 32 12", "2 32 3", "52 232 232",
           "352 232 232", "4 234 134"),
    *calls(weight_update, "E X", "32 12", "42 13", "3 32", "232 32", "132 232"),
    *calls(icl_weight_update, "context w_k w_v", "32 32 22", "32 22 522", "32 522 22"),
    *calls(dual_form, "W0 E X _", "22 31 32 2", "14 36 34 4", "12 31 12 2", "212 31 32 2"),
    *calls(dual_form, "_ V K q", "64 236 234 24"),
    *calls(predict, "_ X _", "3 22 2", "2 222 2", "1 32 2", "3 32 3", "221 222 2"),
    *calls(descend, "W0 X Y", "12 32 11", "12 32 3", "11 32 31", "12 232 231"),
    *calls(descend, "_ X _", "12 02 01", "412 432 431"),
    ("steps = -1", lambda: descend(a(1, 2), a(3, 2), a(3, 1), steps=-1)),
    *[(words, lambda E=E: descend(a(2, 2), a(3, 2), a(3, 2), gradient=lambda F, Y: E))
      for E, words in [(a(3, 1), "dimension 1"), (a(1, 2), "E (1, 2), X (3, 2)")]],
    *[(f"X; {t}", lambda t=t: weight_update(a(3, 2), a(3, 2).astype(t)))
      for t in ("bool", "uint8", "float16")])
