import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import noise
from minidiff.core.process import (
    PREDICTIONS,
    ddim_step,
    eps_to_x0,
    posterior,
    q_sample,
    renoise,
    target,
    to_eps,
    transition,
    x0_to_eps,
)

SCHEDULES = [
    schedule.linear(100),
    schedule.cosine(100),
    schedule.flow(100),
    schedule.ve(100, 0.01, 5),
    schedule.karras(100, 0.01, 5),
]
by_name = pytest.mark.parametrize("sch", SCHEDULES, ids=lambda s: s.name)


def triple(b=4, seed=0):
    x0, eps, z = (noise((b, 3, 4, 4), seed + 10 * i, dtype=torch.float64) for i in range(3))
    return x0, eps, z


@by_name
@pytest.mark.parametrize("t", [1, 40, 100, torch.tensor([1, 40, 70, 100])], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_type_reads_back_the_same_eps(sch, t, prediction):
    x0, eps, _ = triple()
    x_t = q_sample(sch, x0, t, eps)
    out = target(sch, x0, eps, t, prediction)
    # x0-nets divide by sigma_1 = .01, so one part in 1e16 grows by a hundred
    assert (to_eps(sch, x_t, out, t, prediction) - eps).abs().max() <= 1e-12


def test_v_and_flow_targets_are_the_velocities_of_their_paths():
    x0, eps, _ = triple()
    vp, fl, t = schedule.cosine(100), schedule.flow(100), 40
    a, s = vp.at(t)
    angle, h = math.atan2(s, a), 1e-5  # x = cos(angle) x0 + sin(angle) eps
    hi, lo = (math.cos(angle + k) * x0 + math.sin(angle + k) * eps for k in (h, -h))
    assert (target(vp, x0, eps, t, "v") - (hi - lo) / (2 * h)).abs().max() < 1e-9
    ds = (q_sample(fl, x0, t + 1, eps) - q_sample(fl, x0, t, eps)) / (fl.sigma[t + 1] - fl.sigma[t])
    assert (target(fl, x0, eps, t, "flow") - ds).abs().max() < 1e-12


@by_name
def test_eps_and_x0_are_two_readings_of_one_state(sch):
    x0, eps, _ = triple()
    t = torch.tensor([1, 5, 50, 100])
    x_t = q_sample(sch, x0, t, eps)
    assert (eps_to_x0(sch, x_t, eps, t) - x0).abs().max() <= 1e-12
    assert (x0_to_eps(sch, x_t, x0, t) - eps).abs().max() <= 1e-12


def test_unknown_prediction_lists_the_known_ones():
    x0, eps, _ = triple()
    for f in (to_eps, target):
        with pytest.raises(
            ValueError, match="'velocity' is unknown; choose one of eps, x0, v, flow"
        ):
            f(SCHEDULES[0], x0, eps, 5, "velocity")


@by_name
def test_with_the_true_eps_ddim_lands_on_the_noisy_picture_of_the_other_time(sch):
    x0, eps, _ = triple()
    for t, s in [(100, 40), (40, 100), (40, 0), (0, 40), (40, 40)]:
        moved = ddim_step(sch, q_sample(sch, x0, t, eps), eps, t, s)
        assert (moved - q_sample(sch, x0, s, eps)).abs().max() <= 1e-12


@by_name
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_row_with_its_own_time_moves_as_it_would_alone(sch, eta):
    x_t, eps, z = triple(3)
    ts, ss = [100, 50, 2], [60, 49, 0]
    rows = ddim_step(sch, x_t, eps, torch.tensor(ts), torch.tensor(ss), eta, z)
    for i, (t, s) in enumerate(zip(ts, ss)):
        r = slice(i, i + 1)
        assert (rows[r] - ddim_step(sch, x_t[r], eps[r], t, s, eta, z[r])).abs().max() <= 1e-12


@by_name
@pytest.mark.parametrize("t, s", [(100, 60), (60, 59), (1, 0)])
def test_eta_1_is_the_posterior_with_the_small_variance(sch, t, s):
    x_t, eps, z = triple()
    mean, var = posterior(sch, x_t, eps_to_x0(sch, x_t, eps, t), t, s)
    want = mean + var**0.5 * z
    gap = (ddim_step(sch, x_t, eps, t, s, 1.0, z) - want).abs().max()
    assert gap <= 1e-12 * max(
        1, want.abs().max()
    )  # a guess at the cosine's end is in the thousands


def test_posterior_is_ddpms_formula_in_betas():
    sch = schedule.linear(1000)
    x_t, x0, _ = triple()
    t, ab = 300, sch.alpha_bar
    beta = 1 - ab[t] / ab[t - 1]
    mean = (ab[t - 1].sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - ab[t - 1]) * x_t) / (1 - ab[t])
    ours, var = posterior(sch, x_t, x0, t, t - 1)
    assert (ours - mean).abs().max() < 1e-12
    assert abs(var - beta * (1 - ab[t - 1]) / (1 - ab[t])) < 1e-15
    assert abs(beta - (1e-4 + (0.02 - 1e-4) * 299 / 999)) < 1e-12


def test_sigma_eta_is_ddims_equation_16():
    sch = schedule.linear(1000)
    ab, t, s, eta = sch.alpha_bar, 500, 300, 0.3
    x_t, eps, _ = triple()
    one, two = (ddim_step(sch, x_t, eps, t, s, eta, torch.full_like(x_t, k)) for k in (0.0, 1.0))
    sig = eta * ((1 - ab[s]) / (1 - ab[t])).sqrt() * (1 - ab[t] / ab[s]).sqrt()
    assert (two - one - sig).abs().max() < 1e-12


@by_name
def test_posterior_and_forward_jump_make_one_joint_law(sch):
    """q(x_s | x0) q(x_t | x_s) = q(x_t | x0) q(x_s | x_t, x0): compare Var x_t and Cov(x_s, x_t)
    given x0 = 0.
    """
    t, s = 80, 30
    a, var = transition(sch, s, t, torch.zeros(1))
    gain, rest = posterior(
        sch, torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), t, s
    )
    var_s, var_t = sch.sigma[s] ** 2, sch.sigma[t] ** 2
    assert abs(a**2 * var_s + var - var_t) < 1e-12
    assert abs(gain * var_t - a * var_s) < 1e-12
    assert abs(gain**2 * var_t + rest - var_s) < 1e-12


@by_name
def test_while_eps_stays_the_same_two_moves_equal_one(sch):
    x_t, eps, _ = triple()
    two = ddim_step(sch, ddim_step(sch, x_t, eps, 90, 55), eps, 55, 10)
    assert (two - ddim_step(sch, x_t, eps, 90, 10)).abs().max() <= 1e-11


def test_ddim_on_flow_tables_is_euler_on_the_velocity():
    sch = schedule.flow(50)
    x_t, eps, _ = triple()
    for t, s in [(50, 30), (30, 0), (10, 45)]:
        u = eps - eps_to_x0(sch, x_t, eps, t)
        euler = x_t + (sch.sigma[s] - sch.sigma[t]) * u
        scale = euler.abs().max()  # 1 / alpha_T = 1000 magnifies everything at t = T
        assert (ddim_step(sch, x_t, eps, t, s) - euler).abs().max() <= 1e-12 * scale


@by_name
def test_renoise_keeps_the_marginal(sch):
    s, t, n = 30, 80, 200_000
    x0 = torch.full((1, n), 0.7, dtype=torch.float64)
    z1, z2 = (noise((1, n), i, dtype=torch.float64) for i in range(2))
    up = renoise(sch, q_sample(sch, x0, s, z1), s, t, z2)
    assert abs(up.mean() - 0.7 * sch.alpha[t]) < 4 * sch.sigma[t] / n**0.5
    assert abs(up.std() / sch.sigma[t] - 1) < 4 / (2 * n) ** 0.5
    assert (renoise(sch, x0, 0, t, z1) - q_sample(sch, x0, t, z1)).abs().max() <= 1e-12
    assert (renoise(sch, x0, s, s, z1) - x0).abs().max() <= 1e-7  # var is 0 up to rounding


def test_eps_dir_changes_the_direction_and_not_x0():
    sch = schedule.linear(100)
    x_t, eps, other = triple()
    shift = ddim_step(sch, x_t, eps, 60, 30, eps_dir=other) - ddim_step(sch, x_t, eps, 60, 30)
    assert (shift - sch.sigma[30] * (other - eps)).abs().max() <= 1e-12
    assert (
        ddim_step(sch, x_t, eps, 60, 0, eps_dir=other) - eps_to_x0(sch, x_t, eps, 60)
    ).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "kw",
    [
        dict(t=50, s=20, eta=1.5, noise=torch.zeros(1, 1)),
        dict(t=50, s=20, eta=0.5),
        dict(t=20, s=50, eta=0.5, noise=torch.zeros(1, 1)),
        dict(t=50, s=20, eta=-0.1, noise=torch.zeros(1, 1)),
    ],
)
def test_noise_without_a_tensor_upwards_or_beyond_eta_1_is_refused(kw):
    with pytest.raises(ValueError, match="invert at eta=0"):
        ddim_step(SCHEDULES[0], torch.zeros(1, 1), torch.zeros(1, 1), **kw)


def test_renoise_downwards_is_refused():
    with pytest.raises(ValueError, match="from s up to t"):
        renoise(SCHEDULES[0], torch.zeros(1, 1), 50, 20, torch.zeros(1, 1))


def test_steps_do_not_write_into_their_inputs():
    x_t, eps, z = triple()
    before = [v.clone() for v in (x_t, eps, z)]
    ddim_step(SCHEDULES[0], x_t, eps, 50, 20, 1.0, z)
    posterior(SCHEDULES[0], x_t, eps, 50, 20)
    assert all(torch.equal(a, b) for a, b in zip(before, (x_t, eps, z)))


@pytest.mark.oracle
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "prediction, theirs", [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")]
)
def test_ddim_steps_equal_diffusers(eta, prediction, theirs):
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler
    sch = schedule.scaled_linear()
    ref = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=theirs,
    )
    ref.set_timesteps(50)
    ts = sch.timesteps(50, spacing="leading")[:-1] + [1]  # Stable Diffusion stops at index 1
    x, out, z = triple()
    for t, s in [(ts[0], ts[1]), (ts[25], ts[26]), (ts[-2], ts[-1])]:
        ours = ddim_step(sch, x, to_eps(sch, x, out, t, prediction), t, s, eta, z)
        assert (
            ours - ref.step(out, t - 1, x, eta=eta, variance_noise=z).prev_sample
        ).abs().max() < 2e-4
