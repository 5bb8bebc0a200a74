"""Exact arithmetic for the proofs: random fractions, polynomials, rotations, comparisons by ==.

Polynomials (polynomials.py) prove an identity for every value of one shape. Random fractions test
it: the entries are drawn uniformly and independently from 2**32 integers, after the shape, the
rotations and the options. If the identity is false there, an instance passes with probability at
most D / 2**32, where D is the degree of the numerator of actual - expected as a fraction of
polynomials in the entries (Schwartz and Zippel; docs/proofs.md).

The entries come from a seed of 64 bits that is new in every run, also where Hypothesis' own choices
are fixed. A failure prints it; ICLCA_SEED=... in the environment draws the same entries again.
"""

import os
import secrets
from collections import Counter
from fractions import Fraction
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.linalg import matrix_power

from linear_transformer import (Bias, Layer, Transformer, elu_plus_one, identity, relu, rope,
                                rope_frequencies)
from polynomials import Polynomial, angles, i, meanings, one, unknown, variables

compared = Counter()  # what the running test has compared: arithmetics and shapes, for conftest.py
SEED = int(os.environ.get("ICLCA_SEED", secrets.randbits(64)))


def rngs_of(label):
    """Generators for one of the draws of a test; with another label they are independent of it.

    Hypothesis prefers small integers and repeats them; with SEED they are as random as any.
    """
    return st.integers(0, 2**32 - 1).map(lambda n: np.random.default_rng([SEED, n, label]))


rngs, case_rngs = rngs_of(0), rngs_of(1)   # a test's own draws, and those of the cases it is given
# learning rates and decays, in (0, 1)
rates = rngs_of(2).map(lambda rng: Fraction(int(rng.integers(1, 2**32)), 2**32))
often = st.sampled_from([True, True, True, False])


def shapes(fast, thorough):
    """The second list for --hypothesis-profile=thorough, the first for every other profile."""
    return thorough if settings.default.max_examples >= 400 else fast


# ---- Random fractions ---------------------------------------------------------------------------

def fractions(a):
    """A number as a Fraction; an array, or a nested list, of numbers as an array of Fractions."""
    return np.frompyfunc(Fraction, 1, 1)(np.asarray(a, object))


def uniform(rng, *shape, low=-2**31, high=2**31):
    """Fractions with values drawn uniformly from 2**32 integers."""
    return fractions(rng.integers(low, high, shape))


def rational_rope(positions, theta):
    """cos and sin, (n, d/2), of `position` turns by the rotations theta (d/2, 2) = (cos, sin).

    A power of a Gaussian rational of modulus 1 is another one, so R_a R_b = R_{a+b} holds exactly.
    """
    def power(c, s, n):
        c, s = matrix_power(fractions([[c, s], [-s, c]]), abs(n))[0]
        return (c, s) if n >= 0 else (c, -s)

    turns = np.array([[power(c, s, n) for c, s in theta] for n in positions], object)
    turns = turns.reshape(len(positions), len(theta), 2)
    return turns[..., 0], turns[..., 1]


def rotations(rng, n, of=65537):
    """n of the rotations (cos, sin) = (1 - t², 2t) / (1 + t²), t = a / of, 0 < a < of: (n, 2)."""
    ts = [Fraction(int(a), of) for a in rng.integers(1, of, n)]
    return fractions([[(1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)] for t in ts]).reshape(n, 2)


def arrays(entries, lengths, **sizes):
    """entries(name, *shape) for each of the lengths, such as dict(x="n d", q="d"): n = 2, d = 3.

    A size that is not given is 1. `variables` are such entries, and numbers(rng) are.
    """
    assert sizes.keys() <= {*" ".join(lengths.values()).split()}, sizes
    return tuple(entries(name, *(sizes.get(length, 1) for length in of.split()))
                 for name, of in lengths.items())


def numbers(rng):
    """Random fractions as entries that have names."""
    return lambda _, *shape: uniform(rng, *shape)


@st.composite
def random_arrays(draw, lengths, **least):
    """Arrays of random fractions. Each size is drawn, from 1 or what is given up to 3."""
    names = dict.fromkeys(" ".join(lengths.values()).split())
    sizes = {name: draw(st.integers(least.get(name, 1), 3)) for name in names}
    return arrays(numbers(draw(case_rngs)), lengths, **sizes)


class Case(NamedTuple):
    """q, k, v (heads, n, ...) of a context of m tokens and a prompt after it, and their start."""

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
def attention_cases(draw, least_context=0, least_prompt=0, rotated=often, biased=often,
                    normalized=often):
    """Random exact Cases: one or two heads, a few tokens and seldom none, most options on."""
    heads, pairs, d_v = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    m, n = (draw(st.sampled_from([*range(max(least, 1), 5)] * 3 + [0] * (least == 0)))
            for least in (least_context, least_prompt))
    rng = draw(case_rngs)
    q, k = uniform(rng, 2, heads, m + n, 2 * pairs)
    v = uniform(rng, heads, m + n, d_v)
    start = Bias(uniform(rng, heads, 2 * pairs, d_v), uniform(rng, heads, 2 * pairs))
    bias = start if draw(biased) else None
    rope = partial(rational_rope, theta=rotations(rng, pairs)) if draw(rotated) else None
    return Case(q, k, v, m, bias, rope, draw(normalized))


def square_plus_one(x):
    """x² + 1: a polynomial feature map or activation, positive over the rationals."""
    return x * x + 1


def rational_norm(x):
    """x / (1 + Σx), row by row: a norm of whole rows that is not linear, with small numbers."""
    return x / (1 + x.sum(axis=-1, keepdims=True))


def affine_norm(x):
    """1 + the row in reverse: not the identity, and cheap in many layers."""
    return 1 + x[..., ::-1]


def transformer_of(entries, angles, depth, heads, pairs, d_ff, *how):
    """A Transformer of entries(name, *shape) and rotations angles(name, pairs): four tokens."""
    def layer(l):
        shapes = dict(q=(heads, 2, 2 * pairs), k=(heads, 2, 2 * pairs), v=(heads, 2, 1),
                      o=(heads, 1, 2), f=(2, d_ff), g=(d_ff, 2))
        return Layer(*(entries(name + l, *shape) for name, shape in shapes.items()),
                     angles("w" + l, pairs))

    layers = tuple(map(layer, "abcde"[:depth]))
    return Transformer(entries("x", 4, 2), layers, entries("u", 2, 2), *how)


@st.composite
def transformers(draw, n_layers=st.integers(1, 2), normalize=often, parallel=st.booleans(),
                 d_ff=st.integers(0, 2)):
    """Random exact transformers: two rotated pairs, a norm, an MLP or none."""
    depth, heads = draw(n_layers), draw(st.integers(1, 2))
    # every division or square multiplies the digits; three layers are proved over polynomials
    deep, shallow = (identity, affine_norm, relu), (identity, rational_norm, relu)
    square = square_plus_one, rational_norm, square_plus_one
    phi, norm, activation = draw(st.sampled_from([shallow, square] if depth == 1 else [deep]))
    rng = draw(case_rngs)
    angles = lambda _, n: rotations(rng, n, of=257)   # their digits add up
    return transformer_of(numbers(rng), angles, depth, heads, 2, draw(d_ff), phi, draw(normalize),
                          norm, activation, rational_rope, draw(parallel))


def symbolic_transformer(depth=1, heads=1, pairs=1, d_ff=1, normalize=False, parallel=False):
    """A model of variables; its feature map, norm and activation are unknown functions."""
    return transformer_of(variables, angles, depth, heads, pairs, d_ff, unknown("phi"), normalize,
                          unknown("norm"), unknown("act"), symbolic_rope, parallel)


def realistic(rng, dtype, n=200, heads=3, d_k=16, d_v=8):
    """Positive features, values, a starting bias and a rope, at realistic sizes."""
    q, k = elu_plus_one(rng.standard_normal((2, 2, heads, n, d_k))).astype(dtype)
    v = rng.standard_normal((2, heads, n, d_v)).astype(dtype)
    kv, d = rng.standard_normal((2, heads, d_k, d_v)), rng.random((2, heads, d_k))
    bias = Bias(kv.astype(dtype), d.astype(dtype))
    return q, k, v, bias, partial(rope, theta=rope_frequencies(d_k).astype(dtype))


# ---- Polynomials: cases of variables, unknown angles, values at a point -------------------------

def every(**sizes):
    """All combinations of the sizes, as dicts: every(m=range(3), rotated=(False, True))."""
    return [dict(zip(sizes, values)) for values in product(*sizes.values())]


def symbolic_case(m, n, heads=1, pairs=1, d_v=1, rotated=False, started=False, normalized=False):
    """A Case in which every entry is its own variable, and every angle unknown."""
    q, k = (variables(name, heads, m + n, 2 * pairs) for name in "qk")
    start = Bias(variables("s", heads, 2 * pairs, d_v), variables("z", heads, 2 * pairs))
    rope = partial(symbolic_rope, theta=angles("w", pairs)) if rotated else None
    v = variables("v", heads, m + n, d_v)
    return Case(q, k, v, m, start if started else None, rope, normalized)


def symbolic_rope(positions, theta):
    """cos nθ = (zⁿ + z⁻ⁿ)/2, sin nθ = (zⁿ - z⁻ⁿ)/2i, (n, d/2), for theta = z (d/2,)."""
    z, inverse = theta ** positions[:, None], theta ** -positions[:, None]
    return (z + inverse) / 2, (z - inverse) / (2 * i)


# 5 more than a multiple of 8, so that 2^((PRIME − 1) / 4) is a root of −1; its PRIMEth power is one
# modulo PRIME²
PRIME = 2**64 - 59


class Point(dict):
    """A value for each variable, modulo PRIME or a power, found when asked for: Point(rng, x=2).

    Reciprocals are reciprocals, angles any number but 0, unknown functions random tables.
    """

    def __init__(self, rng, modulus=PRIME, **given):
        super().__init__(given, i=pow(2, PRIME // 4 * (modulus // PRIME), modulus))
        self.rng, self.modulus = rng, modulus

    def __missing__(self, variable):
        function, arguments, j = meanings.get(variable, ("free", (), 0))
        x = [evaluate(p, self) for p in arguments]
        if function == "1/":
            value = pow(x[0], -1, self.modulus)   # ValueError if it is 0
        elif function in ("free", "e^iθ"):
            value = int(self.rng.integers(1, 2**63))
        else:   # a value for each of the values of its arguments
            value = self[(function, *x, j)]
        self[variable] = value
        return value


def evaluate(p, point):
    """The value of a polynomial or number at a Point.

    What is equal as rational functions is equal at every point without a zero denominator.
    """
    terms, modulus = (Polynomial({}) + p).terms.items(), point.modulus
    return sum(c.numerator * pow(c.denominator, -1, modulus) * prod(
        pow(point[x], n, modulus) for x, n in monomial) for monomial, c in terms) % modulus


# ---- Comparisons --------------------------------------------------------------------------------

def flat(a):
    """The arrays in nested tuples and lists of arrays, in order."""
    return [y for x in a for y in flat(x)] if isinstance(a, (tuple, list)) else [np.asarray(a)]


def pairs_of(actual, expected, types=(Fraction, int)):
    """The arrays of both sides, side by side; their entries are Fractions and ints, no floats."""
    actual, expected = flat(actual), flat(expected)
    assert [a.shape for a in actual] == [e.shape for e in expected]
    for a in actual + expected if types else ():
        assert {*map(type, a.ravel().tolist())} <= {*types}, f"an entry is none of {types}: {a}"
    return list(zip(actual, expected))


def count(pairs, what, shape=None):
    """Note for the table that the running example has compared something, if it has."""
    if shape is not None:
        what = what, tuple(shape.items()) or tuple(("result", e.shape) for _, e in pairs)
    if any(a.size for a, _ in pairs):
        compared[what] += 1


def assert_proved(actual, expected, zero=False, **shape):
    """Both sides are the same polynomials: a proof for every value of this shape, counted once.

    `shape` names the sizes for the table, M=2, heads=1, rotated=True; if it is empty, the shapes of
    the results do. That 0 = 0 is not counted, unless the theorem says that all is zero. A proof is
    void if a denominator vanishes for all values: every variable must have a value at a Point.
    """
    pairs = pairs_of(actual, expected, (Polynomial, Fraction, int))
    for a, e in pairs:
        for x, y in zip(a.ravel(), e.ravel()):
            assert x == y, f"at {shape}: differs by {x - y}"
    entries = [x for pair in pairs for a in pair for x in a.ravel()
               if isinstance(x, Polynomial) and x.terms.keys() - {one}]   # those with variables
    if zero or entries:
        count(pairs, "every input", shape)
    point = Point(np.random.default_rng(SEED))
    for x in {x for p in entries for monomial in p.terms for x, _ in monomial}:
        point[x]


def assert_refuted(actual, expected, rng=None, **shape):
    """Both sides are polynomials and differ, at a random point too: the shortest difference.

    The point is what refutes: reciprocals or unknown functions can be unequal in form alone.
    """
    pairs = pairs_of(actual, expected, (Polynomial, Fraction, int))
    point = Point(rng or np.random.default_rng(SEED))
    entries = (xy for a, e in pairs for xy in zip(a.ravel(), e.ravel()))
    differences = [Polynomial({}) + x - y for x, y in entries if x != y]
    real = [d for d in differences if evaluate(d, point) != 0]
    assert real, f"no difference, or in form alone: {differences[:1]}"
    count(pairs, "every input", shape)
    return min(real, key=lambda d: len(d.terms))


def assert_exactly_equal(actual, expected):
    """Both sides hold the same rational numbers: ==, and nothing but Fractions and ints."""
    pairs = pairs_of(actual, expected)
    for a, e in pairs:
        assert (a == e).all(), f"{a} != {e}"
    count(pairs, "ℚ")


def assert_differ(actual, expected):
    """Both sides are exact and of one shape, and some entry differs: what a control must find."""
    pairs = pairs_of(actual, expected)
    assert any((a != e).any() for a, e in pairs), "no difference, though the assumption is broken"
    count(pairs, "ℚ")


def assert_close(actual, expected, ulps):
    """Both sides have one floating type and differ by at most ulps · eps of the largest entry."""
    pairs = pairs_of(actual, expected, types=None)
    for a, e in pairs:
        assert a.dtype == e.dtype and a.dtype.kind == "f", (a.dtype, e.dtype)
        assert np.isfinite(e).all()
        allowed = ulps * np.finfo(a.dtype).eps * abs(e).max(initial=0)
        assert abs(a - e).max(initial=0) <= allowed
    count(pairs, pairs[0][0].dtype.name)
