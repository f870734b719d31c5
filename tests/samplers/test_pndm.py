import math
from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import ddim_step
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.plms import plms, plms_noise
from minidiff.samplers.pndm import pndm, runge_kutta

FINE, SCH, SD = schedule.linear(20_000), schedule.linear(1000), schedule.scaled_linear()
EVEN = schedule.Schedule(
    torch.ones(20_001, dtype=torch.float64), torch.linspace(0, 10, 20_001, dtype=torch.float64)
)


def start(n=64, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def error(way, sch, steps):
    """On a Gaussian, from time 18000 to 2000 of 20000 in even strides: next to clean sigma ~ sqrt(t)
    lets no method be better than 1.
    """
    data, x = gauss_aniso(), sch.at(18_000)[1] * start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, 18_000, 2000)
    ts = [18_000 - i * 16_000 // steps for i in range(steps + 1)]
    return (way(data.denoise(sch), sch, x, times=ts) - exact).norm(dim=-1).mean().item()


def starting(denoise, sch, x, times):
    """All steps as the first three are."""
    for t, s in pairwise(times):
        x, _ = runge_kutta(denoise, sch, x, t, s)
    return x


def orders(way, sch, counts=(20, 40, 80)):
    errs = [error(way, sch, n) for n in counts]
    return [math.log2(a / b) for a, b in pairwise(errs)]


def test_where_the_level_is_even_in_time_it_is_the_classical_method_of_order_4():
    """sigma / alpha ~ t: DDIM's move is a straight line, and nothing is "pseudo"."""
    assert all(3.7 < order < 4.3 for order in orders(starting, EVEN))
    assert 3.6 < orders(pndm, EVEN, (160, 320))[0] < 4.2


def test_its_start_changes_little_for_the_multistep_part_makes_the_error():
    """Why nobody misses it: PLMS begins with one evaluation more, this with nine."""
    for sch in (FINE, EVEN):
        assert abs(error(pndm, sch, 40) / error(plms, sch, 40) - 1) < 0.05
        assert error(plms, sch, 40) < error(pndm, sch, 32)  # 41 evaluations both


def test_on_the_tables_of_models_the_start_and_the_whole_are_of_order_2():
    """The weights are for even strides of what is integrated over, and that is the level, not the
    time.
    """
    for way in (starting, pndm, plms):
        assert all(1.8 < order < 2.5 for order in orders(way, FINE)), way


def test_on_strides_even_in_lambda_it_is_of_second_order():
    """Adams' and Bashforth's weights are made for even strides in time."""
    data, x = gauss_aniso(), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, FINE, FINE.T, 0)
    errs = [
        (pndm(data.denoise(FINE), FINE, x, steps=n, spacing="lambda") - exact).norm().item()
        for n in (20, 40, 80)
    ]
    assert all(1.8 < math.log2(a / b) < 2.4 for a, b in pairwise(errs)), errs


@pytest.mark.parametrize("steps, asked", [(1, 1), (2, 5), (3, 9), (4, 13), (5, 14), (50, 59)])
def test_steps_and_9_evaluations_and_never_about_the_clean_end(steps, asked):
    eps, seen = Counted(gmm8().denoise(SCH)), []
    pndm(lambda x, t, c: seen.append(t) or eps(x, t, c), SCH, start(3), steps=steps)
    assert eps.nfe == 3 * asked and min(seen) > 0


def test_five_steps_by_hand():
    eps, y, old = gmm8().denoise(SCH), start(), []
    ts = [802, 602, 402, 202, 2, 0]
    for t, s in pairwise(ts[:4]):
        k1 = eps(y, t)
        k2 = eps(ddim_step(SCH, y, k1, t, t - 100), t - 100)
        k3 = eps(ddim_step(SCH, y, k2, t, t - 100), t - 100)
        k4 = eps(ddim_step(SCH, y, k3, t, s), s)
        y = ddim_step(SCH, y, k1 / 6 + k2 / 3 + k3 / 3 + k4 / 6, t, s)
        old.insert(0, k1)
    for t, s in pairwise(ts[3:]):
        old.insert(0, eps(y, t))
        mean = (55 * old[0] - 59 * old[1] + 37 * old[2] - 9 * old[3]) / 24
        y = ddim_step(SCH, y, mean, t, s)
    assert (pndm(eps, SCH, start(), steps=5) - y).abs().max() < 1e-10


def test_the_answers_remembered_are_those_at_the_starts_of_the_steps():
    eps, x = gmm8().denoise(SCH), start()
    y, e1 = runge_kutta(eps, SCH, x, 802, 602)
    assert torch.equal(e1, eps(x, 802))
    y, e2 = runge_kutta(eps, SCH, y, 602, 402)
    want = ddim_step(SCH, y, plms_noise([eps(y, 402), e2, e1]), 402, 0)
    assert torch.equal(pndm(eps, SCH, x, times=[802, 602, 402, 0]), want)


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("end", [0, 1])
def test_a_network_that_knows_the_picture_gives_it_whatever_the_steps(steps, end):
    x0, n = start(seed=50), start()
    (a_T, s_T), (a, s) = SD.at(SD.T), SD.at(end)

    def knows(x, t, cond):
        a, s = SD.at(t)
        return (x - a * x0) / s

    got = pndm(knows, SD, a_T * x0 + s_T * n, steps=steps, spacing="trailing", end=end)
    assert (got - (a * x0 + s * n)).abs().max() < 1e-10


def test_one_step_is_ddims_and_a_row_is_the_same_alone():
    eps, x = gmm8().denoise(SCH), start(6)
    one = ddim(eps, SCH, x, steps=1, spacing="leading")
    assert (pndm(eps, SCH, x, steps=1) - one).abs().max() < 1e-10
    assert (pndm(eps, SCH, x)[2:3] - pndm(eps, SCH, x[2:3])).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
        (dict(start=1001), "start=1001"),
        (dict(end=2), "end=2"),
        (dict(spacing="even"), "'even' is unknown"),
        (dict(times=[5, 5, 0]), "each smaller than the one before"),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        pndm(gmm8().denoise(SCH), SCH, start(2), **kw)


def test_a_start_in_pure_noise_is_refused():
    sch = schedule.flow()
    with pytest.raises(ValueError, match=r"pndm divides by alpha, 0\.001 at time 1000 of schedule"):
        pndm(gmm8().denoise(sch), sch, start(2), steps=10, spacing="trailing")


# ---- beside diffusers ----------------------------------------------------------------------------


def network(x, t):
    return torch.tanh(x * 0.7 + math.sin(t / 200))


@pytest.mark.oracle
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("skip, ours", [(False, pndm), (True, plms)])
@pytest.mark.parametrize("steps", [4, 5, 7, 10, 20, 50, 100, 250])
def test_latents_equal_those_of_diffusers(steps, skip, ours, clean):
    """With even strides, 4 steps or more: the docstring of the file says what theirs does with
    others.
    """
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=skip,
        set_alpha_to_one=clean,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x
    for t in scheduler.timesteps:
        y = scheduler.step(network(y, int(t) + 1), int(t), y).prev_sample
    got = ours(lambda x, t, c: network(x, t), SD, x, steps=steps, end=0 if clean else 1)
    assert ((got - y).abs() / y.abs().clamp(min=1)).max() < 1e-5
