"""The documents: every code block runs, every function, test and link exists, every formula survives GitHub."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import paper_map

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
SOURCES = [ROOT / "iclca_ref.py", ROOT / "linear_transformer.py", *(ROOT / "docs").rglob("*.py"),
           *(ROOT / "tests").glob("*.py")]
OTHERS = {"b_KV", "b_D", "allow_pickle", "get_executor"}    # the paper's symbols; NumPy's and Dask's


def read(document):
    return document.read_text("utf-8")


def prose(document):
    """The document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.M | re.S)


@cache
def known_names():
    """Every function, class, argument, attribute and assigned name of the project's sources."""
    nodes = (node for path in SOURCES if path.name != "answers.py" for node in ast.walk(ast.parse(read(path))))
    return {value for node in nodes for field in ("name", "arg", "id", "attr")
            if isinstance(value := getattr(node, field, None), str)} | OTHERS


def anchors(document):
    """The anchors that GitHub makes of the headings."""
    found = re.findall(r"^#+ (.*)$", prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


@documents
def test_every_code_block_runs_in_the_order_of_its_document(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```$", read(document), re.M | re.S):
        exec(compile(block, document.name, "exec"), namespace)


def test_the_derivations_sections_run_after_the_first_alone():
    """As a reader does who opens one section: its snippet needs section 1's, or says which others."""
    first, *sections = re.split(r"^## ", read(ROOT / "docs" / "derivation.md"), flags=re.M)[1:]
    blocks = {int(s.split(".")[0]): re.findall(r"^```python\n(.*?)^```$", s, re.M | re.S) for s in (first, *sections)}
    needs = {int(s.split(".")[0]): [int(n) for n in re.findall(r"needs that of section (\d+)", s)] for s in sections}
    for number in needs:
        namespace, before = {}, [1, *sorted(needs[number])]
        for block in sum((blocks[n] for n in [*before, number]), []):
            exec(compile(block, f"section {number}", "exec"), namespace)


@documents
def test_every_test_that_is_named_exists(document):
    tests = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", read(path), re.M)}
    assert not set(re.findall(r"`(test_\w+)`", read(document))) - tests


@documents
def test_every_function_that_is_named_exists(document):
    """A name in backquotes, alone or called, is a function, an argument or a variable of some source file."""
    named = set(re.findall(r"`([a-z]\w*_\w+)(?:\([^`]*\))?(?:=\w+)?`", prose(document)))
    assert not {name for name in named if not name.startswith("test_")} - known_names()


@documents
def test_every_link_within_the_project_leads_to_a_place(document):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose(document)):
        if not target.startswith("http"):
            page = (document.parent / target).resolve() if target else document
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


@documents
def test_no_formula_has_what_github_mangles(document):
    """GitHub removes a backslash before punctuation within $...$, and wants $ beside a space or punctuation."""
    text = re.sub(r"\$`.*?`\$|`[^`\n]*`", "", prose(document), flags=re.S)
    assert "$$" not in text
    formulas = list(re.finditer(r"\$([^$]+)\$", text))
    assert text.count("$") == 2 * len(formulas)
    for formula in formulas:
        assert not re.search(r"\\[^A-Za-z\s]", formula[1]), formula[0]
        before, after = text[formula.start() - 1:formula.start()], text[formula.end():formula.end() + 1]
        assert not re.match(r"[\w'’]", before) and not re.match(r"[\w'’]", after), formula[0]
        assert formula[1].count("{") == formula[1].count("}") and formula[1].strip() == formula[1], formula[0]


def test_the_readme_fits_ninety_lines():
    assert len(read(ROOT / "README.md").splitlines()) <= 90


def test_the_edits_to_try_can_be_made():
    code = read(ROOT / "iclca_ref.py") + read(ROOT / "linear_transformer.py")
    edits = re.findall(r"^```text\n(.*)\n(.*)\n```$", read(ROOT / "docs" / "proofs.md").split("## Break it yourself")[1], re.M)
    assert len(edits) == 3 and all(old in code and old != new for old, new in edits)


def test_the_map_of_every_function_is_the_one_that_its_script_makes():
    text = read(ROOT / "docs" / "paper_map.md")
    assert paper_map.table() in text


def test_the_numbered_items_of_the_papers_are_all_in_the_map():
    text = read(ROOT / "docs" / "paper_map.md")
    for item in ["Def 3.1", "Def 3.2", "Def 3.3", "Def 3.4", "§4.1", "Theorem 4.1", "Assumption 4.2", "Assumption 4.3",
                 "Assumption 4.4", "Theorem 4.5", "Algorithm 1", "App D", "Table 1", "Table 2", "§6.4", "Prop 1", "Prop 2",
                 "Prop 3", "App A.10", "Figure 2", "RetNet", "DeltaNet", "SimAOU", "Irie", "Aizerman", "Deutch", "Shen",
                 "Dherin", "MesaNet"]:
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
