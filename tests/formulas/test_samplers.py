"""Samplers."""

import math
from itertools import pairwise

import pytest
import torch
from by_hand import by_rows, foreseen, guided, move, near, noised, rand, small, tables, words

from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.data.toy2d import Mixture
from minidiff.guidance.hybrid_images import hybrid_images
from minidiff.guidance.visual_anagrams import VIEWS, visual_anagrams
from minidiff.samplers.calibrated import measured_means
from minidiff.samplers.gddim import Blurring, L, Langevin, gddim_step
from minidiff.samplers.ggdm import Numbers, energy_loss, ggdm_step
from minidiff.samplers.stream import Stream, noise_of, skip_probability, take_off, tick


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
