"""The pages say what the code says: tables of names, files and modules that are mentioned."""
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "tutorials").rglob("*.md"))


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tutorials/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_and_code_are_those_of_the_package(tables):
    stale = [p.name for p in PAGES if tables.filled(p.read_text()) != p.read_text()]
    assert not stale, "run python tutorials/tables.py"
    used = {name for p in PAGES for _, name, _ in tables.BLOCK.findall(p.read_text())}
    assert used == set(tables.MADE)                                               # every table stands on some page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_pages_that_a_page_names_exist(page):
    text = page.read_text()
    links = [t for t in re.findall(r"\]\(([^)#]+)", text) if "://" not in t]
    files = re.findall(r"`((?:minidiff|tests|tutorials|notebooks)/[\w/.]+\.(?:py|ipynb|md))`", text)
    missing = [t for t in links if not (page.parent / t).exists()] + [f for f in files if not (ROOT / f).exists()]
    assert not missing
