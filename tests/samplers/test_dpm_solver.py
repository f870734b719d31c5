import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise
from minidiff.core.schedule import solver_times
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.dpm_solver import block_orders, dpm_solver

SCH = schedule.linear(1000)


def start(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def names(n):
    return list(range(n, -1, -1))


def test_blocks_fill_the_grid_and_the_move_to_clean_is_alone():
    assert [block_orders(2, names(n)) for n in (1, 2, 3, 4, 5)] == [
        [1],
        [1, 1],
        [2, 1],
        [2, 1, 1],
        [2, 2, 1],
    ]
    assert [block_orders(3, names(n)) for n in (4, 5, 6, 7)] == [
        [3, 1],
        [3, 1, 1],
        [3, 2, 1],
        [3, 3, 1],
    ]
    above = [9, 7, 5, 4, 3, 2, 1]  # does not end at clean: nothing needs to be alone
    assert block_orders(3, above) == [3, 3] and block_orders(2, above) == [2, 2, 2]


def test_public_code_ends_every_grid_with_a_lower_order():
    """The paper's "fast" rows: 3 .. 3 2 1, 3 .. 3 1, 3 .. 3 2."""
    rows = [block_orders(3, [t + 1 for t in names(n)], literal=True) for n in (9, 10, 11)]
    assert rows == [[3, 3, 2, 1], [3, 3, 3, 1], [3, 3, 3, 2]]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20])
def test_steps_counts_evaluations_and_every_time_of_the_grid_is_asked_once(order, steps):
    eps, seen = Counted(gmm8().denoise(SCH)), []
    dpm_solver(
        lambda x, t, cond: seen.append(t) or eps(x, t, cond),
        SCH,
        start(3),
        steps=steps,
        order=order,
    )
    assert eps.nfe == 3 * steps and seen == solver_times(SCH, steps)[:-1]


def test_order_1_is_ddim_and_so_is_one_step():
    eps, x = gmm8().denoise(SCH), start()
    times = [1000, 700, 420, 200, 50, 0]
    one = dpm_solver(eps, SCH, x, order=1, times=times)
    assert (one - ddim(eps, SCH, x, times=times)).abs().max() < 1e-12
    for order in (2, 3):
        one = dpm_solver(eps, SCH, x, order=order, times=[1000, 0])
        assert (one - ddim(eps, SCH, x, times=[1000, 0])).abs().max() < 1e-12


def lams(*times):
    return [math.log(a / s) for a, s in (SCH.at(t) for t in times)]


def test_a_block_of_two_by_hand():
    """The paper's algorithm for a middle anywhere, r of the way in lambda."""
    eps, x, (t, m, s) = gmm8().denoise(SCH), start(), (800, 600, 300)
    (a_t, _), (a_m, s_m), (a_s, s_s) = (SCH.at(v) for v in (t, m, s))
    lam_t, lam_m, lam_s = lams(t, m, s)
    h, r = lam_s - lam_t, (lam_m - lam_t) / (lam_s - lam_t)
    e = eps(x, t)
    u = a_m / a_t * x - s_m * math.expm1(r * h) * e
    want = a_s / a_t * x - s_s * math.expm1(h) * (e + (eps(u, m) - e) / (2 * r))
    got = dpm_solver(eps, SCH, x, order=2, times=[t, m, s])
    assert (got - want).abs().max() < 1e-10


def test_a_block_of_three_by_hand():
    eps, x, (t, m, n, s) = gmm8().denoise(SCH), start(), (800, 650, 480, 300)
    (a_t, _), (a_m, s_m), (a_n, s_n), (a_s, s_s) = (SCH.at(v) for v in (t, m, n, s))
    lam_t, lam_m, lam_n, lam_s = lams(t, m, n, s)
    h = lam_s - lam_t
    r1, r2 = (lam_m - lam_t) / h, (lam_n - lam_t) / h
    e = eps(x, t)
    u = a_m / a_t * x - s_m * math.expm1(r1 * h) * e
    D1 = eps(u, m) - e
    v = a_n / a_t * x - s_n * math.expm1(r2 * h) * e
    v = v - s_n * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * D1
    D2 = eps(v, n) - e
    want = a_s / a_t * x - s_s * math.expm1(h) * e - s_s / r2 * (math.expm1(h) / h - 1) * D2
    got = dpm_solver(eps, SCH, x, order=3, times=[t, m, n, s])
    assert (got - want).abs().max() < 1e-10


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("build", [schedule.linear, schedule.cosine, schedule.flow, schedule.ve])
def test_it_converges_to_the_flow_of_a_gaussian_on_all_tables(order, build):
    sch, data = build(4000), gauss_aniso()
    x = start() * sch.at(4000)[1]
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, 4000, 0)
    few, many = (
        (dpm_solver(data.denoise(sch), sch, x, order=order, steps=n, spacing="trailing") - exact)
        .norm(dim=-1)
        .mean()
        for n in (20, 160)
    )
    assert many < few / 8


@pytest.mark.parametrize("order", [2, 3])
def test_a_row_is_the_same_alone_and_in_a_batch(order):
    eps, x = gmm8().denoise(SCH), start(6)
    alone, batch = (dpm_solver(eps, SCH, v, order=order) for v in (x[2:3], x))
    assert (batch[2:3] - alone).abs().max() <= 1e-12


def test_a_grid_that_visits_1_does_not_end_there_twice():
    assert solver_times(SCH, 3, "karras", end=1)[-2:] != [1, 1]
    assert solver_times(SCH, 4, "linspace", start=4, end=1) == [4, 3, 2, 1]
    out = dpm_solver(gmm8().denoise(SCH), SCH, start(), order=3, start=4, steps=4, end=1)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(order=4), "order=4 is unknown"),
        (dict(steps=0), "steps=0"),
        (dict(times=[5, 5, 0]), "times="),
        (dict(end=2), "end=2"),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        dpm_solver(None, SCH, start(2), **kw)
