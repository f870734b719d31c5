"""Samplers."""

from itertools import pairwise

import pytest
import torch
from by_hand import MOVES, TABLES, by_rows, guided, move, near, noised, rand, small

from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.data.toy2d import gaussian_flow_map
from minidiff.guidance.hybrid_images import hybrid_images
from minidiff.guidance.visual_anagrams import VIEWS, visual_anagrams
from minidiff.samplers.grids import SD1, log_linear
from minidiff.samplers.heun import churned, heun_step
from minidiff.samplers.midpoint import fireflow_step, midpoint_step
from minidiff.samplers.pndm import runge_kutta
from minidiff.samplers.restart import restarted


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
