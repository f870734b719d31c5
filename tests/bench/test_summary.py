"""Means, intervals and winners: scenes are the unit, and better means better on the same ones."""

import numpy as np
import pytest

from minidiff.bench import leaderboard, summary
from minidiff.bench.items import KINDS


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
    few = summary.winners({"a": a[:4], "b": b[:4]}, False)
    assert "too few scenes" in leaderboard.winner_table(few)  # though all four differ by the same
    found = summary.winners(
        {"a": a, "b": b, "copy": [row("copy", score=9.0)], "a@x=1": [row("a@x=1", score=9.0)]},
        False,
    )
    assert found["move"]["best"] == "a" and found["move"]["second"] == "b"
    assert "yes" in leaderboard.winner_table(found)


def test_a_method_that_saw_fewer_scenes_wins_nothing(row):
    a, b = [row("a", i=i, score=0.4) for i in range(4)], [row("b", i=0, score=0.9)]
    assert summary.winners({"a": a, "b": b}, False)["move"] | {"score": 0} == {
        "best": "a",
        "score": 0,
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
