import math
from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import ddim_step, eps_to_x0
from minidiff.data.toy2d import Mixture, gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp
from minidiff.samplers.midpoint import (
    fireflow,
    fireflow_step,
    flow_time,
    middle,
    midpoint,
    midpoint_step,
    straight_step,
    straight_velocity,
)

FINE, SCH = schedule.linear(20_000), schedule.linear(1000)
TABLES = (SCH, schedule.cosine(), schedule.flow(), schedule.ve())
by_table = pytest.mark.parametrize("sch", TABLES, ids=lambda sch: sch.name)
by_sampler = pytest.mark.parametrize("sampler", [midpoint, fireflow])


def start(n=64, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


@by_table
def test_a_ddim_step_is_a_straight_step_along_the_velocity_of_its_start(sch):
    x, eps = start(), gmm8().denoise(sch)
    for t, s in ((900, 400), (400, 399), (30, 0), (400, 900)):
        v = straight_velocity(eps, sch, x, t, None)
        assert (v - (eps(x, t) - eps_to_x0(sch, x, eps(x, t), t))).abs().max() < 1e-9
        want = ddim_step(sch, x, eps(x, t), t, s)
        assert (straight_step(sch, x, v, t, s) - want).abs().max() < 1e-11 * want.abs().max()


@by_table
def test_the_middle_is_the_nearest_time_in_tau_and_never_clean(sch):
    for t, s in ((1000, 500), (500, 1000), (700, 0), (0, 700), (2, 0), (1, 0), (0, 1)):
        m = middle(sch, t, s)
        goal = (flow_time(sch, t)[1] + flow_time(sch, s)[1]) / 2
        assert m >= 1 and min(t, s) <= m <= max(t, s)
        gap, *others = (abs(flow_time(sch, u)[1] - goal) for u in (m, m - 1, min(m + 1, 1000)))
        # nearest in the ratio of levels: at most a hair behind the nearest in tau
        assert m == 1 or all(gap <= 1.2 * other for other in others)


@pytest.mark.parametrize("build", [schedule.linear, schedule.flow])
def test_both_are_of_order_2_on_two_modes_and_ddim_of_order_1(build):
    sch, x = build(20_000), start()
    data = Mixture([[-1.0, 0.0], [1.0, 0.5]], [[[0.3, 0.0], [0.0, 0.3]]] * 2)
    true = dpm_solver_pp(data.denoise(sch), sch, x, steps=1000, spacing="lambda")
    for sampler, low, high in ((midpoint, 1.8, 2.6), (fireflow, 1.8, 2.6), (ddim, 0.8, 1.1)):
        errs = [
            (sampler(data.denoise(sch), sch, x, steps=n, spacing="trailing") - true).norm().item()
            for n in (10, 20, 40)
        ]
        assert all(low < math.log2(a / b) < high for a, b in pairwise(errs)), (sampler, errs)


@pytest.mark.parametrize("build", [schedule.linear, schedule.cosine, schedule.flow])
def test_they_converge_to_the_flow_of_a_gaussian_and_are_far_nearer_than_ddim(build):
    data, sch, x = gauss_aniso(), build(20_000), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, sch.T, 0)
    kw = dict(spacing="trailing")
    errs = [
        (f(data.denoise(sch), sch, x, steps=n, **kw) - exact).norm().item()
        for f, n in ((ddim, 41), (midpoint, 20), (fireflow, 40))  # 41, 40 and 41 evaluations
    ]
    assert errs[1] < errs[0] / 10 and errs[2] < errs[0] / 10


def test_a_step_by_hand_in_the_papers_form():
    """RF-Solver: Taylor's two terms in z = x / k. 501 to 100, whose middle in tau is no time."""
    eps, x, t, s = gmm8().denoise(SCH), start(), 501, 100
    m = middle(SCH, t, s)

    def look(z, t):
        k, _ = flow_time(SCH, t)
        e = eps(k * z, t)
        return e - eps_to_x0(SCH, k * z, e, t)

    (k_t, tau_t), (_, tau_m), (k_s, tau_s) = (flow_time(SCH, u) for u in (t, m, s))
    h, z = tau_s - tau_t, x / k_t
    v = look(z, t)
    slope = (look(z + (tau_m - tau_t) * v, m) - v) / (tau_m - tau_t)
    assert (
        midpoint_step(eps, SCH, x, t, s) - k_s * (z + h * v + h**2 / 2 * slope)
    ).abs().max() < 1e-12
    # FireFlow, with any velocity to get to the middle
    old = start(seed=9)
    v_m = look(z + (tau_m - tau_t) * old, m)
    x_s, kept = fireflow_step(eps, SCH, x, old, t, s)
    assert (x_s - k_s * (z + h * v_m)).abs().max() < 1e-12 and (kept - v_m).abs().max() < 1e-12


def test_fireflow_that_is_given_the_velocity_of_its_start_is_the_midpoint_rule():
    eps, x = gmm8().denoise(FINE), start()
    v = straight_velocity(eps, FINE, x, 15_000, None)
    ours, _ = fireflow_step(eps, FINE, x, v, 15_000, 10_000)
    # up to the middle that is no time
    assert (ours - midpoint_step(eps, FINE, x, 15_000, 10_000)).abs().max() < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_2_n_and_n_plus_1_evaluations_and_never_about_the_clean_end(steps):
    for sampler, most in ((midpoint, 2 * steps), (fireflow, steps + 1)):
        eps, seen = Counted(gmm8().denoise(SCH)), []
        sampler(lambda x, t, c: seen.append(t) or eps(x, t, c), SCH, start(3), steps=steps)  # noqa: B023
        # where every time is visited the last step, 1 to 0, has no middle
        assert eps.nfe == 3 * (most - (steps == 1000 and sampler is midpoint))
        assert min(seen) > 0


@by_table
@by_sampler
def test_a_network_that_knows_the_picture_gives_it_in_any_number_of_steps(sampler, sch):
    x0 = start(seed=50)

    def knows(x, t, cond):
        a, s = sch.at(t)
        return (x - a * x0) / s

    for steps in (1, 2, 3, 20):
        x = sch.at(1000)[0] * x0 + sch.at(1000)[1] * start()
        assert (sampler(knows, sch, x, steps=steps) - x0).abs().max() < 1e-6


@by_sampler
def test_a_row_is_the_same_alone_and_in_a_batch(sampler):
    eps, x = gmm8().denoise(SCH), start(6)
    assert (sampler(eps, SCH, x)[2:3] - sampler(eps, SCH, x[2:3])).abs().max() <= 1e-12


@by_sampler
@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
        (dict(start=1001), "start=1001"),
        (dict(spacing="even"), "'even' is unknown"),
        (dict(times=[10, 20]), "each smaller than the one before"),
    ],
)
def test_bad_options_are_refused(sampler, kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        sampler(gmm8().denoise(SCH), SCH, start(2), **kw)
