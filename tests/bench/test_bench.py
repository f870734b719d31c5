"""Running: rows are appended, torn lines dropped, refusals told, and batches change nothing."""

import pytest
import torch

import minidiff
from minidiff.bench import bench, knobs, methods
from minidiff.bench.items import items
from minidiff.cli.main import main


def test_a_torn_line_is_dropped_and_the_next_run_appends_behind_it(row, tmp_path):
    path = tmp_path / "a.jsonl"
    bench.append([row(i=0, B=float("nan"))], path)
    with open(path, "a") as f:
        f.write('{"method": "a", "ki')
    bench.append([row(i=1)], path)
    assert [r["i"] for r in bench.rows_of(path)] == [0, 1] and bench.rows_of(path)[0]["B"] is None
    bench.append([row(i=0, cfg="y")], path)
    assert [(r["i"], r["cfg"]) for r in bench.latest(tmp_path)] == [(0, "y")]


def test_scenes_go_in_runs_with_the_first_alone():
    assert bench.chunks([0, 1, 2, 3, 5, 6], 2) == [[0], [1, 2], [3], [5, 6]] and bench.chunks(
        [0, 1], 1
    ) == [[0], [1]]


@pytest.mark.parametrize(
    "args",
    [
        ["--methods", "nothing"],
        ["--items", "0"],
        ["--kinds", "repaint"],
        ["--fit", "copy"],
        ["--report", "/nonexistent"],
    ],
)
def test_bad_requests_end_with_one_line_and_code_2(args, capsys, tmp_path):
    assert main(["bench", "--out", str(tmp_path / "b"), *args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("minidiff: ") and said.count("\n") == 1 and not (tmp_path / "b").exists()


def test_a_refusal_is_the_source_and_told():
    def picky(pipe, image, target):
        if isinstance(target, list) or "circle" in target:
            raise ValueError("no circles")
        return -image

    its = items("dev", 4, ("recolour",))
    tried = bench.attempts(
        minidiff.build("tiny"), methods.Method("picky", picky, False), its, [""] * 4, 0, {}
    )
    for item, (image, paid) in zip(its, tried):
        assert paid["refused"] == ("no circles" if "circle" in item.target else "")
        assert torch.equal(image, item.image if paid["refused"] else -item.image)


@pytest.mark.weights
def test_a_batch_and_single_calls_give_the_same_edits():
    pipe, m, its = (
        minidiff.load("tiny"),
        methods.method("sdedit@steps=4"),
        items("dev", 3, ("recolour",)),
    )
    how = knobs.chosen(m.name, "recolour")
    together = bench.call(pipe, m, its, ["", "", ""], 5, how)[0]
    alone = torch.cat([bench.call(pipe, m, [it], [""], 5 + i, how)[0] for i, it in enumerate(its)])
    assert torch.allclose(together, alone, atol=1e-3)
