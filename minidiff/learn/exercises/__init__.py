"""The exercises, by topic: each module of this folder holds a tuple `EXERCISES`."""

from functools import cache
from importlib import import_module

from minidiff.learn.exercise import Exercise

TOPICS = (
    "tables",
    "process",
    "moves",
    "solvers",
    "guides",
    "networks",
    "blocks",
    "tokens",
    "training",
    "edits",
    "words",
    "paths",
    "loops",
    "inverse",
    "builds",
    "control",
    "views",
)


@cache
def exercises() -> dict[str, Exercise]:
    """All of them by name, in the order of a course. ValueError if two have the same name."""
    found: dict[str, Exercise] = {}
    for topic in TOPICS:
        for e in import_module(f"{__name__}.{topic}").EXERCISES:
            if e.name in found:
                raise ValueError(f"two exercises are called {e.name}")
            found[e.name] = e
    return found


def find(name: str) -> Exercise:
    """The exercise of that name; KeyError lists the nearest there are."""
    if name not in exercises():
        from difflib import get_close_matches

        near = get_close_matches(name, exercises(), 4, 0.4) or list(exercises())[:6]
        raise KeyError(f"no exercise is called {name!r}; some that exist: {', '.join(near)}")
    return exercises()[name]
