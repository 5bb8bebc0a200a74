"""The table of every public function in paper_map.md, from the modules' own docstrings.

    python docs/paper_map.py        writes it anew

What to copy with a function are the names of the two modules that its code uses, and what those
use, beside `check_shapes`, whose line may be left out; a function that needs more than three is
better used from its file.
"""

import argparse
import dis
import inspect
import re
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import iclca_ref
import linear_transformer

EVERYTHING = vars(linear_transformer) | vars(iclca_ref)
OWN = {name: value for name, value in EVERYTHING.items()
       if getattr(value, "__module__", None) in ("linear_transformer", "iclca_ref")}
METHODS = {f"{name}.{method}": getattr(f, "__func__", f) for name, value in OWN.items()
           if inspect.isclass(value) for method, f in vars(value).items()
           if getattr(getattr(f, "__func__", f), "__module__", "") == value.__module__}
PAGE = Path(__file__).with_name("paper_map.md")


def mentions(code):
    """The global names in a piece of code and the functions inside it, and attributes as .name."""
    names = {i.argval if i.opname == "LOAD_GLOBAL" else f".{i.argval}"
             for i in dis.get_instructions(code)
             if i.opname in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD")}
    return names.union(*(mentions(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def uses(name):
    """What the function, class or method `name` mentions of the modules, defaults included."""
    value = METHODS.get(name) or OWN[name]
    if inspect.isclass(value):
        defaults, names = getattr(value, "_field_defaults", {}).values(), set()
    else:
        defaults, names = value.__defaults__ or (), mentions(value.__code__)
    names = names | {d.__name__ for d in defaults if inspect.isfunction(d)}
    return names & OWN.keys() | {m for m in METHODS if f".{m.split('.')[1]}" in names}


def needs(name):
    """The names that `name` needs, those that these need, ...; of classes the methods in use."""
    found, new = set(), {name}
    while new:
        found |= new
        new = set().union(*map(uses, new)) - found
    return found - {name} - METHODS.keys()


def in_order(names):
    """The names in the order in which the modules define them."""
    return sorted(names, key=lambda n: (OWN[n].__module__ != "linear_transformer",
                                        inspect.getsourcelines(OWN[n])[1]))


def source(name):
    """Where the docstring says that it comes from: what follows "Source:" in its paragraph."""
    found = re.search(r"Source:(.*?)\.?(\n\n|$)", inspect.getdoc(OWN[name]) or "", re.S)
    return " ".join(found[1].split()) if found else ""


def table():
    """The table, in Markdown."""
    rows = ["| function | file | source | copy with it |", "|---|---|---|---|"]
    for name in in_order(n for n in OWN if inspect.isfunction(OWN[n]) and not n.startswith("_")):
        others, module = in_order(needs(name) - {"check_shapes"}), OWN[name].__module__
        copied = ", ".join(f"`{o}`" for o in others) if len(others) <= 3 else \
            "the file" if {OWN[o].__module__ for o in others} <= {module} else "both files"
        rows.append(f"| `{name}` | {module}.py | {source(name)} | {copied or 'nothing'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    head, _ = PAGE.read_text("utf-8").split("| function | file |", 1)
    PAGE.write_text(head + table() + "\n", "utf-8", newline="\n")
