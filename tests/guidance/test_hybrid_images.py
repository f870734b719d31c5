"""Hybrid images: parts that add up, the closed form of two Gaussians, and which prompt is which."""

import pytest
import torch
from torch import nn

import minidiff
from minidiff.core.schedule import linear
from minidiff.guidance.hybrid_images import (
    PARTS,
    chosen,
    greyness,
    hybrid_images,
    hybrid_noise,
    left_half,
    low_pass,
)
from minidiff.pipe.pipe import Pipe

A, B = "a red circle on a blue background", "a green star on a blue background"
SPREAD = 0.1


class TwoGaussians(nn.Module):
    """The exact noise of pictures N(mean of the class, SPREAD^2 I); class 2 is the empty one."""

    def __init__(self, sch):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.sch = sch
        self.mean = nn.Parameter(0.15 * torch.randn(3, 3, 16, 16, generator=g))

    def forward(self, x, t, cond):
        a, s = self.sch.at(t + 1, x)
        return s * (x - a * self.mean[cond.label]) / (a**2 * SPREAD**2 + s**2)


@pytest.fixture()
def gaussians():
    sch = linear()
    return Pipe(net=TwoGaussians(sch), schedule=sch, shape=(3, 16, 16), classes=("a", "b"))


def two():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 3, 16, 16, generator=g)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_linear_and_what_is_left_completes_it(part, gaussians):
    f = chosen(gaussians, part, 0.1)
    x, y = two()
    assert (f(0.8 * x - 0.6 * y) - (0.8 * f(x) - 0.6 * f(y))).abs().max() < 1e-5
    assert (hybrid_noise(x, x, f) - x).abs().max() < 1e-6
    assert (f(x) - x).abs().max() > 0.1


def test_grey_and_left_are_projections_and_show_what_they_say():
    x, _ = two()
    for f in (greyness, left_half):
        assert (f(f(x)) - f(x)).abs().max() < 1e-6
    assert torch.equal(left_half(x)[..., :8], x[..., :8]) and left_half(x)[..., 8:].abs().max() == 0
    grey = greyness(x)
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert torch.allclose(grey.mean(1), x.mean(1), atol=1e-6)


def test_a_blur_keeps_flat_pictures_and_takes_fine_checks_away():
    flat = torch.full((1, 2, 16, 16), 0.7)
    assert (low_pass(flat, 2.0) - flat).abs().max() < 1e-6
    rows = torch.arange(16.0)
    checks = (-1.0) ** (rows[:, None] + rows)
    assert low_pass(checks.view(1, 1, 16, 16), 1.0)[..., 4:12, 4:12].abs().max() < 0.01


@pytest.mark.parametrize("part", PARTS)
def test_of_two_gaussians_each_part_is_drawn_from_its_own(part, gaussians):
    """The exact noise is linear in the state: the parts never meet, and the picture is the part of
    the one sample and the rest of the other, from the same noise.
    """
    f = chosen(gaussians, part, 0.1)
    out = hybrid_images(gaussians, "a", "b", part=part, cut=0.1, steps=8, scale=1.0, seed=3)
    run = dict(steps=8, scale=1.0, seed=3)
    a, b = gaussians.generate("a", **run), gaussians.generate("b", **run)
    assert (a - b).abs().max() > 0.3 and a.abs().max() < 1  # nothing is cut off at the end
    assert (out - (f(a) + b - f(b))).abs().max() < 1e-3


def test_one_prompt_twice_is_plain_sampling():
    pipe = minidiff.build("tiny", seed=0)
    out = hybrid_images(pipe, A, A, steps=3, seed=2)
    assert (out - pipe.generate(A, steps=3, seed=2)).abs().max() < 1e-4


def test_a_row_does_not_depend_on_its_batch():
    pipe = minidiff.build("tiny", seed=0)
    both = hybrid_images(pipe, [A, B], [B, A], steps=2, seed=4)
    assert (both[1:] - hybrid_images(pipe, B, A, steps=2, seed=5)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(part="red"), "choose one of"),
        (dict(part="grey"), "whose channels are no colours"),
        (dict(cut=0.0), "cut=0.0"),
        (dict(cut=0.6), "at most 0.5"),
        (dict(steps=0), "steps"),
        (dict(scale=-1.0), "scale"),
        (dict(other=[A, B]), r"1 prompt\(s\) .* 2"),
    ],
)
def test_bad_arguments_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        hybrid_images(minidiff.build("tiny", seed=0), **{"prompt": A, "other": B} | bad)
