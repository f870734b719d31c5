"""Running: rows are appended, torn lines dropped, refusals told, and batches change nothing."""

import subprocess
import sys

import pytest
import torch

import minidiff
from minidiff.bench import bench, knobs, methods
from minidiff.bench.items import items
from minidiff.cli import measuring
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


def test_packed_rows_are_read_and_a_run_goes_on_behind_them(row, tmp_path):
    full = tmp_path / "full"
    packed = tmp_path / "packed"
    bench.append([row(i=0, score=1 / 3), row(i=1, refused="why")], full / "a.jsonl")
    bench.pack(full, packed)
    assert [path.name for path in packed.iterdir()] == ["a.jsonl.gz"]
    bench.append([row(i=2)], packed / "a.jsonl")
    found = bench.latest(packed)
    assert (
        [r["i"] for r in found] == [0, 1, 2] == [r["i"] for r in bench.rows_of(packed / "a.jsonl")]
    )
    assert found[0]["score"] == 0.33333 and found[1]["refused"] == "why"


def test_scenes_go_in_runs_with_the_first_alone():
    assert bench.chunks([0, 1, 2, 3, 5, 6], 2) == [[0], [1, 2], [3], [5, 6]]
    assert bench.chunks([0, 1], 1) == [[0], [1]]


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


def test_two_processes_may_not_run_one_method_into_one_folder(tmp_path):
    """A lock is a process's own; here another one holds it."""
    holder = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX)"
    holder += "; f.write('123'); f.flush(); print('held', flush=True); sys.stdin.read()"
    path = tmp_path / ".copy.lock"
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        with pytest.raises(ValueError, match="process 123 runs copy into"):
            bench.run(minidiff.build("tiny"), "copy", tmp_path, split="dev", n=1)
    finally:
        other.communicate(b"")
    assert not (tmp_path / "copy.jsonl").exists()


def test_ctrl_c_leaves_a_folder_that_goes_on_and_says_so(row, tmp_path, monkeypatch, capsys):
    asked = []

    def interrupted(pipe, m, scenes, numbers, facts):
        asked.append((facts["kind"], numbers))
        if len(asked) == 3:
            raise KeyboardInterrupt
        made = [row("copy", i=i, score=0.0) | facts | {"i": i} for i in numbers]
        return made, torch.zeros(len(numbers), 3, 64, 64)

    monkeypatch.setattr(bench, "run_chunk", interrupted)
    monkeypatch.setattr(measuring, "load", lambda args: minidiff.build("tiny"))
    command = ["bench", "--methods", "copy", "--kinds", "move", "add", "--items", "3"]
    command += ["--out", str(tmp_path)]
    assert main(command) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("minidiff: interrupted") and str(tmp_path) in said[-1]
    assert main(command) == 0
    assert asked[3:] == [("add", [0]), ("add", [1, 2])]  # the two of "move" are not run again


def test_fitting_is_a_race_that_keeps_one_choice_and_the_best_per_kind(row, tmp_path, monkeypatch):
    """A made-up method: scale 2 is best on the whole, scale 5 for "move"; the rest is poor."""
    asked = []

    def made_up(pipe, m, scenes, options, batch):
        asked.append((options["scale"], options["strength"], len(scenes)))
        good = {1.5: 0.2, 2.0: 0.6, 3.0: 0.3, 5.0: 0.5}.get(options["scale"], 0.0)
        good += 0.1 * options["strength"]
        scores = {item.kind: good for item in scenes}
        if options["scale"] == 5.0:
            scores["move"] += 0.2
        return scores

    pipe = minidiff.build("tiny")
    kinds = ("move", "add", "delete")
    monkeypatch.setattr(bench, "trial", made_up)
    monkeypatch.setattr(knobs, "save", lambda name, line: line)
    line = bench.tune(pipe, "sdedit", tmp_path, n=8, kinds=kinds)
    assert line["chosen"] == {"strength": 0.85, "scale": 2.0} and line["tried"] == 20
    assert line["per_kind"]["move"] == {"strength": 0.85, "scale": 5.0}
    assert line["per_kind"]["add"] == line["chosen"]
    assert [n for _, _, n in asked] == [3 * bench.HEAT] * 20 + [3 * 8] * 7
    assert line["score_per_kind"] > line["score"]
    assert bench.tune(pipe, "sdedit", tmp_path, n=8, kinds=kinds) == line
    assert len(asked) == 27  # the second time all was read from the file
    fewer = bench.tune(pipe, "sdedit", tmp_path, n=8, kinds=("move",))
    assert len(asked) == 54 and fewer["per_kind"].keys() == {"move"}  # of other scenes: anew
    assert fewer["chosen"] == {"strength": 0.85, "scale": 5.0}


def test_knobs_that_count_steps_are_fitted_in_as_many_as_the_tables_have(tmp_path, monkeypatch):
    asked = set()

    def made_up(pipe, m, scenes, options, batch):
        asked.add((m.name, options["steps"]))
        return {item.kind: 0.5 for item in scenes}

    monkeypatch.setattr(bench, "trial", made_up)
    monkeypatch.setattr(knobs, "save", lambda name, line: line)
    for name in ("magicmix", "sdedit"):
        bench.tune(minidiff.build("tiny"), name, tmp_path, n=2, kinds=("move",), steps=25)
    assert asked == {("magicmix", methods.STEPS), ("sdedit", 25)}


def test_a_setting_is_tried_on_scenes_of_several_kinds_at_once(monkeypatch):
    pipe = minidiff.build("tiny")
    calls = []

    def edit(pipe, m, batch, wrong, seed, options):
        calls.append((len(batch), seed, options["steps"]))
        return [(item.answer, {}) for item in batch]

    def half_right(edits, batch, ceilings):
        return [{"score": float(item.kind == "move")} for item in batch]

    monkeypatch.setattr(bench, "attempts", edit)
    monkeypatch.setattr(bench, "grade", half_right)
    scenes = bench.items("dev", 3, ("move", "add"))
    options = {"steps": 4}
    scores = bench.trial(pipe, methods.method("inverted"), scenes, options, batch=4)
    assert scores == {"move": 1.0, "add": 0.0}
    assert calls == [(4, 0, 4), (2, 4, 4)]


def test_knobs_are_fitted_for_methods_and_not_for_settings(tmp_path):
    for name in ("sdedit@scale=2", "edict+misread", "truth"):
        with pytest.raises(ValueError, match="fit"):
            bench.bench(None, fit=(name,), out=tmp_path)
    with pytest.raises(ValueError, match="one number of steps"):
        bench.bench(None, fit=("sdedit",), steps=(10, 25), out=tmp_path)
