"""site/: what makes pages out of code and text. Sphinx and a browser are for `make site` and `make check-site`."""
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load(name: str):
    """A file of site/ under a name of its own: `site` itself is Python's."""
    spec = importlib.util.spec_from_file_location(f"minidiff_site_{name}", ROOT / f"site/{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


beside, pages = load("beside"), load("pages")
SOURCE = '''"""A file.

What it is about."""
import os  # for paths

# ---- the parts ----------

# Two lines that
# belong together.
def f(x):
    """Twice x.

    x        a number
             of any size
    """
    y = x + x
    s = "# no comment"
    return y                                                               # not x


def g():  # noqa: E731
    pass
'''
FILES = sorted(pages.code_files())


# ---- code | explanation ------------------------------------------------------------------------------------------------

def test_docstrings_and_comments_stand_beside_their_lines():
    rows, bare = beside.taken_apart(SOURCE)
    by = {bare[r.code[0] - 1].strip(): r.says for r in rows if r.code}
    assert by["import os"].startswith("A file.") and by["import os"].endswith("for paths")
    assert by["def f(x):"].startswith("Two lines that\nbelong together.\n\nTwice x.")
    assert by["return y"] == "not x" and by["def g():"] == ""
    assert [r.heading for r in rows if r.heading] == ["the parts"]


def test_a_hash_in_a_string_is_no_comment():
    rows, bare = beside.taken_apart(SOURCE)
    assert '    s = "# no comment"' in bare and not any("no comment" in r.says for r in rows)


@pytest.mark.parametrize("file", FILES)
def test_every_line_of_code_is_shown_once_and_in_order(file):
    text = (ROOT / file).read_text()
    rows, bare = beside.taken_apart(text)
    shown = [n for r in rows for n in r.code if n]
    assert shown == [n for n, line in enumerate(bare, 1) if line.strip()]
    assert len(beside.coloured(bare)) == len(bare) == len(text.splitlines())


@pytest.mark.parametrize("file", FILES)
def test_no_docstring_is_lost(file):
    text = (ROOT / file).read_text()
    rows, _ = beside.taken_apart(text)
    said = "\n".join(r.says for r in rows)
    assert all(doc in said for *_, doc in beside.docstrings(beside.ast.parse(text)))


def test_prose_keeps_the_layout_of_tables_and_escapes_the_rest():
    out = beside.prose("If a < b, `x` is kept (card C07).\n\nx        a number\n         of any size\n\n"
                       "See arXiv 2208.01626.")
    assert "<p>If a &lt; b, <code>x</code> is kept.</p>" in out
    assert '<span class="line" style="--hang:9ch">x        a number</span>' in out and "<p>of any" not in out
    assert 'href="https://arxiv.org/abs/2208.01626"' in out


def test_sections_are_headings_of_the_page():
    page = beside.page(SOURCE, "f.py")
    assert page.index("# f.py") < page.index("## The parts") and page.count("{raw} html") == 2


# ---- pages and their links -----------------------------------------------------------------------------------------------

def test_every_technique_has_a_card_with_an_idea_and_a_page():
    found = pages.cards()
    assert [c.name for c in found] == list(pages.techniques())
    assert not [c.name for c in found if not c.idea or not c.page]
    assert {c.room for c in found} <= set(pages.ROOMS)


def test_the_gallery_escapes_and_counts():
    card = pages.Card("a", "editing", "A & B", "is x < y?", "minidiff/editing/a.py", "", "")
    out = pages.gallery([card], {card.file})
    assert "A &amp; B" in out and "x &lt; y" in out and "All <small>1</small>" in out
    assert 'href="code/editing/a.html"' in out and "no contact sheet" in out


@pytest.mark.parametrize("text, want", [
    ("[a](ddim.md#why)", "[a](ddim.md#why)"),
    ("![f](../figures/demo.png)", "![f](../figures/demo.png)"),
    ("`minidiff/editing/sdedit.py`", "[`minidiff/editing/sdedit.py`](../code/editing/sdedit.md)"),
    ("[code](../../minidiff/editing/sdedit.py)", "[code](../code/editing/sdedit.md)"),
    ("[it](../../Makefile) is", "it is"),
    ("[web](https://arxiv.org/abs/1)", "[web](https://arxiv.org/abs/1)"),
    ("[home](../../README.md)", "[home](../index.md)"),
    ("`minidiff/no/such.py`", "`minidiff/no/such.py`"),
    ("```\n`minidiff/editing/sdedit.py`\n```\n", "```\n`minidiff/editing/sdedit.py`\n```\n")])
def test_links_lead_to_pages_of_the_site(text, want):
    assert pages.relinked(text, "tutorials/inversion/ddim.md", {"minidiff/editing/sdedit.py"}) == want


def test_readme_has_an_opening():
    text = pages.opening((ROOT / "README.md").read_text())
    assert text.startswith("# minidiff") and "What it is" in text and len(text) < 8000
    with pytest.raises(ValueError, match="no heading"):
        pages.opening("# x")


# ---- the leaderboard -----------------------------------------------------------------------------------------------------

def test_the_board_sorts_by_plain_numbers_and_marks_what_is_missing():
    out = pages.board({"methods": [{"method": "a<b", "inputs": "P", "T": .5, "T_ci": [.25, .75], "seconds": None}]})
    assert '<td data-v="50">50 <small>25 to 75</small></td>' in out
    assert "a&lt;b" in out and out.count('data-v=""') == len(pages.COLUMNS) - 3


def test_no_bench_says_how_to_make_one():
    assert "minidiff bench --split test" in pages.leaderboard(None) and "<table" not in pages.leaderboard(None)
