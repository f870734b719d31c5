"""tutorials/papers.md is the map of the house: it must name what exists, and all of it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "samplers",
    "guidance",
    "inversion",
    "editing",
    "restoration",
    "personalize",
    "control",
    "distill",
    "train",
    "foundations",
    "shipped",
    "beyond",
    "analysis",
)
TEXT = (ROOT / "tutorials" / "papers.md").read_text()
TECHNIQUES = sorted(
    str(f.relative_to(ROOT))
    for room in ROOMS
    for f in (ROOT / "minidiff" / room).glob("*.py")
    if f.name != "__init__.py"
)


def test_every_file_named_exists():
    named = re.findall(r"`([\w/]+\.(?:py|md|ipynb))`", TEXT)
    assert named and not [n for n in named if not (ROOT / n).exists()]


@pytest.mark.parametrize("file", TECHNIQUES)
def test_every_technique_has_a_row_a_test_and_a_paper(file):
    assert f"`{file}`" in TEXT
    assert list((ROOT / "tests").rglob(f"test_{Path(file).stem}.py"))
