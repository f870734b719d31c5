"""EDM: unit size in and out, Heun's order, churn."""

import math
from itertools import pairwise

import pytest
import torch

from minidiff.data.toy2d import gmm8
from minidiff.foundations.edm import (
    SIGMA_MAX,
    SIGMA_MIN,
    Preconditioned,
    grid,
    heun,
    loss,
    sigma_of,
)
from minidiff.foundations.plane import standard

DATA = gmm8()  # of deviation 1 along each axis


def exact(factor=1.0):
    """The best denoiser, or one whose score is too small by a factor."""

    def denoise(x, sigma):
        return x + factor * sigma**2 * DATA.score(x, 1.0, sigma)

    return denoise


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5, 1.0, 5.0, 50.0])
def test_input_and_target_have_unit_variance_at_every_sigma(sigma):
    net = Preconditioned()
    c_skip, c_out, c_in, _ = net.factors(torch.tensor(sigma, dtype=torch.float64))
    x0, eps = DATA.sample(40_000, 0), standard(40_000, 7)
    x = x0 + sigma * eps
    target = (x0 - c_skip * x) / c_out
    for values in (c_in * x, target):
        assert abs(values.var(0).mean().item() - 1) < 0.03


def test_an_untrained_network_has_a_loss_of_about_one_a_coordinate():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Preconditioned()
    value = loss(net, DATA.sample(4000, 0).float(), torch.Generator().manual_seed(0)).item()
    assert abs(value / 2 - 1) < 0.15


def test_the_grid_falls_from_the_largest_to_clean():
    sigmas = grid(18)
    assert len(sigmas) == 19 and sigmas[0] == pytest.approx(SIGMA_MAX) and sigmas[-1] == 0
    assert sigmas[-2] == pytest.approx(SIGMA_MIN)
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigma_of(0.0) == 0 and sigma_of(1.0) == pytest.approx(SIGMA_MAX)


def test_heun_is_of_second_order():
    x = SIGMA_MAX * standard(200, 0)
    settled = heun(exact(), x, grid(800))
    errors = []
    for steps in (50, 100):
        errors.append((heun(exact(), x, grid(steps)) - settled).norm(dim=1).mean().item())
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.4


def test_churn_repairs_a_score_that_is_too_small():
    """With a tenth too little, points stay outside the modes; fresh noise lets them try again."""
    x = SIGMA_MAX * standard(2000, 0)

    def outside(points):
        return (torch.cdist(points, DATA.means).min(1).values > 0.3).double().mean().item()

    still = outside(heun(exact(0.9), x, grid(64)))
    churned = outside(heun(exact(0.9), x, grid(64), churn=10, seed=1))
    assert churned < still / 3


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        grid(0)
