"""A theorem is a function that returns its two sides; its tests are made of it here.

    @theorem("Theorem 4.5", "Thm 4.5, Eq 14-16", attention_cases(), SHAPES)
    def theorem_4_5(case, convert=attention_bias):
        ...
        return converted, in_context

makes theorem_4_5[every_input], a proof over polynomials for each shape in SHAPES, and
theorem_4_5[fractions], a test on random fractions; with `floats` also [float64] and [float32]. A
negative control breaks one assumption and returns the two sides that must then differ:

    @broken(theorem_4_5, "leaving out b_D", attention_cases(...), [symbolic_case(1, 1, ...)])
    def without_the_bias_of_the_normalizer(case):
        return theorem_4_5(case, lambda k, *rest: ...)

A case that is a plain tuple is handed over as several arguments. pytest finds both by conftest.py.
"""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given

from exact import (assert_close, assert_differ, assert_exactly_equal, assert_proved, assert_refuted,
                   rngs, symbolic_case)


def both(sides, case):
    """The two sides at a case."""
    return sides(*case) if type(case) is tuple else sides(case)


def with_examples(strategy, test, examples=()):
    """The test given random cases, and the examples in front of them."""
    for case in examples:
        test = example(case)(test)
    return given(strategy)(test)


def theorem(name, source, random=None, shapes=(), symbolic=symbolic_case, floats=None, ulps=0,
            zero=False):
    """Make the proofs of a theorem: `random` is a strategy of cases of fractions, symbolic(**shape)
    the case of variables for each of the shapes, floats(rng, dtype) a case to be equal to `ulps`.

    `zero` says that the theorem is that something is 0, so that no variable needs to be left.
    """
    def make(sides):
        assert shapes or random is not None or floats, f"{name} has nothing to be proved on"
        sides.made, sides.row = {}, pytest.mark.proves(name, source)
        if shapes:
            sides.made["every_input"] = lambda: [assert_proved(
                *both(sides, symbolic(**shape)), zero=zero, **shape) for shape in shapes] and None
        if random is not None:
            sides.made["fractions"] = with_examples(
                random, lambda case: assert_exactly_equal(*both(sides, case)))
        for dtype in (np.float64, np.float32) if floats else ():
            sides.made[dtype.__name__] = with_examples(
                rngs.map(partial(floats, dtype=dtype)),
                lambda case: assert_close(*both(sides, case), ulps))
        return sides
    return make


def broken(of, what, random=None, symbolic=(), *examples, difference=None):
    """Make the negative control of the theorem `of`: at random fractions and examples, and over
    polynomials at a case of variables, or each of a list of them, its two sides must differ.

    `difference` is how the shortest difference over polynomials prints.
    """
    def make(sides):
        def every_input():
            for case in symbolic if isinstance(symbolic, list) else [symbolic]:
                found = assert_refuted(*both(sides, case))
                assert difference in (None, str(found), str(-found)), found

        sides.made, sides.row = {}, pytest.mark.breaks(of.row.args[0], what)
        if len(symbolic):
            sides.made["every_input"] = every_input
        if random is not None:
            sides.made["fractions"] = with_examples(
                random, lambda case: assert_differ(*both(sides, case)), examples)
        return sides
    return make
