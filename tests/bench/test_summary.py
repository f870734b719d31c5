"""Means, intervals and winners: scenes are the unit, and better means better on the same ones."""

import numpy as np
import pytest

from minidiff.bench import leaderboard, summary
from minidiff.bench.items import KINDS

TASK = "told the target prompt alone"


def test_order_changes_no_mean_and_scenes_are_the_unit(row):
    rng = np.random.default_rng(0)
    rows = [
        row(i=i, k=k, kind=kind, score=float(rng.random()))
        for kind in KINDS[:3]
        for i in range(5)
        for k in range(2)
    ]
    a, b = summary.line(rows), summary.line([rows[j] for j in rng.permutation(len(rows))])
    for s in (a, b):
        s["by_kind"] = {k: v["score"] for k, v in s["by_kind"].items()}
    assert all(a[c] == pytest.approx(b[c]) for c in ("score", "T", "seconds"))
    assert a["by_kind"] == pytest.approx(b["by_kind"])
    twice = summary.interval([row(i=i, k=k, score=i / 9) for i in range(10) for k in range(8)])
    once = summary.interval([row(i=i, score=i / 9) for i in range(10)])
    assert twice == pytest.approx(once)  # more seeds of the same scenes: no surer


def test_better_needs_the_same_scenes_and_a_difference_that_chance_does_not_explain(row):
    rng = np.random.default_rng(1)
    base = rng.random(30)
    a, b = [
        [row(n, i=i, score=float(v)) for i, v in enumerate(base + d)]
        for n, d in (("a", 0.05), ("b", 0.0))
    ]
    mean, low, _ = summary.difference(a, b)
    assert mean == pytest.approx(0.05) and low > 0.04  # though single scores spread over 0..1
    few = summary.winners({"a": a[:4], "b": b[:4]}, TASK)
    assert "too few scenes" in leaderboard.winner_table(few)  # though all four differ by the same
    found = summary.winners(
        {"a": a, "b": b, "copy": [row("copy", score=9.0)], "a@x=1": [row("a@x=1", score=9.0)]},
        TASK,
    )
    assert found["move"]["best"] == "a" and found["move"]["second"] == "b"
    assert found["move"]["tied"] == ["a"] and "| a |" in leaderboard.winner_table(found)


def test_nobody_wins_by_chance(row):
    """Three methods whose scores differ by noise alone, and one that is far behind."""
    rng = np.random.default_rng(2)
    groups = {
        name: [row(name, i=i, score=float(rng.random())) for i in range(20)] for name in "abc"
    }
    groups["d"] = [row("d", i=i, score=0.0) for i in range(20)]
    found = summary.winners(groups, TASK)
    assert {*found["move"]["tied"]} == {"a", "b", "c"}
    assert "cannot be told apart" in leaderboard.winner_table(found)


def test_the_matrix_says_what_the_paired_differences_say(row):
    rng = np.random.default_rng(3)
    base = rng.random(24)
    groups = {
        name: [row(name, i=i, score=float(v)) for i, v in enumerate(base + more)]
        for name, more in (("a", 0.2 * rng.random(24)), ("b", 0.0))
    }
    groups["few"] = groups["a"][: summary.FEW - 1]
    found = summary.matrix(groups)
    mean, low, high = summary.difference(groups["a"], groups["b"])
    assert found["difference"][0][1] == pytest.approx(mean) == -found["difference"][1][0]
    assert found["low"][0][1] == pytest.approx(low, abs=0.01)
    assert found["high"][0][1] == pytest.approx(high, abs=0.01) and low > 0
    assert found["difference"][2][0] is None and found["scenes"][2][0] == summary.FEW - 1
    lines = leaderboard.matrix_csv(found).splitlines()
    assert [line.split(",")[-1] for line in lines[1:]] == ["yes", "no"]


def test_methods_stand_with_those_that_are_told_as_much():
    said = {"P": 1, "PS": 0, "PSW": 0, "PM": 2, "PMF": 2, "PSF": 3, "PI": 4}
    for inputs, place in said.items():
        assert summary.task("a", inputs) == summary.TASKS[place], inputs
    assert summary.task("inverted@scale=1", "PS") == "controls"


def test_scores_stand_against_evaluations_with_the_front_marked(row):
    def at(name, steps, score):
        return [
            row(name, i=i, score=score, nfe=2.0 * steps, options={"steps": steps}) for i in (0, 1)
        ]

    groups = {
        "a": at("a", 50, 0.6),
        "a@steps=10": at("a@steps=10", 10, 0.5),
        "b": at("b", 50, 0.7),
        "b@steps=10": at("b@steps=10", 10, 0.2),
        "c": at("c", 50, 0.9),  # ran at one budget alone
        "a@scale=2": at("a@scale=2", 50, 0.9),
    }
    points = summary.budgets(groups)["told the target prompt alone"]
    front = {(p["method"], p["steps"]) for p in points if p["front"]}
    assert len(points) == 4 and front == {("a", 10), ("b", 50)}


def test_a_method_that_saw_fewer_scenes_wins_nothing(row):
    a, b = [row("a", i=i, score=0.4) for i in range(4)], [row("b", i=0, score=0.9)]
    assert summary.winners({"a": a, "b": b}, TASK)["move"] | {"score": 0} == {
        "best": "a",
        "score": 0,
        "tied": ["a"],
        "second": None,
        "scenes": 4,
        "difference": None,
    }


def test_area_of_a_curve_is_what_its_settings_dominate():
    assert (
        summary.dominated([(1.0, 1.0)]) == 1 and summary.dominated([(0.5, 1.0), (1.0, 0.5)]) == 0.75
    )
    assert (
        summary.dominated([(0.5, 0.5), (0.4, 0.4)]) == pytest.approx(0.25)
        and summary.dominated([(0.0, 1.0)]) == 0
    )
