"""Autoguidance: Richardson's extrapolation of two blurs, and what it does to any other fault."""

import math

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise, sample
from minidiff.core.process import q_sample
from minidiff.data.toy2d import Mixture, gmm8
from minidiff.guidance.autoguidance import autoguidance, early

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)
ANY = Cond(label=torch.tensor([-1]))


def points(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def mode(k, n=16):
    return Cond(label=torch.full((n,), k))


def test_scale_1_is_the_good_model_alone_to_the_bit():
    eps = DATA.denoise(SCH)
    x = q_sample(SCH, points().clamp(-1, 1) / 2, 30, points(seed=5))
    assert torch.equal(
        autoguidance(eps, lambda *a: 1 / 0, 1.0)(x, 30, mode(2)), eps(x, 30, mode(2))
    )


def blurred(c, delta):
    """The best denoiser of a Gaussian of variance c^2 that learned from data blurred by delta."""
    return Mixture([[0.0]], [[[c * c + delta]]]).denoise(SCH)


@pytest.mark.parametrize("k", [2.0, 4.0])
def test_autoguidance_is_richardson_extrapolation(k):
    """Two blurs, delta and k delta: scale k / (k - 1) takes away the first order of the error, so
    what is left falls fourfold when delta is halved; without guidance it halves.
    """
    x = noise((2000, 1), 0, dtype=torch.float64)
    scale = k / (k - 1)
    ts = SCH.timesteps(200, spacing="lambda")
    left = []
    for delta in (0.02, 0.01):
        good, bad = blurred(0.6, delta), blurred(0.6, k * delta)
        true = sample(blurred(0.6, 0.0), SCH, x, ts).std()
        guided = sample(autoguidance(good, bad, scale), SCH, x, ts).std() - true
        alone = sample(good, SCH, x, ts).std() - true
        left.append((alone.abs().item(), guided.abs().item()))
    (alone, guided), (half_alone, half_guided) = left
    assert guided < alone / 10
    assert 1.8 < alone / half_alone < 2.2 and 3.5 < guided / half_guided < 4.5


def test_autoguidance_with_a_bad_model_of_another_fault_is_pushed_away():
    """Its mean is off by .3: to first order the guided mean is off by (1 - scale) .3."""
    x = noise((2000, 1), 0, dtype=torch.float64)
    good = Mixture([[0.0]], [[[0.36]]]).denoise(SCH)
    bad = Mixture([[0.3]], [[[0.36]]]).denoise(SCH)
    ts = SCH.timesteps(200, spacing="lambda")
    shift = sample(autoguidance(good, bad, 2.0), SCH, x, ts) - sample(good, SCH, x, ts)
    assert abs(shift.mean().item() + 0.3) < 0.01


def test_a_row_alone_is_the_row_in_a_batch():
    guided = autoguidance(DATA.denoise(SCH), gmm8(1.0, 0.3).denoise(SCH), 2.0)
    x = points()
    alone = guided(x[3:4], 400, mode(2, 1))
    assert (alone - guided(x, 400, mode(2))[3:4]).abs().max() < 1e-12


def test_the_shipped_worse_version_is_tinys_alone():
    with pytest.raises(ValueError, match="hand its `eps`"):
        early(minidiff.build("tiny-dit"))
    pipe = minidiff.build("tiny", seed=0)
    worse = early(pipe)
    assert worse.text is pipe.text and worse.net is not pipe.net and pipe.net is not None
    x, cond = pipe.start(1), pipe.embed(["a red circle"])
    assert worse.eps(x, 500, cond).isfinite().all()


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "3"])
def test_a_scale_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="number"):
        autoguidance(DATA.denoise(SCH), DATA.denoise(SCH), bad)
