import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise, noises
from minidiff.core.process import ddim_step, eps_to_x0
from minidiff.data.toy2d import Mixture, gmm8
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp
from minidiff.samplers.dpm_solver_sde import dpm_solver_sde, sde_step

SCH = schedule.linear(1000)


def start(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def test_without_noise_it_is_2M():
    eps, x = gmm8().denoise(SCH), start()
    for steps in (1, 2, 3, 12):
        got = dpm_solver_sde(eps, SCH, x, steps=steps, eta=0.0)
        assert (got - dpm_solver_pp(eps, SCH, x, steps=steps)).abs().max() < 1e-9


@pytest.mark.parametrize("build", [schedule.linear, schedule.flow, schedule.ve])
def test_a_first_order_step_with_all_the_noise_is_ddpms(build):
    sch, x, z, e = build(1000), start(), start(seed=20), start(seed=40)
    for t, s in ((900, 700), (500, 480), (30, 2)):
        got = sde_step(sch, x, eps_to_x0(sch, x, e, t), t, s, 1.0, z)
        want = ddim_step(sch, x, e, t, s, 1.0, z)
        assert (got - want).abs().max() < 1e-9 * want.abs().max()


def test_two_steps_and_the_last_by_hand():
    eps, x, eta = gmm8().denoise(SCH), start(), 0.6
    times = [900, 700, 400, 0]
    lam = [math.log(a / s) for a, s in (SCH.at(t) for t in times[:3])]
    fresh, before = noises(x, 3), None
    for i in (0, 1):
        (_, s_t), (a_s, s_s) = SCH.at(times[i]), SCH.at(times[i + 1])
        h = lam[i + 1] - lam[i]
        x0 = D = eps_to_x0(SCH, x, eps(x, times[i]), times[i])
        if i:
            r = (lam[1] - lam[0]) / h
            D = x0 + (x0 - before) / (2 * r)
        x = s_s / s_t * math.exp(-eta * h) * x + a_s * (1 - math.exp(-(1 + eta) * h)) * D
        x = x + s_s * math.sqrt(1 - math.exp(-2 * eta * h)) * next(fresh)
        before = x0
    want = eps_to_x0(SCH, x, eps(x, 400), 400)
    got = dpm_solver_sde(eps, SCH, start(), times=times, eta=eta, seed=3)
    assert (got - want).abs().max() < 1e-9


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_it_draws_the_gaussian_it_is_told_of(eta):
    """30 steps and 4000 points: a deviation of .3 is known to .3 / sqrt(8000) = .0034."""
    data = Mixture([[1.0, -0.5]], [[[0.09, 0.0], [0.0, 0.09]]])
    out = dpm_solver_sde(
        data.denoise(SCH), SCH, start(4000), steps=30, spacing="lambda", eta=eta, seed=9
    )
    assert (out.mean(0) - torch.tensor([1.0, -0.5])).abs().max() < 4 * 0.3 / math.sqrt(4000)
    assert (out.std(0) - 0.3).abs().max() < 0.02


def test_the_noise_of_a_row_is_its_own():
    eps, x = gmm8().denoise(SCH), start(4)
    batch = dpm_solver_sde(eps, SCH, x, steps=8, seed=5)
    alone = dpm_solver_sde(eps, SCH, x[2:3], steps=8, seed=7)
    assert (batch[2:3] - alone).abs().max() <= 1e-12
    assert (batch - dpm_solver_sde(eps, SCH, x, steps=8, seed=6)).abs().max() > 0.01


def test_one_evaluation_a_step():
    eps = Counted(gmm8().denoise(SCH))
    dpm_solver_sde(eps, SCH, start(3), steps=6)
    assert eps.nfe == 18


@pytest.mark.parametrize(
    "kw, complaint", [(dict(eta=1.5), "eta=1.5 is outside"), (dict(steps=0), "steps=0")]
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        dpm_solver_sde(None, SCH, start(2), **kw)
