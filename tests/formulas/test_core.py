"""The process and its steps: the pages "six words" and "one perspective"."""

from itertools import product
from math import log, pi, sqrt

import pytest
import torch
from by_hand import MOVES, TABLES, column, near, rand, tables

from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.core.schedule import Schedule
from minidiff.data.toy2d import Mixture, gaussian_flow_map, gmm8


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_forward_process(sch):
    x0, eps = rand(3, 2, 4, 4), rand(3, 2, 4, 4, seed=1)
    t = torch.tensor([1, 500, 1000])
    want = torch.stack([sch.alpha[k] * x + sch.sigma[k] * e for k, x, e in zip(t, x0, eps)])
    near(P.q_sample(sch, x0, t, eps), want)


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_transition(sch):
    for t, s in MOVES:
        (al_s, sg_s, al_t, sg_t), n = tables(sch, s, t), rand(2, 5, seed=1)
        a, var = P.transition(sch, s, t, n)
        near([al_s * a, (a * sg_s) ** 2 + var], [al_t, sg_t**2])  # end where q(x_t | x0) does
        ratio = al_t / al_s
        near(
            P.renoise(sch, rand(2, 5), s, t, n),
            ratio * rand(2, 5) + sqrt(sg_t**2 - (ratio * sg_s) ** 2) * n,
        )


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_posterior(sch):
    for t, s in MOVES:
        al_s, sg_s, al_t, sg_t = tables(sch, s, t)
        a, x0, x_t = al_t / al_s, 0.4, al_t * 0.4 + 1.3 * sg_t
        mean, var = P.posterior(sch, column(x_t), column(x0), t, s)
        u = torch.linspace(-9, 9, 4001, dtype=torch.float64) * sqrt(var) + mean.item()
        w = -((u - al_s * x0) ** 2) / sg_s**2 - (x_t - a * u) ** 2 / (sg_t**2 - a**2 * sg_s**2)
        w = (w / 2).softmax(0)
        centre = (w * u).sum()
        near(
            [mean.item() / sg_t, var / sg_s**2],
            [centre / sg_t, (w * (u - centre) ** 2).sum() / sg_s**2],
            1e-7,
        )


def one_step_kl(sch, t, s):
    """KL of two posteriors that differ in x0, integrated over the line; the two x0 and x_t."""
    x0, guess, eps = 0.4, -0.3, 1.1
    x_t = tables(sch, t)[0] * x0 + tables(sch, t)[1] * eps
    (m, var), (m_hat, _) = (P.posterior(sch, column(x_t), column(v), t, s) for v in (x0, guess))
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    p = torch.exp(-(z**2) / 2) / sqrt(2 * pi) * (z[1] - z[0])
    shift = ((m - m_hat) / sqrt(var)).item()
    return (p * ((z + shift) ** 2 / 2 - z**2 / 2)).sum(), x0, guess, x_t


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_elbo_weight(sch):
    for t, s in MOVES:
        kl, x0, guess, _ = one_step_kl(sch, t, s)
        near(
            (0.5 * (sch.log_snr[s].exp() - sch.log_snr[t].exp()) * (x0 - guess) ** 2) / kl,
            1.0,
            1e-7,
        )


def test_elbo():
    """With a perfect network the bound stays below log p(x0), and the gap closes as the steps get
    smaller.
    """
    mix, x0, gaps = Mixture([[0.3]], [[[0.4]]]), 1.1, []
    z = torch.linspace(-6, 6, 121, dtype=torch.float64)
    p = torch.exp(-(z**2) / 2)
    p = p / p.sum()
    for T in (250, 500, 1000):
        sch = schedule.ve(T, 0.01, 1000.0)  # log SNR even: no step is much larger
        t = torch.arange(1, T + 1).repeat_interleave(len(z))
        x = P.q_sample(
            sch, torch.full((len(t), 1), x0, dtype=torch.float64), t, z.repeat(T)[:, None]
        )
        guess = P.eps_to_x0(sch, x, mix.denoise(sch)(x, t, None), t).view(T, -1)
        error = ((x0 - guess) ** 2 @ p).tolist()  # E |x0 - x0_hat|^2 at t = 1 .. T
        snr = [None, *((sch.alpha / sch.sigma)[1:] ** 2).tolist()]
        last = 1 / (snr[1] + 1 / 0.4)  # variance of p(x0 | x_1)
        steps = sum(0.5 * (snr[k - 1] - snr[k]) * error[k - 1] for k in range(2, T + 1))
        al, sg = tables(sch, T)
        prior = 0.5 * (al * x0 / sg) ** 2
        bound = -0.5 * (log(2 * pi * last) + error[0] / last) - prior - steps
        gaps.append(mix.log_prob(torch.tensor([[x0]], dtype=torch.float64)).item() - bound)
    assert 0 < gaps[2] < 0.6 * gaps[1] < 0.36 * gaps[0] < 0.1, gaps


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_elbo_readings(sch):
    for t, s in MOVES:
        kl, x0, guess, x_t = one_step_kl(sch, t, s)
        al_s, sg_s, al, sg = tables(sch, s, t)
        gain = (al_s / sg_s) ** 2 - (al / sg) ** 2
        weight = {
            "eps": 0.5 * gain * (sg / al) ** 2,
            "v": sg**2 * gain / (2 * (al**2 + sg**2) ** 2),
            "flow": sg**2 * gain / (2 * (al + sg) ** 2),
            "x0": 0.5 * gain,
        }
        for kind, w in weight.items():  # an error of the output, read by the project
            x = torch.tensor([x_t], dtype=torch.float64)
            true, said = (
                P.target(sch, v, P.x0_to_eps(sch, x, v, t), t, kind)
                for v in (
                    torch.tensor([x0], dtype=torch.float64),
                    torch.tensor([guess], dtype=torch.float64),
                )
            )
            near((w * (true - said) ** 2).item() / kl, 1.0, 1e-6)


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_readings(sch):
    x0, eps = rand(2, 6), rand(2, 6, seed=1)
    for t in (1, 30, 500, 1000):
        al, sg = tables(sch, t)
        x = al * x0 + sg * eps
        said = {"x0": x0, "eps": eps, "v": al * eps - sg * x0, "flow": eps - x0}
        by_hand = {
            "x0": (x - al * said["x0"]) / sg,
            "eps": eps,
            "v": (sg * x + al * said["v"]) / (al**2 + sg**2),
            "flow": (x + al * said["flow"]) / (al + sg),
        }
        for kind in P.PREDICTIONS:
            near(P.target(sch, x0, eps, t, kind), said[kind])
            near(P.to_eps(sch, x, said[kind], t, kind), by_hand[kind])
            near(P.to_eps(sch, x, said[kind], t, kind), eps, 1e-7)
        near(P.eps_to_x0(sch, x, eps, t), (x - sg * eps) / al)


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_tweedie(sch):
    mix = Mixture([[-1.0], [0.5]], [[[0.1]], [[0.3]]], weights=[0.3, 0.7])
    u = torch.linspace(-8, 8, 200001, dtype=torch.float64)
    prior = 0.3 * torch.exp(-((u + 1) ** 2) / 0.2) / sqrt(0.1) + 0.7 * torch.exp(
        -((u - 0.5) ** 2) / 0.6
    ) / sqrt(0.3)
    for t in (200, 500, 900):
        al, sg = tables(sch, t)
        x = al * 0.2 + sg * 0.8
        w = prior * torch.exp(-((x - al * u) ** 2) / (2 * sg**2))
        mean = (w * u).sum() / w.sum()  # E[x0 | x_t], integrated
        row = torch.tensor([[x]], dtype=torch.float64)
        eps, score = mix.denoise(sch)(row, t, None).item(), mix.score(row, al, sg).item()
        x0 = P.eps_to_x0(sch, row, torch.tensor([[eps]], dtype=torch.float64), t).item()
        near([eps, x0, (x + sg**2 * score) / al], [-sg * score, mean, mean], 1e-6)
        near(eps, ((x - al * mean) / sg).item(), 1e-6)  # and E[eps | x_t]


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_ddim_family(sch):
    x, eps, n = rand(2, 6), rand(2, 6, seed=1), rand(2, 6, seed=2)
    for (t, s), eta in product(MOVES, (0.0, 0.5, 1.0)):
        al_s, sg_s, al, sg = tables(sch, s, t)
        x0 = (x - sg * eps) / al
        tau = eta * sqrt((sg**2 - (al / al_s * sg_s) ** 2) * sg_s**2 / sg**2)
        want = al_s * x0 + sqrt(sg_s**2 - tau**2) * eps + tau * n
        near(P.ddim_step(sch, x, eps, t, s, eta, n), want, 1e-8)
        if eta == 1:  # a draw from the posterior
            mean, var = P.posterior(sch, x, x0, t, s)
            near(want, mean + sqrt(var) * n, 1e-7)


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_ddim_is_euler(sch):
    x, eps = rand(2, 6), rand(2, 6, seed=1)
    for t, s in (*MOVES, (10, 20), (30, 0)):  # up as well as down
        al_s, sg_s, al, sg = tables(sch, s, t)
        near(P.ddim_step(sch, x, eps, t, s) / al_s, x / al + (sg_s / al_s - sg / al) * eps, 1e-8)


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_ddim_move(sch):
    x, eps = rand(2, 6), rand(2, 6, seed=1)
    for t, s in (*MOVES, (30, 0), (10, 20)):
        al_s, sg_s, al, sg = tables(sch, s, t)
        want = [
            [al_s * (v - sg * e) / al + sg_s * e for v, e in zip(*rows)]
            for rows in zip(x.tolist(), eps.tolist())
        ]
        near(P.ddim_step(sch, x, eps, t, s), torch.tensor(want, dtype=torch.float64), 1e-8)


def test_gaussian_flow():
    mu, c, x = 0.7, 0.3, torch.tensor([[1.9], [-0.4]], dtype=torch.float64)
    mix = Mixture([[mu]], [[[c]]])
    for sch in (schedule.linear(), schedule.flow()):
        al, sg = tables(sch, 900)
        al_s, sg_s = tables(sch, 100)
        want = al_s * mu + sqrt((al_s**2 * c + sg_s**2) / (al**2 * c + sg**2)) * (x - al * mu)
        near(
            gaussian_flow_map(
                torch.tensor([mu]).double(), torch.tensor([[c]]).double(), x, sch, 900, 100
            ),
            want,
            1e-7,
        )
        y = x
        for t in range(900, 100, -1):  # the ODE, 800 steps of Euler
            y = P.ddim_step(sch, y, mix.denoise(sch)(y, t, None), t, t - 1)
        near(y, want, 5e-3)


def test_three_processes():
    x, eps = rand(2, 6), rand(2, 6, seed=1)
    for t, s in MOVES:
        vp, ve, flow = schedule.linear(), schedule.ve(), schedule.flow()
        beta = (
            1
            - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[s:t]
            .neg()
            .add(1)
            .log()
            .sum()
            .exp()
            .item()
        )
        near(P.transition(vp, s, t, x)[1], beta)
        near(P.ddim_step(ve, x, eps, t, s), x + (ve.sigma[s] - ve.sigma[t]) * eps)
        x0 = P.eps_to_x0(flow, x, eps, t)
        near(
            P.ddim_step(flow, x, eps, t, s), x + (flow.sigma[s] - flow.sigma[t]) * (eps - x0), 1e-8
        )


def test_rescaled_path():
    vp, mix = schedule.cosine(), gmm8()
    bar = Schedule(torch.ones(1001, dtype=torch.float64), vp.sigma / vp.alpha, "sigma / alpha")
    x = rand(4, 2)
    y = x / vp.alpha[700]
    for t, s in ((700, 500), (500, 300), (300, 100)):
        e, e_bar = mix.denoise(vp)(x, t, None), mix.denoise(bar)(y, t, None)
        near(e, e_bar, 1e-8)
        x, y = P.ddim_step(vp, x, e, t, s), P.ddim_step(bar, y, e_bar, t, s)
        near(x, vp.alpha[s] * y, 1e-8)
