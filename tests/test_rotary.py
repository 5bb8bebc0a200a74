"""Rotary embedding: R_a R_b = R_{a+b} and R_aᵀ = R_{−a} carry the proof of Theorem 4.5."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (angles, assert_exactly_equal, every, fractions, rational_rope, rngs, rngs_of,
                   rotations, symbolic_rope, uniform)
from linear_transformer import identity, rope, rope_frequencies, rotate
from polynomials import variables
from theorem import broken, theorem

def at(x, theta, position, rope=rational_rope):
    """R_position x for every row of x."""
    return rotate(x, *rope(np.array([position]), theta))

@st.composite
def turns(draw, pairs=st.integers(1, 3), positions=st.integers(-20, 20)):
    """A query, a key, the function `at` for some rational rotations, and two positions."""
    rng, pairs = draw(rngs_of(3)), draw(pairs)
    (q, k), theta = uniform(rng, 2, 1, 2 * pairs), rotations(rng, pairs)
    return q, k, lambda x, n: at(x, theta, n), draw(positions), draw(positions)

def any_turn(pairs, a=1, b=1):
    """The same for variables and unknown angles."""
    q, k = (variables(name, 1, 2 * pairs) for name in "qk")
    return q, k, lambda x, n: at(x, angles("w", pairs), n, symbolic_rope), a, b


some = turns(st.just(1), st.integers(1, 9))
places = every(pairs=(1, 2), a=range(-2, 3), b=range(-2, 3))


# ---- The two identities, and what follows -------------------------------------------------------

@theorem("R_a R_b = R_{a+b}", "Eq 12, App B", turns(), places, any_turn)
def rotations_compose(q, _, turn, a, b, place=identity):
    """R_a R_b q  =  R_{a+b} q."""
    return turn(turn(q, place(b)), place(a)), turn(q, place(a + b))

@broken(rotations_compose, "turning by the square of the position", some, [any_turn(1)])
def squares_of_positions_do_not_compose(*case):
    return rotations_compose(*case, lambda n: n * n)


@theorem("R_aᵀ = R_{−a}", "Eq 12, App B", turns(), every(pairs=(1, 2, 3), a=(-3, -2, -1, 1, 2, 3)),
         any_turn)
def the_transpose_turns_back(q, _, turn, a, b, back=lambda a: -a):
    """R_aᵀ  =  R_{−a}, of the rows of the unit matrix."""
    unit = fractions(np.eye(q.shape[-1], dtype=int))
    return turn(unit, a).T, turn(unit, back(a))

@broken(the_transpose_turns_back, "sin(−nθ) = sin nθ", some, [any_turn(1)])
def with_the_sine_of_the_distance_it_turns_forward(*case):
    return the_transpose_turns_back(*case, back=abs)


@theorem("scores depend on i − j alone", "Assumption 4.3", turns(), places, any_turn)
def scores_depend_on_the_distance(q, k, turn, i, j, place=identity):
    """(R_i q)·(R_j k), and both places shifted by 3  =  (R_{i−j} q)·k, twice."""
    scores = [turn(q, i + shift) @ turn(k, place(j + shift)).T for shift in (0, 3)]
    return scores, [turn(q, i - j) @ k.T] * 2

@broken(scores_depend_on_the_distance, "the key turned by the square of its position", some,
        [any_turn(1, 3, 2)])
def with_keys_turned_by_squares(*case):
    return scores_depend_on_the_distance(*case, place=lambda n: n * n)


# ---- The functions themselves -------------------------------------------------------------------

@given(rngs, st.integers(0, 3))
def test_floats_complex_numbers_and_fractions_turn_alike(rng, pairs):
    x = rng.integers(-9, 9, (3, 2 * pairs))
    table = rational_rope(np.arange(3), rotations(rng, pairs))
    exact, floats = rotate(fractions(x), *table), [t.astype(float) for t in table]
    assert_exactly_equal(rotate(x, *table), exact)
    np.testing.assert_array_equal(rotate(a(1, 2), 1j * a(1, 1), 0 * a(1, 1)), [[1j, 1j]])
    for y in x, x.astype(float), x.astype(np.float32), x * 1j, x.astype(">f8"):
        expected, turned = exact.astype(float) * (y.dtype.kind != "c" or 1j), rotate(y, *floats)
        assert turned.dtype.itemsize == y.itemsize     # also where the table has more digits
        np.testing.assert_allclose(turned, expected, atol=64 * np.finfo(turned.dtype).eps)


def test_frequencies_are_roformers():
    np.testing.assert_allclose(rope_frequencies(4, base=100.0), [1, 1 / 10], rtol=1e-15)
    np.testing.assert_allclose(rope_frequencies(6), [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)],
                               rtol=1e-15)
    assert rope_frequencies(0).shape == (0,)


@pytest.mark.parametrize("theta", [np.int8, np.int64, np.float64, np.float32])
@pytest.mark.parametrize("positions", [np.int8, np.int64, np.float32])
def test_angles_are_float64_and_only_float32_frequencies_make_a_narrower_table(positions, theta):
    positions, theta = np.array([100, -2], positions), np.array([100.7, 3.3]).astype(theta)
    angles = np.outer(positions.astype(float), theta.astype(float))
    for table, function in zip(rope(positions, theta), (np.cos, np.sin)):
        expected = function(angles).astype(theta.dtype if theta.dtype == np.float32 else float)
        np.testing.assert_array_equal(table, expected, strict=True)
    assert rope([1, 2], [1.0])[0].shape == (2, 1)


CASES = [case("rotate", lambda x: rotate(x, x[..., ::2], 2 * x[..., ::2]), "x:nd"),
         case("rotate, one row for all", lambda x: rotate(x, a(1, 2), a(1, 2)), "x:nd", float)]
test_batches, test_types = batches(*CASES), types_and_layouts(*CASES)

test_mistakes = refused(
    ("got 3", lambda: rope_frequencies(3)), ("got -2", lambda: rope_frequencies(-2)),
    ("cos (3, 1, 2)", lambda: rotate(a(3, 4), *rope(np.arange(3), a(1, 2)))),
    *calls(lambda x, cos: rotate(x, cos, cos), "x cos", "32 32", "14 32", "34 52", "35 32",
           "34 432", "234 332", "234 132"), *calls(rotate, "_ _ sin", "34 32 31", "34 32 12"),
    ("x; list", lambda: rotate([[1.0, 0.0]], a(1, 1), a(1, 1))))
