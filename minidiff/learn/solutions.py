"""A file of functions, each named as an exercise, graded in one go: for scripts, pytest and
`minidiff learn check`.
"""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

from minidiff.learn.check import Verdict, check
from minidiff.learn.exercises import exercises


def functions(path: str | Path) -> dict[str, Callable]:
    """{name: function} of the exercises that a file answers. ValueError if it cannot be run, or
    answers none.

    The file is the learner's own program, and is run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: give the file with your functions")
    spec = importlib.util.spec_from_file_location("solutions", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, such as mywork.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ValueError(f"{path} cannot be run: {type(e).__name__}: {e}") from None
    found = {n: f for n, f in vars(module).items() if n in exercises() and callable(f)}
    found = {
        n: f
        for n, f in found.items()
        if not getattr(inspect.unwrap(f), "__module__", "").startswith("minidiff.")
    }
    if not found:
        raise ValueError(
            f"{path} has no function named as an exercise; minidiff learn list shows the names"
        )
    return found


def check_file(path: str | Path) -> list[Verdict]:
    """Grade all of them, in the order of the course."""
    found = functions(path)
    return [check(name, found[name]) for name in exercises() if name in found]
