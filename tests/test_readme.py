"""README's commands and its program run as they are printed, and its length stays a front door's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minidiff.io import read_image

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"`(minidiff [a-z][^`]*)`", TEXT)
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
LONG = ("minidiff evaluate tiny --n 512", "minidiff bench --split test")  # minutes to hours

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder like a fresh clone, as far as the commands look."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "MINIDIFF_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def words(command: str) -> list[str]:
    """The words of a command as a shell splits them, with `python -m minidiff` for minidiff."""
    _, *rest = shlex.split(command)
    return ["-m", "minidiff", *rest]


def test_the_front_door_is_short_and_its_commands_are_found():
    assert len(TEXT.splitlines()) <= 120
    assert len(COMMANDS) >= 7 and len(PROGRAMS) == 1


@pytest.mark.parametrize(
    "command", [c for c in dict.fromkeys(COMMANDS) if c not in LONG and "mywork.py" not in c]
)
def test_a_command_runs_as_printed(command, clone):
    done = run(words(command), clone)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_long_commands_are_told_too_and_the_count_of_mistakes_is_printed(clone):
    assert set(LONG) <= set(COMMANDS)
    mistakes, number = re.search(r"\| (\d+), in (\d+) exercises", TEXT).groups()
    told = run(words("minidiff learn list"), clone).stdout
    assert f"{number} exercises, which know {mistakes} mistakes by name" in told


def test_the_exercise_is_printed_and_checked_as_printed(clone):
    task, check = [c for c in COMMANDS if c.startswith("minidiff learn ") and "mywork.py" in c]
    printed, _, file = task.partition(" > ")
    made = run(words(printed), clone)
    assert made.returncode == 0
    (clone / file).write_text(made.stdout)
    told = run(words(check), clone)
    assert told.returncode == 1  # the stub is not solved, and that is said
    assert "ddim_step" in told.stdout


def test_the_program_leaves_its_picture(clone):
    (clone / "program.py").write_text(PROGRAMS[0])
    done = run(["program.py"], clone)
    assert done.returncode == 0, done.stderr
    assert (clone / "out/star.png").is_file()


def test_the_examples_are_a_picture_and_its_mask():
    assert read_image(ROOT / "examples/red_circle.png").shape == (1, 3, 64, 64)
    mask = read_image(ROOT / "examples/red_circle_mask.png")
    assert 0.1 < (mask > 0).float().mean() < 0.6
