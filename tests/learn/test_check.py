"""The grader: every way to be wrong has its own sentence, and a known mistake is called by its
name.
"""

import re

import numpy as np
import pytest
import torch

from minidiff.core.process import ddim_step
from minidiff.learn import check, hint, progress, reveal, task
from minidiff.learn import check as package
from minidiff.learn.check import NotYet, grade
from minidiff.learn.exercises import exercises, find
from minidiff.learn.stub import stub
from minidiff.learn.values import clone, difference

STEP = find("ddim_step")
right = lambda sch, x, e, t, s: ddim_step(sch, x, e, t, s)  # noqa: E731


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_HOME", str(tmp_path))


def raises(*args):
    raise RuntimeError("first line\nsecond line")


def forever(*args):
    while True:
        pass


def swallows(*args):
    while True:
        try:
            forever()
        except Exception:
            pass


def recurses(*args):
    return recurses(*args)


def in_place(sch, x, e, t, s):
    x += 1
    return x


@pytest.mark.parametrize(
    "fn, says",
    [
        (None, "A function was expected, got nothing"),
        (raises, "RuntimeError in line .* first line"),
        (recurses, "calls itself"),
        (lambda a: a, "TypeError"),
        (in_place, "changes its input in place"),
        (lambda *a: a[1].numpy(), "numpy ndarray"),
        (lambda *a: np.float64(1), "numpy float64"),
        (lambda *a: (a[1], a[2]), "a tuple of 2"),
        (lambda *a: None, "`return` missing"),
        (lambda *a: a[1] * float("nan"), "NaN"),
        (lambda *a: a[1] / 0, "infinite|NaN"),
        (lambda *a: a[1].double(), "float64; expected torch.float32"),
        (lambda *a: a[1][:, :1, :1], "shape is"),
        (lambda *a: a[1].to("meta"), "on meta; expected cpu"),
    ],
)
def test_every_kind_of_wrong_answer_has_its_own_sentence(fn, says):
    verdict = grade(STEP, fn)
    assert not verdict.passed and verdict.layer == "contract" and "\n" not in verdict.says
    assert re.search(says, verdict.says), verdict.says


@pytest.mark.parametrize("fn", [forever, swallows])
def test_a_loop_without_end_is_stopped(fn, monkeypatch):
    import importlib

    module = importlib.import_module("minidiff.learn.check")
    monkeypatch.setattr(module.called, "__defaults__", (0.3,))
    assert "did not return within" in grade(STEP, fn).says


def test_the_right_answer_passes_all_layers():
    verdict = grade(STEP, right)
    assert verdict.passed and "needed" in str(verdict)


@pytest.mark.parametrize("mutant", STEP.mutants, ids=lambda m: m.name)
def test_a_known_mistake_is_named(mutant):
    verdict = grade(STEP, lambda *args: mutant.fn(*args))
    assert verdict.mutant is mutant and mutant.story in str(verdict)


def test_an_unknown_mistake_is_not_named_and_its_place_is_shown():
    def off(sch, x, e, t, s):
        out = ddim_step(sch, x, e, t, s)
        return torch.cat([out[..., :-1], out[..., -1:] + 0.5], -1)

    verdict = grade(STEP, off)
    assert (
        verdict.layer == "facts"
        and verdict.mutant is None
        and verdict.error == pytest.approx(0.5, abs=1e-4)
    )
    assert verdict.where.endswith("1]")


def test_a_wrong_picture_is_drawn(tmp_path):
    verdict = grade(
        STEP,
        lambda sch, x, e, t, s: x if x.shape[-1] == 8 else ddim_step(sch, x, e, t, s),
        draw=True,
    )
    assert verdict.picture and (tmp_path / "ddim_step.png").stat().st_size > 1000


def test_tries_and_hints_are_remembered_and_the_solution_waits(capsys):
    check("ddim_step", raises)
    with pytest.raises(ValueError, match="not solved yet"):
        reveal("ddim_step")
    assert [hint("ddim_step")[:20] for _ in range(4)] == [
        f"ddim_step, hint {i} of"[:20] for i in (1, 2, 3, 3)
    ]
    check("ddim_step", right)
    assert "def ddim_step" in reveal("ddim_step") and progress()["ddim_step"] == {
        "tries": 2,
        "passed": True,
        "hints": 3,
    }
    assert "ddim_step" in capsys.readouterr().out


def test_the_stub_is_cut_from_the_source():
    text = stub(STEP)
    assert (
        text.startswith("def ddim_step(sch")
        and '"""Move a state' in text
        and "a_s * x0" not in text
    )
    space = {"Schedule": None, "Tensor": torch.Tensor}
    exec(text, space)  # it is a whole function, and it fails
    with pytest.raises(NotImplementedError):
        space["ddim_step"](1, 2, 3, 4, 5)
    assert "def ddim_step" in task("ddim_step")


def test_unknown_names_bring_near_ones():
    with pytest.raises(KeyError, match="ddim_step"):
        find("dim_step")


def test_names_are_unique_and_every_exercise_has_a_page():
    assert len(exercises()) == len({e.name for e in exercises().values()})
    assert callable(package)


def test_differences_are_found_in_nested_answers():
    a = [torch.zeros(2, 3), {"k": (1.0, torch.ones(2))}]
    b = clone(a)
    b[1]["k"][1][1] += 2
    assert difference(a, b) == (2.0, "[1]['k'][1][1]") and difference(a, a)[0] == 0
    assert difference(torch.zeros(2), torch.zeros(3))[0] == float("inf") and difference([1], 1)[
        0
    ] == float("inf")


def test_a_notebook_can_insist(capsys):
    with pytest.raises(NotYet, match="The notebook stops here until ddim_step is right"):
        check("ddim_step", raises, must=True)
    assert check("ddim_step", right, must=True).passed
