"""Hypothesis profiles, the tests that theorem.py makes, and the table of proofs that ends a run.

A test stands for a theorem by @pytest.mark.proves(theorem, source), for a negative control by
@pytest.mark.breaks(theorem, what_was_done); theorem.py sets both. The table counts what exact.py
compared, if it is not empty, in tests that ran to their end: shapes proved over polynomials, once
each, and instances by their arithmetic.
"""

import gc
import os
from collections import Counter, defaultdict

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")   # for small matrices threads are in the way

import pytest  # noqa: E402
from hypothesis import Phase, settings  # noqa: E402

# or python -O drops their asserts
pytest.register_assert_rewrite("exact", "polynomials", "theorem")
import exact  # noqa: E402
import polynomials  # noqa: E402

# without a database nothing is written, so a checkout may be read-only
settings.register_profile("fast", max_examples=25, deadline=None, database=None,
                          derandomize="CI" in os.environ)
settings.register_profile("thorough", max_examples=400, deadline=None, database=None)
settings.register_profile("mutation", max_examples=10, deadline=None, database=None,
                          derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile("fast")
gc.set_threshold(100_000)  # polynomials are many small objects

ARITHMETICS = "ℚ", "float64", "float32"
READING_ORDER = """rotary attention iclca transformer linear_recurrence backward dual_form
    gradient_layers implicit_weight_update softmax text_to_weights""".split()
HOW_TO_READ = """\
shapes    sizes at which both sides are the same polynomials: equal for every input
          of that size at which no denominator is 0, without tolerance or chance
ℚ         random instances equal as fractions, by ==
floats    random instances equal to rounding in float64 and float32, or estimates
          within chance
controls  broken assumptions, each of which makes the two sides differ
"""


class Count:
    """What the tests of one theorem, or of one control, have compared."""

    def __init__(self):
        self.compared, self.failed = Counter(), False

    def shapes(self):
        return [what[1] for what in self.compared if isinstance(what, tuple)]

    def cells(self):
        fractions, *others = (self.compared[a] for a in ARITHMETICS)
        return len(self.shapes()), fractions, sum(others)


sources = {}                                      # theorem -> source, in reading order
proved = defaultdict(Count)                       # theorem -> what its proofs did
broken = defaultdict(lambda: defaultdict(Count))  # theorem -> what was done -> the controls


def pytest_addoption(parser):
    parser.addoption("--controls", action="store_true",
                     help="the table of proofs with the controls in words and the largest shapes")


def pytest_configure(config):
    config.addinivalue_line("markers", "proves(theorem, source): a proof of this theorem")
    config.addinivalue_line("markers", "breaks(theorem, what_was_done): a negative control")


def pytest_pycollect_makeitem(collector, name, obj):
    """The tests of a theorem or control, where it is defined."""
    made = getattr(obj, "made", None)
    if not isinstance(made, dict) or obj.__module__ != collector.obj.__name__:
        return None
    items = [pytest.Function.from_parent(collector, name=f"{name}[{arithmetic}]", callobj=test)
             for arithmetic, test in made.items()]
    for item in items:
        item.add_marker(obj.row)
    return items


def pytest_collection_modifyitems(items):
    """Run the proofs in the order of the derivation, so that the table has that order too."""
    places = {f"test_{name}": place for place, name in enumerate(READING_ORDER)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run a test and count what it compared; after a failure its rows say FAILED."""
    for mark in item.iter_markers("proves"):
        sources.setdefault(*mark.args)
    rows = [*(proved[mark.args[0]] for mark in item.iter_markers("proves")),
            *(broken[mark.args[0]][mark.args[1]] for mark in item.iter_markers("breaks"))]
    exact.compared.clear()
    polynomials.uses.clear()   # within one test a name has one meaning
    try:
        result = yield
        if rows and not exact.compared:
            pytest.fail("the test stands for a row of the table, but compared nothing")
    except BaseException as error:
        for count in rows:
            count.failed |= not isinstance(error, pytest.skip.Exception)
        raise
    for count in rows:
        count.compared.update(exact.compared)
    return result


def largest(shapes):
    """The shape with the largest sum of sizes, in words."""
    def size(shape):
        return sum(sum(n) if isinstance(n, tuple) else n for _, n in shape)

    shape = max(shapes, key=size)
    return ", ".join(name if n is True else f"{name} {n}" for name, n in shape if n is not False)


def row(theorem, source, *cells):
    """A line of the table, of at most 79 columns."""
    shapes, fractions, floats, controls = (str(cell or "-") for cell in cells)
    return f"{theorem:34.34} {source:17.17} {shapes:>6} {fractions:>3} {floats:>6} {controls:>8}"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    write, in_words = terminalreporter.write_line, config.getoption("--controls")
    controls = [found for each in broken.values() for found in each.values()]
    if terminalreporter.stats.keys() & {"failed", "error"}:
        write(f"entries drawn with ICLCA_SEED={exact.SEED}")
    if not proved:
        return
    terminalreporter.section("what has been proved")
    write(HOW_TO_READ + "\n" + row("theorem", "source", "shapes", "ℚ", "floats", "controls"))
    for theorem, source in sources.items():
        count, against = proved[theorem], broken[theorem]
        failed = count.failed or any(found.failed for found in against.values())
        write(row(theorem, source, *count.cells(), "FAILED" if failed else len(against)))
        for what_was_done, found in against.items() if in_words else ():
            shapes, *instances = found.cells()
            write(f"    broken by {what_was_done}: " + (
                "FAILED" if found.failed else f"at {shapes} shapes, {sum(instances)} instances"))
        if in_words and count.shapes():
            write(f"    largest shape: {largest(count.shapes())}")
    failed = sum(count.failed for count in (*proved.values(), *controls))
    write(f"{sum(not count.failed for count in proved.values())} theorems proved, "
          f"{sum(not count.failed for count in controls)} controls refuted"
          + f", {failed} FAILED" * bool(failed)
          + "; in words: python -m pytest --controls" * (not in_words))
