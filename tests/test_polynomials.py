"""The polynomials that the proofs are made of: a ring, with facts forgotten and none invented."""

from fractions import Fraction
from operator import add, mul, sub

import numpy as np
import pytest
from exact import (Point, angles, assert_proved, assert_refuted, compared, evaluate, fractions,
                   rngs, symbolic_rope)
from hypothesis import given
from hypothesis import strategies as st

from linear_transformer import rotate
from polynomials import Polynomial, i, unknown, variables

x, y, z = variables("x"), variables("y"), variables("z")
numbers = st.integers(-9, 9) | st.fractions(-9, 9, max_denominator=9)
polynomials = st.recursive(
    numbers | st.sampled_from([x, y, z, i]),
    lambda p: st.builds(add, p, p) | st.builds(sub, p, p) | st.builds(mul, p, p), max_leaves=8,
).map(lambda p: Polynomial({}) + p)


@given(polynomials, polynomials, polynomials)
def test_they_are_a_commutative_ring(p, q, r):
    assert p + q == q + p and p * q == q * p
    assert (p + q) + r == p + (q + r) and (p * q) * r == p * (q * r)
    assert p * (q + r) == p * q + p * r
    assert p + 0 == p == p * 1 and p - p == 0 == p * 0 and not p - p and 2 - p == -(p - 2)
    assert p ** 3 == p * p * p and p ** 0 == 1
    assert hash((p + q) - q) == hash(p)


@given(polynomials, polynomials, rngs)
def test_values_of_sums_products_and_quotients_are_those_of_the_values(p, q, rng):
    at = Point(rng)
    for operation in add, sub, mul:
        assert evaluate(operation(p, q), at) == operation(evaluate(p, at), evaluate(q, at))
    if evaluate(q, at) != 0:
        assert evaluate(p / q, at) == evaluate(p, at) / evaluate(q, at)
        assert evaluate(q ** -2, at) == 1 / evaluate(q * q, at)


@given(polynomials, polynomials, rngs)
def test_polynomials_with_the_same_values_are_equal_and_others_are_not(p, q, rng):
    at = Point(rng)  # polynomials of degree 8 that differ meet here with odds of 8 in 2^32
    assert (p == q) == (evaluate(p, at) == evaluate(q, at))


def test_values_are_fractions_found_by_substitution():
    at = Point(None, x=Fraction(2), y=Fraction(5))
    value = evaluate(3 * x * y ** 2 - x / 2 + 1 / (x + y), at)
    assert value == 3 * 2 * 25 - 1 + Fraction(1, 7) and type(value) is Fraction
    assert evaluate(np.array([x, 3, Fraction(1, 2)]), at).tolist() == [2, 3, Fraction(1, 2)]


def test_i_squared_is_minus_one_and_one_over_i_is_minus_i():
    assert i * i == i ** 2 == -1 and i ** 4 == 1 and 1 / i == -i and 1 / (1 + i) == (1 - i) / 2


def test_a_monomial_times_its_reciprocal_is_one():
    for m in x, 2 * x, x * y ** 3, -x / 3, i * x, x ** -2:
        assert (1 / m) * m == 1 == m / m


def test_other_reciprocals_are_new_variables_one_for_each_polynomial_up_to_a_factor():
    r = 1 / (x + y)
    assert r == 1 / (y + x) == 2 / (2 * x + 2 * y) == -1 / (-x - y)
    assert r != 1 / (x - y) and r not in (x, y) and r * (x + y) != 1
    assert 3 * x / (x + y) == 3 * x * r == x * 3 * r


def test_nothing_divides_by_zero():
    for zero in x - x, 0:
        with pytest.raises(ZeroDivisionError):
            1 / x / zero


def test_floats_are_refused():
    for operation in add, mul, sub:
        with pytest.raises(TypeError):
            operation(x, 0.5)
    assert x != 0.5 and Polynomial({}) != 0.0


def test_names_keep_places_apart():
    q = variables("q", 11, 11)
    assert len(set(q.ravel())) == 121 and q[1, 10] != q[10, 1] != q[1, 1]
    assert variables("q", 2, 0).shape == (2, 0) and variables("q", 0).dtype == object
    for name in "q1", "q_", "i", "":
        with pytest.raises(ValueError):
            variables(name, 2)


def test_they_print_as_formulas():
    q, k, v = variables("q", 1, 2), variables("k", 1, 1), variables("v")
    assert str(q[0, 1] * k[0, 0] * v - 2 / z) == "k0_0*q0_1*v - 2*z^-1"
    assert str(-x ** 2 / 2 + 1) == "1 - 1/2*x^2" and str(x - x) == "0" and str(-x) == "- x"
    phi = unknown("phi", elementwise=True)(np.array([x]))[0]
    assert str(x / (x + y) + phi) == "1/(x + y)*x + phi(x)"


def test_numpy_computes_with_them():
    a, b = variables("a", 2, 3), variables("b", 3, 2)
    assert ((a @ b)[1, 0]) == a[1, 0] * b[0, 0] + a[1, 1] * b[1, 0] + a[1, 2] * b[2, 0]
    assert (a.sum(axis=0) == a[0] + a[1]).all() and a.cumsum(axis=1)[0, 2] == a[0].sum()
    assert (np.tril(a)[0] == [a[0, 0], 0, 0]).all()
    assert (np.tri(2, dtype=object) @ a)[1, 1] == a[:, 1].sum()
    assert np.concatenate([a, b.T]).shape == (4, 3)
    assert (x * a == a * x).all() and (a - a == 0).all()
    assert (a / a == 1).all() and (a ** 2 == a * a).all() and np.array([x, y]).shape == (2,)
    assert (np.arange(3) * a == a * [0, 1, 2]).all() and (a @ variables("b", 3, 0)).shape == (2, 0)


# ---- Rotations by unknown angles ----------------------------------------------------------------

def turn(n, theta):
    return symbolic_rope(np.array([n]), theta)


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_rotations_by_unknown_angles_compose_and_keep_lengths(m, n):
    theta, row = angles("z", 2), variables("x", 1, 4)
    (cos, sin), (cos_m, sin_m), (cos_n, sin_n) = turn(m + n, theta), turn(m, theta), turn(n, theta)
    assert (cos * cos + sin * sin == 1).all()
    assert (cos == cos_m * cos_n - sin_m * sin_n).all()
    assert (sin == sin_m * cos_n + cos_m * sin_n).all()
    assert (rotate(rotate(row, cos_m, sin_m), cos_n, sin_n) == rotate(row, cos, sin)).all()
    assert (cos_n == sum(t ** s for t in (theta[None],) for s in (n, -n)) / 2).all()
    assert (turn(-n, theta)[1] == -sin_n).all() and (turn(0, theta)[0] == 1).all()


def test_two_angles_are_independent():
    cos, sin = turn(1, angles("z", 2))
    assert cos[0, 0] != cos[0, 1] and (cos * sin)[0, 0] != (cos * sin)[0, 1]


@given(rngs, st.integers(-5, 5))
def test_at_a_point_an_angle_is_a_rational_rotation(rng, n):
    cos, sin = evaluate(np.stack(turn(n, angles("z", 3))), Point(rng))
    assert all(type(c) is Fraction for c in [*cos.ravel(), *sin.ravel()])
    assert (cos ** 2 + sin ** 2 == 1).all()


def test_angles_turn_from_the_cosine_to_the_sine():
    cos, sin = turn(1, angles("z", 1))
    at = Point(None, **{"tan z0/2": Fraction(1, 2)})
    assert evaluate(cos, at)[0, 0] == Fraction(3, 5) and evaluate(sin, at)[0, 0] == Fraction(4, 5)


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


def test_an_unknown_function_of_a_row_is_none_of_its_entries_alone():
    entries, rows = unknown("f", elementwise=True), unknown("f")
    pair = np.array([[x, y], [x, z]])
    assert entries(pair)[0, 0] == entries(pair)[1, 0] != entries(pair)[0, 1]
    assert rows(pair)[0, 0] != rows(pair)[1, 0]


def test_long_arguments_are_told_apart_though_they_are_not_printed():
    f, row = unknown("f"), variables("x", 9)
    first, second = (f(np.array([row.sum(), s * row.sum()])) for s in (1, 2))
    assert (first != second).all() and "#" in str(first[0])


@given(rngs)
def test_at_a_point_an_unknown_function_has_one_value_for_equal_values(rng):
    f, at = unknown("f"), Point(rng)
    row = np.array([[x * x - y * y, 1], [(x + y) * (x - y), x / x]], object)
    assert (f(row)[0] == f(row)[1]).all()
    assert (evaluate(f(row), at)[0] == evaluate(f(row), at)[1]).all()
    quotients = np.array([[1 / (x + y) + 1 / (x - y)], [2 * x / (x * x - y * y)]])
    assert quotients[0, 0] != quotients[1, 0]   # forgotten here; every point remembers it
    assert (evaluate(quotients, at)[0] == evaluate(quotients, at)[1]).all()
    assert f(quotients)[0, 0] != f(quotients)[1, 0]
    assert (evaluate(f(quotients), at)[0] == evaluate(f(quotients), at)[1]).all()
    value = evaluate(f(np.array([x, y])), at)
    assert value[0] != value[1] and evaluate(unknown("g")(np.array([x, y])), at)[0] != value[0]


# ---- The comparisons that the proofs end in -----------------------------------------------------

def test_a_proof_needs_equal_polynomials_of_one_shape_and_no_floats():
    assert_proved((np.array([x + y]), np.array([2], object)), (np.array([y + x]), fractions([2])))
    for a, e in ([x], [y]), ([1.0], [1]), ([x, x], [x]), ([True], [1]):
        with pytest.raises(AssertionError):
            assert_proved(np.array(a, object), np.array(e, object))


@given(rngs)
def test_a_control_needs_a_difference_in_values_not_only_in_form(rng):
    assert assert_refuted(np.array([x, x * y + x]), np.array([x, x]), rng) == x * y
    for a, e in (x, x), (1 / (x + y) + 1 / (x - y), 2 * x / (x * x - y * y)), (0.5, x):
        with pytest.raises(AssertionError):
            assert_refuted(np.array([a], object), np.array([e], object), rng)


def test_what_is_empty_is_not_counted_and_each_shape_is_counted_once():
    compared.clear()
    nothing = np.zeros((0, 2), object)
    assert_proved(nothing, nothing, M=0)
    assert compared == set()
    for _ in range(2):
        assert_proved(np.array([x]), np.array([x]), M=1)
    assert compared == {("every input", (("M", 1),))}
    compared.clear()


def test_whether_a_variable_is_zero_cannot_be_asked():
    x = variables("x")
    for question in lambda: bool(x), lambda: 1 if x - 1 else 0, lambda: np.where(variables("x", 2), 1, 0):
        with pytest.raises(TypeError, match="depends on its variables"):
            question()
    assert not x - x and bool(x - x + 1)
