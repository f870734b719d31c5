import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise
from minidiff.core.schedule import solver_times
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.deis import deis, deis_step

SCH = schedule.linear(1000)


def start(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def test_order_1_is_ddim():
    eps, x = gmm8().denoise(SCH), start()
    times = [1000, 700, 420, 200, 50, 0]
    got = deis(eps, SCH, x, order=1, times=times)
    assert (got - ddim(eps, SCH, x, times=times)).abs().max() < 1e-12
    assert (
        deis_step(SCH, x, [eps(x, 700)], [700], 420) - ddim(eps, SCH, x, times=[700, 420])
    ).abs().max() < 1e-12


@pytest.mark.parametrize("times", [(700, 850), (700, 850, 950)])
def test_a_step_is_the_integral_of_the_polynomial_over_rho(times):
    """x / alpha moves by the integral of eps over rho = sigma / alpha; eps is Lagrange's polynomial
    in log rho. Here by Simpson's rule.
    """
    s, n = 400, 2000
    answers, x = [start(seed=20 * i) for i in range(len(times))], start(seed=99)
    rho = {t: SCH.at(t)[1] / SCH.at(t)[0] for t in (*times, s)}
    total, h = torch.zeros_like(x), (rho[s] - rho[700]) / n
    for i in range(n + 1):
        here = math.log(rho[700] + i * h)
        value = torch.zeros_like(x)
        for j, answer in zip(times, answers):
            lagrange = 1.0
            for k in times:
                if k != j:
                    lagrange *= (here - math.log(rho[k])) / math.log(rho[j] / rho[k])
            value = value + lagrange * answer
        total = total + (1 if i in (0, n) else 4 if i % 2 else 2) * value
    want = SCH.at(s)[0] * (x / SCH.at(700)[0] + total * h / 3)
    assert (deis_step(SCH, x, answers, times, s) - want).abs().max() < 1e-7


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("build", [schedule.linear, schedule.cosine, schedule.flow, schedule.ve])
def test_it_converges_to_the_flow_of_a_gaussian_on_all_tables(order, build):
    sch, data = build(4000), gauss_aniso()
    x = start() * sch.at(4000)[1]
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, 4000, 0)
    few, many = (
        (deis(data.denoise(sch), sch, x, steps=n, order=order, spacing="trailing") - exact)
        .norm(dim=-1)
        .mean()
        for n in (20, 160)
    )
    assert many < few / 8


def test_one_evaluation_a_step():
    eps, seen = Counted(gmm8().denoise(SCH)), []
    deis(lambda x, t, cond: seen.append(t) or eps(x, t, cond), SCH, start(3), steps=5)
    assert eps.nfe == 15 and seen == solver_times(SCH, 5)[:-1]


def test_a_row_is_the_same_alone_and_in_a_batch():
    eps, x = gmm8().denoise(SCH), start(6)
    assert (deis(eps, SCH, x)[2:3] - deis(eps, SCH, x[2:3])).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(order=0), "order=0 is unknown"),
        (dict(steps=0), "steps=0"),
        (dict(times=[7, 3, 4]), "times="),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        deis(None, SCH, start(2), **kw)
