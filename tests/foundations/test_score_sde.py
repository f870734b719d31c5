"""Score SDE: the three processes, the equations back, and the likelihood."""

import math
from itertools import pairwise

import pytest
import torch

from minidiff.data.toy2d import gauss_aniso, gmm8
from minidiff.foundations.plane import learn, standard
from minidiff.foundations.score_sde import (
    CLEAN,
    SDES,
    VP,
    at,
    euler_maruyama,
    flow,
    langevin_step,
    learned,
    loss,
    network,
    ode_log_prob,
    predictor_corrector,
)

DATA = gauss_aniso()


def exact(sde, data=DATA):
    """The score of the noisy data."""

    def score(x, t):
        alpha, sigma = at(sde.levels, t)
        return data.score(x, alpha, sigma)

    return score


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_equation_forward_has_the_levels_it_says(sde):
    """Small steps of dx = c x dt + g dw from one point: mean alpha, deviation sigma."""
    n, steps, end = 8000, 400, 0.6
    x = torch.ones(n, 1, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    h = end / steps
    for k in range(steps):
        t = (k + 0.5) * h
        z = torch.randn(x.shape, generator=g, dtype=x.dtype)
        x = x + at(sde.pull, t) * x * h + at(sde.spread, t) * math.sqrt(h) * z
    alpha, sigma = at(sde.levels, end)
    start = at(sde.levels, 0.0)[1]  # the exploding one begins with a little noise
    error = 4 * sigma / math.sqrt(n)
    assert abs(x.mean().item() - alpha) < error + 0.01
    assert abs(x.std().item() / math.sqrt(sigma**2 - start**2) - 1) < 0.04


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_both_ways_back_end_in_the_data(sde):
    x = sde.prior * standard(4000, 0)
    by_noise = euler_maruyama(sde, exact(sde), x, 400, seed=1)
    velocity, z = flow(sde, exact(sde)), x
    times = torch.linspace(1, CLEAN, 401, dtype=torch.float64).tolist()
    for t, s in pairwise(times):
        z = z + (s - t) * velocity(z, t)
    for drawn in (by_noise, z):
        assert (drawn.mean(0) - DATA.means[0]).abs().max() < 0.1
        assert (torch.cov(drawn.T) - DATA.covs[0]).abs().max() < 0.1


@pytest.mark.parametrize("data", [DATA, gmm8(1.0, 0.3)], ids=["gauss", "gmm8"])
def test_the_likelihood_of_an_exact_score_is_exact(data):
    x = data.sample(40, 2)
    # the flow ends at time CLEAN, where points have a little noise
    alpha, sigma = at(VP.levels, CLEAN)
    found = ode_log_prob(VP, exact(VP, data), x)
    # and begins at N(0, I), where a little of the data is left: log densities are off by alpha m z
    left = 5 * at(VP.levels, 1.0)[0]
    assert (found - data.log_prob(x, alpha, sigma)).abs().max() < left


def test_a_corrector_brings_back_a_wrong_spread():
    """Points four times too wide return to the density whose score is given."""
    g = torch.Generator().manual_seed(0)

    def score(x, t):
        return -x  # of N(0, I)

    x = 2 * standard(2000, 0, dim=16)
    for _ in range(100):
        x = langevin_step(score, x, 0.5, 0.16, g)
    # in many dimensions the rule settles at 1 / (1 - snr^2)
    assert abs(x.var().item() - 1 / (1 - 0.16**2)) < 0.06


def test_predictor_and_corrector_take_two_evaluations_a_step():
    calls = []

    def score(x, t):
        calls.append(t)
        return -x

    drawn = predictor_corrector(VP, score, standard(8, 0), 5, seed=0)
    assert len(calls) == 10 and drawn.isfinite().all()


def test_learning_lowers_the_loss():
    points = DATA.sample(2000, 0)
    net, _ = learn(network, loss, points, steps=200)
    g = torch.Generator().manual_seed(3)
    # the answer 0 has the loss 2, one for each coordinate
    assert loss(net, points[:512].float(), g).item() < 1.5
    assert learned(net).sample(4, 3, 0).shape == (4, 2)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        euler_maruyama(VP, exact(VP), standard(2, 0), 0, seed=0)
