"""The site's API reference (tutorials/site/api.py) and its notebooks (notebook_pages.py)."""

import ast
import html
import json
import os
import re
import sys
from pathlib import Path

import pytest

from minidiff.techniques import TECHNIQUES

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tutorials/site"))
import api  # noqa: E402
import notebook_pages  # noqa: E402
import pages  # noqa: E402

CODE = set(pages.code_files())


@pytest.fixture(scope="module")
def found():
    return api.reference()


@pytest.fixture(scope="module")
def made():
    return api.site_pages(CODE)


def plain(page: str) -> str:
    """The words of a page, without tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page))


# ---- the reference -------------------------------------------------------------------------------


def test_every_technique_is_there_with_its_signature(made):
    for name, technique in TECHNIQUES.items():
        page = made[f"api/{technique.room}.md"]
        stem = Path(technique.path).stem
        assert f'id="{stem}.{technique.stem}"' in page, name
        assert f"def {technique.stem}(" in plain(page), name


def test_every_public_function_of_core_has_an_entry(found):
    entries = {entry.place for file in found["core"] for entry in file.entries}
    for path in sorted((ROOT / "minidiff/core").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert f"{path.stem}.{node.name}" in entries


def test_every_room_has_a_page_or_a_reason_to_have_none():
    folders = {p.name for p in (ROOT / "minidiff").iterdir() if (p / "__init__.py").exists()}
    assert folders <= api.ROOMS.keys() | api.LEFT_OUT.keys()


def test_no_docstring_is_lost(found, made):
    for room, files in found.items():
        words = " ".join(plain(made[f"api/{room}.md"]).split())
        for file in files:
            for entry in api.every(file.entries):
                first = " ".join(entry.says.split("\n\n")[0].split()[:4]).replace("`", "")
                assert first in words, (room, entry.name)


def test_no_two_entries_share_a_place_and_links_lead_to_one(found, made):
    assert api.repeated(found) == []
    for page in made.values():
        for room, place in re.findall(r'href="(\w+)\.html#([\w.]+)"', page):
            assert f'id="{place}"' in made[f"api/{room}.md"], (room, place)


def test_what_looks_like_markup_stays_text(tmp_path):
    (tmp_path / "minidiff").mkdir()
    source = 'def f(*args, _x_=1):\n    """Takes *args, _x_ and <b>, a `code`, not [a](b)."""\n'
    (tmp_path / "minidiff/x.py").write_text(source)
    file = api.read("minidiff/x.py", "x", set(), tmp_path)
    shown = api.shown(file.entries[0], "x", {})
    assert "Takes *args, _x_ and &lt;b&gt;, a <code>code</code>, not [a](b)." in shown
    assert "<b>" not in shown and "<em>" not in shown


def test_a_list_of_names_becomes_a_list_and_a_formula_does_not():
    listed = api.readable("What it does.\n\na    one thing,\n     and more\nbc   another\n")
    assert "<dt><code>a</code></dt><dd>one thing, and more</dd>" in listed
    formula = api.readable("The formula:\n\n    x_t = a x0 + s e      forward\n    y = 1\n")
    assert "<dl>" not in formula and '<pre class="laid">x_t = a x0' in formula


def test_what_all_names_is_public_and_nothing_else(tmp_path):
    (tmp_path / "minidiff").mkdir()
    source = '__all__ = ["kept"]\n\n\ndef kept():\n    pass\n\n\ndef left():\n    pass\n'
    (tmp_path / "minidiff/x.py").write_text(source)
    entries = api.read("minidiff/x.py", "x", set(), tmp_path).entries
    assert [entry.name for entry in entries] == ["kept"]


# ---- the notebooks -------------------------------------------------------------------------------

NOTEBOOKS = notebook_pages.every()


def test_every_notebook_has_a_page_that_says_what_it_takes():
    made = notebook_pages.site_pages(CODE)
    stems = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {Path(place).stem for place in made} == stems
    for notebook in NOTEBOOKS:
        assert notebook_pages.cost(notebook) is not None, f"{notebook.stem} says no minutes"


def test_every_picture_of_a_page_is_written_beside_it(tmp_path):
    written = notebook_pages.pictures(tmp_path)
    for place, text in notebook_pages.site_pages(CODE).items():
        for target in re.findall(r"!\[[^\]]*\]\((pictures/[^)]+)\)", text):
            assert (tmp_path / place).parent / target in written
    pngs = [file for file in written if file.read_bytes().startswith(b"\x89PNG")]
    assert len(pngs) == len(written) > 40


def test_links_in_the_text_of_a_notebook_lead_to_pages_of_the_site():
    known = {pages.place(str(p.relative_to(ROOT)), CODE) for p in ROOT.glob("tutorials/**/*.md")}
    known |= {pages.place(path, CODE) for path in CODE}
    known |= {notebook_pages.place(notebook) for notebook in NOTEBOOKS}
    for place, text in notebook_pages.site_pages(CODE).items():
        for target in re.findall(r"\]\(([^)#\s:]+\.md)[)#]", text):
            there = os.path.normpath(os.path.join(os.path.dirname(place), target))
            assert there in known, (place, target)


def test_outputs_are_folded_if_long_and_escaped_always():
    short = notebook_pages.text_shown("a < b\n")
    assert short == '<pre class="output">a &lt; b</pre>'
    long = notebook_pages.text_shown("line\n" * (notebook_pages.LONG + 1))
    assert long.startswith("<details") and f"{notebook_pages.LONG + 1} lines" in long


@pytest.mark.parametrize(
    "cells, says",
    [
        ([{"cell_type": "markdown", "source": "no title", "metadata": {}}], "begin with a cell"),
        (
            [
                {"cell_type": "markdown", "source": "# title", "metadata": {}},
                {"cell_type": "code", "source": "1", "metadata": {}, "execution_count": None},
            ],
            "1 cells that were not run",
        ),
    ],
)
def test_a_notebook_without_title_or_unrun_is_refused(cells, says, tmp_path):
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": cells}))
    with pytest.raises(ValueError, match=says):
        notebook_pages.read("x.ipynb", tmp_path)


def test_an_error_that_came_out_is_refused():
    notebook = notebook_pages.Notebook("x.ipynb", ())
    with pytest.raises(ValueError, match="cell 3 stopped with KeyError"):
        wrong = {"output_type": "error", "ename": "KeyError", "evalue": "k"}
        notebook_pages.output_shown(notebook, 3, 0, wrong)
