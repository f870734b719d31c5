"""Dynamic thresholding: the range is kept, each picture by its own measure."""

import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import eps_to_x0, q_sample
from minidiff.data.toy2d import gmm8
from minidiff.guidance.dynamic_threshold import dynamic_threshold, thresholded

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)
ANY = Cond(label=torch.tensor([-1]))


def points(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def mode(k, n=16):
    return Cond(label=torch.full((n,), k))


def test_a_picture_inside_the_range_keeps_its_answer_to_the_bit():
    eps = DATA.denoise(SCH)
    x = q_sample(SCH, points().clamp(-1, 1) / 2, 30, points(seed=5))
    assert torch.equal(dynamic_threshold(eps, SCH, 1.0)(x, 30, mode(2)), eps(x, 30, mode(2)))


def test_thresholding_is_imagens():
    x0 = torch.tensor([[-4.0, -2.0, 0.0, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4, 1.0]])
    got = thresholded(x0, 0.75)  # |x| sorted: 0 1 2 2 4, so s = 2; and s = 1
    assert (got - torch.tensor([[-1, -1, 0, 0.5, 1], [0.1, 0.2, 0.3, 0.4, 1.0]])).abs().max() < 1e-6


def test_the_guess_stays_in_range_under_strong_guidance():
    eps = cfg(DATA.denoise(SCH), ANY, 12.0)
    x = 2 * points()
    free = eps_to_x0(SCH, x, eps(x, 700, mode(0)), 700)
    held = eps_to_x0(SCH, x, dynamic_threshold(eps, SCH, 0.9)(x, 700, mode(0)), 700)
    assert free.abs().max() > 1.5 and held.abs().max() <= 1 + 1e-9


def test_a_picture_inside_the_range_is_never_made_louder():
    x0 = 0.3 * noise((3, 3, 4, 4), 0).clamp(-1, 1)
    assert torch.equal(thresholded(x0, 0.5), x0)


def test_a_row_depends_on_no_other():
    x0 = torch.tensor([1.0, 3.0, 9.0])[:, None] * noise((3, 50), 0)
    assert torch.equal(thresholded(x0, 0.9)[1:2], thresholded(x0[1:2], 0.9))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, "most"])
def test_a_quantile_that_is_no_share_is_refused(bad):
    with pytest.raises(ValueError, match="quantile="):
        dynamic_threshold(DATA.denoise(SCH), SCH, bad)
