"""A file of functions, each named as an exercise, graded in one go: `minidiff learn check FILE`."""

import importlib.util
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from minidiff.learn.exercises import exercises
from minidiff.learn.grader import Verdict, check

PAUSE = 0.5  # seconds between two looks at a file that is watched


def functions(path: str | Path) -> dict[str, Callable]:
    """{name: function} of the exercises that a file answers, in the order of the course.

    The file is the learner's own program, and is run. What it imports from minidiff is no answer.
    FileNotFoundError: no such file. ValueError if it cannot be run, or answers none.
    """
    module = run_file(Path(path))
    answers = {}
    for name in exercises():
        value = getattr(module, name, None)
        if callable(value) and not _is_ours(value):
            answers[name] = value
    if not answers:
        raise ValueError(
            f"{path} has no function named as an exercise; minidiff learn list shows the names"
        )
    return answers


def run_file(path: Path) -> ModuleType:
    """The module that a Python file makes when it is run. Errors: those of `functions`."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: give the file with your functions")
    spec = importlib.util.spec_from_file_location("answers", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, such as mywork.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ValueError(f"{path} cannot be run: {type(e).__name__}: {e}") from None
    return module


def _is_ours(value: Callable) -> bool:
    module = getattr(inspect.unwrap(value), "__module__", None) or ""
    return module.split(".")[0] == "minidiff"


def check_file(path: str | Path) -> list[Verdict]:
    """Grade all of them, in the order of the course."""
    return [check(name, answer) for name, answer in functions(path).items()]


def watch(path: str | Path, pause: float = PAUSE) -> None:
    """Grade the file now and whenever it is saved, until Ctrl-C is pressed. A file that cannot be
    run, or is away while an editor writes it, is told of in a line. FileNotFoundError: there is no
    such file at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: give the file with your functions")
    graded = None
    away = False
    try:
        while True:
            if path.exists():
                saved = path.stat().st_mtime_ns
                if saved != graded:
                    graded = saved
                    _tell(path)
            elif not away:
                print(f"{path} is gone; waiting for it to come back")
            away = not path.exists()
            time.sleep(pause)
    except KeyboardInterrupt:
        print("no longer watched")


def _tell(path: Path) -> None:
    """The verdicts on a file, and what is waited for."""
    try:
        check_file(path)
    except (ValueError, OSError) as e:
        print(e)
    print(f"--- {time.strftime('%H:%M:%S')}: waiting for {path} to be saved; Ctrl-C ends it")
