"""The derivation as a notebook: formulas set, lines to run as cells.

    python docs/notebook.py && jupyter notebook docs/derivation.ipynb
"""
import json
import re
from pathlib import Path


def notebook(text):
    """A page of Markdown in Jupyter's format 4.5: ```math as $$, ```python blocks as code cells."""
    text = re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", text, flags=re.M | re.S)
    text = re.sub(r"\[([^]]*)\]\(#[^)]*\)", r"\1", text)   # Jupyter's anchors are others
    parts = re.split(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)   # text, code, text, ...
    code = {"cell_type": "code", "execution_count": None, "outputs": []}
    cells = [{**(code if i % 2 else {"cell_type": "markdown"}), "id": f"cell-{i}", "metadata": {},
              "source": part.strip()} for i, part in enumerate(parts)]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}


if __name__ == "__main__":
    page = Path(__file__).with_name("derivation.md")
    page.with_suffix(".ipynb").write_text(json.dumps(notebook(page.read_text("utf-8"))), "utf-8")
