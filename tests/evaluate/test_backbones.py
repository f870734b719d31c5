"""Networks side by side: equal minutes, the same lesson, nothing measured twice."""

import json

import pytest
import torch

import minidiff
from minidiff.evaluate import backbones as compared
from minidiff.evaluate.backbones import CONTENDERS, Contender, backbones
from minidiff.models import BACKBONES
from minidiff.models.sizes import SIZES

SMALL = dict(channels=(16, 16), groups=4, heads=2)
MINUTES = 0.05


@pytest.fixture
def small(monkeypatch):
    """A lesson of a few scenes, and two small networks that learn it."""
    monkeypatch.setattr(compared, "SCENES", 64)
    monkeypatch.setattr(compared, "HELD_OUT", 64)
    monkeypatch.setattr(compared, "STEPS", 2)
    dit = dict(dim=32, depth=1, heads=2)
    few = [Contender("u", "tiny", SMALL), Contender("d", "tiny-dit", dit)]
    monkeypatch.setattr(compared, "CONTENDERS", {c.name: c for c in few})
    return minidiff.load("tiny")


def test_every_backbone_takes_part():
    kinds = set()
    for c in CONTENDERS.values():
        kinds |= {key for key in SIZES[c.size] if key in BACKBONES}
    assert kinds == set(BACKBONES)


def test_contenders_are_of_a_size_and_take_what_tiny_takes():
    x, t = torch.zeros(2, 4, 16, 16), torch.tensor([0, 999])
    cond = minidiff.build("tiny").embed(["a red circle", "a blue star"])
    counts = {}
    for c in CONTENDERS.values():
        net = c.make(seed=0).eval()
        counts[c.name] = sum(p.numel() for p in net.parameters())
        with torch.no_grad():
            assert net(x, t, cond).shape == x.shape, c.name
    assert max(counts.values()) <= 2 * min(counts.values()), counts


def test_a_comparison_is_measured_once_and_goes_on(small, tmp_path, capsys):
    rows = backbones(small, minutes=MINUTES, n=8, out=tmp_path)
    assert [row["network"] for row in rows] == ["u", "d"]
    printed = capsys.readouterr().out
    assert "0.05 CPU minutes" in printed and "shape gain" in printed
    kept = json.loads((tmp_path / "backbones.json").read_text())["rows"]
    for row in rows:
        # planned by the fastest of a few steps, so what is spent is that or more
        assert 0.3 * MINUTES < row["cpu_minutes"]
        assert row["curve"][-1][0] == 1.0 and len(row["curve"]) >= compared.POINTS
        assert row["curve"][-1][1] < row["curve"][0][1]  # it learns
    again = backbones(small, names=("d",), minutes=MINUTES, n=8, out=tmp_path)
    assert again[0]["loss"] == kept[1]["loss"] and again[0]["speed"] == kept[1]["speed"]


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"names": ("unett",)}, "no network called 'unett'.*unet"),
        ({"minutes": 0.0}, "minutes=0.0: a training takes .05 or more"),
        ({"minutes": float("nan")}, "minutes=nan"),
        ({"n": 4}, "n=4: 8 pictures or more"),
    ],
)
def test_what_is_refused(wrong, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        backbones(minidiff.build("tiny"), out=tmp_path, **wrong)


def test_only_tiny_has_what_they_learn(tmp_path):
    with pytest.raises(ValueError, match="latents and words of tiny"):
        backbones(minidiff.build("tiny-dit"), out=tmp_path)
