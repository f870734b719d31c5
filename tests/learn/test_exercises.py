"""The exercises are fit to be given. `python -m minidiff.learn.verify` proves the rest: stubs fail,
references pass, mistakes are named.
"""

import inspect
import re
from pathlib import Path

import pytest

from minidiff.learn.exercises import NOTEBOOKS, exercises

ROOT = Path(__file__).parents[2]
every_exercise = pytest.mark.parametrize("exercise", exercises().values(), ids=lambda e: e.name)


@every_exercise
def test_the_reference_is_the_packages_own_function_or_the_exercise_says_why_not(exercise):
    module = inspect.unwrap(exercise.reference).__module__
    own = module.startswith("minidiff.") and not module.startswith("minidiff.learn")
    assert own != bool(exercise.apart)


@every_exercise
def test_its_page_exists(exercise):
    assert (ROOT / exercise.page).is_file()


def test_the_notebooks_ask_for_what_the_list_says():
    asked = {}
    for path in sorted((ROOT / "notebooks/source").glob("*.py")):
        names = re.findall(r'^# %% exercise="(\w+)"', path.read_text(), re.M)
        asked[path.name[:2]] = tuple(names)
    assert {number: names for number, names in asked.items() if names} == NOTEBOOKS


def test_an_exercise_fits_into_a_line_of_the_list():
    assert not [e.name for e in exercises().values() if len(e.about) > 48]
