import importlib
import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file

from minidiff.core import schedule
from minidiff.data import shapes
from minidiff.evaluate.evaluate import (
    SETS,
    evaluate,
    full_size,
    learning_curve,
    learning_figure,
    prompt_sets,
    score,
    table,
)
from minidiff.evaluate.oracle import FULL, NAME, SHORT, Oracle
from minidiff.models.attribute_net import AttributeNet
from minidiff.pipe.pipe import Pipe
from minidiff.weights.store import PIXEL_CLASSES

module = importlib.import_module("minidiff.evaluate.evaluate")


class Switch(torch.nn.Module):
    """A network whose one weight says whether its pipe draws what it was asked for."""

    def __init__(self, on=1.0):
        super().__init__()
        self.on = torch.nn.Parameter(torch.tensor(on))


@dataclass
class Painter(Pipe):
    """A pipe that renders the scenes that `evaluate` has in mind, changed by `change`; `size` 64 or
    32.
    """

    n: int = 16
    change: object = staticmethod(lambda s: s)

    def generate(self, prompts, *, steps=50, scale=3.0, interval=None, seed=0):
        self.asked = steps, scale, interval
        known = {
            t: s for p in prompt_sets(self.n, 0, self.classes) for t, s in zip(p.prompts, p.scenes)
        }
        pictures = shapes.render([self.change(known[t]) for t in prompts], self.shape[1])
        return pictures if self.net.on > 0 else -torch.ones_like(pictures)


def painter(n=16, change=lambda s: s, size=64, on=1.0, classes=()):
    return Painter(
        net=Switch(on),
        schedule=schedule.linear(),
        shape=(3, size, size),
        text=None if classes else Switch(),
        classes=classes,
        name="painter",
        n=n,
        change=change,
    )


@pytest.fixture
def blind(monkeypatch):
    """An untrained oracle: for what does not depend on its judgement."""
    torch.manual_seed(0)
    net = Oracle(AttributeNet())
    monkeypatch.setattr(module, "oracle", lambda: net)


def test_prompts_come_from_seen_and_held_out_tuples_half_of_them_short():
    sets = prompt_sets(32, 1)
    assert [p.name for p in sets] == list(SETS) and all(
        len(p.scenes) == len(p.prompts) == 8 for p in sets
    )
    for p, (objects, split) in zip(sets, SETS.values()):
        assert all(
            len(s.objects) == objects and shapes.held_out(s) == (split == "test") for s in p.scenes
        )
        for i, (s, text, groups) in enumerate(zip(p.scenes, p.prompts, p.groups)):
            assert (text, groups) == (
                (shapes.short_caption(s), SHORT) if i % 2 else (shapes.caption(s), FULL)
            )
    assert sets[0].prompts == prompt_sets(32, 1)[0].prompts != prompt_sets(32, 2)[0].prompts


def test_class_prompts_name_every_class_once_before_any_comes_twice():
    (p,) = prompt_sets(60, 0, PIXEL_CLASSES)
    assert sorted(p.prompts[:56]) == sorted(PIXEL_CLASSES) and set(p.groups) == {NAME}
    assert all(
        f"{s.objects[0].color} {s.objects[0].shape}" == t for s, t in zip(p.scenes, p.prompts)
    )
    assert all(s.background != s.objects[0].color for s in p.scenes)


def test_small_pictures_grow_and_large_ones_stay():
    s = prompt_sets(8)[0].scenes
    big, small = shapes.render(s), shapes.render(s, 32)
    assert torch.equal(full_size(big), big) and full_size(small).shape == big.shape
    assert (full_size(small) - big).abs().mean() < 0.1


def test_an_attribute_is_counted_only_where_it_was_stated(blind):
    p = prompt_sets(32)[0]
    rows = score(shapes.render(p.scenes), p, outline=False)
    assert {a: c["n"] for a, c in rows.items()} == {
        "count": 8,
        "shape": 8,
        "color": 8,
        "size": 4,
        "position": 4,
        "background": 8,
        "texture": 4,
        "joint": 8,
    }


def test_evaluate_prints_one_table_and_writes_what_it_returns(blind, tmp_path, capsys):
    out = evaluate(painter(8), n=8, json=tmp_path / "new" / "out.json", progress=False)
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == json.loads(json.dumps(out))
    assert capsys.readouterr().out.strip() == table(out)
    assert list(out["sets"]) == list(SETS) and all(
        c["silhouette"]["mean"] > 97 for c in out["sets"].values()
    )
    assert (
        out["frechet"]["samples"] == pytest.approx(0, abs=1e-4)
        and out["frechet"]["other renders"] > 0
    )
    assert "round trips" not in out  # pixels: no autoencoder


def test_pictures_are_drawn_as_asked_and_the_table_says_how(blind, capsys):
    pipe = painter(8)
    evaluate(pipe, n=8, steps=7, scale=2.0, interval=(400.0, 1000.0), progress=False)
    assert pipe.asked == (7, 2.0, (400.0, 1000.0))
    assert "8 pictures, 7 steps, scale 2.0 at times 400 to 1000, seed 0;" in capsys.readouterr().out


def test_bad_requests_are_refused_before_any_sampling(tmp_path):
    with pytest.raises(ValueError, match="8 pictures"):
        evaluate(painter(), n=4)
    unconditional = Pipe(net=Switch(), schedule=schedule.linear(), shape=(3, 64, 64))
    with pytest.raises(ValueError, match="prompts or class names"):
        evaluate(unconditional, n=8)
    with pytest.raises((ValueError, OSError)):
        evaluate(painter(), n=8, json=tmp_path)


def test_a_learning_curve_has_a_point_for_each_snapshot_and_leaves_the_pipe_alone(blind, tmp_path):
    save_file({"on": torch.tensor(1.0)}, tmp_path / "b.safetensors")
    told = {"step": 3, "cpu_seconds": 0.0, "loss": 1.0, "settings": {}}
    save_file(
        {"net.on": torch.tensor(5.0), "ema.on": torch.tensor(-1.0)},
        tmp_path / "checkpoint.safetensors",
        {"training": json.dumps(told)},
    )
    pipe = painter(16, on=3.0)
    out = learning_curve(
        [(200, tmp_path / "b.safetensors"), (100, tmp_path / "checkpoint.safetensors")],
        pipe,
        n=4,
        json=tmp_path / "c.json",
        progress=False,
    )
    assert [q["images"] for q in out["points"]] == [100, 200] and pipe.net.on == 3
    black, truth = (q["rows"] for q in out["points"])
    assert black != truth and set(truth) >= {"shape", "color", "joint"}
    png = learning_figure(tmp_path / "c.json", tmp_path / "c.png")
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5000


@pytest.mark.weights
def test_a_perfect_painter_gets_full_marks():
    out = evaluate(painter(48), n=48, progress=False)
    for name, rows in out["sets"].items():
        assert (
            rows["joint"]["mean"] >= 90
            and rows["shape"]["mean"] >= 90
            and rows["silhouette"]["mean"] >= 97
        ), name
    assert out["frechet"]["samples"] < 0.1 * out["frechet"]["other renders"]


@pytest.mark.weights
def test_a_painter_of_wrong_colors_loses_the_color_and_nothing_else():
    def change(s):
        taken = {s.background, *(o.color for o in s.objects)}
        return shapes.edit(s, "color", next(c for c in shapes.COLORS if c not in taken))

    p = prompt_sets(64)[0]
    rows = score(painter(64, change).generate(p.prompts), p, outline=False)
    assert rows["color"]["mean"] == rows["joint"]["mean"] == 0
    assert all(
        rows[a]["mean"] >= 90
        for a in ("count", "shape", "size", "position", "background", "texture")
    )


@pytest.mark.weights
def test_class_models_of_32_pixels_are_scored_on_shape_and_color():
    out = evaluate(painter(56, size=32, classes=PIXEL_CLASSES), n=56, progress=False)
    rows = out["sets"]["classes"]
    assert (
        rows["joint"]["mean"] >= 95
        and rows["background"] is None
        and rows["silhouette"]["mean"] > 90
    )
