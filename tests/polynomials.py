"""Polynomials in named variables: arrays of them prove a theorem for every value of one shape.

Arrays of polynomials that are == have equal values whatever the variables stand for. Two
operations bring in new variables: 1 / d, one for each d up to a factor (if d has one term, its
negative power), and unknown(name), one for each entry of its value at each argument. They forget
facts, such as d · (1/d) = 1. What is equal without these is equal with them: a proof, for every
input without a zero denominator. Inequality is none, as d · (1/d) != 1 shows: see exact.evaluate.
"""

from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from math import prod

import numpy as np

meanings = {}      # variable -> (function, arguments, entry of its value), unless it is free
uses = {}          # a name and its number of places -> what it stands for
one = frozenset()  # the monomial of a constant


@lru_cache(maxsize=2**18)
def multiply(a, b):
    """The product of two monomials, frozensets of (variable, exponent), and a sign: i · i = -1."""
    exponents = dict(a)
    for x, n in b:
        exponents[x] = exponents.get(x, 0) + n
    sign = -1 if exponents.get("i") == 2 else 1
    return frozenset(x for x in exponents.items() if x[1] and x != ("i", 2)), sign


def with_numbers(operation):
    """The operation for ints and Fractions too; floats are a TypeError, arrays left to NumPy."""
    def lifted(self, other):
        other = Polynomial({one: other}) if isinstance(other, (int, Fraction)) else other
        return operation(self, other) if isinstance(other, Polynomial) else NotImplemented
    return lifted


class Polynomial:
    """terms: {monomial: coefficient}, an int or Fraction and not 0. Never changed once made."""

    def __init__(self, terms):
        self.terms = {monomial: c for monomial, c in terms.items() if c}

    @with_numbers
    def __add__(self, other):
        terms = self.terms.copy()
        for monomial, c in other.terms.items():
            terms[monomial] = terms.get(monomial, 0) + c
        return Polynomial(terms)

    @with_numbers
    def __mul__(self, other):
        terms = {}
        for (a, c), (b, d) in product(self.terms.items(), other.terms.items()):
            monomial, sign = multiply(a, b)
            terms[monomial] = terms.get(monomial, 0) + (c * d if sign > 0 else -c * d)
        return Polynomial(terms)

    __radd__, __rmul__ = __add__, __mul__
    __truediv__ = with_numbers(lambda p, q: p * reciprocal(q))
    __rtruediv__ = with_numbers(lambda p, q: q * reciprocal(p))
    __eq__ = with_numbers(lambda p, q: p.terms == q.terms)
    __hash__ = lambda p: hash(frozenset(p.terms.items()) if any(p.terms) else p.terms.get(one, 0))
    __neg__ = lambda p: p * -1
    __sub__ = lambda p, q: p + -q
    __rsub__ = lambda p, q: -p + q
    __pow__ = lambda p, n: prod([reciprocal(p) if n < 0 else p] * abs(n), start=p * 0 + 1)

    def __bool__(self):
        if self.terms.keys() - {one}:
            raise TypeError(f"whether {self} is 0 depends on its variables")
        return bool(self.terms)

    def __repr__(self):
        text = ""
        for powers, c in sorted((sorted(monomial), c) for monomial, c in self.terms.items()):
            factors = [str(abs(c)), *(x if n == 1 else f"{x}^{n}" for x, n in powers)]
            text += (" - " if c < 0 else " + ") + "*".join(factors).removeprefix("1*")
        return text.removeprefix(" + ").strip() or "0"


def variable(name):
    """The polynomial x."""
    return Polynomial({frozenset({(name, 1)}): 1})


def variables(name, *shape):
    """An array of variables named after their places, q0_0, q0_1, ...; for the shape () only q."""
    return of_letters(name, "a variable", shape)


def angles(name, *shape):
    """Variables z = e^(iθ), each for any angle θ: symbolic_rope takes (d/2,) of them as theta."""
    z = of_letters(name, "an angle", shape)
    meanings.update((str(x), ("e^iθ", (), 0)) for x in np.ravel(z))
    return z


def of_letters(name, use, shape=()):
    """The variables of a name, after a check that it is letters and has no other use."""
    if not name.isalpha() or name == "i":
        raise ValueError(f"a name must be letters, to keep places apart, and not 'i': got {name!r}")
    if uses.setdefault((name, len(shape)), use) != use:
        raise ValueError(f"{name!r} is {uses[name, len(shape)]} already, so it cannot be {use}")
    x = [variable(name + "_".join(map(str, place))) for place in np.ndindex(shape)]
    return np.array(x, object).reshape(shape)[()]


@cache
def reciprocal(d):
    """1/d: negative powers for one term; with i, conjugate / (d conjugate); else a new variable."""
    conjugate = Polynomial({m: -c if ("i", 1) in m else c for m, c in d.terms.items()})
    if conjugate != d:
        return conjugate * reciprocal(d * conjugate)
    first = min(d.terms, key=sorted, default=one)
    scale = Fraction(1, d.terms.get(first, 0))  # ZeroDivisionError if d is 0
    if len(d.terms) == 1:
        return Polynomial({frozenset((x, -n) for x, n in first): scale})
    return value_of("1/", (d,), 1)[0] if scale == 1 else reciprocal(d * scale) * scale


@cache
def value_of(name, arguments, width):
    """The value of an unknown function: a tuple of variables, new ones for each new argument."""
    few = sum(len(x.terms) for x in arguments) < 4
    label = f"{name}({', '.join(map(repr, arguments))})" if few else f"{name}#{len(meanings)}"
    names = [f"{label}_{j}" if width > 1 else label for j in range(width)]
    meanings.update((x, (name, arguments, j)) for j, x in enumerate(names))
    return tuple(map(variable, names))


def unknown(name, elementwise=False):
    """Any function from rows (..., d) to rows (..., d), a norm, or from entries, an activation.

    It is one function, so of one width d; with the same name and width it is the same function.
    """
    of_letters(name, "a function")
    widths = set()

    def function(x):
        rows = x[..., None] if elementwise else x
        widths.add(rows.shape[-1])
        if len(widths) > 1:
            raise ValueError(f"the function {name} cannot be one of rows of {widths} entries")
        y = np.empty(rows.shape, object)
        for place in np.ndindex(rows.shape[:-1]):
            y[place] = value_of(name, tuple(rows[place] + Polynomial({})), rows.shape[-1])
        return y.reshape(x.shape)
    return function


def derivative(p, x):
    """∂p/∂x for a variable's name x: the power rule, and ∂(1/d) = −(1/d)² ∂d for reciprocals."""
    total = Polynomial({})
    for monomial, c in p.terms.items():
        for y, n in monomial:
            by_y = Polynomial({monomial - {(y, n)}: c * n}) * variable(y) ** (n - 1)
            function, arguments, _ = meanings.get(y, ("free", (), 0))
            known = function in ("free", "1/", "e^iθ")
            if not known and any(derivative(a, x) != 0 for a in arguments):
                raise TypeError(f"the derivative of the unknown function {function} is unknown")
            total = total + by_y * (-variable(y) ** 2 * derivative(arguments[0], x)
                                    if function == "1/" else int(x == y))
    return total


i = variable("i")  # the imaginary unit
