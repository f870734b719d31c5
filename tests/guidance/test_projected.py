"""Projected guidance: what is kept of a difference, and what a denoiser with a memory promises."""

import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import eps_to_x0, q_sample
from minidiff.data.toy2d import gmm8
from minidiff.guidance.projected import dot, projected, projected_difference

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)
ANY = Cond(label=torch.tensor([-1]))


def points(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def mode(k, n=16):
    return Cond(label=torch.full((n,), k))


def test_scale_1_is_the_conditional_answer_to_the_bit():
    eps = DATA.denoise(SCH)
    x = q_sample(SCH, points().clamp(-1, 1) / 2, 30, points(seed=5))
    assert torch.equal(projected(eps, ANY, SCH, 1.0)(x, 30, mode(2)), eps(x, 30, mode(2)))


def test_projected_guidance_with_all_of_it_is_classifier_free_guidance():
    eps = DATA.denoise(SCH)
    for t in (900, 500, 100):
        x = points()
        plain = cfg(eps, ANY, 4.0)(x, t, mode(3))
        assert (projected(eps, ANY, SCH, 4.0, eta=1.0)(x, t, mode(3)) - plain).abs().max() < 1e-9


def test_what_is_left_of_a_difference_is_at_right_angles_to_the_picture():
    d, x0 = noise((3, 4, 5, 5), 1), noise((3, 4, 5, 5), 2)
    kept = projected_difference(d, x0, 0.0)
    assert dot(kept, x0).abs().max() < 1e-4
    parallel = d - kept
    half = projected_difference(d, x0, 0.5)
    assert (half - kept - 0.5 * parallel).abs().max() < 1e-6
    # an orthogonal step leaves the length to first order, a parallel one does not
    length = dot(x0, x0)
    assert (dot(x0 + 0.01 * kept, x0) / length - 1).abs().max() < 1e-6


def test_a_radius_cuts_the_length_and_nothing_shorter():
    d, x0 = noise((3, 4, 5, 5), 1), noise((3, 4, 5, 5), 2)
    cut = projected_difference(d, x0, 1.0, radius=2.0)
    assert (dot(cut, cut).sqrt() - 2).abs().max() < 1e-5
    assert (projected_difference(d, x0, 1.0, radius=1e3) - d).abs().max() < 1e-6


def test_momentum_remembers_one_run_and_forgets_it_at_the_next():
    eps = DATA.denoise(SCH)
    x, cond = points(), mode(1)
    guided = projected(eps, ANY, SCH, 3.0, momentum=-0.5)
    fresh = guided(x, 800, cond)
    with_memory = guided(x, 700, cond)
    again = guided(x, 800, cond)  # a time that does not fall: a new run
    assert torch.equal(fresh, again)
    assert (with_memory - projected(eps, ANY, SCH, 3.0)(x, 700, cond)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="one time for all rows"):
        guided(x, torch.full((16,), 700), cond)


def test_projection_keeps_the_contrast_that_guidance_raises():
    """One picture of many values whose two guesses differ by a contrast and by a change: only the
    change survives.
    """
    picture = noise((1, 1, 8, 8), 3, dtype=torch.float64)
    change = noise((1, 1, 8, 8), 4, dtype=torch.float64)
    change = change - dot(change, picture) / dot(picture, picture) * picture
    moved = projected_difference(0.5 * picture + change, picture, 0.0)
    assert (moved - change).abs().max() < 1e-12


def test_momentum_adds_a_share_of_the_sum_so_far():
    """Three steps by hand, as the authors' buffer does it: the sum before it is cut."""
    eps, x, cond = DATA.denoise(SCH), points(), mode(1)
    guided = projected(eps, ANY, SCH, 3.0, eta=0.5, radius=0.8, momentum=-0.5)
    total = 0
    for t in (800, 700, 600):
        x0_cond = eps_to_x0(SCH, x, eps(x, t, cond), t)
        total = x0_cond - eps_to_x0(SCH, x, eps(x, t, ANY.expand(16)), t) - 0.5 * total
        d = total * (0.8 / total.norm(dim=1, keepdim=True)).clamp(max=1)
        along = x0_cond / x0_cond.norm(dim=1, keepdim=True)
        parallel = (d * along).sum(1, keepdim=True) * along
        want = x0_cond + 2 * (d - 0.5 * parallel)
        assert (eps_to_x0(SCH, x, guided(x, t, cond), t) - want).abs().max() < 1e-9


def test_a_row_alone_is_the_row_in_a_batch():
    guided = projected(DATA.denoise(SCH), ANY, SCH, 4.0, radius=0.5)
    x = points()
    alone = guided(x[3:4], 400, mode(2, 1))
    assert (alone - guided(x, 400, mode(2))[3:4]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "option, value", [("eta", 2.0), ("radius", 0.0), ("radius", math.nan), ("momentum", -2.0)]
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}={value}"):
        projected(DATA.denoise(SCH), ANY, SCH, 2.0, **{option: value})


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "3"])
def test_a_scale_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="number"):
        projected(DATA.denoise(SCH), ANY, SCH, bad)
