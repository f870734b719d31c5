"""Answers to the exercises as newcomers write them, from the task alone: right ones in many styles,
and wrong ones. `tests/learn/test_newcomers.py` grades them all.

A right answer is marked `@right("name")`, a wrong one `@wrong("name", "what the verdict says")`:
words that the verdict must hold, such as the name of the mistake; without them it is only refused.
"""

from collections.abc import Callable

RIGHT: list[tuple[str, Callable]] = []
WRONG: list[tuple[str, Callable, str]] = []


def right(name: str):
    """Mark a function as a right answer to the exercise."""

    def mark(fn):
        RIGHT.append((name, fn))
        return fn

    return mark


def wrong(name: str, says: str = ""):
    """Mark a function as a wrong answer, and say what the verdict on it must hold."""

    def mark(fn):
        WRONG.append((name, fn, says))
        return fn

    return mark
