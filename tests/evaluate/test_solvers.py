"""Samplers side by side: exact ends, orders, and what follows from right and wrong pictures."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map
from minidiff.evaluate import solvers
from minidiff.evaluate.solvers import Curve, best_at, differs, recommended, steps_within
from minidiff.samplers import SAMPLERS


@pytest.mark.parametrize("even_in", solvers.EVEN_IN)
def test_the_middle_of_every_step_of_every_grid_is_a_time_and_lambda_or_time_is_even(even_in):
    sch, noisy, clean = solvers.tables(even_in)
    for steps in solvers.STEPS:
        ts = solvers.even_grid(even_in, steps)
        strides = {a - b for a, b in pairwise(ts)}
        assert len(strides) == 1 and strides.pop() % 2 == 0
        assert (ts[0], ts[-1], len(ts)) == (noisy, clean, steps + 1)
    if even_in == "lambda":
        gaps = torch.tensor([sch.lam(t) for t in solvers.even_grid(even_in, 12)]).diff()
        assert (gaps - gaps[0]).abs().max() < 1e-5


def test_the_fine_walk_agrees_with_the_formula_where_there_is_one(monkeypatch):
    data = gauss_aniso()
    sch, noisy, clean = solvers.tables("lambda")
    x = solvers.starts(sch, noisy)
    fine = solvers.even_grid("lambda", 12 * max(solvers.STEPS))
    walked = SAMPLERS["unipc"].run(data.denoise(sch), sch, x, times=fine, order=3)
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, noisy, clean)
    assert (walked - exact).abs().max() < 1e-11


def test_ddim_is_of_first_order_and_costs_one_evaluation_a_step():
    found = solvers.curve("ddim", "mixture", "lambda")
    assert found.evaluations == solvers.STEPS and 0.95 < found.order < 1.05


def test_an_order_is_the_slope_above_rounding():
    errors = (1e-2, 1e-2 / 8, 1e-2 / 64, 1e-13, 1e-13)
    steps = (10, 20, 40, 80, 160)
    assert Curve("x", "mixture", "time", steps, steps, errors).order == pytest.approx(3)
    assert np.isnan(Curve("x", "mixture", "time", steps, steps, (1e-13,) * 5).order)


def test_every_sampler_keeps_within_its_budget():
    sch = schedule.linear(1000)
    for name in SAMPLERS:
        for budget in (4, 10):
            steps = steps_within(name, budget, sch, "trailing", 0)
            if steps:
                took = solvers.evaluations_of(name, steps, sch, spacing="trailing", end=0)
                assert took <= budget, name
    assert steps_within("ddim", 10, sch, "trailing", 0) == 10
    assert steps_within("plms", 10, sch, "trailing", 0) == 9


def row(sampler, budget, right):
    return {"sampler": sampler, "budget": budget, "right": right}


def test_a_recommendation_is_the_smallest_budget_that_cannot_be_told_from_the_best():
    half = [1, 0] * 50
    good = [1] * 98 + [0] * 2
    rows = [
        row("a", 4, half),
        row("b", 4, half),
        row("a", 8, good),
        row("b", 8, half),
        row("a", 50, [1] * 99 + [0]),
        row("b", 50, good),
    ]
    assert recommended(rows) == [("a", 8)]
    first, level = best_at(rows, 50)
    assert first["sampler"] == "a" and {r["sampler"] for r in level} == {"a", "b"}
    assert differs(rows[2], rows[3]) and not differs(rows[4], rows[5])


@pytest.mark.weights
def test_pictures_are_judged_and_kept(tmp_path):
    pipe = minidiff.load("tiny")
    rows = solvers.accuracies(pipe, ["ddim", "plms"], [2], 8, 0, tmp_path, progress=False)
    assert [r["sampler"] for r in rows] == ["ddim", "plms"] and len(rows[0]["right"]) == 8
    assert (rows[0]["steps"], rows[1]["steps"]) == (2, 1)
    kept = solvers.accuracies(None or pipe, ["ddim"], [2], 8, 0, tmp_path, progress=False)
    assert kept[0] == rows[0]


def test_the_command_writes_its_table_and_picture(tmp_path, capsys):
    facts = solvers.solvers(None, names=("ddim",), out=tmp_path, progress=False)
    assert (tmp_path / "samplers.png").stat().st_size > 10_000
    assert len(facts["curves"]) == 4 and "ddim" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(names=("dim",)), "no sampler called 'dim'; there are: ddim"),
        (dict(n=4), "n=4"),
        (dict(budgets=()), "budgets="),
        (dict(budgets=(0,)), "budgets="),
    ],
)
def test_bad_settings_are_refused(kw, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        solvers.solvers(None, out=tmp_path, **kw)
