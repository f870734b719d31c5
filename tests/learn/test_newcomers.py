"""Answers that newcomers wrote from the tasks alone: no right one is refused, no wrong one passes,
and the common mistakes are called by their names.
"""

from collections import Counter

import pytest
from newcomers import (
    RIGHT,
    WRONG,
    derived,
    edits,
    gates,
    integrators,
    narrow,
    networks,
    process,
    second_order,
    solvers,
    special,
    zoo,
)

from minidiff.learn.exercises import exercises, find
from minidiff.learn.grader import grade

MODULES = (
    derived,
    edits,
    gates,
    integrators,
    narrow,
    networks,
    process,
    second_order,
    solvers,
    special,
    zoo,
)  # each fills the two lists


def where(answer) -> str:
    """The exercise and the line of an answer."""
    name, fn = answer[:2]
    code = fn.__code__
    return f"{name}-{code.co_filename.split('/')[-1]}:{code.co_firstlineno}"


@pytest.mark.parametrize("answer", RIGHT, ids=where)
def test_a_right_answer_in_another_style_is_not_refused(answer):
    name, fn = answer
    verdict = grade(find(name), fn)
    assert verdict.passed, verdict


@pytest.mark.parametrize("answer", WRONG, ids=where)
def test_a_wrong_answer_is_refused_and_told_why(answer):
    name, fn, says = answer
    verdict = grade(find(name), fn)
    assert not verdict.passed
    assert says in str(verdict)


def test_every_exercise_was_tried_in_both_ways():
    right = Counter(name for name, _ in RIGHT)
    wrong = Counter(name for name, _, _ in WRONG)
    few = [name for name in exercises() if right[name] < 2 or wrong[name] < 3]
    assert not few
