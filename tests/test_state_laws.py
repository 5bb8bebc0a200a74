"""The checker of a state's laws: our own model keeps them all, and every planted fault is found."""

from functools import partial

import numpy as np
import pytest

from linear_transformer import forward, random_transformer
from state_laws import FAULTS, check

MODEL = random_transformer(np.random.default_rng(0), 50, 32, 2, 2)
SPLITS = 1, 32, 33
HANDED_ON = {"rest of one token", "rest of several", "one by one", "resumed twice"}
CAUGHT = {
    "state dropped for several tokens": (
        {"rest of several", "resumed twice"}, "state dropped, right one by one"),
    "whole chunks": (HANDED_ON, "position? normalizer?"),
    "offset wrong by one": (HANDED_ON, "position? normalizer?"),
    "normalizer not carried": (HANDED_ON, "position? normalizer?"),
    "half precision": (HANDED_ON, "few digits"),
    "batch rows mixed": ({"batch rows"}, "mixed, right one by one"),
    "state wiped in place": ({"state used twice"}, "in place, right one by one"),
}


def broken(fault):
    """{law: (guess, splits)} of the laws that the model with this fault breaks."""
    tokens = np.random.default_rng(1).integers(0, 50, (2, 40))
    rows = check(partial(fault, partial(forward, MODEL)), tokens, SPLITS, 1e-12)
    return {law: (guess, bad) for law, _, guess, bad in rows if bad}


def test_our_own_model_keeps_every_law():
    assert not broken(FAULTS["none: our own model"])


@pytest.mark.parametrize("name", list(FAULTS)[1:])
def test_every_planted_fault_breaks_its_laws_and_no_other(name):
    laws, guess = CAUGHT[name]
    found = broken(FAULTS[name])
    assert set(found) == laws
    assert next(iter(found.values()))[0] == guess


def test_a_fault_at_the_chunks_length_is_seen_only_beside_it():
    assert broken(FAULTS["whole chunks"])["rest of several"][1] == [33]
