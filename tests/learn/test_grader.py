"""The grader: every way to be wrong has its own sentence, and a known mistake is called by its
name.
"""

import re

import numpy as np
import pytest
import torch

from minidiff.core.process import ddim_step
from minidiff.learn import check
from minidiff.learn.exercises import find
from minidiff.learn.grader import NotYet, grade

STEP = find("ddim_step")


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
    assert not verdict.passed
    assert verdict.layer == "contract"
    assert "\n" not in verdict.says
    assert re.search(says, verdict.says), verdict.says


@pytest.mark.parametrize("fn", [forever, swallows])
def test_a_loop_without_end_is_stopped(fn):
    assert "did not return within" in grade(STEP, fn, limit=0.1).says


def test_the_right_answer_passes_all_layers(right):
    verdict = grade(STEP, right)
    assert verdict.passed and "needed" in str(verdict)


@pytest.mark.parametrize("mutant", STEP.mutants, ids=lambda m: m.name)
def test_a_known_mistake_is_named(mutant):
    verdict = grade(STEP, mutant.fn)
    assert verdict.mutant is mutant
    assert mutant.story in str(verdict)


def test_an_unknown_mistake_is_not_named_and_its_place_is_shown():
    def off(sch, x, e, t, s):
        out = ddim_step(sch, x, e, t, s)
        return torch.cat([out[..., :-1], out[..., -1:] + 0.5], -1)

    verdict = grade(STEP, off)
    assert verdict.layer == "facts"
    assert verdict.mutant is None
    assert verdict.error == pytest.approx(0.5, abs=1e-4)
    assert verdict.where.endswith("1]")


def test_a_wrong_picture_is_drawn(home):
    def wrong_where_it_shows(sch, x, e, t, s):
        return x if x.shape[-1] == 8 else ddim_step(sch, x, e, t, s)

    verdict = grade(STEP, wrong_where_it_shows, draw=True)
    assert verdict.picture == str(home / "ddim_step.png")
    assert (home / "ddim_step.png").stat().st_size > 1000


def test_a_notebook_can_insist(right, still):
    with pytest.raises(NotYet, match="The notebook stops here until ddim_step is right"):
        check("ddim_step", still, must=True)
    assert check("ddim_step", right, must=True).passed
