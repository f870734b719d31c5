"""Pixel-space training batches: classes, determinism, dropped labels, flips."""

import numpy as np
import torch

from minidiff.data import shapes
from minidiff.foundations.ddpm import class_of, picture_batches, shape_batches
from minidiff.weights.store import PIXEL_CLASSES


def test_the_class_of_a_scene_is_its_name_in_the_list_of_classes():
    assert len(PIXEL_CLASSES) == len(set(PIXEL_CLASSES)) == 56
    for shape in shapes.SHAPES:
        for color in shapes.COLORS:
            s = shapes.Scene((shapes.Obj(shape, color, "small"),), "center", "white")
            assert PIXEL_CLASSES[class_of(s)] == f"{color} {shape}"


def test_batches_are_a_function_of_seed_and_step():
    a, b, other = (shape_batches(6, seed, 1000) for seed in (5, 5, 6))
    assert all(torch.equal(v, b(2)[k]) for k, v in a(2).items()) and set(a(2)) == {
        "x0",
        "label",
        "t",
        "eps",
    }
    for k in a(2):
        assert not torch.equal(a(2)[k], a(3)[k]) and not torch.equal(a(2)[k], other(2)[k])
    assert a(0)["x0"].shape == a(0)["eps"].shape == (6, 3, 32, 32) and a(0)["x0"].abs().max() <= 1


def test_labels_name_the_one_object_of_the_picture(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        shapes,
        "render",
        lambda scenes, size: drawn.extend(scenes) or torch.zeros(50, 3, size, size),
    )
    label = shape_batches(50, 0, 1000, drop=0.0)(0)["label"]
    assert [len(s.objects) for s in drawn] == [1] * 50 and not any(map(shapes.held_out, drawn))
    assert label.tolist() == [class_of(s) for s in drawn]


def test_a_tenth_of_the_labels_becomes_no_class_whatever_the_picture():
    images, labels = torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10)
    b = picture_batches(images, labels, 10, 3000, 0, 1000)(0)
    assert b["label"].dtype == torch.int64 and abs((b["label"] == 10).float().mean() - 0.1) < 0.025
    assert (picture_batches(images, labels, 10, 500, 0, 1000, drop=0.0)(0)["label"] < 10).all()


def test_pictures_are_scaled_flipped_half_of_the_time_and_keep_their_label():
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    images = torch.stack([ramp + 32 * k for k in range(7)])  # picture k: columns 32 k .. 32 k + 31
    b = picture_batches(images, torch.arange(7), 7, 400, 0, 1000, drop=0.0)(0)
    pixels = ((b["x0"] + 1) * 127.5).round().long()
    first, last = pixels[:, 0, 0, 0], pixels[:, 0, 0, -1]
    assert (
        torch.equal(torch.minimum(first, last), 32 * b["label"])
        and ((first - last).abs() == 31).all()
    )
    assert abs((first > last).float().mean() - 0.5) < 0.1
    assert torch.equal(pixels, pixels[:, :, :1].expand_as(pixels))  # never upside down
    ends = picture_batches(
        torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 32, 32),
        torch.arange(2),
        2,
        20,
        0,
        1000,
    )(0)["x0"]
    assert set(ends.unique().tolist()) == {-1.0, 1.0}


def test_times_lean_less_to_the_noise_than_those_of_latents():
    """Median T * sigmoid(.2), not sigmoid(.7): pixels hold detail that latents have left to the
    autoencoder.
    """
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    t = picture_batches(images, torch.zeros(1), 1, 5000, 0, 1000)(0)["t"]
    assert (
        abs(t.double().median() - 1000 / (1 + np.exp(-0.2))) < 20
        and t.min() >= 1
        and t.max() <= 1000
    )
