import math
from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import solver_times
from minidiff.data.toy2d import energy_distance, gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp

FINE, SCH = schedule.linear(20_000), schedule.linear(1000)


def start(n=64, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def err(x, y):
    return (x - y).norm(dim=-1).mean().item()


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_it_converges_to_the_flow_of_a_gaussian_with_order_2(spacing):
    data, x = gauss_aniso(), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, FINE, FINE.T, 0)
    errs = [
        err(dpm_solver_pp(data.denoise(FINE), FINE, x, steps=n, spacing=spacing), exact)
        for n in (10, 20, 40, 80, 160)
    ]
    mean = math.log2(errs[0] / errs[-1]) / 4
    assert 1.7 < mean < 2.2 and all(math.log2(a / b) > 1.5 for a, b in pairwise(errs))


@pytest.mark.parametrize("build", [schedule.cosine, schedule.flow], ids=["cosine", "flow"])
def test_it_is_of_higher_order_than_ddim_on_tables_that_end_in_pure_noise(build):
    data, sch, x = gauss_aniso(), build(20_000), start()
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, sch.T, 0)
    ours, ddims = (
        [err(f(data.denoise(sch), sch, x, steps=n, spacing="trailing"), exact) for n in (40, 160)]
        for f in (dpm_solver_pp, ddim)
    )
    assert math.log2(ours[0] / ours[1]) / 2 > 1.5 and ours[1] < ddims[1] / 25


def test_ten_steps_sample_the_mixture_better_than_ten_of_ddim():
    data, x = gmm8(1.0, 0.15), start(1500)
    truth = data.sample(1500, seed=5)
    ours, ddims = (
        energy_distance(f(data.denoise(SCH), SCH, x, steps=10), truth)
        for f in (dpm_solver_pp, ddim)
    )
    assert ours < ddims / 2.5


def test_the_grid_leaves_out_the_time_next_to_clean():
    assert solver_times(SCH, 4) == [1000, 750, 501, 251, 0] and solver_times(SCH, 4, "leading") == [
        802,
        602,
        402,
        202,
        0,
    ]
    assert (
        solver_times(SCH, 4, "trailing")
        == SCH.timesteps(4, spacing="trailing")
        == [1000, 750, 500, 250, 0]
    )
    assert (
        solver_times(SCH, 1000) == list(range(1000, -1, -1))
        and solver_times(SCH, 4, start=400)[0] == 400
    )


@pytest.mark.oracle
@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_the_grid_equals_diffusers(spacing):
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=1
    )
    for n in (1, 2, 5, 7, 10, 20, 25, 50, 100, 333):
        theirs.set_timesteps(n)
        assert solver_times(SCH, n, spacing)[:-1] == [t + 1 for t in theirs.timesteps.tolist()]


def test_first_and_last_step_are_ddims_and_the_one_between_is_the_papers():
    eps, x = gmm8().denoise(SCH), start()
    u = ddim(eps, SCH, x, steps=1, spacing="trailing")
    assert (dpm_solver_pp(eps, SCH, x, steps=1) - u).abs().max() < 1e-9
    tables = [SCH.at(t) for t in (1000, 667, 334)]
    lam, (a1, s1), (a2, s2) = [math.log(a / s) for a, s in tables], *tables[1:]
    d0 = eps_to_x0(SCH, x, eps(x, 1000), 1000)
    y = a1 * d0 + s1 * eps(x, 1000)  # DDIM
    d1 = eps_to_x0(SCH, y, eps(y, 667), 667)
    r = (lam[1] - lam[0]) / (lam[2] - lam[1])  # r and D as the paper's algorithm writes them
    D = (1 + 1 / (2 * r)) * d1 - 1 / (2 * r) * d0
    y = s2 / s1 * y - a2 * (math.exp(-(lam[2] - lam[1])) - 1) * D
    y = eps_to_x0(SCH, y, eps(y, 334), 334)
    assert (dpm_solver_pp(eps, SCH, x, steps=3) - y).abs().max() < 1e-9


def test_one_evaluation_a_step_and_every_grid_point_once():
    eps, seen = Counted(gmm8().denoise(SCH)), []
    dpm_solver_pp(
        lambda x, t, cond: seen.append(t) or eps(x, t, cond),
        SCH,
        start(3),
        steps=5,
        spacing="leading",
    )
    assert eps.nfe == 15 and seen == solver_times(SCH, 5, "leading")[:-1]


def test_a_network_that_knows_the_picture_gives_it_in_any_number_of_steps():
    x0 = start(seed=50)

    def knows(x, t, cond):
        a, s = SCH.at(t)
        return (x - a * x0) / s

    for steps in (1, 2, 3, 20):
        assert (dpm_solver_pp(knows, SCH, start(), steps=steps) - x0).abs().max() < 1e-8


def test_a_row_is_the_same_alone_and_in_a_batch():
    eps, x = gmm8().denoise(SCH), start(6)
    assert (dpm_solver_pp(eps, SCH, x)[2:3] - dpm_solver_pp(eps, SCH, x[2:3])).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
        (dict(start=1001), "start=1001"),
        (dict(spacing="even"), "'even' is unknown"),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        dpm_solver_pp(gmm8().denoise(SCH), SCH, start(2), **kw)


def test_where_every_time_is_visited_none_is_dropped():
    assert solver_times(SCH, 20, "linspace", start=20) == list(range(20, -1, -1))
    assert len(solver_times(SCH, 19, "linspace", start=20)) == 20
