"""Hypothesis profiles, and the table of proofs at the end of a run.

A test says what it proves with @pytest.mark.proves(theorem, source), and a negative control which assumption it breaks
with @pytest.mark.breaks(theorem, assumption). The table counts what ran: examples that got to their end, by the
arithmetic in which exact.py compared them.
"""

import functools
import os
from collections import Counter, defaultdict

import exact
import pytest
from hypothesis import Phase, settings

settings.register_profile("fast", max_examples=40, deadline=None, derandomize="CI" in os.environ)
settings.register_profile("thorough", max_examples=400, deadline=None)
settings.register_profile("mutation", max_examples=10, deadline=None, derandomize=True, database=None,
                          phases=(Phase.explicit, Phase.generate))
settings.load_profile("fast")

ARITHMETICS = "ℚ", "float64", "float32"
theorems = {}                 # theorem -> source, in the order in which they were first proved
proved = defaultdict(Counter)  # theorem -> arithmetic -> examples
broken = defaultdict(Counter)  # theorem -> assumption -> examples in which a difference was found


def pytest_configure(config):
    config.addinivalue_line("markers", "proves(theorem, source): the test is a proof of this theorem")
    config.addinivalue_line("markers", "breaks(theorem, assumption): negative control: without it the theorem fails")


READING_ORDER = ("rotary attention iclca transformer induction dual_form attention_as_gradient_descent online_learning "
                 "softmax").split()


def pytest_collection_modifyitems(items):
    """Run the proofs in the order of the derivation, so that the table has that order too."""
    places = {f"test_{name}": place for place, name in enumerate(READING_ORDER)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run a test and count its completed examples by arithmetic; keep the counts if it passes."""
    tally = Counter()

    def counted(example):
        @functools.wraps(example)
        def run(*args, **kwargs):
            exact.compared.clear()
            example(*args, **kwargs)
            tally.update(exact.compared)
        return run

    if getattr(item.obj, "is_hypothesis_test", False):
        inner = item.obj.hypothesis.inner_test
        item.obj.hypothesis.inner_test = counted(inner)
        try:
            result = yield
        finally:
            item.obj.hypothesis.inner_test = inner
    else:
        exact.compared.clear()
        result = yield
        tally.update(exact.compared)
    for mark in item.iter_markers("proves"):
        theorem, source = mark.args
        theorems.setdefault(theorem, source)
        proved[theorem].update(tally)
    for mark in item.iter_markers("breaks"):
        theorem, assumption = mark.args
        broken[theorem][assumption] += max(tally.values(), default=0)
    return result


def pytest_terminal_summary(terminalreporter):
    if not theorems:
        return
    write = terminalreporter.write_line
    width, source_width = (max(map(len, column)) for column in zip(*theorems.items()))
    terminalreporter.section("what has been proved, and on how many random instances")
    write(f"{'theorem':<{width}}  {'source':<{source_width}}" + "".join(f"{a:>9}" for a in ARITHMETICS))
    for theorem, source in theorems.items():
        counts = "".join(f"{proved[theorem][a] or '-':>9}" for a in ARITHMETICS)
        write(f"{theorem:<{width}}  {source:<{source_width}}{counts}")
        for assumption, found in broken[theorem].items():
            write(f"    fails without: {assumption} ({found} counterexamples)")
