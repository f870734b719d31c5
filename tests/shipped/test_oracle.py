import numpy as np
import pytest
import torch

from minidiff.data import shapes
from minidiff.data.attributes import HEADS, NOTHING, labels
from minidiff.models.attribute_net import AttributeNet
from minidiff.shipped import oracle as train
from minidiff.train.fit import fit


def small():
    torch.manual_seed(0)
    return AttributeNet(channels=(8, 16, 16, 16), width=32, groups=4)


class Green(torch.nn.Module):
    """An autoencoder to which everything is a green this world does not have."""

    def to_latent(self, x):
        return x.new_zeros(len(x), 4, 16, 16)

    def to_image(self, z):
        return z.new_tensor([-1.0, 1.0, -1.0])[:, None, None].expand(len(z), 3, 64, 64)


def test_a_batch_is_a_function_of_seed_and_step():
    a, b, other = train.oracle_batches(6, 1), train.oracle_batches(6, 1), train.oracle_batches(6, 2)
    a(0)
    assert torch.equal(a(5)["image"], b(5)["image"]) and torch.equal(a(5)["label"], b(5)["label"])
    assert not torch.equal(a(5)["image"], a(6)["image"]) and not torch.equal(
        a(5)["image"], other(5)["image"]
    )


def test_a_third_of_the_rows_goes_through_the_autoencoder():
    image = train.oracle_batches(9, 0, Green())(0)["image"]
    green = (image.mean((2, 3)) - torch.tensor([-1.0, 1.0, -1.0])).norm(dim=1) < 0.3
    assert green.tolist() == [True] * 3 + [False] * 6


def test_augmentation_keeps_every_color_nearest_to_its_own_word():
    rng, palette = np.random.default_rng(0), torch.tensor(list(shapes.COLORS.values())) * 2 - 1
    flat = palette[:, :, None, None].expand(-1, -1, 64, 64).repeat(8, 1, 1, 1)
    means = train.augment(flat, rng).mean((2, 3))
    assert torch.cdist(means, palette).argmin(1).tolist() == list(range(8)) * 8
    assert (train.augment(flat, rng) - flat).abs().max() > 0.05


def test_drawn_scenes_include_what_edits_make():
    rng = np.random.default_rng(0)
    ss = [train.drawn(rng) for _ in range(600)]
    assert {len(s.objects) for s in ss} == {0, 1, 2}
    two, one = ([s for s in ss if len(s.objects) == n] for n in (2, 1))
    assert any(s.objects[0].color == s.objects[1].color for s in two)
    assert any(s.objects[0].shape == s.objects[1].shape for s in two)
    # one of a deleted pair
    assert any(abs(s.objects[0].dx) > 2 or abs(s.objects[0].dy) > 2 for s in one)


def test_slots_without_an_object_do_not_count():
    net, s = small(), shapes.Scene((shapes.Obj("star", "red", "small"),), "left", "grey")
    batch = {"image": shapes.render(s), "label": labels([s])}
    before = train.oracle_loss(net, batch)
    slot_b = slice(-sum(len(HEADS[f"b_{w}"]) for w in ("shape", "color", "size")), None)
    with torch.no_grad():
        net.final_layer.bias[slot_b] = torch.randn(18) * 10
    assert torch.equal(before, train.oracle_loss(net, batch))
    empty = torch.full_like(batch["label"], NOTHING)
    assert train.oracle_loss(net, batch | {"label": empty}) == 0  # and not nan


def test_the_loss_of_a_uniform_guess_is_the_sum_of_the_logs_of_the_choices():
    net, s = small(), shapes.scene(np.random.default_rng(0), objects=2)
    torch.nn.init.zeros_(net.final_layer.weight)
    torch.nn.init.zeros_(net.final_layer.bias)
    loss = train.oracle_loss(net, {"image": shapes.render(s), "label": labels([s])})
    assert loss.item() == pytest.approx(sum(np.log(len(v)) for v in HEADS.values()), rel=1e-5)


def test_training_learns_colors_within_seconds():
    net = small()
    rng = np.random.default_rng(1)
    test = [shapes.scene(rng, objects=1) for _ in range(100)]
    before = train.accuracy(net, shapes.render(test), test)
    fit(
        net,
        train.oracle_loss,
        train.oracle_batches(32, 0),
        steps=90,
        lr=4e-3,
        muon_lr=1e-2,
        warmup=5,
        ema=0.9,
        progress=False,
    )
    after = train.accuracy(net, shapes.render(test), test)
    assert after["background"] > 0.7 > 0.4 > before["background"] and after["joint"] <= min(
        after[h] for h in HEADS
    )


def test_training_resumes_and_a_finished_run_is_only_loaded(tmp_path, monkeypatch):
    kw = dict(steps=2, tune=1, batch=3, progress=False)
    a = train.train_oracle(tmp_path, Green(), **kw)
    monkeypatch.setattr(train, "oracle_loss", lambda net, batch: 1 / 0)
    b = train.train_oracle(tmp_path, Green(), **kw)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert (tmp_path / "oracle/checkpoint.safetensors").exists() and (
        tmp_path / "oracle/tune/log.jsonl"
    ).exists()
