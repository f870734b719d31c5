"""The grader: every way to be wrong has its own sentence, and a known mistake is called by its
name.
"""

import re

import numpy as np
import pytest
import torch

from minidiff.core.process import ddim_step, posterior
from minidiff.learn import check
from minidiff.learn.exercises import exercises, find
from minidiff.learn.grader import NotYet, grade

STEP = find("ddim_step")
MEAN_AND_VARIANCE = find("posterior")


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


def for_ints(sch, x, t, e):
    return float(sch.alpha[t]) * x + float(sch.sigma[t]) * e


@pytest.mark.parametrize(
    "name, fn, says",
    [
        ("times", lambda n, T, kind: [1, 2], "the first list has 2 entries; expected 4"),
        ("times", lambda n, T, kind: [1, 2], r"The first is times\(4, 1000, 'trailing'\)"),
        ("times", lambda n, T, kind: np.arange(n), r"numpy ndarray; expected a list .*tolist"),
        ("times", lambda n, T, kind: [k / 2 for k in range(n)], r"at \[0\] is a float, 0; ints"),
        ("causal_mask", lambda n: torch.zeros(n, n).double(), "float32, the task asks for it"),
        ("geglu", lambda h: h.chunk(2, -1)[0].double(), "float32, that of the input"),
        ("causal_mask", lambda n: torch.full((n, n), torch.nan), "NaN"),
        ("causal_mask", lambda n: torch.full((n, n), -1e9).triu(1), "minus infinity is expected"),
        ("causal_mask", lambda n: torch.full((n, n), -torch.inf), "yours is minus infinity"),
        ("guide", lambda n, c, w: torch.randn_like(n), "it draws noise of its own"),
        ("q_sample", lambda sch, x, t, e: sch.at(t, x)[0].sqrt() * x, "gives two Python floats"),
        ("q_sample", for_ints, "a time for each row"),
        ("q_sample", for_ints, r"So it is with q_sample\(linear, tensor \(2, 3, 4, 5\), \["),
    ],
)
@pytest.mark.parametrize("state", [0, 1])
def test_what_is_wrong_is_said_in_the_terms_of_the_task(name, fn, says, state):
    torch.manual_seed(state)  # what noise comes next is no business of the verdict
    verdict = grade(find(name), fn)
    assert not verdict.passed
    assert re.search(says, verdict.says), verdict.says


@pytest.mark.parametrize(
    "form",
    [
        lambda mean, var: (mean, var),
        lambda mean, var: [mean, torch.as_tensor(var)],
        lambda mean, var: (mean, torch.as_tensor(var, dtype=mean.dtype).expand_as(mean)),
        lambda mean, var: (mean, torch.as_tensor(var).reshape(-1).expand(len(mean))),
    ],
    ids=["as it comes", "a list", "for every pixel", "for every row"],
)
def test_a_variance_may_have_any_shape_that_says_the_same(form):
    assert grade(MEAN_AND_VARIANCE, lambda *a: form(*posterior(*a))).passed


def test_a_mistake_is_named_where_it_explains_nearly_all_of_an_error():
    keeps_time = STEP.mutants[1]

    def nearly(*args):
        return keeps_time.fn(*args) + 1e-4

    assert grade(STEP, nearly).mutant is keeps_time


STRANGE = [
    None,
    True,
    1.5,
    1j,
    "text",
    [],
    [None],
    [1, [2]],
    ["a", "b"],
    (None, None),
    {"a": 1},
    np.ones(2),
    np.float32(1),
    np.array(["a"]),
    torch.tensor(1),
    torch.tensor(1j),
    torch.ones(1, 1, 2, 2, dtype=torch.complex64),
    torch.ones(0),
    [torch.ones(2), torch.ones(2)],
    (torch.ones(1, 1, 2, 2), "text"),
    (torch.ones(1, 1, 2, 2), None),
    [float("nan")] * 4,
    [1.5] * 4,
    ["a"] * 4,
    [None] * 4,
]


@pytest.mark.parametrize("exercise", exercises().values(), ids=lambda e: e.name)
def test_no_answer_is_so_strange_that_the_grader_fails(exercise):
    for answer in STRANGE:
        verdict = grade(exercise, lambda *args, answer=answer: answer)
        assert not verdict.passed
        assert verdict.says[-1] in ".?"


@pytest.mark.parametrize(
    "answer, says",
    [
        (["a"] * 4, "texts; expected numbers"),
        ([3, None, 1, 0], r"has nothing \(None\) at \[1\]; expected a number"),
        ([3, [2], 1, 0], r"has a list of 1 at \[1\]; expected a number"),
    ],
)
def test_a_list_of_something_else_is_called_so(answer, says):
    verdict = grade(find("times"), lambda n, T, kind: answer)
    assert re.search(says, verdict.says), verdict.says
