import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import solver_times
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map, gmm8
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp
from minidiff.samplers.unipc import unipc, unipc_move

SCH = schedule.linear(1000)


def start(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def as_published(x, guesses, times, s, variant):
    """The paper's form: differences D_j over r_j, a system R rho = b, and B(h)."""
    (_, s_t), (a_s, s_s) = SCH.at(times[0]), SCH.at(s)
    lam = [math.log(a / sigma) for a, sigma in (SCH.at(r) for r in (*times, s))]
    h = lam[-1] - lam[0]
    B = -h if variant == "bh1" else math.expm1(-h)
    r = [(v - lam[0]) / h for v in lam[1 : len(times)]]
    D = [(g - guesses[0]) / rj for g, rj in zip(guesses[1:], r)]
    p = len(r)
    b, g = [], math.expm1(-h) / -h - 1
    for k in range(1, p + 1):
        b.append(g * math.factorial(k) / B)
        g = g / -h - 1 / math.factorial(k + 1)
    R = torch.tensor([[rj**k for rj in r] for k in range(p)], dtype=torch.float64)
    rho = [0.5] if p == 1 else torch.linalg.solve(R, torch.tensor(b, dtype=torch.float64)).tolist()
    x = s_s / s_t * x - a_s * math.expm1(-h) * guesses[0]
    return x - a_s * B * sum(rho_j * D_j for rho_j, D_j in zip(rho, D))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("times", [(700, 800), (700, 800, 950), (700, 500), (700, 800, 950, 500)])
def test_a_move_is_the_published_one(times, variant):
    """The last two are correctors: their last guess is at the end of the step."""
    guesses = [start(seed=20 * i) for i in range(len(times))]
    got = unipc_move(SCH, start(seed=99), guesses, times, 500, variant)
    want = as_published(start(seed=99), guesses, times, 500, variant)
    assert (got - want).abs().max() < 1e-9


def test_the_two_variants_differ_where_a_weight_is_fixed_and_nowhere_else():
    x, guesses = start(seed=99), [start(seed=20 * i) for i in range(3)]
    for times, differ in (((700,), False), ((700, 800), True), ((700, 800, 950), False)):
        one, two = (unipc_move(SCH, x, guesses, times, 500, v) for v in ("bh1", "bh2"))
        assert ((one - two).abs().max() > 1e-3) == differ


def test_the_corrector_goes_back_to_where_the_step_began_and_keeps_the_answer():
    eps, x = gmm8().denoise(SCH), start()
    t, s, u = 1000, 600, 300
    x0_t = eps_to_x0(SCH, x, eps(x, t), t)
    y = unipc_move(SCH, x, [x0_t], [t], s)
    x0_s = eps_to_x0(SCH, y, eps(y, s), s)
    y = unipc_move(SCH, x, [x0_t, x0_s], [t, s], s)
    want = unipc_move(SCH, y, [x0_s, x0_t], [s, t], u)  # no third evaluation
    assert (unipc(eps, SCH, x, times=[t, s, u]) - want).abs().max() < 1e-12


def test_the_last_step_is_the_last_guess():
    eps, x = gmm8().denoise(SCH), start()
    answers = []

    def listening(x, t, cond):
        answers.append(eps_to_x0(SCH, x, eps(x, t), t))
        return eps(x, t)

    for steps in (1, 2, 3, 9):
        out = unipc(listening, SCH, x, steps=steps, order=3)
        assert (out - answers[-1]).abs().max() < 1e-12


def test_one_evaluation_a_step_and_never_at_clean():
    eps, seen = Counted(gmm8().denoise(SCH)), []
    unipc(lambda x, t, cond: seen.append(t) or eps(x, t, cond), SCH, start(3), steps=5, order=3)
    assert eps.nfe == 15 and seen == solver_times(SCH, 5)[:-1]


@pytest.mark.parametrize("build", [schedule.linear, schedule.cosine, schedule.flow, schedule.ve])
def test_it_converges_to_the_flow_of_a_gaussian_on_all_tables(build):
    sch, data = build(4000), gauss_aniso()
    x = start() * sch.at(4000)[1]
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, 4000, 0)
    few, many = (
        (unipc(data.denoise(sch), sch, x, steps=n, spacing="trailing") - exact).norm(dim=-1).mean()
        for n in (20, 160)
    )
    assert many < few / 8


def test_forty_steps_are_nearer_to_the_truth_than_forty_of_2M():
    sch, data, x = schedule.linear(4000), gauss_aniso(), start(64)
    exact = gaussian_flow_map(data.means[0], data.covs[0], x, sch, 4000, 0)
    ours, theirs = (
        (f(data.denoise(sch), sch, x, steps=40, spacing="lambda") - exact).norm(dim=-1).mean()
        for f in (unipc, dpm_solver_pp)
    )
    assert ours < theirs


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_row_is_the_same_alone_and_in_a_batch(order):
    eps, x = gmm8().denoise(SCH), start(6)
    alone, batch = (unipc(eps, SCH, v, order=order) for v in (x[2:3], x))
    assert (batch[2:3] - alone).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(order=4), "order=4 is unknown"),
        (dict(variant="bh3"), "variant='bh3' is unknown; choose bh1 or bh2"),
        (dict(steps=1001), "steps=1001"),
        (dict(times=[0, 5]), "times="),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        unipc(None, SCH, start(2), **kw)
