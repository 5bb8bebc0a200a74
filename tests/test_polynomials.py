"""The polynomials that the proofs are made of: a ring, with facts forgotten and none invented."""

from fractions import Fraction
from functools import partial
from operator import add, mul, sub

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact import (PRIME, Point, angles, assert_proved, assert_refuted, compared, evaluate,
                   fractions, rngs, symbolic_rope)
from polynomials import Polynomial, derivative, i, unknown, variables

x, y, z = variables("x"), variables("y"), variables("z")
numbers = st.integers(-9, 9) | st.fractions(-9, 9, max_denominator=9)
polynomials = st.recursive(
    numbers | st.sampled_from([x, y, z, i]),
    lambda p: st.builds(add, p, p) | st.builds(sub, p, p) | st.builds(mul, p, p), max_leaves=8,
).map(lambda p: Polynomial({}) + p)


@given(polynomials, polynomials, rngs)
def test_values_of_sums_products_and_quotients_are_those_of_the_values(p, q, rng):
    """And polynomials that differ, of degree 8, meet at a point with odds of 8 in 2^63."""
    at = Point(rng)
    value, other = evaluate(p, at), evaluate(q, at)
    for operation in add, sub, mul:
        assert evaluate(operation(p, q), at) == operation(value, other) % PRIME
    assert evaluate(2 - p, at) == (2 - value) % PRIME
    assert evaluate(p ** 3, at) == pow(value, 3, PRIME) and p ** 0 == 1
    if other != 0:
        assert evaluate(p / q, at) * other % PRIME == value
        assert evaluate(q ** -2, at) * evaluate(q * q, at) % PRIME == 1
    assert (p == q) == (value == other)


def test_values_are_residues_found_by_substitution():
    at = Point(None, x=2, y=5)
    assert 7 * evaluate(3 * x * y ** 2 - x / 2 + 1 / (x + y), at) % PRIME == 7 * 149 + 1
    assert [evaluate(p, at) for p in (x, 3, Fraction(6, 2))] == [2, 3, 3]
    assert evaluate(i * i + 1, at) == 0 and pow(3, PRIME - 1, PRIME) == 1


def test_i_squared_is_minus_one_and_a_monomial_times_its_reciprocal_is_one():
    assert i * i == i ** 2 == -1 and i ** 4 == 1 and 1 / i == -i and 1 / (1 + i) == (1 - i) / 2
    for m in x, 2 * x, x * y ** 3, -x / 3, i * x, x ** -2:
        assert (1 / m) * m == 1 == m / m


def test_other_reciprocals_are_new_variables_one_for_each_polynomial_up_to_a_factor():
    r = 1 / (x + y)
    assert r == 1 / (y + x) == 2 / (2 * x + 2 * y) == -1 / (-x - y)
    assert r != 1 / (x - y) and r not in (x, y) and r * (x + y) != 1
    assert 3 * x / (x + y) == 3 * x * r == x * 3 * r
    for zero in x - x, 0:
        with pytest.raises(ZeroDivisionError):
            1 / x / zero


def test_names_keep_places_apart_and_a_name_is_one_thing_of_one_width():
    q, f = variables("q", 11, 11), unknown("f")
    assert len(set(q.ravel())) == 121 and q[1, 10] != q[10, 1] != q[1, 1]
    assert variables("q", 2, 0).shape == (2, 0) and variables("q", 0).dtype == object
    variables("n", 2), angles("o", 2), f(np.array([[x, y]]))
    for message, call in [
            ("already", lambda: angles("n", 2)), ("already", lambda: variables("o", 2)),
            ("cannot be one of rows", lambda: f(np.array([[x]]))),
            *[("letters", lambda name=name: variables(name, 2)) for name in ("q1", "q_", "i", "")],
            *[("letters", lambda name=name: unknown(name)) for name in ("1/", "f1", "")]]:
        with pytest.raises(ValueError, match=message):
            call()


# ---- Rotations by unknown angles ----------------------------------------------------------------

def test_cosines_and_sines_of_unknown_angles_are_those_of_powers_of_a_variable():
    """cos nθ ± i sin nθ = z^(±n), for each angle a variable z of its own: so all facts hold."""
    theta, positions = angles("z", 2), np.arange(-9, 10)
    cos, sin = symbolic_rope(positions, theta)
    for n, c, s in zip(positions, cos, sin):
        assert (c + i * s == theta ** n).all() and (c - i * s == theta ** -n).all()
    assert theta[0] != theta[1]


# ---- Unknown functions --------------------------------------------------------------------------

def test_an_unknown_function_of_equal_arguments_is_equal_and_of_different_ones_is_not():
    f = unknown("f")
    rows = np.array([[x, y], [y, x], [x + y - y, y * 1], [x, Polynomial({})]])
    values = f(rows)
    assert values.shape == rows.shape
    assert (values[0] == values[2]).all() and (f(rows) == values).all()
    assert len({*values[0], *values[1], *values[3]}) == 6
    assert (f(rows[:1]) == values[:1]).all() and (f(rows[0]) == values[0]).all()
    assert (f(np.array([x, 0], object)) == values[3]).all()
    assert (unknown("g")(rows) != values).all() and f(rows[:0]).shape == (0, 2)


def test_an_unknown_function_of_a_row_is_none_of_its_entries_alone_also_where_it_is_long():
    entries, rows, long = unknown("f", elementwise=True), unknown("f"), unknown("f")
    pair, total = np.array([[x, y], [x, z]]), variables("x", 9).sum()
    assert entries(pair)[0, 0] == entries(pair)[1, 0] != entries(pair)[0, 1]
    assert rows(pair)[0, 0] != rows(pair)[1, 0]
    first, second = (long(np.array([total, s * total])) for s in (1, 2))
    assert (first != second).all() and "#" in str(first[0])   # arguments that are not printed


@given(rngs)
def test_at_a_point_an_unknown_function_has_one_value_for_equal_values(rng):
    f, g, at = unknown("f"), unknown("g"), Point(rng)

    def values(rows):
        return [tuple(evaluate(p, at) for p in row) for row in rows]

    row = np.array([[x * x - y * y, 1], [(x + y) * (x - y), x / x]], object)
    assert (f(row)[0] == f(row)[1]).all() and len(set(values(f(row)))) == 1
    quotients = np.array([[1 / (x + y) + 1 / (x - y)], [2 * x / (x * x - y * y)]])
    assert quotients[0, 0] != quotients[1, 0]   # forgotten here; every point remembers it
    f = unknown("f")
    assert f(quotients)[0, 0] != f(quotients)[1, 0]
    assert len(set(values(quotients))) == len(set(values(f(quotients)))) == 1
    rows = [h(np.array(row)) for h in (unknown("f"), g) for row in ([x, y], [y, x])]
    assert len({*sum(values(rows), ())}) == 8   # two functions, two arguments, two entries


def test_what_a_variable_answers_that_is_asked_more_than_its_ring():
    """As docs/proofs.md says: it is equal to nothing but itself, in == and in all that asks so."""
    assert x != 0 and x != y and x not in [0, y] and {x: 1}.get(y) is None
    assert np.where(np.array([x, x - x]) == 0, 1, 2).tolist() == [2, 1]
    assert not x - x and bool(x - x + 1) and x != 0.5 and Polynomial({}) != 0.0
    for question in (lambda: x < y, lambda: bool(x), lambda: 1 if x - 1 else 0,
                     lambda: np.where(variables("x", 2), 1, 0),
                     *(partial(operation, x, 0.5) for operation in (add, mul, sub))):
        with pytest.raises(TypeError, match="supported|depends on its variables"):
            question()


# ---- Derivatives --------------------------------------------------------------------------------

@given(polynomials, rngs)
def test_the_derivative_is_what_a_small_change_of_x_makes(p, rng):
    """f(x + e) = f(x) + e f'(x) modulo e², for e = PRIME, through reciprocals too."""
    q = 1 / (x * x * y + z)
    for f in p, p * q, 1 / (p * p * q + y):
        here = Point(rng, PRIME ** 2)
        value, slope = evaluate(f, here), evaluate(derivative(f, "x"), here)
        free = {name: here[name] for name in "xyz"}
        there = Point(rng, PRIME ** 2, **free | {"x": free["x"] + PRIME})
        assert (evaluate(f, there) - value - PRIME * slope) % PRIME ** 2 == 0
    with pytest.raises(TypeError, match="unknown"):
        derivative(unknown("f", elementwise=True)(np.array([x * y]))[0], "x")


# ---- The comparisons that the proofs end in -----------------------------------------------------

def test_a_proof_needs_equal_polynomials_of_one_shape_and_no_floats_and_counts_once_if_not_empty():
    compared.clear()
    assert_proved(*[np.zeros((0, 2), object)] * 2, zero=True, M=0)
    assert not compared
    for _ in range(2):
        both = np.array([x + y]), np.array([2], object)
        assert_proved(both, (np.array([y + x]), fractions([2])), M=1)
    assert list(compared) == [("every input", (("M", 1),))]
    for a, e in ([x], [y]), ([1.0], [1]), ([x, x], [x]), ([True], [1]):
        with pytest.raises(AssertionError):
            assert_proved(np.array(a, object), np.array(e, object))
    compared.clear()


@given(rngs)
def test_a_control_needs_a_difference_in_values_not_only_in_form(rng):
    assert assert_refuted(np.array([x, x * y + x]), np.array([x, x]), rng) == x * y
    for a, e in (x, x), (1 / (x + y) + 1 / (x - y), 2 * x / (x * x - y * y)), (0.5, x):
        with pytest.raises(AssertionError):
            assert_refuted(np.array([a], object), np.array([e], object), rng)
