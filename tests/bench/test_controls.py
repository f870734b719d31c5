"""The controls come in the order that their worth gives, and rows are not made twice."""

import pytest

import minidiff
from minidiff.bench import bench


@pytest.mark.weights
def test_controls_come_in_the_expected_order_and_a_second_run_adds_nothing(tmp_path):
    """The smoke version, cut to three kinds and one scene."""
    pipe = minidiff.load("tiny")
    how = dict(
        methods=(*bench.SMOKE[:4], "resample@steps=10", "hacker@updates=40"),
        items=1,
        kinds=("recolour", "delete", "move"),
        out=tmp_path,
        progress=False,
    )
    facts = bench.bench(pipe, **how)
    by = {s["method"].split("@")[0]: s for s in facts["methods"]}
    assert (
        by["truth"]["T"] == by["truth"]["K"] == by["truth"]["score"] == 1
        and by["truth"]["B"] == by["truth"]["C"] == 50
    )
    assert (
        by["copy"]["T"] == by["copy"]["score"] == 0
        and by["copy"]["K"] == 1
        and by["copy"]["B"] == 50
    )
    assert (
        by["vae-truth"]["score"] > 0.95 > 0.4 > by["resample"]["score"]
        and by["vae-copy"]["score"] == 0
    )
    assert (
        by["hacker"]["Q1"] > by["copy"]["Q1"] + 0.05
        and by["hacker"]["T"] == 0
        and by["resample"]["nfe"] == 20
    )
    assert (tmp_path / "grid.png").exists() and "EditScore" in (
        tmp_path / "leaderboard.md"
    ).read_text()
    sizes = {p.name: p.stat().st_size for p in tmp_path.glob("*.jsonl")}
    again = bench.bench(pipe, **how)
    assert (
        sizes == {p.name: p.stat().st_size for p in tmp_path.glob("*.jsonl")}
        and again["methods"] == facts["methods"]
    )
