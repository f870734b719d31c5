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
    assert len((ROOT / file).read_text().splitlines()) <= 250


def test_the_core_stays_small():
    assert (
        sum(len(f.read_text().splitlines()) for f in (ROOT / "minidiff" / "core").glob("*.py"))
        < 700
    )


def test_everything_prompt_to_prompt_uses_stays_under_a_thousand_lines():
    used = [
        "editing/prompt_to_prompt",
        "inversion/ddim",
        "guidance/cfg",
        "samplers/ddim",
        "models/attention",
        "core/cond",
        # what it imports, all of it
        "core/denoise",
        "core/pipe",
        "core/process",
        "core/schedule",
        "core/taps",
    ]
    lines = [
        line for u in used for line in (ROOT / "minidiff" / f"{u}.py").read_text().splitlines()
    ]
    assert sum(bool(line.strip()) for line in lines) < 1000  # blank lines are free
