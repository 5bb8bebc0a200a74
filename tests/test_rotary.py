"""Rotary embedding: R_a R_b = R_{a+b} and R_aᵀ = R_{−a} carry the proof of Theorem 4.5."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact import assert_close, assert_differ, assert_exactly_equal, fractions, rational_rope, rngs, rotations, uniform
from linear_transformer import rope, rope_frequencies, rotate

positions = st.integers(-20, 20)


def at(x, theta, position, rope=rational_rope):
    """R_position x for every row of x."""
    return rotate(x, *rope(np.array([position]), theta))


@pytest.mark.proves("R_a R_b = R_{a+b}", "Eq 12")
@given(rngs, st.integers(0, 3), positions, positions)
def test_two_rotations_are_one_by_the_sum_of_the_positions(rng, pairs, a, b):
    x, theta = uniform(rng, 2, 3, 2 * pairs), rotations(rng, pairs)
    assert_exactly_equal(at(at(x, theta, b), theta, a), at(x, theta, a + b))


@pytest.mark.breaks("R_a R_b = R_{a+b}", "angles in proportion to the position (its square in their place)")
@given(rngs, st.integers(1, 9), st.integers(1, 9))
def test_rotations_by_the_square_of_the_position_do_not_compose(rng, a, b):
    x, theta = uniform(rng, 1, 2), rotations(rng, 1)
    assert_differ(at(at(x, theta, b * b), theta, a * a), at(x, theta, (a + b) ** 2))


@pytest.mark.proves("R_aᵀ = R_{−a}", "Eq 12")
@given(rngs, st.integers(1, 3), positions)
def test_the_transpose_of_a_rotation_turns_back(rng, pairs, a):
    theta, unit = rotations(rng, pairs), fractions(np.eye(2 * pairs, dtype=int))
    assert_exactly_equal(at(unit, theta, a).T, at(unit, theta, -a))


@pytest.mark.breaks("R_aᵀ = R_{−a}", "cos² + sin² = 1 (twice the cosine and the sine)")
@given(rngs, st.integers(1, 20))
def test_the_transpose_of_a_rotation_that_also_stretches_does_not_turn_back(rng, a):
    (cos, sin), unit = rational_rope(np.array([a]), rotations(rng, 1)), fractions(np.eye(2, dtype=int))
    assert_differ(rotate(rotate(unit, 2 * cos, 2 * sin), 2 * cos, -2 * sin), unit)


@pytest.mark.proves("scores depend on i − j alone", "Assumption 4.3")
@given(rngs, st.integers(1, 3), positions, positions, positions)
def test_a_score_depends_on_the_distance_of_its_tokens_alone(rng, pairs, i, j, shift):
    theta, (q, k) = rotations(rng, pairs), uniform(rng, 2, 1, 2 * pairs)
    score = at(q, theta, i) @ at(k, theta, j).T
    assert_exactly_equal(at(q, theta, i + shift) @ at(k, theta, j + shift).T, score)
    assert_exactly_equal(at(q, theta, i - j) @ k.T, score)


@pytest.mark.breaks("scores depend on i − j alone", "rotations: adding i to the query and j to the key instead")
@given(rngs, positions, positions, st.integers(1, 20))
def test_added_positions_make_scores_depend_on_more_than_the_distance(rng, i, j, shift):
    q, k = uniform(rng, 2, 1, 2)
    assert_differ((q + i + shift) @ (k + j + shift).T, (q + i) @ (k + j).T)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs, st.integers(1, 8), st.integers(-1000, 1000))
def test_rotating_pairs_is_multiplying_complex_numbers_by_exp_of_i_times_the_angle(dtype, rng, pairs, position):
    x, theta = rng.standard_normal((5, 2 * pairs)).astype(dtype), rope_frequencies(2 * pairs).astype(dtype)
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * position * theta.astype(np.float64))
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(dtype)
    assert_close(at(x, theta, position, rope), expected, ulps=4)


def test_frequencies_are_roformers():
    np.testing.assert_allclose(rope_frequencies(4, base=100.0), [1, 1 / 10], rtol=1e-15)
    np.testing.assert_allclose(rope_frequencies(6), [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)], rtol=1e-15)


def test_cosines_and_sines_have_the_type_of_the_frequencies_and_exact_angles():
    theta = rope_frequencies(8).astype(np.float32)
    for table, function in zip(rope(np.array([100_003]), theta), (np.cos, np.sin)):
        np.testing.assert_array_equal(table, function(100_003 * theta.astype(np.float64)).astype(np.float32)[None], strict=True)


@given(rngs)
def test_each_head_may_have_its_own_table(rng):
    x, cos, sin = uniform(rng, 2, 3, 4), uniform(rng, 2, 3, 2), uniform(rng, 2, 3, 2)
    for h in range(2):
        assert_exactly_equal(rotate(x, cos, sin)[h], rotate(x[h], cos[h], sin[h]))


def test_fractions_turned_by_floats_become_floats_in_an_object_array():
    turned = rotate(fractions([[1, 2]]), *rope(np.array([1]), np.array([0.5])))
    assert turned.dtype == object and {type(x) for x in turned.ravel()} == {float}


@given(rngs)
def test_whole_numbers_turned_by_fractions_become_fractions(rng):
    x, table = rng.integers(-9, 9, (3, 2)), rational_rope(np.arange(3), rotations(rng, 1))
    assert_exactly_equal(rotate(x, *table), rotate(fractions(x), *table))


def test_a_float64_rope_leaves_float32_features_float32_and_does_not_round_integers():
    cos, sin = rope(np.arange(3), rope_frequencies(2))
    assert rotate(np.ones((3, 2), np.float32), cos, sin).dtype == np.float32
    np.testing.assert_array_equal(rotate(np.array([[1, 0]] * 3), cos, sin), np.stack([cos, sin], axis=-1)[:, 0])


def test_odd_widths_and_tables_of_another_width_are_refused():
    with pytest.raises(ValueError, match="even"):
        rope_frequencies(3)
    cos, sin = rope(np.arange(2), rope_frequencies(4))
    for x in np.ones((2, 3)), np.ones((2, 2)), np.ones((2, 5)):
        with pytest.raises(ValueError, match="half the width"):
            rotate(x, cos, sin)
    with pytest.raises(ValueError, match="half the width"):
        rotate(np.ones((2, 4)), cos, sin[:1])
