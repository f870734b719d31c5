"""Flow matching: what its loss asks for, and where its flow goes."""

import pytest
import torch

from minidiff.data.toy2d import gauss_aniso
from minidiff.foundations.flow_matching import (
    euler,
    learned,
    levels,
    line,
    logit_normal,
    loss,
)
from minidiff.foundations.plane import PlaneNet, standard

DATA = gauss_aniso()


class Exact(torch.nn.Module):
    """The best velocity for the slanted Gaussian: E[eps - x0 | z]."""

    def forward(self, z, u):
        z, u = z.double(), u.double()[:, None]
        score = DATA.score(z, 1 - u, u)
        eps = -u * score
        x0 = (z - u * eps) / (1 - u).clamp(min=1e-6)
        return eps - x0


def test_a_line_begins_at_the_data_and_ends_in_noise():
    x0, eps = standard(4, 0), standard(4, 9)
    assert torch.equal(line(x0, eps, torch.zeros(4)), x0)
    assert torch.equal(line(x0, eps, torch.ones(4)), eps)


def test_times_lie_in_the_middle():
    u = logit_normal(20_000, torch.Generator().manual_seed(0))
    assert ((u > 0) & (u < 1)).all()
    # a logit of N(0, 1) lies within log(3) with probability .728: from .25 to .75
    share = ((u > 0.25) & (u < 0.75)).double().mean()
    assert abs(share - 0.728) < 0.015
    even = logit_normal(20_000, torch.Generator().manual_seed(0), s=None)
    assert abs(((even > 0.25) & (even < 0.75)).double().mean() - 0.5) < 0.015


def test_no_other_velocity_has_a_smaller_loss():
    points = DATA.sample(20_000, 0)

    class Shifted(Exact):
        def forward(self, z, u):
            return super().forward(z, u) + 0.2

    best = loss(Exact(), points, torch.Generator().manual_seed(1)).item()
    worse = loss(Shifted(), points, torch.Generator().manual_seed(1)).item()
    # the minimum is orthogonal to every other answer: what is added is its square, 2 * .2^2
    assert abs(worse - best - 0.08) < 0.02


def test_the_score_is_that_of_the_velocity():
    exact = learned(Exact())
    for u in (0.1, 0.5, 0.9):
        alpha, sigma = levels(u)
        x = alpha * DATA.sample(100, 2) + sigma * standard(100, 3)
        off = exact.score(x, u) - DATA.score(x, alpha, sigma)
        assert off.abs().max() < 1e-4 / u


def test_the_flow_ends_in_the_data():
    drawn = learned(Exact()).sample(4000, 100, 0)
    covariance = torch.cov(drawn.T)
    assert (drawn.mean(0) - DATA.means[0]).abs().max() < 0.06
    assert (covariance - DATA.covs[0]).abs().max() < 0.06


def test_one_step_lands_on_the_mean():
    """At the noisy end all lines begin, so their mean velocity leads to the mean of the data."""
    drawn = euler(lambda z, u: Exact()(z, torch.full((len(z),), 0.99999)), standard(500, 0), 1)
    assert drawn.std(0).max() < 0.05 and (drawn.mean(0) - DATA.means[0]).abs().max() < 0.05


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        learned(PlaneNet()).sample(4, 0, 0)
