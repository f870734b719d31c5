"""Samplers."""

from itertools import pairwise

import pytest
import torch
from by_hand import guided, move, near, noised, rand, small

from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.guidance.hybrid_images import hybrid_images
from minidiff.guidance.visual_anagrams import VIEWS, visual_anagrams


@pytest.mark.parametrize("view", VIEWS)
def test_anagram_view(view):
    """Every view as a matrix: V'V = 1, `undo` is V', and V x_t is V x_0 with the noise V n."""
    v, side = VIEWS[view], 32 if view == "pixels" else 4
    one = torch.eye(side**2, dtype=torch.float64)
    V, back = (f(one.view(-1, 1, side, side)).flatten(1).T for f in (v.do, v.undo))
    near(V.T @ V, one)
    near(back, V.T)
    assert view == "pixels" or (V - one).abs().max() > 0.5
    sch, x0, n = schedule.linear(), rand(2, 1, side, side), rand(2, 1, side, side, seed=1)
    want = noised(sch, x0.flatten(1) @ V.T, 500, n.flatten(1) @ V.T)
    near(v.do(P.q_sample(sch, x0, 500, n)).flatten(1), want)


def test_anagram_mean():
    """With a quarter turn, which is not its own inverse; cell (i, j) goes to (3 - j, i)."""

    def turned(x, times):
        for _ in range(times):
            x = torch.stack(
                [torch.stack([x[..., k, 3 - i] for k in range(4)], -1) for i in range(4)], -2
            )
        return x

    pipe, a, b, w = small(), "a red circle", "a green star", 2.0
    one, other, x = pipe.embed(a), pipe.embed(b), pipe.noise(1, 3)
    for t, s in pairwise([1000, 750, 500, 250, 0]):
        eps = 0.5 * (
            guided(pipe, x, t, one, w) + turned(guided(pipe, turned(x, 1), t, other, w), 3)
        )
        x = move(pipe.schedule, x, eps, t, s)
    got = visual_anagrams(pipe, a, b, view="counterclockwise", steps=4, scale=w, seed=3)
    near(got, torch.cat([turned(pipe.decode(x), 1), pipe.decode(x)]), 1e-8)


def test_hybrid_noise():
    """With halves: of a latent of 16 columns the first eight are the first prompt's."""
    pipe, a, b, w = small(), "a red circle", "a green star", 2.0
    one, other, x = pipe.embed(a), pipe.embed(b), pipe.noise(1, 3)
    half = x.shape[-1] // 2
    for t, s in pairwise([1000, 750, 500, 250, 0]):
        left = guided(pipe, x, t, one, w)[..., :half]
        right = guided(pipe, x, t, other, w)[..., half:]
        x = move(pipe.schedule, x, torch.cat([left, right], -1), t, s)
    got = hybrid_images(pipe, a, b, part="left", steps=4, scale=w, seed=3)
    near(got, pipe.decode(x), 1e-8)


def test_hybrid_parts():
    """One move of the state, and the same move of a part of it with that part of the noise."""
    sch, x, eps = schedule.linear(), rand(1, 3, 4, 4), rand(1, 3, 4, 4, seed=1)
    for part in (lambda v: v.mean(1, keepdim=True), lambda v: v[..., :2]):
        near(part(move(sch, x, eps, 700, 400)), move(sch, part(x), part(eps), 700, 400))
