"""The plan of twelve weeks names exercises that there are; its files and pages are checked by
test_tutorials.
"""

import re
from pathlib import Path

from minidiff.learn.exercises import exercises

PAGE = (Path(__file__).parents[1] / "tutorials/reading_group.md").read_text()
ROWS = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", PAGE, re.M)


def test_every_week_has_exercises_that_exist():
    named = {week: re.findall(r"`(\w+)`", cell) for week, cell in ROWS}
    assert list(named) == [str(k) for k in range(1, 13)] and all(
        named[w] for w in named if w != "12"
    )
    assert not {name for names in named.values() for name in names} - set(exercises())
