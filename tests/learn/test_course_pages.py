"""The pages for courses: the wrong functions of tutorials/assistants.md are truly wrong, the mistakes
have names, and what tutorials/course.md maps exists.
"""

import re
from pathlib import Path

import pytest
import torch

from minidiff.cli.main import COMMANDS
from minidiff.core.process import posterior
from minidiff.core.schedule import linear
from minidiff.learn import assignment
from minidiff.learn.exercises import exercises, find
from minidiff.learn.grader import grade
from minidiff.techniques import TECHNIQUES

ROOT = Path(__file__).parents[2]
ASSISTANTS = (ROOT / "tutorials/assistants.md").read_text()
COURSE = (ROOT / "tutorials/course.md").read_text()
PROGRAM = re.search(r"```python\n(.*?)\n\nfor name in", ASSISTANTS, re.S)[1]
NAMED = {
    "guide": "the paper's w",
    "ddpm_step": "the variance for its root",
    "invert_step": "asked at the lower time",
    "blend_known": "noised to t",
    "rescale": "the spread of the batch",
}


@pytest.mark.parametrize("name", NAMED)
def test_every_function_that_is_shown_fails_by_its_known_mistake(name):
    space = {}
    exec(PROGRAM, space)
    verdict = grade(find(name), space[name])
    assert not verdict.passed
    assert verdict.mutant and verdict.mutant.name == NAMED[name]
    assert verdict.mutant.story in ASSISTANTS  # the page shows what was said


def test_the_facts_of_the_page_find_all_five_without_the_right_answer():
    """The last column of its table, run: each fact holds for the project's own function and not for
    the one that is shown.
    """

    sch = linear()
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 1, 4, 4, generator=g)

    def scale_one(fn):
        return (fn(x, y, 1.0) - y).abs().max() < 1e-6

    def spread(fn):
        still = torch.zeros(20_000, 1)
        noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
        moved = fn(sch, still, still, 800, 600, noise, "small")
        variance = posterior(sch, still, still, 800, 600)[1]
        return abs(moved.var().item() / variance - 1) < 0.05

    def same_times(fn):
        asked = []

        def denoise(x, t, cond):
            asked.append(t)
            return x

        ts = sch.timesteps(10)
        for s, t in zip(ts[::-1], ts[-2::-1]):
            fn(denoise, sch, x, s, t, None)
        return asked[::-1] == ts[:-1] and 0 not in asked

    def clean_at_the_end(fn):
        out = fn(sch, x, y, torch.zeros(1, 1, 4, 4), 20, 0, torch.ones_like(x))
        return (out - y).abs().max() < 1e-6

    def rows_alone(fn):
        louder = torch.cat([x[:1], 3 * x[1:]])
        return (fn(louder, y, 0.7)[0] - fn(x, y, 0.7)[0]).abs().max() < 1e-6

    facts = {
        "guide": scale_one,
        "ddpm_step": spread,
        "invert_step": same_times,
        "blend_known": clean_at_the_end,
        "rescale": rows_alone,
    }
    space = {}
    exec(PROGRAM, space)
    for name, fact in facts.items():
        assert fact(find(name).reference), name
        assert not fact(space[name]), name


# ---- the course page -----------------------------------------------------------------------------


def test_every_exercise_and_command_that_the_syllabus_names_exists():
    rows = [line for line in COURSE.splitlines() if line.startswith("|")]
    exercise_words = set()
    for line in rows:
        cells = line.split("|")
        if len(cells) > 4:
            exercise_words |= set(re.findall(r"`(\w+)`", cells[3]))
    named = {word for word in exercise_words if word in exercises()}
    assert len(named) >= 12
    assert not {w for w in exercise_words if w.islower()} - exercises().keys()
    for command in re.findall(r"`minidiff (\w+)", COURSE):
        assert command in COMMANDS, command
    for technique in re.findall(r"`minidiff edit ([\w-]+)", COURSE):
        assert technique in TECHNIQUES, technique


def test_the_assignments_on_the_page_can_be_read(tmp_path):
    found = re.findall(r"```toml\n(.*?)```", COURSE, re.S)
    assert found
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10: not part of the repository")
    for number, text in enumerate(found):
        tomllib.loads(text)
        path = tmp_path / f"hw{number}.toml"
        path.write_text(text)
        assert assignment.read_assignment(path).points > 0
