"""The backward pass is attention again, a step on the biases a conversion; gradients and Adam."""

from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import strategies as st

import backward
from arguments import refused
from backward import A, adam, attention_gradients, gradients, loss_and_gradients, mapped
from exact import (case_rngs, every, rational_norm, square_plus_one, symbolic_case, transformers,
                   uniform)
from iclca_ref import attention_bias, key_value_matrix
from linear_transformer import (Bias, chunked_attention, forward, identity, random_transformer,
                                relu, rotate_at, softmax)
from polynomials import derivative, unknown, variables
from theorem import broken, theorem

attend = partial(chunked_attention, chunk=2)


# ---- The theorem: ∂F/∂(q, k, v, start), for F = Σ g·o + ⟨G, state⟩ -------------------------------

def with_directions(n, **shape):
    """A Case of n tokens, g for its outputs, G for its last state, all of variables."""
    case = symbolic_case(0, n, **shape)
    kv = variables("G", *case.k.shape[:-2], case.k.shape[-1], case.v.shape[-1])
    return case, variables("g", *case.v.shape), Bias(kv, variables("H", *kv.shape[:-1]))


def normalizer(q, k, v, bias):
    return A(q, k, np.ones_like(v[..., :1]), bias.d[..., None])[0]


def backward_pass(case, g, G):
    """∂F/∂(q, k, v, start) by backward.py."""
    how = case.bias, case.rope, case.normalize
    o, _ = attend(case.q, case.k, case.v, *how)
    *d_qkv, d_bias = attention_gradients(case.q, case.k, case.v, *how, o, g, G)
    return *d_qkv, *(d_bias if case.bias else ())


def derivatives(case, g, G, arguments):
    """∂F/∂x for every entry x, a variable, of the arrays."""
    o, state = attend(*case[:3], case.bias, case.rope, case.normalize)
    F = (g * o).sum() + (G.kv * state.kv).sum() + (G.d * state.d).sum()
    by = np.frompyfunc(lambda x: derivative(F, str(x)), 1, 1)
    return tuple(map(by, arguments))


options = dict(rotated=(False, True), normalized=(False, True))


@theorem("the backward pass is attention", "2006.16236 §3.3.1", None, every(
    n=(1, 2), started=(False, True), **options) + [dict(n=3, pairs=2, d_v=2, started=True),
                                                   dict(n=3, heads=2, rotated=True)],
         with_directions)
def backward_is_attention(case, g, G):
    """By attention, four times  =  the derivatives of the polynomial F, entry by entry."""
    return backward_pass(case, g, G), derivatives(case, g, G, (*case[:3], *(case.bias or ())))

@broken(backward_is_attention, "time not reversed for the keys", None, [with_directions(2)])
def keys_in_the_order_of_time(*case):
    def wrong(q, k, v, s, g, G):
        return A(g, v, k, s.mT)[0], A(v, g, q, G.mT)[0], *A(k, q, g, G, time=-1)

    with patch.object(backward, "linear_gradients", wrong):
        return backward_is_attention(*case)

@broken(backward_is_attention, "g not divided by the normalizer", None,
        [with_directions(1, normalized=True)])
def g_as_it_is(case, g, G):
    _, expected = backward_is_attention(case, g, G)
    below = normalizer(*case[:3], Bias.start(case.k, case.v))
    return backward_pass(case, g * below, G), expected    # the division is undone

@broken(backward_is_attention, "b_D's gradient left out", None,
        [with_directions(1, started=True, normalized=True)])
def no_gradient_of_b_D(*case):
    (*others, d_d), expected = backward_is_attention(*case)
    return (*others, 0 * d_d), expected


# ---- The corollary: a gradient step on the biases is a conversion --------------------------------

def virtual_values(case, o, g, eta):
    """−η ĝ and, for b_D, η ĝ·o: the values of virtual tokens whose keys are the queries."""
    if not case.normalize:
        return -eta * g, 0 * g[..., :1]
    g_hat = g / normalizer(*case[:3], case.bias)
    return -eta * g_hat, eta * (g_hat * o).sum(axis=-1, keepdims=True)


def a_step(n, **shape):
    case, g, _ = with_directions(n, started=True, **shape)
    return case, g, variables("eta")


@theorem("a step on biases is a conversion", "ours", None,
         every(n=(1, 2), **options) + [dict(n=3, heads=2, d_v=2, rotated=True)], a_step)
def step_is_conversion(case, g, eta, rope=None):
    """Virtual tokens, the queries as keys and −η ĝ as values  =  −η ∂(Σ g·o)/∂(b_KV, b_D)."""
    o, _ = attend(*case[:3], case.bias, case.rope, case.normalize)
    (values, weights), rope = virtual_values(case, o, g, eta), rope or case.rope
    kv, _ = attention_bias(case.q, values, rope=rope).turned(rope, case.q.shape[-2])
    steps = derivatives(case, -eta * g, Bias(0, 0), case.bias)
    return (kv, key_value_matrix(case.q, weights)[..., 0]), steps

@broken(step_is_conversion, "the queries' own rotation left out", None, [a_step(1, rotated=True)])
def queries_not_turned(case, g, eta):
    return step_is_conversion(case, g, eta, lambda places: case.rope(0 * places))


def run_of(T, n, **shape):
    return symbolic_case(0, T * n, started=True, **shape), T, variables("eta")


@theorem("T steps are T n virtual tokens", "ours; Irie et al.", None,
         every(T=(1, 2), n=(1, 2), rotated=(False, True), normalized=(False,))
         + [dict(T=2, n=1, normalized=True), dict(T=3, n=1)], run_of)
def training_a_context(case, T, eta, rate=1):
    """b after T steps of gradient descent  =  b and the bias of all virtual tokens, turned keys.

    Each step has a prompt of its own; the loss may be any function of all of a prompt's outputs.
    """
    kv, d = bias = case.bias
    for q, k, v in zip(*(np.split(x, T, axis=-2) for x in case[:3])):
        now = case._replace(q=q, k=k, v=v, bias=bias)
        o, _ = attend(q, k, v, bias, case.rope, case.normalize)
        g = unknown("loss")(o.reshape(1, -1)).reshape(o.shape)
        *_, d_bias = attention_gradients(q, k, v, bias, case.rope, case.normalize, o, g)
        bias = Bias(*(x - eta * d_x for x, d_x in zip(bias, d_bias)))
        values, weights = virtual_values(now, o, g, eta)
        keys = rotate_at(q, case.rope, np.arange(q.shape[-2]) + 1)
        kv, d = kv + attention_bias(keys, rate * values).kv, d + (weights * q).sum(axis=-2)
    return bias, (kv, d)

@broken(training_a_context, "virtual values of another rate", None, [run_of(2, 1)])
def values_of_another_rate(*case):
    return training_a_context(*case, rate=2)


# ---- Whole transformers -------------------------------------------------------------------------

class Dual:
    """value + slope ε, with ε² = 0: the slope of f(x + direction ε) is the derivative of f."""

    def __init__(self, value, slope=0):
        self.value, self.slope = value, slope

    def lifted(operation):
        return lambda x, y: operation(x, y if isinstance(y, Dual) else Dual(y))

    __add__ = __radd__ = lifted(lambda x, y: Dual(x.value + y.value, x.slope + y.slope))
    __mul__ = __rmul__ = lifted(lambda x, y: Dual(x.value * y.value,
                                                  x.value * y.slope + x.slope * y.value))
    __truediv__ = lifted(lambda x, y: Dual(
        x.value / y.value, (x.slope * y.value - x.value * y.slope) / y.value**2))
    __sub__ = lifted(lambda x, y: Dual(x.value - y.value, x.slope - y.slope))
    __eq__, __ge__ = (lifted(lambda x, y: x.value == y.value),
                      lifted(lambda x, y: x.value >= y.value))


dual = np.frompyfunc(Dual, 2, 1)


def inner(trees, others):
    """Σ x · y over all arrays of two trees."""
    products = []
    mapped(lambda x, y: products.append((x * y).sum()), trees, others)
    return sum(products)


EXACT = {square_plus_one: lambda x, y, g: 2 * x * g, rational_norm: lambda x, y, g:
         (g - (g * y).sum(axis=-1, keepdims=True)) / (1 + x.sum(axis=-1, keepdims=True))}


def directions(trees, draw):
    """A direction for all weights of a model and for its biases; theta stays."""
    model, biases = mapped(lambda x: draw(*x.shape), trees)
    layers = tuple(layer._replace(theta=0 * layer.theta) for layer in model.layers)
    return model._replace(layers=layers), biases


@st.composite
def models_with_directions(draw):
    """A random exact model and biases, the gradient of a linear loss, and a direction for all."""
    model, rng = draw(transformers(n_layers=st.just(1))), draw(case_rngs)
    heads, _, d_k = model.layers[0].w_k.shape
    bias = Bias(uniform(rng, heads, d_k, 1), uniform(rng, heads, d_k))
    trees = model, [bias] * len(model.layers)
    return *trees, uniform(rng, 3, 2), directions(trees, partial(uniform, rng))


@theorem("gradients of a transformer", "the chain rule", models_with_directions())
def gradients_of_a_transformer(model, biases, d_logits, direction):
    """Σ gradient · direction for the loss Σ d_logits · logits  =  its slope over dual numbers."""
    with patch.dict(backward.BACKWARD, EXACT):
        _, *found = gradients(model, [0, 1, 0], lambda logits: (0, d_logits), biases)
    moved, moved_biases = mapped(dual, (model, biases), direction)
    moved = moved._replace(layers=tuple(
        x._replace(theta=y.theta) for x, y in zip(moved.layers, model.layers)))
    logits, _ = forward(moved, [0, 1, 0], moved_biases)
    return inner(found, direction), (d_logits * logits).sum().slope

@broken(gradients_of_a_transformer, "the norm's derivative left out", models_with_directions())
def norm_without_derivative(*case):
    with patch.dict(EXACT, {rational_norm: lambda x, y, g: g}):
        return gradients_of_a_transformer(*case)


@pytest.mark.parametrize("started, d_ff, options", [
    (False, 32, dict()), (False, 32, dict(parallel=True)), (True, 32, dict(activation=relu)),
    (True, 32, dict(phi=identity, activation=relu, normalize=False, parallel=True)),
    (False, 0, dict(phi=relu, norm=identity, activation=identity, normalize=False)),
    (True, 0, dict())])
def test_the_gradients_are_the_derivatives_of_the_loss(started, d_ff, options):
    rng = np.random.default_rng(0)
    model = random_transformer(rng, 7, 8, 2, 2, d_ff)._replace(**options)
    layers = tuple(layer._replace(w_v=layer.w_v / 35) for layer in model.layers)
    tokens, targets = rng.integers(0, 7, (2, 3, 35)), rng.integers(-1, 7, (2, 3, 35))
    shared, own = (Bias(rng.standard_normal((*s, 2, 4, 4)), rng.random((*s, 2, 4)) + 1)
                   for s in ((), (2, 3)))
    trees = model._replace(layers=layers), [shared, own] if started else None
    loss, *found = loss_and_gradients(trees[0], tokens, targets, trees[1])
    if not started:
        assert [d.kv.shape for d in found.pop()] == [(2, 4, 4)] * 2
        found.append(None)
    p = np.take_along_axis(softmax(forward(trees[0], tokens, trees[1])[0]), targets[..., None], -1)
    assert loss == pytest.approx(-np.log(p[targets >= 0]).mean(), rel=1e-12)
    direction = directions(trees, lambda *shape: rng.standard_normal(shape))

    def moved(h):
        model, biases = mapped(lambda x, d: x + h * d, trees, direction)
        return loss_and_gradients(model, tokens, targets, biases)[0]

    assert (moved(1e-6) - moved(-1e-6)) / 2e-6 == pytest.approx(inner(found, direction), rel=1e-6)


tiny = random_transformer(np.random.default_rng(0), 7, 8, 2, 2, dtype=np.float32)


@pytest.mark.parametrize("size", [1, 1000])
def test_float32_stays_and_the_loss_of_far_logits_is_finite(size):
    model, kinds = tiny._replace(unembed=size * tiny.unembed), []
    loss, *found = loss_and_gradients(model, [1, 2, 3], [-1, 4, 5])
    (new, _), (_, *moments) = adam((model, None), (found[0], None), 0.1)
    mapped(lambda x: kinds.append(x.dtype), [found, new, moments])
    assert {loss.dtype, *kinds} == {np.dtype(np.float32)} and np.isfinite(loss)


def test_adam_takes_its_known_first_steps_changes_nothing_in_place_and_clips():
    x = (np.array([1.0, 2.0]), [np.array([[3.0]])], "a name")
    g = (np.array([0.3, -0.4]), [np.array([[0.0]])], "a name")
    one, moments = adam(x, g, 0.1)
    two, _ = adam(one, g, 0.1, moments)
    assert one[0] == pytest.approx([0.9, 2.1]) and two[0] == pytest.approx([0.8, 2.2])
    assert moments[1][0] == pytest.approx([0.03, -0.04])
    assert one[1] == x[1] and x[0].tolist() == [1, 2] and one[2] == "a name"
    _, (_, m, v) = adam(x, mapped(lambda a: 100 * a, g), 0.1, clip=1.0)
    assert m[0] == pytest.approx([0.06, -0.08])   # a tenth of (0.6, −0.8), and 2% of its squares
    assert v[0] == pytest.approx([0.0072, 0.0128])


test_mistakes = refused(
    ("phi; square_plus_one", lambda: gradients(tiny._replace(phi=square_plus_one), [1], None)),
    ("activation; norm", lambda: loss_and_gradients(
        tiny._replace(norm=abs, activation=abs), [1], [1])),
    *(("targets", partial(loss_and_gradients, tiny, [1, 2], targets)) for targets in
      ([1], [-1, -1], [7, 0])),
    ("biases", lambda: loss_and_gradients(tiny, [1], [1], [None])),
    errors=(TypeError, ValueError))
