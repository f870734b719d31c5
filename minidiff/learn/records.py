"""What is remembered of a learner: the tries and hints of every exercise, and whether it is solved.

It is kept in `progress.json` in the folder MINIDIFF_HOME, or in .minidiff in the home folder.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from minidiff.io import write_json


@dataclass(frozen=True)
class Record:
    """What is remembered of one exercise."""

    tries: int = 0
    passed: bool = False
    hints: int = 0


def folder() -> Path:
    return Path(os.environ.get("MINIDIFF_HOME") or Path.home() / ".minidiff")


def read_records() -> dict[str, Record]:
    """{exercise: its record}; a file that cannot be read counts as none."""
    try:
        rows = json.loads((folder() / "progress.json").read_text())
        return {name: Record(**row) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def record_of(name: str) -> Record:
    return read_records().get(name, Record())


def add_try(name: str, passed: bool) -> None:
    """Count a try. What was solved once stays solved."""
    before = record_of(name)
    _write(name, Record(before.tries + 1, before.passed or passed, before.hints))


def add_hint(name: str) -> None:
    """Count a hint."""
    before = record_of(name)
    _write(name, Record(before.tries, before.passed, before.hints + 1))


def _write(name: str, record: Record) -> None:
    """A full disk is told of, not fatal."""
    records = read_records() | {name: record}
    rows = {known: asdict(value) for known, value in records.items()}
    try:
        folder().mkdir(parents=True, exist_ok=True)
        write_json(rows, folder() / "progress.json")
    except OSError as e:
        print(f"(progress was not saved: {e})")
