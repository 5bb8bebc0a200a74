"""The links and the table of functions in docs/paper_map.md, from the two modules themselves.

    python docs/paper_map.py        after each change of the modules: writes them anew

What to copy with a function are the names of the modules that its code uses, and what those use.
"""
import dis
import inspect
import re
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import iclca_ref
import linear_transformer

EVERYTHING = vars(linear_transformer) | vars(iclca_ref)
OWN = {name: value for name, value in EVERYTHING.items()
       if getattr(value, "__module__", None) in ("linear_transformer", "iclca_ref")}
LINES = {name: inspect.getsourcelines(value)[1] for name, value in OWN.items()}
PAGE = Path(__file__).with_name("paper_map.md")
TABLE = "| function | copy with it |\n|---|---|\n"


def mentions(code):   # the global names in it and in all that it defines, and attributes as .name
    names = {i.argval if i.opname in ("LOAD_GLOBAL", "LOAD_NAME") else f".{i.argval}"
             for i in dis.get_instructions(code) if i.opname.startswith("LOAD_")}
    return names.union(*(mentions(c) for c in code.co_consts if inspect.iscode(c)))


@cache
def uses(name):   # what it mentions of the modules; of Bias only the methods in use count
    names = set() if name == "Bias" else mentions(compile(inspect.getsource(OWN[name]), "", "exec"))
    return names & OWN.keys() | ({"rotate_at"} if ".turned" in names else set())


def needs(name):   # itself, the names that it needs, those that these need, ...; check_shapes too
    found = {name, "check_shapes"}.union(*map(needs, uses(name) - {name}))
    return [other for other in OWN if other in found]   # in the modules' order


def page(text):
    """The page with its table of functions, and each `name` of the modules linked to its line."""
    text = text.split(TABLE)[0] + TABLE
    for name in (n for n in OWN if inspect.isfunction(OWN[n]) and n[0] != "_"):
        others = [other for other in needs(name) if other not in (name, "check_shapes")]
        copied = ", ".join(f"`{o}`" for o in others) if len(others) <= 3 else \
            "the file" if len({OWN[o].__module__ for o in needs(name)}) == 1 else "both files"
        text += f"| `{name}` | {copied or 'nothing'} |\n"
    return re.sub(r"\[?`(\w+)`(?:\]\(\.\./\w+\.py#L\d+\))?", lambda m: m[0] if m[1] not in OWN else
                  f"[`{m[1]}`](../{OWN[m[1]].__module__}.py#L{LINES[m[1]]})", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8", newline="\n")
