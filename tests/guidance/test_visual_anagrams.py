"""Visual anagrams: what a view must be, the closed form of two Gaussians, and which half of the
batch is what.
"""

import pytest
import torch
from torch import nn

import minidiff
from minidiff.core.schedule import cosine
from minidiff.guidance import visual_anagrams as module
from minidiff.guidance.visual_anagrams import VIEWS, View, jigsaw, latent_error, visual_anagrams
from minidiff.pipe.pipe import Pipe

A, B = "a red circle on a blue background", "a green star on a blue background"


class TwoGaussians(nn.Module):
    """The exact noise of pictures N(mean of the class, c^2 I); class 2 is the empty one."""

    def __init__(self, sch, c: float = 0.2):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.sch, self.c, self.mean = (
            sch,
            c,
            nn.Parameter(0.3 * torch.randn(3, 3, 32, 32, generator=g)),
        )
        self.calls = []

    def forward(self, x, t, cond):
        self.calls.append(cond.label.tolist())
        a, s = self.sch.at(t + 1, x)
        return s * (x - a * self.mean[cond.label]) / (a**2 * self.c**2 + s**2)


@pytest.fixture()
def gaussians():
    sch = cosine()
    return Pipe(net=TwoGaussians(sch), schedule=sch, shape=(3, 32, 32), classes=("a", "b"))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_linear_keeps_lengths_and_is_undone(name):
    v, g = VIEWS[name], torch.Generator().manual_seed(0)
    x, n = torch.randn(2, 2, 3, 32, 32, generator=g)
    assert torch.equal(v.undo(v.do(x)), x) and torch.equal(v.do(v.undo(x)), x)
    assert not torch.equal(v.do(x), x)
    assert (v.do(0.8 * x + 0.6 * n) - (0.8 * v.do(x) + 0.6 * v.do(n))).abs().max() < 1e-6
    # only moved or negated
    assert torch.equal(v.do(x).abs().flatten(2).sort().values, x.abs().flatten(2).sort().values)


def test_turns_go_the_way_they_say():
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1  # the upper left corner
    where = lambda v: tuple(VIEWS[v].do(x)[0, 0].nonzero()[0].tolist())  # noqa: E731
    assert (where("clockwise"), where("counterclockwise")) == ((0, 3), (3, 0))
    assert (where("rotate180"), where("mirror"), where("flip")) == ((3, 3), (0, 3), (3, 0))


def test_jigsaw_moves_whole_squares():
    # four flat squares
    x = torch.arange(4.0).view(1, 1, 2, 2).repeat_interleave(3, 2).repeat_interleave(3, 3)
    y = jigsaw(2).do(x)
    assert sorted(y[0, 0, ::3, ::3].flatten().tolist()) == [0, 1, 2, 3]
    assert torch.equal(y[0, 0, ::3, ::3].repeat_interleave(3, 0).repeat_interleave(3, 1), y[0, 0])
    with pytest.raises(ValueError, match="cannot be cut into 2 x 2"):
        jigsaw(2).do(torch.zeros(1, 1, 5, 4))


@pytest.mark.parametrize("view", ["clockwise", "negative", "jigsaw", "pixels"])
def test_of_two_gaussians_it_draws_the_one_between(gaussians, view):
    """Mean of two scores = score of the product's root: the mean of `a` and of `b` turned back, the
    same spread.
    """
    v, mean, n = VIEWS[view], gaussians.net.mean, gaussians.noise(2, 3)
    out = visual_anagrams(gaussians, ["a"] * 2, ["b"] * 2, view=view, steps=8, scale=1.0, seed=3)
    between = (mean[:1] + v.undo(mean[1:2])) / 2
    mean.data[0] = between[0]
    exact = gaussians.generate(["a"] * 2, steps=8, scale=1.0, noise=n)
    assert exact.abs().max() > 0.2 and (out[2:] - exact).abs().max() < 1e-3


def test_the_first_rows_are_the_view_of_the_others(gaussians):
    out = visual_anagrams(gaussians, ["a", "b"], ["b", "a"], view="clockwise", steps=3)
    assert out.shape == (4, 3, 32, 32) and torch.equal(out[:2], VIEWS["clockwise"].do(out[2:]))


def test_looking_the_same_way_twice_is_plain_sampling(monkeypatch):
    monkeypatch.setitem(module.VIEWS, "same", View(lambda x: x, lambda x: x))
    pipe = minidiff.build("tiny", seed=0)
    out = visual_anagrams(pipe, A, A, view="same", steps=3, seed=2)
    assert (out[1:] - pipe.generate(A, steps=3, seed=2)).abs().max() < 1e-5


def test_a_row_does_not_depend_on_its_batch():
    pipe = minidiff.build("tiny", seed=0)
    both = visual_anagrams(pipe, [A, B], [B, A], steps=2, seed=4)
    assert (both[3:] - visual_anagrams(pipe, B, A, steps=2, seed=5)[1:]).abs().max() < 1e-4


def test_alternating_asks_one_prompt_per_step(gaussians):
    visual_anagrams(gaussians, "a", "b", steps=4, scale=1.0, alternate=True)
    assert gaussians.net.calls == [[0], [1], [0], [1]]
    gaussians.net.calls.clear()
    visual_anagrams(gaussians, "a", "b", steps=2, scale=3.0)
    assert gaussians.net.calls == [[2, 0], [2, 1]] * 2  # rows: [null, prompt]


def test_pixels_turn_exactly_and_latents_do_not():
    g = torch.Generator().manual_seed(0)
    small, large = (
        torch.rand(2, 3, 32, 32, generator=g) * 2 - 1,
        torch.rand(2, 3, 64, 64, generator=g) * 2 - 1,
    )
    assert latent_error(minidiff.build("tiny-pixel"), small, "mirror") == 0
    assert latent_error(minidiff.build("tiny", seed=0), large, "mirror") > 0.01


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(view="blur"), "choose one of"),
        (dict(view="negative"), "pixel model"),
        (dict(view="pixels"), "16 x 16 cannot be cut into 32 x 32"),
        (dict(steps=0), "steps"),
        (dict(scale=-1.0), "scale"),
        (dict(other=[A, B]), r"1 prompt\(s\) .* 2"),
    ],
)
def test_bad_arguments_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        visual_anagrams(minidiff.build("tiny", seed=0), **{"prompt": A, "other": B} | bad)
