"""The bench keeps its word: the truth scores 1, a copy 0, order and area change nothing, and nobody
sees the oracles.
"""

import ast
import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import minidiff
from minidiff.bench import bench, knobs, leaderboard, methods, scores, summary
from minidiff.bench.controls import CONTROLS
from minidiff.bench.cost import Cost
from minidiff.bench.items import KINDS, given, items
from minidiff.cli.main import main
from minidiff.data import shapes
from minidiff.editing.pix2pix_zero import pix2pix_zero
from minidiff.evaluate.find_objects import see
from minidiff.models.attribute_net import canonical
from minidiff.techniques import ALL

ROOT = Path(__file__).parents[2]
TECHNIQUES = (
    "editing",
    "guidance",
    "inversion",
    "restoration",
    "samplers",
    "control",
    "core",
    "models",
)
FORBIDDEN = {
    f"minidiff.evaluate.{m}"
    for m in ("oracle", "synthesis", "sight", "items", "scores", "prove", "bench")
} | {"minidiff.models.attribute_net"}


def told(s):
    """What a perfect oracle says of a scene."""
    s = canonical(s)
    return {
        "objects": [{"shape": o.shape, "color": o.color, "size": o.size} for o in s.objects],
        "position": s.position if s.objects else None,
        "background": s.background,
        "texture": s.texture,
    }


def asked(found, item):
    changed, kept = scores.questions(item)
    v = scores.verdict(found, item)
    return all(v[w] for w in changed), {w for w in kept if not v[w]}


# ---- what is right -------------------------------------------------------------------------------


def test_the_true_scene_is_right_in_everything_and_the_source_in_all_but_the_edit():
    for item in items("dev", 12):
        assert asked(told(item.truth), item) == (True, set()), item
        done, missed = asked(told(item.scene), item)
        assert not done and not missed, (item.kind, missed)


def test_changed_and_kept_share_nothing_and_leave_out_only_what_no_caption_says():
    for item in items("dev", 4):
        changed, kept = scores.questions(item)
        assert changed and kept and not changed & kept
        free = scores.verdict(told(item.truth), item).keys() - changed - kept
        assert free <= (
            {"1.size"} if item.kind == "add" else {"count"} if item.kind == "delete" else set()
        )


def test_deleting_the_wrong_object_or_both_is_no_deletion():
    for item in items("dev", 6, ("delete",)):
        wrong = told(shapes.edit(item.scene, "delete", index=0))
        nothing = told(replace(item.scene, objects=(), position="center"))
        assert not asked(wrong, item)[0] and not asked(nothing, item)[0]


def test_an_object_moved_aside_by_the_order_of_reading_is_still_the_same_object():
    """The canonical order changes when an edit moves what is left or upper; objects are paired by
    their looks instead.
    """
    for item in (
        i for i in items("dev", 12, ("recolour", "reshape", "resize")) if len(i.scene.objects) == 2
    ):
        seen = told(item.truth)
        seen["objects"] = seen["objects"][::-1]  # as if they had swapped places
        done, missed = asked(seen, item)
        assert done and missed == {"position"}, (item, missed)


def test_a_neighbour_in_the_way_costs_the_count_and_not_the_edit():
    item = next(i for i in items("dev", 8, ("recolour",)) if len(i.scene.objects) == 1)
    seen = told(item.truth)
    extra = {
        "shape": next(s for s in shapes.SHAPES if s != item.truth.objects[0].shape),
        "color": None,
        "size": "small",
    }
    done, missed = asked(seen | {"objects": [*seen["objects"], extra], "position": "left"}, item)
    assert done and "count" in missed


def test_a_move_must_arrive_within_half_a_cell():
    item = items("dev", 1, ("move",))[0]
    ((x, y),) = shapes.centers(item.truth)
    for shift, right in ((5, True), (8, False)):
        seen = told(item.truth)
        seen["objects"][0] |= {"x": x + shift, "y": y}
        assert asked(seen, item)[0] == right


# ---- the numbers ---------------------------------------------------------------------------------


def test_kept_area_does_not_change_the_likeness_of_a_constant_error():
    """Averaging over all pixels, as PIE-Bench's code does, gives 5 dB for a mask of two thirds."""
    image = torch.zeros(1, 3, 64, 64)
    off, found = image + 32 / 255, []
    for edge in (8, 32, 56):
        region = torch.zeros(1, 1, 64, 64)
        region[..., :edge] = 1
        found.append(scores.distances(off, image, region))
    b, c, pie = zip(*found)
    assert np.ptp(b) < 1e-9 and np.ptp(c) < 1e-9 and b[0] == pytest.approx(c[0])
    assert pie[2] - pie[0] == pytest.approx(10 * np.log10(7), abs=1e-6)


def test_the_score_is_1_at_the_ceiling_and_0_at_the_floor_or_without_the_edit():
    at = dict(b_floor=20, b_vae=38, c_vae=30)
    assert (
        scores.edit_score(1, 1, 38, 30, **at)["score"]
        == scores.edit_score(1, 1, 50, 50, **at)["score"]
        == 1
    )
    assert (
        scores.edit_score(0, 1, 50, 50, **at)["score"]
        == scores.edit_score(1, 1, 20, 50, **at)["score"]
        == 0
    )
    assert scores.edit_score(1, 1, 38, 5, **at)["score"] == pytest.approx(0.5 ** (1 / 3))
    assert scores.edit_score(1, 1, float("nan"), 30, **at)["Bn"] == 1


def test_what_knows_only_the_caption_does_not_rise_above_the_floor():
    for item in items("dev", 3):
        again = scores.redrawn(item)
        said = {
            g: {"resize": "size", "move": "position", "texture": "texture"}.get(item.kind) == g
            for g in ("size", "position", "texture")
        }
        assert all(shapes.caption(s, **said) == item.target for s in again)
        floor = scores.floor_of_b(item, scores.region(item), 40.0)
        assert scores.FLOOR_B <= floor <= 30


def test_an_added_object_may_have_any_size_and_the_nearest_counts():
    item = items("dev", 1, ("add",))[0]
    truths, region = shapes.render(scores.admissible(item)), scores.region(item)
    assert len(truths) == 3 and torch.equal(truths[:1], item.answer)
    for t in truths:
        b, c, _ = scores.distances(t[None], truths, region)
        assert b == c == 50
    assert (region >= item.mask).all()


def test_the_mask_is_empty_only_where_nothing_changes():
    for item in items("dev", 2):
        assert item.mask.any() and not shapes.edit_mask(item.scene, item.scene).any()


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_analysis_by_synthesis_reads_clean_renders_without_being_told(seed):
    rng = np.random.default_rng([11, seed])
    ss = [shapes.scene(rng, objects=1 + i % 2) for i in range(12)]
    ss.append(replace(ss[0], objects=(), position="center"))
    found = see(shapes.render(ss))
    for s, f in zip(ss, found):
        f["objects"] = [{k: o[k] for k in ("shape", "color", "size")} for o in f["objects"]]
        assert f == told(s)


@pytest.mark.parametrize("shape", ["ring", "circle", "star", "cross"])
def test_a_fragment_is_no_shape(shape):
    one = shapes.scene(np.random.default_rng(3), objects=1)
    red = replace(one.objects[0], shape=shape, color="red", size="large")
    whole = replace(one, objects=(red,), texture="plain", background="yellow", position="center")
    image, ground = shapes.render(whole), shapes.render(replace(whole, objects=()))
    assert see(image)[0]["objects"][0]["shape"] == shape
    image[..., :34] = ground[..., :34]
    assert [o["shape"] for o in see(image)[0]["objects"]] == [None]


def test_what_was_seen_is_where_it_is():
    s = next(
        s
        for i in range(99)
        if len((s := shapes.scene(np.random.default_rng(i), objects=2)).objects) == 2
    )
    for o, (x, y) in zip(see(shapes.render(s))[0]["objects"], shapes.centers(canonical(s))):
        assert abs(o["x"] - x) < 1 and abs(o["y"] - y) < 1


def test_a_misread_caption_has_one_wrong_word_and_the_wish_is_as_before():
    for item in items("test", 4):
        said, wrong = item.source.split(), item.misread.split()
        changed = [(a, b) for a, b in zip(said, wrong) if a != b]
        assert (
            len(said) == len(wrong)
            and len(changed) == 1
            and changed[0][1] not in said + item.target.split()
        )
        assert changed[0][0] in item.target.split()  # the edit itself is about another word
    m = methods.method("edict+misread@steps=9")
    assert (
        m.misread
        and not m.masked
        and m.inputs == "PS"
        and methods.method("diffedit+mask+misread").masked
    )
    assert (
        given(m.fn, item, misread=True)["source"] == item.misread
        and given(m.fn, item)["source"] == item.source
    )
    assert knobs.chosen("edict+misread", "add") == knobs.chosen("edict", "add")


# ---- methods, cost, knobs ------------------------------------------------------------------------


def test_inputs_are_read_off_the_signature():
    said = {
        n: methods.method(n).inputs
        for n in ("sdedit", "sdedit+mask", "edict", "imagic", "inpaint", "copy", "truth")
    }
    assert said == {
        "sdedit": "P",
        "sdedit+mask": "PM",
        "edict": "PS",
        "imagic": "PF",
        "inpaint": "PM",
        "copy": "",
        "truth": "",
    }
    assert {*CONTROLS, "sdedit", "sdedit+mask", "inpaint", "sdedit@strength=0.4"} <= {
        *methods.everything()
    }
    for name in methods.everything():
        methods.method(name)


@pytest.mark.parametrize(
    "name, told",
    [
        ("sdxl", "no method called"),
        ("instruct-pix2pix", "instruction"),
        ("prompt-to-prompt", "a picture to edit"),
        ("sdedit@strength=x", "strength='x'"),
        ("copy+mask", "takes no mask"),
        ("sdedit@strenght=.5", "no option strenght"),
        ("ddnm", "task"),
        ("sdedit+misread", "reads no source caption"),
    ],
)
def test_methods_that_cannot_run_are_refused_with_the_reason(name, told):
    with pytest.raises(ValueError, match=told):
        methods.method(name)


def test_evaluations_are_counted_by_rows_and_a_backward_pass_is_two_more():
    pipe = minidiff.build("tiny", seed=0)
    x, cond = pipe.noise(3), pipe.embed(["a red circle"] * 3)
    with Cost(pipe) as cost, torch.no_grad():
        pipe.eps(x, 500, cond)
    assert cost.nfe == 3 and cost.seconds > 0
    with Cost(pipe) as cost:
        z = x.clone().requires_grad_()
        pipe.eps(z, 500, cond).sum().backward()
    assert cost.nfe == 9 and not pipe.net._forward_hooks


def test_a_gradient_that_enters_by_a_map_inside_is_counted_too():
    """Pix2pix-zero pulls on attention maps: that backward pass never crosses the output."""
    pipe = minidiff.build("tiny", seed=0)
    item = items("dev", 1, ("recolour",))[0]
    with Cost(pipe) as cost:
        pix2pix_zero(pipe, item.image, item.source, item.target, steps=2)
    # inversion 2; each step: source maps 1, the edit's maps 1 with a backward pass of 2, guided 2
    assert cost.nfe == 2 + 2 * (1 + 3 + 2)


def test_settings_come_from_the_file_by_kind_and_the_name_overrides_them(tmp_path):
    known = {
        "sdedit": {"chosen": {"move": {"strength": 0.7}}, "per_kind": True},
        "inpaint": {"chosen": {"scale": 5.0}},
    }
    assert (
        knobs.chosen("sdedit", "move", known)
        == knobs.chosen("sdedit+mask", "move", known)
        == {"strength": 0.7}
    )
    assert knobs.chosen("sdedit", "add", known) == {} and knobs.chosen("inpaint", "add", known) == {
        "scale": 5.0
    }
    assert knobs.chosen("sdedit@strength=.2,steps=10", "move", known) == {
        "strength": 0.2,
        "steps": 10,
    }
    path = tmp_path / "knobs.json"
    one, two = (
        knobs.save(n, {"chosen": {"strength": v}}, path) for n, v in (("a", 0.1), ("b", 0.2))
    )
    assert one["hash"] != two["hash"] and knobs.load(path) == {"a": one, "b": two}
    sdedit = methods.method("sdedit").fn
    prints = {
        knobs.digest("sdedit", "tiny", sdedit, o)
        for o in ({}, {"strength": 0.6}, {"strength": 0.5}, {"steps": 9})
    }
    assert len(prints) == 3  # .6 is the default


def test_everything_that_is_swept_is_an_option_and_few_enough_to_try():
    for technique in ALL:
        name, sweep = technique.name, technique.sweep
        if not sweep.tries:
            continue
        asked = inspect.signature(technique.load()).parameters
        assert sweep.tries.keys() <= asked.keys() and 1 < len(knobs.combinations(name)) <= 9, name
        assert not sweep.curve[0] or sweep.curve[0] in asked, name


def test_shipped_knobs_are_of_methods_and_options_that_exist():
    for name in knobs.load():
        methods.method(name)


# ---- files ---------------------------------------------------------------------------------------


def row(name="a", kind="move", i=0, k=0, score=0.5, **kw):
    zero = dict.fromkeys(summary.MEANS, 0.0)
    return (
        zero
        | {
            "method": name,
            "inputs": "P",
            "split": "dev",
            "fitted": True,
            "kind": kind,
            "i": i,
            "k": k,
            "cfg": "x",
            "objects": 1 + i % 2,
            "batch": 1,
            "seconds": 1.0,
            "mb": None,
            "score": score,
        }
        | kw
    )


def test_order_changes_no_mean_and_scenes_are_the_unit():
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


def test_better_needs_the_same_scenes_and_a_difference_that_chance_does_not_explain():
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


def test_a_method_that_saw_fewer_scenes_wins_nothing():
    a, b = [row("a", i=i, score=0.4) for i in range(4)], [row("b", i=0, score=0.9)]
    assert summary.winners({"a": a, "b": b}, False)["move"] | {"score": 0} == {
        "best": "a",
        "score": 0,
        "second": None,
        "scenes": 4,
        "difference": None,
    }


def test_a_scene_whose_truth_is_misread_grades_nobody(tmp_path):
    rows = [
        row(n, i=i, score=1 - i, T=1 - (n == "truth" and i == 1), K=1.0, B=50.0, C=50.0)
        for n in ("a", "truth")
        for i in range(2)
    ]
    facts = leaderboard.write(rows, tmp_path, split="dev")
    assert facts["unfit"] == [("move", 1)] and [m["score"] for m in facts["methods"]] == [1, 1]
    # half of the truths misread
    assert "move 1" in (tmp_path / "leaderboard.md").read_text() and not facts["passed"]


def test_the_cost_of_a_wrong_word_is_measured_on_the_same_scenes_and_stands_apart(tmp_path):
    scores = {"a": 0.5, "a+misread": 0.3, "b+misread": 0.9}
    rows = [row(n, i=i, score=score + 0.1 * i) for n, score in scores.items() for i in (0, 1)]
    facts = leaderboard.write(rows, tmp_path, split="dev")
    assert facts["misread"].keys() == {"a+misread"}  # b never ran with the right caption
    assert facts["misread"]["a+misread"]["difference"] == pytest.approx((-0.2, -0.2, -0.2))
    assert [m["method"] for m in facts["methods"]] == ["b+misread", "a"]
    assert facts["winners"]["not told the mask"]["move"]["best"] == "a"
    assert "one wrong word" in (tmp_path / "leaderboard.md").read_text()


def test_area_of_a_curve_is_what_its_settings_dominate():
    assert (
        summary.dominated([(1.0, 1.0)]) == 1 and summary.dominated([(0.5, 1.0), (1.0, 0.5)]) == 0.75
    )
    assert (
        summary.dominated([(0.5, 0.5), (0.4, 0.4)]) == pytest.approx(0.25)
        and summary.dominated([(0.0, 1.0)]) == 0
    )


def test_a_torn_line_is_dropped_and_the_next_run_appends_behind_it(tmp_path):
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


def test_a_page_keeps_its_text_around_the_leaderboard(tmp_path):
    rows, page = [row(i=i) for i in range(3)], tmp_path / "page.md"
    page.write_text(
        "before\n<!-- leaderboard -->\nyesterday\n<!-- end -->\n"
        "<!-- leaderboard in short -->\n<!-- end -->\nafter\n"
    )
    facts = leaderboard.write(rows, tmp_path, split="dev", page=page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "yesterday" not in text
    assert text.count("| a | P | 3 |") == 2  # once in full, once in short
    assert (
        json.loads((tmp_path / "bench.json").read_text())["methods"][0]["score"]
        == pytest.approx(0.5)
        and facts["passed"]
    )
    with pytest.raises(ValueError, match="no results of split 'test'"):
        leaderboard.write(rows, tmp_path, split="test")


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


# ---- no peeking ----------------------------------------------------------------------------------


def imports(path: Path) -> set[str]:
    """Modules of minidiff that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return {m for m in found if m.startswith("minidiff.")}


def file(module: str) -> Path | None:
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    return path if path.exists() else None


def reached(path: Path) -> set[str]:
    seen, todo = set(), [path]
    while todo:
        for m in imports(todo.pop()) - seen:
            seen.add(m)
            if file(m):
                todo.append(file(m))
    return seen


def test_no_technique_can_see_the_oracles_not_even_through_another_module():
    files = [
        f
        for room in TECHNIQUES
        for f in (ROOT / "minidiff" / room).glob("*.py")
        if f.stem != "attribute_net"
    ]
    assert len(files) > 20
    for f in files:
        assert not reached(f) & FORBIDDEN, (
            f"{f.relative_to(ROOT)} reaches {sorted(reached(f) & FORBIDDEN)}"
        )
    assert reached(ROOT / "minidiff/bench/scores.py") & FORBIDDEN  # the test can fail


# ---- the whole of it -----------------------------------------------------------------------------


@pytest.mark.weights
def test_controls_come_in_the_expected_order_and_a_second_run_adds_nothing(tmp_path):
    """The smoke version, cut to three kinds and one scene."""
    pipe = minidiff.load("tiny")
    how = dict(
        methods=(*bench.SMOKE[:4], "resample@steps=10", "hacker@steps=40"),
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
    assert (
        leaderboard.note({"fitted": False, "refused": 2, "rows": 4})
        == " (not fitted, refused 2 of 4)"
    )


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
