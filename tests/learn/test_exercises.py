"""The exercises are fit to be given. `python -m minidiff.learn.verify` proves the rest: stubs fail,
references pass, mistakes are named.
"""

import inspect
from pathlib import Path

import pytest

from minidiff.learn.exercises import exercises

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
