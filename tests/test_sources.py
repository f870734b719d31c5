"""Sources that a reader can find: papers by name, year and arXiv number, never private notes."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# notebooks are made from notebooks/source, which is read here, and held to it by their own test
KINDS = ("*.py", "*.md", "*.toml", "*.txt", "*.js", "*.css", "*.html", "Makefile")
# a numbered note ("card C07.1", "(card 12)", also across a line break), or its bare number
NOTE = re.compile(r"\b[Cc]ards?\s+[A-Z]?\d|\b[A-E]\d{1,2}\.\d")


def places(text: str) -> list[str]:
    """Line and wording of every private note's number in a text."""
    return [f"{text[: m.start()].count(chr(10)) + 1}: {m[0]!r}" for m in NOTE.finditer(text)]


@pytest.mark.parametrize(
    "text",
    ["see card C07.1", "(card\nC29)", "Card A2", "card 15: .154", "# C08.3, C08.4", "cards B1"],
)
def test_a_numbered_note_is_found(text):
    assert places(text)


@pytest.mark.parametrize(
    "text", ["12 cards", "A card shows", "arXiv 2208.01626", "eq. 12", "A4 paper", "slot B of 2.5"]
)
def test_a_source_that_can_be_found_is_left_alone(text):
    assert not places(text)


def test_no_file_cites_a_note_that_only_its_author_has():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *KINDS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    files = [name for name in listed.stdout.split("\0") if name and name != "tests/test_sources.py"]
    assert len(files) > 300
    found = [
        f"{name}:{place}"
        for name in files
        if (ROOT / name).is_file()
        for place in places((ROOT / name).read_text())
    ]
    assert not found, "cite the paper, or say which step it is, in place of:\n" + "\n".join(found)
