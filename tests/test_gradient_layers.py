"""Von Oswald et al.: linear self-attention layers, written by hand, that descend a gradient."""

from functools import partial, reduce

import numpy as np
from hypothesis import strategies as st

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (assert_exactly_equal, every, fractions, rates, rngs, shapes, square_plus_one,
                   uniform)
from iclca_ref import (LSA, alternating_tokens, gd_plus_plus_weights, gd_weights, kernel_prediction,
                       lsa, pairing_weights)
from polynomials import unknown, variables
from test_dual_form import (FEW, along, cases, float_regression, sizes, smallest,
                            symbolic_regression, symbols)
from theorem import broken, theorem

PROP_1 = "Prop 1: one layer is one step", "Prop 1, Eq 4, 8"
PROP_2 = "Prop 2: an MLP, kernel regression", "Prop 2, App A.8"
SMALL = every(n=(1, 2), d_in=(1, 2), d_out=[1])
one, gamma_symbol = fractions(1), variables("gamma")
unit = lambda n: fractions(np.eye(n, dtype=int))
from_zero = lambda case: case._replace(W0=0 * case.W0)
fits = lambda case: case._replace(Y=case.X @ case.W0.T)     # with targets that W₀ fits already
step_layer = lambda case: gd_weights(case.W0, case.eta, len(case.X))
with_gamma = lambda **shape: (symbolic_regression(**shape), gamma_symbol)
with_rates = st.tuples(cases, rates)
two_inputs = st.tuples(rngs.map(lambda rng: uniform(rng, 2, low=1)), rates)


def tokens_of(W0, X, Y, x, eta=None):
    """The context tokens (x_i, y_i) and the query tokens (x, −W₀ x)."""
    return np.hstack([X, Y]), np.hstack([x, -x @ W0.T])


def through(layers, *tokens):
    """Context and query tokens after layers of the given weights."""
    return reduce(lambda tokens, weights: lsa(*tokens, weights), layers, tokens)


def predicted(case, layers):
    """Minus the y-part of the query tokens after the layers."""
    return -through(layers, *tokens_of(*case))[1][:, case.X.shape[1]:]


# ---- Proposition 1, and K layers ----------------------------------------------------------------

@theorem(*PROP_1, cases, FEW, symbolic_regression)
def proposition_1(case, layers=1):
    """All tokens after so many layers  =  after so many steps, taken on the targets (Eq 4)."""
    W0, X, Y, x, _ = case
    W = case.trained(layers)
    expected = np.hstack([X, Y - X @ (W - W0).T]), np.hstack([x, -x @ W.T])
    return through([step_layer(case)] * layers, *tokens_of(*case)), expected

@broken(proposition_1, "the query among the keys, though W₀ ≠ 0", cases, symbols, smallest,
        difference="- 2*W0_0*eta*x0_0^3")     # its own value is added, twice W₀ x
def query_among_the_keys(case):
    """The prediction with one query token among the keys and values, and the stepped layer's."""
    context, query = tokens_of(*case._replace(x=case.x[:1]))
    _, moved = lsa(np.concatenate([context, query]), query, step_layer(case))
    return -moved[:, case.X.shape[1]:], case.x[:1] @ case.trained().T


@theorem(*PROP_1, cases, along(FEW, key=[True]), lambda key, **shape: symbolic_regression(**shape))
def from_zero_the_query_may_be_among_the_keys(case):
    return query_among_the_keys(from_zero(case))

@broken(proposition_1, "the sign of P reversed", cases, symbols, smallest,
        difference="2*W0_0*X0_0^2*eta*x0_0 - 2*X0_0*Y0_0*eta*x0_0")     # twice the step: it climbs
def climbing(case):
    layer = step_layer(case)
    return predicted(case, [layer._replace(p=-layer.p)]), case.x @ case.trained().T


@theorem("K layers are K steps", "von Oswald §3", st.tuples(cases, st.integers(0, 3)),
         along(SMALL + [dict(n=2, d_in=2, d_out=2, tests=2)], layers=(2, 3)),
         lambda layers, **shape: (symbolic_regression(**shape), layers),
         floats=lambda rng, dtype: (float_regression(rng, dtype), 9), ulps=64)
def k_layers(case, layers):
    return proposition_1(case, layers)

@broken(k_layers, "the second layer built from the stepped weights", cases, symbols, smallest)
def with_a_second_layer_built_from_the_stepped_weights(case):
    layers = [step_layer(case), step_layer(case._replace(W0=case.trained()))]
    return predicted(case, layers), case.x @ case.trained(2).T


# ---- GD++: one layer ----------------------------------------------------------------------------

@theorem("GD++ moves the inputs", "App A.10, Eq 23", with_rates, FEW, with_gamma)
def moved_inputs(case, gamma, sign=1):
    """One GD++ layer: inputs times I − γ Σ x_i x_iᵀ, and the step."""
    W0, X, Y, x, eta = case
    move, W = unit(X.shape[1]) - gamma * X.T @ X, case.trained()
    expected = np.hstack([X @ move, Y - X @ (W - W0).T]), np.hstack([x @ move, -x @ W.T])
    return lsa(*tokens_of(*case), gd_plus_plus_weights(W0, eta, sign * gamma, len(X))), expected

@broken(moved_inputs, "the sign of γ reversed", with_rates, [with_gamma()],
        (smallest, one), difference="2*X0_0^3*gamma")     # twice the move away
def moved_the_other_way(case, gamma):
    return moved_inputs(case, gamma, sign=-1)


@theorem("GD++: λ becomes λ (1 − γλ)²", "App A.10", with_rates,
         SMALL + every(n=(2, 3), d_in=[3]), with_gamma)
def hessian(case, gamma, layer=gd_plus_plus_weights):
    """H = Σ x_i x_iᵀ after a layer  =  H (I − γH)²."""
    W0, X, _, _, eta = case
    context, _ = lsa(*tokens_of(*case), layer(W0, eta, gamma, len(X)))
    X_new, H = context[:, :X.shape[1]], X.T @ X
    move = unit(len(H)) - gamma * H
    return X_new.T @ X_new, H @ move @ move

@broken(hessian, "0 for I in the upper left of W_V, as in Prop 1", with_rates,
        [with_gamma()], (smallest, one), difference="2*X0_0^4*gamma - X0_0^6*gamma^2")
def hessian_without_the_upper_left(case, gamma):
    w_v = step_layer(case).w_v
    return hessian(case, gamma, lambda *how: gd_plus_plus_weights(*how)._replace(w_v=w_v))


@theorem("GD++: the condition number falls", "App A.10", two_inputs, [dict(eigenvalues=2)],
         lambda eigenvalues: (variables("a", eigenvalues), gamma_symbol))
def condition_number(roots, gamma, sign=1):
    """λ/μ − λ'/μ', times μ μ', and λ' − μ' in factors, for the inputs √λ e_1 and √μ e_2.

    If λ > μ > 0 and 0 < γ ≤ 1/(3λ) all factors are positive: 1 < λ'/μ' < λ/μ.
    """
    X, zero = unit(2) * roots, 0 * unit(2)
    moved, _ = lsa(*tokens_of(zero, X, zero, X), gd_plus_plus_weights(zero, one, sign * gamma, 2))
    (l, m), (l_moved, m_moved) = roots ** 2, np.diag(moved[:, :2].T @ moved[:, :2])
    falls, stays = 2 - gamma * (l + m), (1 - gamma * (l + m)) ** 2 - gamma ** 2 * l * m
    return ((l * m_moved - m * l_moved, l_moved - m_moved),
            (l * m * gamma * (l - m) * falls, (l - m) * stays))

@broken(condition_number, "the sign of γ reversed: it grows", two_inputs,
        [(variables("a", 2), gamma_symbol)], (fractions([2, 1]), one),
        difference="4*a0^2*a1^4*gamma - 4*a0^4*a1^2*gamma")     # −4 λ μ (λ − μ) γ
def condition_number_grows(roots, gamma):
    return condition_number(roots, gamma, sign=-1)


# ---- GD++: several layers -----------------------------------------------------------------------

def preconditioned(case, gamma, steps):
    """W ← W − (η/n) Σ (W x_i − y_i) x_iᵀ M², with M the product of the moves made so far.

    The errors are those at the inputs themselves, and M²: inputs and test input have both moved.
    """
    W, X, M = case.W0, case.X, unit(case.X.shape[1])
    for _ in range(steps):
        W = W + (case._replace(W0=W).trained() - W) @ M @ M
        M = M @ (unit(len(M)) - gamma * (X @ M).T @ (X @ M))
    return W


def stacked(case, gamma, layers):
    """What stacked GD++ layers predict, and the layer after preconditioned gradient descent."""
    layer = gd_plus_plus_weights(case.W0, case.eta, gamma, len(case.X))
    return predicted(case, [layer] * layers), case.x @ preconditioned(case, gamma, layers).T


def on_residuals(case, gamma, layers):
    """The same from W₀ ≠ 0 with layers for W₀ = 0, on tokens (x_i, y_i − W₀ x_i): W₀ x is added."""
    W0, X, Y, x, _ = case
    rest, _ = stacked(from_zero(case._replace(Y=Y - X @ W0.T)), gamma, layers)
    return x @ W0.T + rest, x @ preconditioned(case, gamma, layers).T


@theorem("GD++ layers precondition, W₀ = 0", "App A.10", st.tuples(cases, rates, st.integers(0, 3)),
         along(shapes(SMALL, every(n=(1, 2), d_in=(1, 2), d_out=(1, 2))), layers=range(3))
         + every(n=shapes([1], [1, 2]), layers=[3]),
         lambda layers, **shape: (*with_gamma(**shape), layers))
def stacked_layers(case, gamma, layers):
    """From W₀ = 0, or on residuals."""
    return tuple(zip(stacked(from_zero(case), gamma, layers), on_residuals(case, gamma, layers)))

@broken(stacked_layers, "two layers with W₀ ≠ 0, and tokens (x, −W₀ x)", with_rates,
        [with_gamma(), (fits(symbolic_regression(n=2, d_in=2)), gamma_symbol)], (smallest, one / 2))
def two_layers_from_other_weights(case, gamma):
    return stacked(case, gamma, 2)


def test_the_second_layer_compares_w0_times_the_moved_inputs():
    """It takes W₀ x'_i for W₀ x_i in the error, x' = (1 − γX²) x: so much is missing, exactly."""
    case, gamma = with_gamma()
    W0, X, _, x, eta = case
    move = 1 - gamma * X * X
    missing = eta * W0 * (X - move * X) * (move * X) * (move * x)
    for layers, of_it in (1, 0), (2, 1):     # the first layer has nothing moved before it
        found, expected = stacked(case, gamma, layers)
        assert (found - expected == of_it * missing).all()


def test_layers_from_other_weights_rest_at_a_wrong_answer():
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.standard_normal((6, 3)))[0] * [1.0, 0.9, 0.8]
    W0, W_true = rng.standard_normal((2, 2, 3))
    case = smallest._replace(W0=W0, X=X, Y=X @ W_true.T, x=X, eta=6.0)      # η/n = 1
    errors = [abs(found - case.Y).max() for found, _ in (
        stacked(case, 0.1, 40), stacked(case, 0.1, 80),
        stacked(from_zero(case), 0.1, 40), on_residuals(case, 0.1, 40))]
    assert min(errors[:2]) > 0.3 and max(errors[2:]) < 1e-4


# ---- Proposition 2 ------------------------------------------------------------------------------

@st.composite
def after_mlps(draw, *more):
    """A Regression with W₀ for the outputs of an MLP m, m, and more that is drawn."""
    case, rng, width = draw(cases), draw(rngs), draw(sizes)
    w_1, w_2 = uniform(rng, case.X.shape[1], 2), uniform(rng, 2, width)
    case = case._replace(W0=uniform(rng, case.Y.shape[1], width))
    return case, lambda x: square_plus_one(x @ w_1) @ w_2, *map(draw, more)


def after_any_mlp(width, layers=None, from_zero=False, **shape):
    """Any m: ℝᵈ → ℝᵈ, or to twice the width."""
    def m(x):
        return np.concatenate([unknown(name)(x) for name in "mn"[:width]], axis=-1)

    case = symbolic_regression(**shape)
    case = case._replace(W0=variables("V", len(case.W0), width * case.X.shape[1]))
    return (case, m, layers) if layers else (case, m)


@theorem(*PROP_2, after_mlps(st.integers(1, 2)), along(FEW, layers=[1], width=(1, 2))
         + along(SMALL, layers=[2], width=(1, 2)), after_any_mlp)
def proposition_2(case, m, layers):
    """Layers on (m(x), y) descend kernel least squares, 1/(2n) Σ ‖W m(x_i) − y_i‖²."""
    return proposition_1(case._replace(X=m(case.X), x=m(case.x)), layers)


@theorem(*PROP_2, after_mlps(), along(FEW, from_zero=[True], width=(1, 2)), after_any_mlp)
def one_step_is_a_sum_of_kernels(case, m, rate=None):
    """From W₀ = 0 one step predicts (η/n) Σ y_i k(x_i, x), with k(x, x') = m(x)·m(x')."""
    _, X, Y, x, eta = case
    on_features = from_zero(case)._replace(X=m(X), x=m(x))
    kernels = kernel_prediction(Y, X, x, lambda a, b: m(a) @ m(b))
    return predicted(on_features, [step_layer(on_features)]), (rate or eta / len(X)) * kernels

@broken(one_step_is_a_sum_of_kernels, "leaving out η/N, as the paper's Eq 13 prints it",
        after_mlps(), [after_any_mlp(width=1)],
        (smallest._replace(Y=one + smallest.Y, eta=one / 2), square_plus_one),
        difference="Y0_0*eta*m(X0_0)*m(x0_0) - Y0_0*m(X0_0)*m(x0_0)")
def without_eta_over_n(case, m):
    return one_step_is_a_sum_of_kernels(case, m, rate=1)


# ---- Proposition 3 ------------------------------------------------------------------------------

@theorem("Prop 3: x and y in separate tokens", "Prop 3, App A.5",
         st.tuples(cases, st.integers(0, 2)), along(FEW, layers=(0, 1)) + along(SMALL, layers=[2]),
         lambda layers, **shape: (symbolic_regression(**shape), layers))
def proposition_3(case, layers, first=lambda weights: weights):
    """The whole tokens after a pairing layer and descending ones, nothing cut off.

    In come x_1, y_1, x_2, ... with their positions, and query tokens (x, −W₀ x) with none.
    """
    W0, X, Y, x, _ = case
    n, d_in, d_out = len(X), X.shape[1], Y.shape[1]
    tokens, nowhere = alternating_tokens(X, Y), np.zeros((len(x), 2 * n), int).astype(object)
    pairing, (*weights, p) = pairing_weights(d_in, d_out, n, object), step_layer(case)
    step = LSA(*(np.pad(w, ((0, 0), (0, 2 * n))) for w in weights), np.pad(p, ((0, 2 * n), (0, 0))))
    W, expected = case.trained(layers), tokens.copy()
    expected[0::2, d_in:d_in + d_out] = Y - X @ (W - W0).T
    out = through([first(pairing)] + [step] * layers, tokens, np.hstack([x, -x @ W0.T, nowhere]))
    return out, (expected, np.hstack([x, -x @ W.T, nowhere]))

@broken(proposition_3, "positions not shifted: each token finds itself",
        st.tuples(cases, st.integers(0, 1)), [(symbolic_regression(), 0)],
        (smallest._replace(Y=one + smallest.Y), 1), difference="Y0_0")
def without_the_shift(case, layers):
    return proposition_3(case, layers, lambda weights: weights._replace(w_k=weights.w_q))


# ---- What the functions do with their arguments -------------------------------------------------

layer = lambda context, query, *weights: lsa(context, query, LSA(*weights))
CASES = [
    case("lsa", layer, "context:nd query:rd w_q?:kd w_k?:kd w_v?:vd p?:dv"),
    case("lsa, one layer", layer, "context:nd query:rd w_q!:kd w_k!:kd w_v!:vd p!:dv"),
    case("lsa, one query token", layer, "context!:nd query!:d w_q!:kd w_k!:kd w_v!:vd p!:dv"),
    case("gd_weights", lambda w0: gd_weights(w0, eta=0.5, n=3)[1:], "w0!:oi", float),
    case("gd++", lambda w0: gd_plus_plus_weights(w0, eta=1, gamma=0.5, n=3)[1:], "w0!:oi", float),
    case("alternating_tokens", alternating_tokens, "x!:ni y!:no")]
test_batches, test_types = batches(*CASES), types_and_layouts(*CASES)


def test_the_matrices_and_tokens_are_those_of_the_paper():
    matrix = lambda text: fractions([row.split() for row in text.split(",")])
    W0, w_k, w_v = map(matrix, ["5 6", "1 0 0, 0 1 0, 0 0 0", "0 0 1 0 0"])
    assert_exactly_equal(gd_weights(W0, eta=1, n=3), (w_k, w_k, *map(matrix, [
        "0 0 0, 0 0 0, 5 6 -1", "1/3 0 0, 0 1/3 0, 0 0 1/3"])))
    assert_exactly_equal(gd_plus_plus_weights(W0, eta=1, gamma=2, n=3), (w_k, w_k, *map(matrix, [
        "1 0 0, 0 1 0, 5 6 -1", "-2 0 0, 0 -2 0, 0 0 1/3"])))
    assert_exactly_equal(alternating_tokens(matrix("5 6, 7 8"), matrix("1, 2")), matrix(
        "5 6 0 1 0 0 0, 0 0 1 0 1 0 0, 7 8 0 0 0 1 0, 0 0 2 0 0 0 1"))
    assert_exactly_equal(pairing_weights(2, 1, 1, object), (
        matrix("0 0 0 1 0, 0 0 0 0 1"), matrix("0 0 0 0 1, 0 0 0 0 0"), w_v, w_v.T))


def test_numpys_promotion_decides_the_types_and_whole_numbers_are_not_cut():
    both = lambda w0, rate: [*gd_weights(w0, rate, 3), *gd_plus_plus_weights(w0, rate, rate, 3)]
    for rate, dtype in (0.5, np.float32), (1, np.float32), (np.float64(0.5), np.float64):
        types = [w.dtype for w in both(a(1, 2).astype(np.float32), rate)]
        assert types == [np.float32, np.float32, np.float32, dtype] * 2
        np.testing.assert_equal(both(a(1, 2).astype(int), rate), both(a(1, 2), rate))
    assert gd_weights(a(1, 2).astype(int), 1, 3).p[0, 0] == 1 / 3
    for x, y in (np.float32, float), (float, np.float32):
        assert alternating_tokens(a(4, 3).astype(x), a(4, 2).astype(y)).dtype == np.float64
    assert {w.dtype for w in pairing_weights(3, 2, 4)} == {np.dtype(np.float64)}
    assert {w.dtype for w in pairing_weights(3, 2, 4, np.float32)} == {np.dtype(np.float32)}


test_mistakes = refused(
    ("w0; list", lambda: gd_weights([[1.0]], 0.5, 1)),
    *calls(partial(lsa, weights=gd_weights(a(1, 2), 0.1, 3)), "context query", "32 12", "33 12",
           "32 13", "3 3", "233 13", "233 3", "133 213", "233 113", "23 14", "23 4"),
    *calls(layer, "context query w_q w_k w_v p", "23 3 33 33 33 13", "23 3 33 33 33 133",
           "23 3 33 33 11 33", "23 3 23 33 33 33", "23 3 33 31 33 33"),
    *[(f"w0; {w0.shape}" + f"; n = {n}" * (not n >= 1), partial(make, w0, n=n))
      for make in (partial(gd_weights, eta=1), partial(gd_plus_plus_weights, eta=1, gamma=1))
      for w0, n in [(a(2), 3), (a(1, 2), 0), (a(1, 2), -1), (a(1, 2), np.nan), (a(2, 1, 2), 3)]],
    *calls(alternating_tokens, "x _", "21 31", "2 21", "21 2"),
    ("dimension", partial(alternating_tokens, a(4, 3, 2), a(4, 3, 1))))
