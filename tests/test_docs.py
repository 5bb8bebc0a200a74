"""The documents: every code block runs, every function and test that is named exists, every figure is in its bounds."""

import inspect
import re
import sys
from pathlib import Path

import pytest

import exact
import gpt2
import iclca_ref
import linear_transformer

sys.path.append(str(Path(__file__).parent.parent / "docs" / "exercises"))
import answers  # noqa: E402

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


@documents
def test_every_function_that_is_named_exists(document):
    """A name in backquotes, alone or called, is one of the modules', of the tests' helpers, or an argument of one."""
    known = set(dir(linear_transformer)) | set(dir(iclca_ref)) | set(dir(exact)) | set(dir(gpt2)) | set(dir(answers))
    for name in dir(linear_transformer) + dir(iclca_ref) + dir(answers):
        value = getattr(linear_transformer, name, getattr(iclca_ref, name, getattr(answers, name, None)))
        if callable(value) and getattr(value, "__module__", "") in ("linear_transformer", "iclca_ref", "answers"):
            known |= set(inspect.signature(value).parameters)
    known |= {"b_KV", "allow_pickle"}            # the paper's symbol; NumPy's argument
    named = set(re.findall(r"`([a-z]\w*_\w+)(?:\([^`]*\))?(?:=\w+)?`", document.read_text("utf-8"))) - TESTS
    assert not named - known


@documents
def test_every_link_within_the_project_leads_somewhere(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (document.parent / target).exists(), target


@documents
def test_charts_have_one_value_for_each_place_and_formulas_are_closed(document):
    text = document.read_text("utf-8")
    for chart in re.findall(r"^```mermaid\n(.*?)^```$", text, re.M | re.S):
        assert chart.startswith("xychart-beta\n")
        places, *lines = ([float(x) for x in values.split(",")] for values in re.findall(r"\[(.*?)\]", chart))
        low, high = map(float, re.search(r"y-axis .* (\S+) --> (\S+)", chart).groups())
        assert lines and all(len(line) == len(places) and low <= min(line) <= max(line) <= high for line in lines)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert text.count("$$") % 2 == 0 and text.replace("$$", "").count("$") % 2 == 0
    for formula in re.findall(r"\$\$?([^$]+)\$\$?", text):
        assert formula.count("{") == formula.count("}")


def test_the_edits_to_try_can_be_made():
    code = (ROOT / "iclca_ref.py").read_text("utf-8") + (ROOT / "linear_transformer.py").read_text("utf-8")
    edits = re.findall(r"^```text\n(.*)\n(.*)\n```$", (ROOT / "docs" / "proofs.md").read_text("utf-8"), re.M)
    assert len(edits) == 3 and all(old in code and new not in code for old, new in edits)


def test_the_numbered_items_of_the_papers_are_all_in_the_map():
    text = (ROOT / "docs" / "paper_map.md").read_text("utf-8")
    for item in ["Def 3.1", "Def 3.2", "Def 3.3", "Def 3.4", "§4.1", "Theorem 4.1", "Assumption 4.2", "Assumption 4.3",
                 "Assumption 4.4", "Theorem 4.5", "Algorithm 1", "App D", "Table 1", "Table 2", "§6.4", "Prop 1", "Prop 2",
                 "Prop 3", "App A.10", "Figure 2", "RetNet", "DeltaNet", "SimAOU", "Irie", "Aizerman", "Deutch", "Shen"]:
        assert re.search(rf"^\| .*{re.escape(item)}", text, re.M), item
    known = {1, 3, *range(5, 20)}                # ICLCA's equations in the digest that this project works from
    assert {f"Eq {n}" for n in known} == equations(text.split("## The dual form")[0])


def equations(text):
    """All equation numbers that a text names, ranges filled in."""
    found = set()
    for numbers in re.findall(r"Eq (\d[\d, -]*)", text):
        for part in re.findall(r"(\d+)(?:-(\d+))?", numbers):
            found |= {f"Eq {n}" for n in range(int(part[0]), int(part[1] or part[0]) + 1)}
    return found
