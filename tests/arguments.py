"""What every function does with its arguments: tests made of tables, for each part's own file.

    test_batches = batches(case("attention_bias", attention_bias, "k:nk v:nv", Fraction), ...)
    test_types = types_and_layouts(the same cases)
    test_mistakes = refused(("k (2, 3), v (1, 3)", lambda: key_value_matrix(a(2, 3), a(1, 3))), ...)

A case has a function and the shapes of its arguments without leading axes. Every argument marked ?
is tried with all of the batch's leading axes and with each number of them left out (the first ones,
as NumPy has it); = as many as the argument before it; ! always without any. A function on a batch
is then the function on each of its parts, put together: nothing may mix, skip or swap them.
"""

from fractions import Fraction
from functools import cache, partial
from itertools import product

import numpy as np
import pytest

from exact import assert_close, assert_exactly_equal, flat, fractions

BATCHES = (0,), (), (1,), (2,), (2, 1), (2, 3), (3, 2), (2, 2, 3)
# 2 and 3 are lengths of batches too, so that an axis in the wrong place would fit
LENGTHS = dict(n=3, z=0, k=2, v=3, d=4, r=2, o=3, i=2, h=5, w=1, m=2, f=16)


def a(*shape):
    """Ones of this shape."""
    return np.ones(shape)

def case(name, function, spec, numbers=int):
    return pytest.param(function, spec.split(), numbers, id=name)

def whole(rng, numbers, *shape):
    """Whole numbers from 1 to 9, so that no denominator vanishes: ints, Fractions or floats."""
    x = rng.integers(1, 10, shape)
    return fractions(x) if numbers is Fraction else x.astype(float if numbers is float else object)

def leading_axes(batch, marks):
    """Every way in which the arguments may have the leading axes of the batch."""
    for left_out in product(*(range(len(batch) + 1 if mark == "?" else 1) for mark in marks)):
        leading = []
        for mark, n in zip(marks, left_out):
            leading.append({"=": leading[-1] if leading else batch, "!": ()}.get(mark, batch[n:]))
        yield leading


def batches(*cases):
    """The test that a function of a batch is the function of its parts."""
    @pytest.mark.parametrize("function, spec, numbers", cases)
    def test(function, spec, numbers):
        same = partial(assert_close, ulps=500) if numbers is float else assert_exactly_equal
        rng = np.random.default_rng(0)
        names, letters = zip(*(part.split(":") for part in spec))
        cores = [tuple(LENGTHS[letter] for letter in core) for core in letters]
        several = sum(name[-1] == "?" for name in names) > 2
        for batch in BATCHES[:7 if several else None] if any(n[-1] != "!" for n in names) else [()]:
            # one array for each number of leading axes, so that few parts differ and all are known
            arrays = cache(lambda i, n: whole(rng, numbers, *batch[len(batch) - n:], *cores[i]))
            on_part = cache(lambda *parts: flat(function(*(
                arrays(i, n)[at] for i, (n, at) in enumerate(parts)))))
            for leading in leading_axes(batch, [name[-1] for name in names]):
                lengths = [len(axes) for axes in leading]
                results = flat(function(*(arrays(i, n) for i, n in enumerate(lengths))))
                assert {result.shape[:len(batch)] for result in results} == {batch}
                for at in np.ndindex(batch):
                    same([result[at] for result in results],
                         on_part(*((n, at[len(batch) - n:]) for n in lengths)))
    return test


def types_and_layouts(*cases):
    """The test that float32 and float64 stay what they are, whatever the arrays' strides, and that
    arguments stay as they are and apart from the results, also if there is no token, n = 0."""
    @pytest.mark.parametrize("n", [0, 1, 3])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("function, spec, numbers", cases)
    def test(function, spec, numbers, dtype, n):
        rng, lengths = np.random.default_rng(0), LENGTHS | dict(n=n)
        shapes = [tuple(lengths[letter] for letter in part.split(":")[1]) for part in spec]
        arrays = [rng.integers(1, 10, shape).astype(dtype) for shape in shapes]
        results = assert_arguments_stay(function, *arrays)
        assert {result.dtype for result in results} == {np.dtype(dtype)}
        for others in zip(*map(layouts, arrays)):
            assert_close(function(*others), results, ulps=8)
    return test


def calls(function, names, *shapes):
    """The function at ones of these shapes, 23 for (2, 3), and the words for its message."""
    each = [[tuple(map(int, shape)) for shape in given.split()] for given in shapes]
    return [("; ".join(f"{name} {s}" for name, s in zip(names.split(), given) if name != "_"),
             partial(function, *map(np.ones, given))) for given in each]


def refused(*calls, errors=(ValueError, TypeError, IndexError)):
    """The test that each call raises an error whose message has all the words, parted by "; "."""
    @pytest.mark.parametrize("words, call", [
        pytest.param(words, call, id=f"{i}, {words}") for i, (words, call) in enumerate(calls)])
    def test(words, call):
        with pytest.raises(errors) as raised:
            call()
        for word in words.split("; "):
            assert word in str(raised.value)
    return test


def assert_arguments_stay(function, *arguments):
    """The results for read-only arguments: arrays of their own memory, which can be written to."""
    arrays = flat(arguments)
    for x in arrays:
        x.setflags(write=False)
    results = flat(function(*arguments))
    for i, x in enumerate(results):
        assert x.flags.writeable
        assert not any(np.shares_memory(x, y) for y in arrays + results[:i])
    return results

def layouts(x):
    """The same array with other strides."""
    return np.repeat(x, 2, axis=-1)[..., ::2], x[..., ::-1].copy()[..., ::-1], np.asfortranarray(x)
