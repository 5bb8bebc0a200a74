"""Hypothesis profiles, and the table of proofs at the end of a run.

A test says what it proves with @pytest.mark.proves(theorem, source), and a negative control what it
does to the theorem with @pytest.mark.breaks(theorem, what_was_done). The table counts what ran to
its end and compared something that is not empty: shapes proved over polynomials, once each, and
examples by the arithmetic in which exact.py compared them.
"""

import functools
import gc
import os
from collections import Counter, defaultdict

import exact
import pytest
from hypothesis import Phase, settings

# without a database nothing is written, so a checkout may be read-only
settings.register_profile("fast", max_examples=25, deadline=None, database=None,
                          derandomize="CI" in os.environ)
settings.register_profile("thorough", max_examples=400, deadline=None, database=None)
settings.register_profile("mutation", max_examples=10, deadline=None, database=None,
                          derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile("fast")
gc.set_threshold(100_000)  # polynomials are many small objects

COLUMNS = "every input", "ℚ", "float64", "float32", "statistics"
READING_ORDER = """rotary attention iclca transformer linear_recurrence dual_form
    attention_as_gradient_descent implicit_weight_update softmax text_to_weights""".split()


class Count:
    """What the tests of one theorem, or of one control, have done."""

    def __init__(self):
        self.compared, self.explicit, self.failed = Counter(), 0, False

    def shapes(self):
        return [what[1] for what in self.compared if isinstance(what, tuple)]

    def cells(self):
        return [len(self.shapes()), *(self.compared[column] for column in COLUMNS[1:])]


sources = {}                                      # theorem -> source, in reading order
proved = defaultdict(Count)                       # theorem -> what its proofs did
broken = defaultdict(lambda: defaultdict(Count))  # theorem -> what was done -> the controls


def pytest_configure(config):
    config.addinivalue_line("markers", "proves(theorem, source): a proof of this theorem")
    config.addinivalue_line("markers", "breaks(theorem, what_was_done): a negative control")


def pytest_report_header():
    return f"entries drawn with ICLCA_SEED={exact.SEED}"


def pytest_collection_modifyitems(items):
    """Run the proofs in the order of the derivation, so that the table has that order too."""
    places = {f"test_{name}": place for place, name in enumerate(READING_ORDER)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run a test and count what its examples compared; after a failure its rows say FAILED."""
    rows = []
    for mark in item.iter_markers("proves"):
        sources.setdefault(*mark.args)
        rows.append(proved[mark.args[0]])
    for mark in item.iter_markers("breaks"):
        rows.append(broken[mark.args[0]][mark.args[1]])
    tally, explicit = Counter(), 0

    def counted(example):
        @functools.wraps(example)
        def run(*args, **kwargs):
            exact.compared.clear()
            example(*args, **kwargs)
            tally.update(exact.compared)
        return run

    hypothesis = getattr(item.obj, "hypothesis", None)
    try:
        if hypothesis:
            inner = hypothesis.inner_test
            explicit = len(getattr(item.obj, "hypothesis_explicit_examples", ()))
            hypothesis.inner_test = counted(inner)
            try:
                result = yield
            finally:
                hypothesis.inner_test = inner
        else:
            exact.compared.clear()
            result = yield
            tally.update(exact.compared)
    except BaseException as error:
        for row in rows:
            row.failed |= not isinstance(error, pytest.skip.Exception)
        raise
    if rows and not tally:
        for row in rows:
            row.failed = True
        pytest.fail("the test stands for a row of the table, but compared nothing")
    for row in rows:
        row.compared.update(tally)
        row.explicit += explicit
    return result


def in_words(count):
    """What a control found, in words: "12 shapes, 25 + 1 instances"."""
    shapes, *instances = count.cells()
    words = [f"{shapes} shape" + "s" * (shapes > 1)] if shapes else []
    if any(instances):
        explicit = f" + {count.explicit}" if count.explicit else ""
        words.append(f"{max(instances) - count.explicit}{explicit} instances")
    return ", ".join(words)


def largest(shapes):
    """The shape with the largest sum of sizes, in words."""
    def size(shape):
        return sum(sum(n) if isinstance(n, tuple) else n for _, n in shape)

    shape = max(shapes, key=size)
    return ", ".join(name if n is True else f"{name} {n}" for name, n in shape if n is not False)


def pytest_terminal_summary(terminalreporter):
    for theorem in broken:
        sources.setdefault(theorem, "")
    if not sources:
        return
    write = terminalreporter.write_line
    width, source_width = (max(map(len, column)) for column in zip(*sources.items()))
    terminalreporter.section("what has been proved")
    columns = "".join(f"  {column:>3}" for column in COLUMNS)
    write(f"{'theorem':<{width}}  {'source':<{source_width}}{columns}")
    for theorem, source in sources.items():
        count = proved[theorem]
        cells = ["FAILED"] if count.failed else count.cells()
        cells = "".join(f"{cell or '-':>{max(len(c), 3) + 2}}" for cell, c in zip(cells, COLUMNS))
        write(f"{theorem:<{width}}  {source:<{source_width}}{cells}")
        for what_was_done, found in broken[theorem].items():
            result = "FAILED" if found.failed else in_words(found)
            write(f"    broken by: {what_was_done} ({result})")
    write("every input: shapes at which both sides are the same polynomials; ℚ, float64, float32:")
    write("random instances, equal (floats to rounding); statistics: estimates within chance.")
    write("broken by: what was done, and at how many shapes or instances the sides then differ;")
    write("25 + 1 are 25 random ones and 1 that is written down in the test.")
    for theorem in sources:
        if shapes := proved[theorem].shapes():
            write(f"largest shape, {theorem}: {largest(shapes)}")
