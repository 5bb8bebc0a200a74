"""Rotary embedding: R_a R_b = R_{a+b} and R_aᵀ = R_{−a} carry the proof of Theorem 4.5."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exact import (angles, assert_close, assert_differ, assert_exactly_equal, assert_proved,
                   assert_refuted, every, fractions, rational_rope, rngs, rotations, symbolic_rope,
                   uniform)
from linear_transformer import rope, rope_frequencies, rotate
from polynomials import variables

positions = st.integers(-20, 20)
places = every(pairs=(1, 2), a=range(-2, 3), b=range(-2, 3))


def at(x, theta, position, rope=rational_rope):
    """R_position x for every row of x."""
    return rotate(x, *rope(np.array([position]), theta))


def symbolic(pairs):
    """A query, a key and the function `at` for unknown angles."""
    theta = angles("w", pairs)
    q, k = variables("q", 1, 2 * pairs), variables("k", 1, 2 * pairs)
    return q, k, lambda x, position: at(x, theta, position, symbolic_rope)


# ---- R_a R_b = R_{a+b} ------------------------------------------------------------------------------

@pytest.mark.proves("R_a R_b = R_{a+b}", "Eq 12, App B")
@given(rngs, st.integers(1, 3), positions, positions)
def test_two_rotations_are_one_by_the_sum_of_the_positions(rng, pairs, a, b):
    x, theta = uniform(rng, 2, 3, 2 * pairs), rotations(rng, pairs)
    assert_exactly_equal(at(at(x, theta, b), theta, a), at(x, theta, a + b))


@pytest.mark.proves("R_a R_b = R_{a+b}", "Eq 12, App B")
def test_two_rotations_are_one_for_every_angle():
    for shape in places:
        q, _, turn = symbolic(shape["pairs"])
        assert_proved(turn(turn(q, shape["b"]), shape["a"]), turn(q, shape["a"] + shape["b"]), **shape)


@pytest.mark.breaks("R_a R_b = R_{a+b}", "turning by the square of the position")
@given(rngs, st.integers(1, 9), st.integers(1, 9))
def test_rotations_by_the_square_of_the_position_do_not_compose(rng, a, b):
    x, theta = uniform(rng, 1, 2), rotations(rng, 1)
    assert_differ(at(at(x, theta, b * b), theta, a * a), at(x, theta, (a + b) ** 2))


@pytest.mark.breaks("R_a R_b = R_{a+b}", "turning by the square of the position")
def test_rotations_by_the_square_of_the_position_are_other_polynomials():
    q, _, turn = symbolic(1)
    assert_refuted(turn(turn(q, 1), 1), turn(q, 4))


# ---- R_aᵀ = R_{−a} ----------------------------------------------------------------------------------

@pytest.mark.proves("R_aᵀ = R_{−a}", "Eq 12, App B")
@given(rngs, st.integers(1, 3), positions)
def test_the_transpose_of_a_rotation_turns_back(rng, pairs, a):
    theta, unit = rotations(rng, pairs), fractions(np.eye(2 * pairs, dtype=int))
    assert_exactly_equal(at(unit, theta, a).T, at(unit, theta, -a))


@pytest.mark.proves("R_aᵀ = R_{−a}", "Eq 12, App B")
def test_the_transpose_of_a_rotation_turns_back_for_every_angle():
    for shape in every(pairs=(1, 2, 3), a=(-3, -2, -1, 1, 2, 3)):
        _, _, turn = symbolic(shape["pairs"])
        unit = np.eye(2 * shape["pairs"], dtype=int).astype(object)
        assert_proved(turn(unit, shape["a"]).T, turn(unit, -shape["a"]), **shape)


def turned_forward(unit, position, theta, rope):
    """R_|position| for every row: a sine that does not change its sign."""
    return rotate(unit, *rope(np.array([abs(position)]), theta))


@pytest.mark.breaks("R_aᵀ = R_{−a}", "turning by |a|: a sine that does not change its sign")
@given(rngs, st.integers(1, 20))
def test_with_a_sine_that_does_not_change_its_sign_the_transpose_does_not_turn_back(rng, a):
    theta, unit = rotations(rng, 1), fractions(np.eye(2, dtype=int))
    forward, back = (turned_forward(unit, n, theta, rational_rope) for n in (a, -a))
    assert_differ(forward.T, back)


@pytest.mark.breaks("R_aᵀ = R_{−a}", "turning by |a|: a sine that does not change its sign")
def test_with_a_sine_that_does_not_change_its_sign_the_transpose_is_another_polynomial():
    unit, theta = np.eye(2, dtype=int).astype(object), angles("w", 1)
    assert_refuted(turned_forward(unit, 1, theta, symbolic_rope).T, turned_forward(unit, -1, theta, symbolic_rope))


# ---- Scores depend on i − j alone (Assumption 4.3) --------------------------------------------------

@pytest.mark.proves("scores depend on i − j alone", "Assumption 4.3")
@given(rngs, st.integers(1, 3), positions, positions, positions)
def test_a_score_depends_on_the_distance_of_its_tokens_alone(rng, pairs, i, j, shift):
    theta, (q, k) = rotations(rng, pairs), uniform(rng, 2, 1, 2 * pairs)
    score = at(q, theta, i) @ at(k, theta, j).T
    assert_exactly_equal(at(q, theta, i + shift) @ at(k, theta, j + shift).T, score)
    assert_exactly_equal(at(q, theta, i - j) @ k.T, score)


@pytest.mark.proves("scores depend on i − j alone", "Assumption 4.3")
def test_a_score_depends_on_the_distance_alone_for_every_query_key_and_angle():
    for shape in places:
        q, k, turn = symbolic(shape["pairs"])
        assert_proved(turn(q, shape["a"]) @ turn(k, shape["b"]).T,
                      turn(q, shape["a"] - shape["b"]) @ k.T, **shape)


@pytest.mark.breaks("scores depend on i − j alone", "the key turned by the square of its position")
@given(rngs, st.integers(-5, 5), st.integers(-5, 5), st.integers(1, 3))
def test_with_keys_turned_by_the_square_of_their_position_scores_depend_on_more(rng, i, j, shift):
    theta, (q, k) = rotations(rng, 1), uniform(rng, 2, 1, 2)
    assume(shift != 1 - 2 * j)                # then both turn by the same angle
    assert_differ(at(q, theta, i + shift) @ at(k, theta, (j + shift) ** 2).T,
                  at(q, theta, i) @ at(k, theta, j * j).T)


@pytest.mark.breaks("scores depend on i − j alone", "the key turned by the square of its position")
def test_turned_by_its_square_a_key_at_place_two_is_another_polynomial():
    q, k, turn = symbolic(1)
    assert_refuted(turn(q, 3) @ turn(k, 4).T, turn(q, 2) @ turn(k, 1).T)


# ---- The functions themselves -----------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(rngs, st.integers(1, 8), st.integers(-1000, 1000))
def test_rotating_pairs_is_multiplying_complex_numbers_by_exp_of_i_times_the_angle(dtype, rng, pairs, position):
    x, theta = rng.standard_normal((5, 2 * pairs)).astype(dtype), rope_frequencies(2 * pairs).astype(dtype)
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * position * theta.astype(np.float64))
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(dtype)
    assert_close(at(x, theta, position, rope), expected, ulps=4)


@given(rngs, st.integers(0, 3))
def test_floats_and_fractions_turn_alike(rng, pairs):
    x, table = rng.integers(-9, 9, (2, 3, 2 * pairs)), rational_rope(np.arange(3), rotations(rng, pairs))
    exact = rotate(fractions(x), *table).astype(float)
    np.testing.assert_allclose(rotate(x.astype(float), *(t.astype(float) for t in table)), exact, atol=1e-13)


def test_frequencies_are_roformers():
    np.testing.assert_allclose(rope_frequencies(4, base=100.0), [1, 1 / 10], rtol=1e-15)
    np.testing.assert_allclose(rope_frequencies(6), [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)], rtol=1e-15)


def test_cosines_and_sines_have_the_type_of_the_frequencies_and_exact_angles():
    theta = rope_frequencies(8).astype(np.float32)
    for table, function in zip(rope(np.array([100_003]), theta), (np.cos, np.sin)):
        np.testing.assert_array_equal(table, function(100_003 * theta.astype(np.float64)).astype(np.float32)[None],
                                      strict=True)


def test_whole_frequencies_give_floats():
    cos, sin = rope(np.array([1]), np.array([2]))
    assert (cos, sin) == (np.cos([[2.0]]), np.sin([[2.0]])) and cos.dtype == float


@given(rngs)
def test_each_head_may_have_its_own_table(rng):
    x, cos, sin = uniform(rng, 2, 3, 4), uniform(rng, 2, 3, 2), uniform(rng, 2, 3, 2)
    for h in range(2):
        assert_exactly_equal(rotate(x, cos, sin)[h], rotate(x[h], cos[h], sin[h]))


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
        with pytest.raises(ValueError, match="half as wide"):
            rotate(x, cos, sin)
    with pytest.raises(ValueError, match="half as wide"):
        rotate(np.ones((2, 4)), cos, sin[:1])
