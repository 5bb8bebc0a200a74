"""Exact arithmetic for the proofs: random rational arrays, rational rotations, and comparisons with ==.

Entries are drawn uniformly from 2**32 integers. Two different polynomials of degree D agree at such a point with
probability at most D / 2**32 (Schwartz and Zippel), so every example that passes is a proof with that chance of error.
"""

from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from linear_transformer import Bias, Layer, Transformer, elu_plus_one, identity, relu, rope, rope_frequencies

compared = set()  # the arithmetics in which the running example has compared something; conftest.py reads it

seeds = st.integers(0, 2**32 - 1)
rngs = seeds.map(np.random.default_rng)


def fractions(a):
    """An array, or a nested list, of numbers as an object array of Fractions."""
    a = np.asarray(a, dtype=object)
    return np.array([Fraction(x) for x in a.ravel()] + [None], dtype=object)[:-1].reshape(a.shape)


def uniform(rng, *shape, low=-2**31, high=2**31):
    """Fractions with values drawn uniformly from 2**32 integers."""
    return fractions(rng.integers(low, high, shape).astype(object))


def rational_rope(positions, theta):
    """cos and sin, (n, d/2), of `position` turns by each of the rational rotations theta (d/2, 2) = (cos, sin).

    A power of a Gaussian rational of modulus 1 is another one, so R_a R_b = R_{a+b} holds exactly.
    """
    def power(c, s, n):
        z = Fraction(1), Fraction(0)
        for _ in range(abs(n)):
            z = z[0] * c - z[1] * s, z[0] * s + z[1] * c
        return z if n >= 0 else (z[0], -z[1])

    turns = fractions([[power(c, s, int(n)) for c, s in theta] for n in positions])
    turns = turns.reshape(len(positions), len(theta), 2)
    return turns[..., 0], turns[..., 1]


def rotations(rng, n):
    """n rational rotations (n, 2): (3/5, 4/5), (5/13, 12/13), ..., from t = 1/2, 2/3, ... in ((1−t²), 2t) / (1+t²)."""
    ts = [Fraction(int(a), int(a) + int(b)) for a, b in rng.integers(1, 4, (n, 2))]
    return fractions([[(1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)] for t in ts]).reshape(n, 2)


class Case(NamedTuple):
    """Queries, keys and values (heads, n, ...) of a context of m tokens and a prompt after it, and what they start from."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    m: int
    bias: tuple
    rope: object
    normalize: bool = True

    @property
    def context(self):
        return tuple(x[..., :self.m, :] for x in (self.q, self.k, self.v))

    @property
    def prompt(self):
        return tuple(x[..., self.m:, :] for x in (self.q, self.k, self.v))


@st.composite
def attention_cases(draw, least_context=0, least_prompt=0, rotated=st.booleans(), biased=st.booleans(),
                    normalized=st.booleans()):
    """Random exact Cases: one to three heads, contexts and prompts of a few tokens, any combination of the options."""
    heads, pairs, d_v = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    m, n = draw(st.integers(least_context, 4)), draw(st.integers(least_prompt, 4))
    rng = draw(rngs)
    q, k = uniform(rng, 2, heads, m + n, 2 * pairs)
    v = uniform(rng, heads, m + n, d_v)
    bias = Bias(uniform(rng, heads, 2 * pairs, d_v), uniform(rng, heads, 2 * pairs)) if draw(biased) else None
    rope = partial(rational_rope, theta=rotations(rng, pairs)) if draw(rotated) else None
    return Case(q, k, v, m, bias, rope, draw(normalized))


def square_plus_one(x):
    """x² + 1: a polynomial feature map or activation, positive over the rationals."""
    return x * x + 1


@st.composite
def transformers(draw, n_layers=st.integers(1, 3), normalize=st.booleans(), parallel=st.booleans(),
                 d_ff=st.integers(0, 2)):
    """Random exact transformers: heads, rotations, MLPs with ReLU or x² or none, both block types, four tokens."""
    depth, heads, d_ff = draw(n_layers), draw(st.integers(1, 2)), draw(d_ff)
    normalize = draw(normalize)
    # squares in every layer would make numbers of a million digits, so the deep models have piecewise linear functions
    phi, activation = draw(st.sampled_from([(identity, relu)] + [(square_plus_one, square_plus_one)] * (depth == 1)))
    rng = draw(rngs)
    d_model, d_k, d_v = 2, 2, 1

    def layer():
        shapes = ((heads, d_model, d_k),) * 2 + ((heads, d_model, d_v), (heads, d_v, d_model), (d_model, d_ff), (d_ff, d_model))
        return Layer(*(uniform(rng, *shape) for shape in shapes), rotations(rng, d_k // 2))

    return Transformer(uniform(rng, 4, d_model), tuple(layer() for _ in range(depth)), uniform(rng, d_model, 3),
                       phi, normalize, identity, activation, rational_rope, draw(parallel))


def realistic(rng, dtype, n=200, heads=3, d_k=16, d_v=8):
    """Positive features, values, a starting bias and a rope, at realistic sizes."""
    q, k = elu_plus_one(rng.standard_normal((2, 2, heads, n, d_k))).astype(dtype)
    v = rng.standard_normal((2, heads, n, d_v)).astype(dtype)
    bias = Bias(rng.standard_normal((2, heads, d_k, d_v)).astype(dtype), rng.random((2, heads, d_k)).astype(dtype))
    return q, k, v, bias, partial(rope, theta=rope_frequencies(d_k).astype(dtype))


def flat(a):
    """The arrays in nested tuples and lists of arrays, in order."""
    return [y for x in a for y in flat(x)] if isinstance(a, (tuple, list)) else [np.asarray(a)]


def pairs_of(actual, expected):
    """The arrays of both sides, side by side, after a check that they have the same shapes."""
    actual, expected = flat(actual), flat(expected)
    assert [a.shape for a in actual] == [e.shape for e in expected]
    return list(zip(actual, expected))


def is_exact(a):
    """Whether every entry is a Fraction or an int: no float has crept in."""
    return all(isinstance(x, (Fraction, int)) and not isinstance(x, bool) for x in a.ravel().tolist())


def assert_exactly_equal(actual, expected):
    """Both sides hold the same rational numbers: ==, no tolerance, and nothing but Fractions and ints."""
    for a, e in pairs_of(actual, expected):
        assert is_exact(a) and is_exact(e), "a number that is neither Fraction nor int"
        assert (a == e).all(), f"{a} != {e}"
    compared.add("ℚ")


def assert_differ(actual, expected):
    """Both sides are exact and of one shape, and some entry differs: what a negative control must find."""
    pairs = pairs_of(actual, expected)
    assert all(is_exact(a) and is_exact(e) for a, e in pairs), "a number that is neither Fraction nor int"
    assert any((a != e).any() for a, e in pairs), "no difference, though the assumption is broken"
    compared.add("ℚ")


def assert_close(actual, expected, ulps):
    """Both sides have one floating type and differ by at most ulps · eps of the largest entry expected."""
    for a, e in pairs_of(actual, expected):
        assert a.dtype == e.dtype and a.dtype.kind == "f", (a.dtype, e.dtype)
        if a.size:
            assert abs(a - e).max() <= ulps * np.finfo(a.dtype).eps * abs(e).max()
        compared.add(a.dtype.name)
