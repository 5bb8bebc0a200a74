"""The documents: every code block runs, what they name and link exists, formulas survive GitHub."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

import notebook
import paper_map

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DERIVATION, PROOFS = ROOT / "docs" / "derivation.md", ROOT / "docs" / "proofs.md"
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
SOURCES = [*sorted(ROOT.glob("*.py")), *ROOT.glob("docs/**/*.py"), *ROOT.glob("tests/*.py")]
OTHERS = {"b_KV", "b_D", "allow_pickle", "get_executor"}   # the paper's; NumPy's and Dask's
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def read(document):
    return document.read_text("utf-8")

def prose(document):
    """The document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.M | re.S)

@cache
def known_names():
    """Every function, class, argument, attribute and assigned name of the project's sources."""
    nodes = (node for path in SOURCES if path.name != "answers.py"
             for node in ast.walk(ast.parse(read(path))))
    return {value for node in nodes for field in ("name", "arg", "id", "attr")
            if isinstance(value := getattr(node, field, None), str)} | OTHERS

def anchors(document):
    """The anchors that GitHub makes of the headings."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            for text in re.findall(r"^#+ (.*)$", prose(document), re.M)}

@cache
def made_in(path):
    """The tests of a file: its functions test_..., and those that theorem.py makes tests of."""
    made = r"^def (test_\w+)|^@(?:theorem|broken)\(.*\ndef (\w+)|^(\w+) = \w+\(.*\)\("
    text = ast.unparse(ast.parse(read(path)))   # a statement, a decorator on one line
    return {name for names in re.findall(made, text, re.M) for name in names}


@documents
def test_every_code_block_runs_in_the_order_of_its_document(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile("\n".join(PYTHON.findall(read(document))), document.name, "exec"), {})


def test_the_derivations_sections_run_after_the_first_alone_and_print_a_result(capsys):
    """As a reader does who opens one section; each but the first and the last has tests too."""
    first, *sections, _ = re.split(r"^## ", read(DERIVATION), flags=re.M)[1:]
    for section in sections:
        exec(PYTHON.search(first)[1], namespace := {})
        capsys.readouterr()
        exec("\n".join(PYTHON.findall(section)), namespace)
        assert capsys.readouterr().out and "<summary>Tests" in section, section.split("\n")[0]


def test_the_notebook_is_the_derivation_with_its_formulas_set():
    made = json.loads(json.dumps(notebook.notebook(read(DERIVATION))))
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    text, code = ([cell["source"] for cell in made["cells"] if cell["cell_type"] == kind]
                  for kind in ("markdown", "code"))
    assert code == [block.strip() for block in PYTHON.findall(read(DERIVATION))]
    assert "\n".join(text).count("$$") == 2 * read(DERIVATION).count("```math") > 0
    assert not re.search(r"```(math|python)|\]\(#", "\n".join(text))


@documents
def test_every_test_that_is_named_exists(document):
    """Named as test_..., as made[fractions], or after a link to its file: [file](...): `name`."""
    text = read(document)
    for name, names in re.findall(r"\[(test_\w+\.py)\]\([^)]*\):\s(.*?)(?=\n\n|\n- )", text, re.S):
        named = set(re.findall(r"`(\w+)`", names))
        assert named and named <= made_in(ROOT / "tests" / name), (name, named)
    named = re.findall(r"`(test_\w+)`|\b(\w+)\[(?:every_input|fractions|float\d\d)\]", text)
    tests = set().union(*map(made_in, (ROOT / "tests").glob("test_*.py")))
    assert {a or b for a, b in named} <= tests


@documents
def test_every_function_that_is_named_exists(document):
    """A name in backquotes, alone or called, is one that some source file defines or uses."""
    named = set(re.findall(r"`([a-z]\w*_\w+)(?:\([^`]*\))?(?:=\w+)?`", prose(document)))
    assert not {name for name in named if not name.startswith("test_")} - known_names()


@documents
def test_every_link_within_the_project_leads_to_a_place(document):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose(document)):
        if not target.startswith("http"):
            page = (document.parent / target).resolve() if target else document
            assert page.exists(), target
            if anchor and not re.fullmatch(r"L\d+\.py", anchor + page.suffix):   # the map's test
                assert anchor in anchors(page), f"{target}#{anchor}"


@documents
def test_no_formula_has_what_github_mangles(document):
    """GitHub takes \\ before punctuation away, and wants $ beside a space or punctuation."""
    text = re.sub(r"\$`.*?`\$|`[^`\n]*`", "", prose(document), flags=re.S)
    assert "$$" not in text
    assert text.count("$") == 2 * len(formulas := [*re.finditer(r"\$([^$]+)\$", text)])
    for formula in formulas:
        around = text[formula.start() - 1] + text[formula.end():formula.end() + 1]
        assert not re.search(r"\\[^A-Za-z\s]", formula[1]), formula[0]
        assert not re.search(r"[\w'’]", around), formula[0]
        assert formula[1].count("{") == formula[1].count("}") and formula[1].strip() == formula[1]


def test_the_readme_fits_ninety_lines_and_the_edits_to_try_can_be_made():
    assert len(read(DOCUMENTS[0]).splitlines()) <= 90
    code, steps = map("".join, (map(read, SOURCES[:2]), read(PROOFS).split("## Break it")[1:]))
    edits = re.findall(r"^```text\n(.*)\n(.*)\n```$", steps, re.M)
    assert len(edits) == 3 and all(old in code and old != new for old, new in edits)


def test_the_map_is_the_one_that_its_script_makes_with_all_numbered_items_of_the_papers():
    text = read(paper_map.PAGE)
    assert paper_map.page(text) == text   # else run `python docs/paper_map.py`
    for item in """Def 3.1, Def 3.2, Def 3.3, Def 3.4, §4.1, Theorem 4.1, Assumption 4.2,
            Assumption 4.3, Assumption 4.4, Theorem 4.5, Algorithm 1, App D, Table 1, Table 2,
            §6.4, Prop 1, Prop 2, Prop 3, App A.10, Figure 2, RetNet, DeltaNet, SimAOU, Irie,
            Aizerman, Deutch, Shen, Dherin, MesaNet""".split(","):
        assert re.search(rf"^\| .*{re.escape(item.strip())}", text, re.M), item
    found = {n for first, last in re.findall(r"Eq (\d+)(?:-(\d+))?", text.split("**The dual")[0])
             for n in range(int(first), int(last or first) + 1)}
    assert found == {1, 3, *range(5, 20)}
