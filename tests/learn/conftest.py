"""What the tests of a learner's tools share: a home of its own for each, and a right and a wrong
answer.
"""

import pytest

from minidiff.core.process import ddim_step
from minidiff.learn.exercises import find

STEP = find("ddim_step")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Never the reader's own record of progress."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MINIDIFF_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def right():
    """An answer to `ddim_step` that is right."""

    def step(sch, x_t, eps, t, s):
        return ddim_step(sch, x_t, eps, t, s)

    return step


@pytest.fixture(scope="session")
def still():
    """One that is wrong, and no known mistake: nothing moves."""

    def step(sch, x_t, eps, t, s):
        return x_t

    return step
