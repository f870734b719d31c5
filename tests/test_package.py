"""What a package promises besides its code: one version, types, names to import."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import minidiff

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PUBLIC = ("minidiff", "minidiff.io", "minidiff.samplers", "minidiff.techniques")


def test_the_version_stands_in_one_place():
    assert "version" not in SETTINGS["project"]
    attribute = SETTINGS["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "minidiff.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", minidiff.__version__)


def test_citation_and_changelog_are_those_of_this_version():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert cited[1] == newest[1] == minidiff.__version__


def test_what_is_no_python_travels_with_the_package():
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["minidiff"]
    package = ROOT / "minidiff"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    others = {
        path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others == packed
    assert package / "py.typed" in packed


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    module = importlib.import_module(name)
    assert module.__all__
    assert all(hasattr(module, public) for public in module.__all__)


def imported(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every `from module import name` in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def test_what_others_import_from_there_is_declared():
    files = [
        path
        for folder in ("minidiff", "tutorials", "notebooks/source", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    rooms = {path.parent.name for path in (ROOT / "minidiff").glob("*/__init__.py")}
    hidden = []
    for path in files:
        for module, name in imported(path):
            if module not in PUBLIC or name in rooms:
                continue
            if name not in importlib.import_module(module).__all__:
                hidden.append(f"{path.relative_to(ROOT)}: from {module} import {name}")
    assert not hidden
