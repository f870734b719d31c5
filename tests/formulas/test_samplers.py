"""Samplers."""

import math
from itertools import pairwise

import pytest
import torch
from by_hand import (
    MOVES,
    TABLES,
    by_rows,
    foreseen,
    guided,
    move,
    near,
    noised,
    rand,
    small,
    tables,
    words,
)

from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.core.exponential import exponential_weights
from minidiff.data.toy2d import Mixture, gaussian_flow_map
from minidiff.guidance.hybrid_images import hybrid_images
from minidiff.guidance.visual_anagrams import VIEWS, visual_anagrams
from minidiff.samplers.calibrated import measured_means
from minidiff.samplers.deis import deis_step
from minidiff.samplers.dpm_solver import block_move
from minidiff.samplers.dpm_solver_pp import dpm_step, dpm_step_3
from minidiff.samplers.dpm_solver_sde import sde_step
from minidiff.samplers.gddim import Blurring, L, Langevin, gddim_step
from minidiff.samplers.ggdm import Numbers, energy_loss, ggdm_step
from minidiff.samplers.grids import SD1, log_linear
from minidiff.samplers.heun import churned, heun_step
from minidiff.samplers.midpoint import fireflow_step, midpoint_step
from minidiff.samplers.pndm import runge_kutta
from minidiff.samplers.restart import restarted
from minidiff.samplers.stream import Stream, noise_of, skip_probability, take_off, tick
from minidiff.samplers.unipc import unipc_move


@pytest.mark.parametrize("view", VIEWS)
def test_anagram_view(view):
    """Every view as a matrix: V'V = 1, `undo` is V', and V x_t is V x_0 with the noise V n."""
    v, side = VIEWS[view], 32 if view == "pixels" else 4
    one = torch.eye(side**2, dtype=torch.float64)
    V, back = (f(one.view(-1, 1, side, side)).flatten(1).T for f in (v.do, v.undo))
    near(V.T @ V, one)
    near(back, V.T)
    assert view == "pixels" or (V - one).abs().max() > 0.5
    sch, x0, n = schedule.linear(), rand(2, 1, side, side), rand(2, 1, side, side, seed=1)
    want = noised(sch, x0.flatten(1) @ V.T, 500, n.flatten(1) @ V.T)
    near(v.do(P.q_sample(sch, x0, 500, n)).flatten(1), want)


def test_anagram_mean():
    """With a quarter turn, which is not its own inverse; cell (i, j) goes to (3 - j, i)."""

    def turned(x, times):
        for _ in range(times):
            x = torch.stack(
                [torch.stack([x[..., k, 3 - i] for k in range(4)], -1) for i in range(4)], -2
            )
        return x

    pipe, a, b, w = small(), "a red circle", "a green star", 2.0
    one, other, x = pipe.embed(a), pipe.embed(b), pipe.noise(1, 3)
    for t, s in pairwise([1000, 750, 500, 250, 0]):
        eps = 0.5 * (
            guided(pipe, x, t, one, w) + turned(guided(pipe, turned(x, 1), t, other, w), 3)
        )
        x = move(pipe.schedule, x, eps, t, s)
    got = visual_anagrams(pipe, a, b, view="counterclockwise", steps=4, scale=w, seed=3)
    near(got, torch.cat([turned(pipe.decode(x), 1), pipe.decode(x)]), 1e-8)


def test_hybrid_noise():
    """With halves: of a latent of 16 columns the first eight are the first prompt's."""
    pipe, a, b, w = small(), "a red circle", "a green star", 2.0
    one, other, x = pipe.embed(a), pipe.embed(b), pipe.noise(1, 3)
    half = x.shape[-1] // 2
    for t, s in pairwise([1000, 750, 500, 250, 0]):
        left = guided(pipe, x, t, one, w)[..., :half]
        right = guided(pipe, x, t, other, w)[..., half:]
        x = move(pipe.schedule, x, torch.cat([left, right], -1), t, s)
    got = hybrid_images(pipe, a, b, part="left", steps=4, scale=w, seed=3)
    near(got, pipe.decode(x), 1e-8)


def test_hybrid_parts():
    """One move of the state, and the same move of a part of it with that part of the noise."""
    sch, x, eps = schedule.linear(), rand(1, 3, 4, 4), rand(1, 3, 4, 4, seed=1)
    for part in (lambda v: v.mean(1, keepdim=True), lambda v: v[..., :2]):
        near(part(move(sch, x, eps, 700, 400)), move(sch, part(x), part(eps), 700, 400))


# ---- exponential integrators ---------------------------------------------------------------------


def simpson(f, n=1000):
    """int_0^1 f(u) du."""
    odd_even = [1] + [4, 2] * (n // 2 - 1) + [4, 1]
    return sum(w * f(i / n) for i, w in enumerate(odd_even)) / (3 * n)


def lagrange(nodes, values, u):
    """The polynomial through the values at the nodes."""
    total = 0.0
    for here, value in zip(nodes, values):
        share = math.prod((u - r) / (here - r) for r in nodes if r != here)
        total = total + share * value
    return total


def lams(sch, *times):
    return [math.log(sch.alpha[t].item() / sch.sigma[t].item()) for t in times]


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_exponential_forms(kind):
    """One Gaussian of variance c: where its paths go is known, and so is what a network says on
    them. Both integrals carry a path from its start to its end.
    """
    c, low, high = 0.3, -1.2, 0.9
    h = high - low

    def levels(lam):
        if kind == "flow":  # alpha + sigma = 1
            return 1 / (1 + math.exp(-lam)), 1 / (1 + math.exp(lam))
        return 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam))

    def path(u):
        a, s = levels(low + u * h)
        x = 1.7 * math.sqrt(a * a * c + s * s)
        return x, a * c * x / (a * a * c + s * s), s * x / (a * a * c + s * s)  # x, x0, eps

    (a_t, s_t), (a_s, s_s) = levels(low), levels(high)
    x0 = simpson(lambda u: math.exp((u - 1) * h) * path(u)[1])
    near(s_s / s_t * path(0)[0] + a_s * h * x0, path(1)[0])
    eps = simpson(lambda u: math.exp((1 - u) * h) * path(u)[2])
    near(a_s / a_t * path(0)[0] - s_s * h * eps, path(1)[0])


def test_dpm_two():
    for sch in TABLES:
        x, new, old = (rand(2, 3, seed=i) for i in range(3))
        r, t, s = 900, 640, 310
        before, here, there = lams(sch, r, t, s)
        h, h_before = there - here, here - before
        D = new + h / (2 * h_before) * (new - old)
        (_, s_t), (a_s, s_s) = (tables(sch, v) for v in (t, s))
        near(dpm_step(sch, x, new, old, r, t, s), s_s / s_t * x + a_s * (1 - math.exp(-h)) * D)


@pytest.mark.parametrize("sch", TABLES, ids=lambda sch: sch.name)
def test_dpm_three(sch):
    """D1 and D2 make the parabola through three guesses, and the step integrates it."""
    x, *guesses = (rand(2, 3, seed=i) for i in range(4))
    times, s = (640, 800, 930), 310
    here, *before = lams(sch, *times)
    h = lams(sch, s)[0] - here
    nodes = [0.0] + [(v - here) / h for v in before]
    course = simpson(lambda u: math.exp((u - 1) * h) * lagrange(nodes, guesses, u))
    (_, s_t), (a_s, s_s) = (tables(sch, v) for v in (640, s))
    near(dpm_step_3(sch, x, guesses, times, s), s_s / s_t * x + a_s * h * course, 1e-8)


def test_dpm_block():
    for sch in TABLES:
        x, e, e_m = (rand(2, 3, seed=i) for i in range(3))
        t, m, s = 800, 650, 400
        here, middle, there = lams(sch, t, m, s)
        h, r = there - here, (middle - here) / (there - here)
        (a_t, _), (a_s, s_s) = (tables(sch, v) for v in (t, s))
        for taylor, w in ((False, math.expm1(h) / h / 2), (True, (math.expm1(h) / h - 1) / h)):
            mean = math.expm1(h) / h * e + w * (e_m - e) / r
            near(block_move(sch, x, e, e_m, t, m, s, taylor), a_s / a_t * x - s_s * h * mean)


def test_sde_dpm():
    """The noise that D implies is forgotten at the rate eta, and fresh noise keeps its variance."""
    sch, D, e, z = TABLES[0], *(rand(2, 3, seed=i) for i in range(3))
    t, s, eta = 700, 450, 0.6
    (a_t, s_t), (a_s, s_s) = (tables(sch, v) for v in (t, s))
    here, there = lams(sch, t, s)
    kept = math.exp(-eta * (there - here))
    moved = sde_step(sch, a_t * D + s_t * e, D, t, s, eta, z)
    near((moved - a_s * D) / s_s, kept * e + math.sqrt(1 - kept**2) * z)


@pytest.mark.parametrize("nodes", [[0.0, -0.7, -1.9], [0.0, -0.7, -1.9, 1.0]])
def test_unipc_weights(nodes):
    values, h = rand(len(nodes), 5), 0.8
    got = sum(w * v for w, v in zip(exponential_weights(nodes, -h), values))
    near(got, simpson(lambda u: math.exp((u - 1) * h) * lagrange(nodes, values, u)))


def test_unipc_two():
    sch = TABLES[2]
    x, new, other = (rand(2, 3, seed=i) for i in range(3))
    for times in ((640, 800), (640, 310)):  # predictor, corrector
        here, node, there = lams(sch, *times, 310)
        h = there - here
        r, phi_1 = (node - here) / h, (1 - math.exp(-h)) / h
        (_, s_t), (a_s, s_s) = (tables(sch, v) for v in (640, 310))
        for variant, B in (("bh1", 1.0), ("bh2", phi_1)):
            w = B / (2 * r)
            want = s_s / s_t * x + a_s * h * ((phi_1 - w) * new + w * other)
            near(unipc_move(sch, x, [new, other], times, 310, variant), want)


@pytest.mark.parametrize("sch", TABLES, ids=lambda sch: sch.name)
def test_deis_weights(sch):
    x, *answers = (rand(2, 3, seed=i) for i in range(4))
    times, s = (640, 800, 930), 310
    here, *before = lams(sch, *times)
    h = lams(sch, s)[0] - here
    nodes = [0.0] + [(v - here) / h for v in before]
    course = simpson(lambda u: math.exp((1 - u) * h) * lagrange(nodes, answers, u))
    (a_t, _), (a_s, s_s) = (tables(sch, v) for v in (640, s))
    near(deis_step(sch, x, answers, times, s), a_s / a_t * x - s_s * h * course, 1e-8)


# ---- second order, and noise that goes up --------------------------------------------------------


def levels_of(sch, *times):
    return [(sch.sigma[t] / sch.alpha[t]).item() for t in times]


def test_heun_slopes():
    """In sigma / alpha, on tables of every kind."""
    for sch in TABLES:
        for t, s in MOVES:
            x = rand(3, 5)
            bar_t, bar_s = levels_of(sch, t, s)
            y, d = x / sch.alpha[t], by_rows(x, t, None)
            trial = y + (bar_s - bar_t) * d
            d_end = by_rows(sch.alpha[s] * trial, s, None)
            want = sch.alpha[s] * (y + (bar_s - bar_t) * (d + d_end) / 2)
            near(heun_step(by_rows, sch, x, t, s), want)


def test_churn_level():
    """The level as a deviation: picture and noise of a raised state, drawn apart."""
    for sch in TABLES:
        x, z, t = rand(4, 6), rand(4, 6, seed=1), 500
        x_u, u = churned(sch, x, t, 0.3, z)
        bar_t, bar_u = levels_of(sch, t, u)
        assert abs(bar_u / bar_t - 1.3) < 0.01
        near(x_u / sch.alpha[u], x / sch.alpha[t] + (bar_u**2 - bar_t**2) ** 0.5 * z)


def test_runge_kutta_start():
    """In sigma / alpha, where DDIM's move is a straight line."""
    for sch in TABLES:
        x, t, m, s = rand(3, 5), 700, 550, 400
        bar_t, bar_m, bar_s = levels_of(sch, t, m, s)
        y = x / sch.alpha[t]
        e1 = by_rows(x, t, None)
        e2 = by_rows(sch.alpha[m] * (y + (bar_m - bar_t) * e1), m, None)
        e3 = by_rows(sch.alpha[m] * (y + (bar_m - bar_t) * e2), m, None)
        e4 = by_rows(sch.alpha[s] * (y + (bar_s - bar_t) * e3), s, None)
        mean = e1 / 6 + e2 / 3 + e3 / 3 + e4 / 6
        got, first = runge_kutta(by_rows, sch, x, t, s)
        near(got, sch.alpha[s] * (y + (bar_s - bar_t) * mean))
        near(first, e1)


def test_restart_jump():
    """One jump is all the little ones between: a picture fades, variances add up."""
    for sch in TABLES:
        low, high = 200, 600
        kept, var = 1.0, 0.0
        for s, t in pairwise(range(low, high + 1)):
            a = (sch.alpha[t] / sch.alpha[s]).item()
            kept, var = a * kept, a**2 * var + (sch.sigma[t] ** 2 - a**2 * sch.sigma[s] ** 2).item()
        x, z = rand(3, 5), rand(3, 5, seed=1)
        still = restarted(lambda x, t, c: 0 * x, sch, x, [high, low], z, None)
        back = (sch.alpha[low] / sch.alpha[high]).item()  # with no noise to follow, DDIM rescales
        near(still, back * (kept * x + var**0.5 * z))


def test_restart_factor():
    """The flow of a Gaussian carries two states, which the same noise has raised."""
    for sch in TABLES:
        c, low, high = 0.6, 300, 700
        mean, cov = torch.tensor([1.0, -1.0]).double(), 0.36 * torch.eye(2).double()
        x, z, shift = rand(5, 2), rand(5, 2, seed=1), torch.tensor([0.5, -0.3]).double()
        ends = []
        for state in (x, x + sch.alpha[low] * shift):
            up = P.renoise(sch, state, low, high, z)
            ends.append(gaussian_flow_map(mean, cov, up, sch, high, low) / sch.alpha[low])
        bar_low, bar_high = levels_of(sch, low, high)
        factor = ((c**2 + bar_low**2) / (c**2 + bar_high**2)) ** 0.5
        near(ends[1] - ends[0], (factor * shift).expand(5, 2), 1e-8)


def test_rf_solver_step():
    """By finite differences on a velocity that is known everywhere; on even tables the middle is
    one.
    """
    sch, x = schedule.flow(), rand(3, 5)
    for t, s in ((800, 400), (400, 800), (600, 0)):
        m = (t + s) // 2
        h = (sch.sigma[s] - sch.sigma[t]).item()

        def v(z, time):
            eps = by_rows(z, time, None)
            return eps - (z - sch.sigma[time] * eps) / sch.alpha[time]

        v_t = v(x, t)
        slope = (v(x + h / 2 * v_t, m) - v_t) / (h / 2)
        near(midpoint_step(by_rows, sch, x, t, s), x + h * v_t + h**2 / 2 * slope)
        near(midpoint_step(by_rows, sch, x, t, s), x + h * v(x + h / 2 * v_t, m))


def test_fireflow_step():
    sch, x, old = schedule.flow(), rand(3, 5), rand(3, 5, seed=2)
    for t, s in ((800, 400), (400, 800), (600, 0)):
        m = (t + s) // 2
        h = (sch.sigma[s] - sch.sigma[t]).item()
        z = x + h / 2 * old
        eps = by_rows(z, m, None)
        v_m = eps - (z - sch.sigma[m] * eps) / sch.alpha[m]
        got, kept = fireflow_step(by_rows, sch, x, old, t, s)
        near(got, x + h * v_m)
        near(kept, v_m)


def test_log_linear_levels():
    """As a product of powers of the two neighbours."""
    for n in (3, 7, 20, 33):
        for i, got in enumerate(log_linear(SD1, n)):
            k = min(10 * i // n, 9)
            share = 10 * i / n - k
            near(got, SD1[k] ** (1 - share) * SD1[k + 1] ** share)


# ---- gDDIM, GGDM, StreamDiffusion, calibration ---------------------------------------------------


def test_gddim_root():
    """R by Runge-Kutta along its equation, from R at .6 to R at .3."""
    for p in (Langevin(start=0.01), Blurring()):

        def slope(R, t, p=p):
            h = 1e-4
            F = (p.Psi(t, t + h) - p.Psi(t, t - h)) / (2 * h)
            return (F + 0.5 * p.GG(t) @ torch.linalg.inv(p.Sigma(t))) @ R

        R, n = p.R(0.6), 40
        h = -0.3 / n
        for i in range(n):
            t = 0.6 + i * h
            k1 = slope(R, t)
            k2 = slope(R + h / 2 * k1, t + h / 2)
            k3 = slope(R + h / 2 * k2, t + h / 2)
            R = R + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(R + h * k3, t + h))
        near(p.R(0.3), R, 1e-5)


def test_gddim_move():
    """The integral of Psi G G' R^-T / 2 over a step by the trapezoid rule, and the step that needs
    none.
    """
    x, eps = rand(5, 2), rand(5, 2, seed=1)
    for p in (Langevin(start=0.01), Blurring()):
        tau = torch.linspace(0.6, 0.3, 2001, dtype=torch.float64)
        f = 0.5 * p.Psi(tau, 0.3) @ p.GG(tau) @ torch.linalg.inv(p.R(tau)).mT
        C = torch.trapezoid(f, tau, dim=0)
        want = [p.Psi(0.6, 0.3) @ a + C @ e for a, e in zip(x, eps)]
        near(gddim_step(x, eps, p.Psi(0.6, 0.3), p.R(0.6), p.R(0.3)), torch.stack(want), 1e-5)


def test_langevin_turn():
    """The angle between R and Cholesky's root, by differences, at its rate."""
    p, h = Langevin(start=0.01), 1e-5

    def angle(t):
        O = torch.linalg.inv(L(p, t)) @ p.R(t)
        near(O @ O.T, torch.eye(2))
        return math.atan2(O[1, 0], O[0, 0])

    for t in (0.2, 0.5):
        root = L(p, t)
        rate = -p.beta / p.M * root[1, 1] / root[0, 0]
        near((angle(t + h) - angle(t - h)) / (2 * h), rate, 1e-6)


def test_ggdm_family():
    numbers, i = Numbers(schedule.linear(), [900, 500, 200, 0]), 2
    torch.nn.init.normal_(numbers.past, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(numbers.fresh, generator=torch.Generator().manual_seed(1))
    x0, z, *states = (rand(4, 2, seed=k) for k in range(5))
    want = numbers.guess[i] * x0 + numbers.fresh[i] * z
    for u in range(3):
        want = want + numbers.past[i, u] * states[u]
    near(ggdm_step(numbers, i, x0, states, z), want)


def test_fair_energy():
    """Pair by pair; what (i, i) adds if it is counted is the mean distance of the others, over n."""
    x, y = rand(6, 2), rand(5, 2, seed=1)
    between = sum((a - b).norm() for a in x for b in y) / 30
    own = [sum((a - b).norm() for a in v for b in v) / (len(v) * (len(v) - 1)) for v in (x, y)]
    near(energy_loss(x, y), 2 * between - sum(own))
    near(energy_loss(x, y, True), 2 * between - sum(own) + own[0] / 6 + own[1] / 5)


def test_stream_tick():
    sch, ts, n = schedule.linear(), (900, 500, 200), rand(3, 6, seed=9)

    def net(x, t, cond):
        return by_rows(x, torch.as_tensor(t).view(-1, 1), cond)

    s, frames = Stream(net, sch, ts, n), rand(4, 1, 6)
    flight = take_off(frames[0])
    for frame in frames:
        flight, out = tick(s, flight, frame)
    x0 = frames[1]  # of two ticks ago
    for i, t in enumerate(ts):
        z = noised(sch, x0, t, n[i : i + 1])
        x0 = foreseen(sch, z, net(z, t, None), t)
    near(out, x0)


def test_residual_noise():
    sch, z, origin, c = schedule.linear(), rand(1, 6), rand(1, 6, seed=1), words(0.4)
    s = Stream(
        by_rows, sch, (700,), rand(1, 6), c, words(0.0), guidance="self", scale=1.7, delta=0.6
    )
    al, sg = tables(sch, 700)
    virtual = (z - al * origin) / sg
    want = 1.7 * by_rows(z, 700, c) + (1 - 1.7) * 0.6 * virtual
    near(noise_of(s, z, torch.tensor([700]), origin)[0], want)


def test_skip_chance():
    for degrees, want in ((0.0, 1.0), (8.0, 1 - (1 - math.cos(math.radians(8))) / 0.02), (20, 0)):
        a = math.radians(degrees)
        other = torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64)
        here = torch.tensor([1.0, 0.0], dtype=torch.float64)
        near(skip_probability(here, other, 0.98), want, 1e-6)


def test_score_martingale():
    """In one dimension, by quadrature over x_s given x_t."""
    data = Mixture([[-1.0], [0.8]], [[[0.05]], [[0.4]]], [0.3, 0.7])
    y = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    for sch in (schedule.linear(), schedule.flow()):
        al_s, sg_s, al_t, sg_t = tables(sch, 350, 650)
        r = al_t / al_s
        for x in (-0.5, 0.9):
            log_p = data.log_prob(y[:, None], al_s, sg_s)
            log_p = log_p - (x - r * y) ** 2 / (2 * (sg_t**2 - r**2 * sg_s**2))
            w = torch.exp(log_p - log_p.max())
            later = al_s * (w * data.score(y[:, None], al_s, sg_s)[:, 0]).sum() / w.sum()
            near(al_t * data.score(torch.tensor([[x]], dtype=torch.float64), al_t, sg_t), [[later]])


def test_calibrated_loss():
    """For noises that add up to 0, as in the mean over all, it holds for any answers."""
    e, eps = rand(40, 3), rand(40, 3, seed=1) + 0.4
    e = e - e.mean(0)
    m = measured_means(eps, torch.zeros(40, dtype=torch.int64))[0][0]
    loss = sum(((a - b) ** 2).sum() for a, b in zip(eps, e)) / 40
    after = sum(((a - m - b) ** 2).sum() for a, b in zip(eps, e)) / 40
    near(loss - after, (m**2).sum())
