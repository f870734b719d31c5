"""How fast the errors of the exponential integrators fall, on a grid that is even in lambda.

The data are eight Gaussians, whose best network is known; the way down is solved by Runge and
Kutta's method in small steps, which shares no line with the samplers. Lambda goes from -2.5 to 2.5,
and the grid ends there, not at clean: the last step is one like the others.
"""

import math
from functools import cache, partial

import pytest
import torch

from minidiff.core.denoise import noise
from minidiff.core.schedule import Schedule
from minidiff.data.toy2d import gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.deis import deis
from minidiff.samplers.dpm_solver import dpm_solver
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp
from minidiff.samplers.dpm_solver_sde import dpm_solver_sde
from minidiff.samplers.unipc import unipc

N, LOW, HIGH = 480, -2.5, 2.5  # index 1 is HIGH, index N + 1 LOW
DATA = gmm8(1.0, 0.15)


def levels(lam):
    return 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam))


def even_in_lambda():
    lams = torch.linspace(HIGH, LOW, N + 1, dtype=torch.float64).tolist()
    alpha, sigma = zip((1.0, 0.0), *[levels(lam) for lam in lams])
    return Schedule(*[torch.tensor(v, dtype=torch.float64) for v in (alpha, sigma)], "even")


SCH = even_in_lambda()


@cache
def truth():
    """Where the points of `START` end: d y / d lambda = -rho eps, y = x / alpha."""

    def slope(lam, y):
        alpha, sigma = levels(lam)
        return sigma / alpha * sigma * DATA.score(alpha * y, alpha, sigma)

    steps = 600
    h = (HIGH - LOW) / steps
    y = START / levels(LOW)[0]
    for i in range(steps):
        lam = LOW + i * h
        a = slope(lam, y)
        b = slope(lam + h / 2, y + h / 2 * a)
        c = slope(lam + h / 2, y + h / 2 * b)
        d = slope(lam + h, y + h * c)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return y * levels(HIGH)[0]


START = noise((64, 2), 0, dtype=torch.float64)


@cache
def error(run, steps):
    times = [N + 1 - i * (N // steps) for i in range(steps + 1)]
    x = run(DATA.denoise(SCH), SCH, START, times=times)
    return (x - truth()).norm(dim=-1).mean().item()


def slope(run, steps=60):
    """The power of the step with which the error falls, from `steps` to twice as many."""
    return math.log2(error(run, steps) / error(run, 2 * steps))


PP3, PP3_LITERAL = (partial(dpm_solver_pp, order=3, literal=how) for how in (False, True))
PREDICT_2, PREDICT_3 = (partial(unipc, order=n, corrector=False) for n in (2, 3))
UNIPC_1, UNIPC_2, UNIPC_3 = (partial(unipc, order=n) for n in (1, 2, 3))
ORDERS = {
    "ddim": (ddim, 1),
    "deis-1": (partial(deis, order=1), 1),
    "2M": (dpm_solver_pp, 2),
    "SDE-2M without noise": (partial(dpm_solver_sde, eta=0.0), 2),
    "single-2": (dpm_solver, 2),
    "deis-2": (partial(deis, order=2), 2),
    "predictor-2": (PREDICT_2, 2),
    "unipc-1": (UNIPC_1, 2),
    "3M": (PP3, 3),
    "single-3": (partial(dpm_solver, order=3), 3),
    "deis-3": (deis, 3),
    "predictor-3": (PREDICT_3, 3),
    "unipc-2": (UNIPC_2, 3),
    "unipc-2 bh1": (partial(unipc, variant="bh1"), 3),
    "unipc-3": (UNIPC_3, 4),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order_of_the_method(name):
    run, order = ORDERS[name]
    assert order - 0.25 < slope(run) < order + 0.5


def test_the_second_term_counts_twice_or_the_third_order_is_lost():
    """3M as published in code counts the parabola's bend once."""
    assert slope(PP3) > 2.75 and slope(PP3_LITERAL) < 2.25
    assert error(PP3_LITERAL, 120) > 3 * error(PP3, 120)


def test_the_corrector_buys_one_order():
    for predicted, corrected in ((PREDICT_2, UNIPC_2), (PREDICT_3, UNIPC_3)):
        assert slope(corrected) - slope(predicted) > 0.75


def test_without_corrector_unipc_is_the_other_multistep_method():
    """B(h) of "bh2" makes order 2 the line of 2M, and order 3 has no B(h) left: 3M."""
    for mine, other in ((PREDICT_2, dpm_solver_pp), (PREDICT_3, PP3)):
        times = [481, 400, 350, 240, 100, 40, 1]
        x, y = (f(DATA.denoise(SCH), SCH, START, times=times) for f in (mine, other))
        assert (x - y).abs().max() < 1e-10
