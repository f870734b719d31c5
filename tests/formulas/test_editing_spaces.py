"""Editing in spaces: the bottleneck, both sides of a plane, a common noise, features of an
encoder.
"""

from math import exp, log, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import (
    TABLES,
    Judge,
    Reader,
    by_rows,
    foreseen,
    move,
    near,
    picture,
    rand,
    slope,
    small,
    tables,
    words,
)
from torch import nn

from minidiff.core import schedule
from minidiff.core.taps import Tap
from minidiff.data.toy2d import Mixture
from minidiff.editing import zecon as zecon_file
from minidiff.editing.asyrp import drift
from minidiff.editing.boundary import Plane, linear_svm, plane
from minidiff.editing.ddib import bridge
from minidiff.editing.flowedit import flow_time, velocity
from minidiff.editing.zecon import crops, patch_nce, some_places, zecon


class Narrow(nn.Module):
    """x -> h -> eps, with the tap of a bottleneck."""

    def __init__(self):
        super().__init__()
        self.h = Tap()

    def forward(self, x, t, cond):
        return by_rows(self.h(torch.tanh(x)), t, cond)


def drifted(sch, symmetric=False):
    """A step with a shifted bottleneck, from the project; both noises, by hand."""
    net, x, c = Narrow(), rand(2, 3, 4, 4), words(0.3, 0.7)
    shift = lambda h, t: 0.4 * torch.cos(h) + t / 1000  # noqa: E731
    got = drift(SimpleNamespace(net=net, schedule=sch, eps=net), x, 500, 450, c, shift, symmetric)
    h = torch.tanh(x)
    return got, x, by_rows(h, 500, c), by_rows(h + 0.4 * torch.cos(h) + 0.5, 500, c)


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_asyrp_step(sch):
    got, x, eps, edited = drifted(sch)
    al_s, sg_s, al, sg = tables(sch, 450, 500)
    near(got, al_s * (x - sg * edited) / al + sg_s * eps, 1e-8)


@pytest.mark.parametrize("sch", TABLES, ids=lambda s: s.name)
def test_asyrp_change(sch):
    (one, x, eps, edited), (both, *_) = drifted(sch), drifted(sch, symmetric=True)
    al_s, sg_s, al, sg = tables(sch, 450, 500)
    plain, delta = move(sch, x, eps, 500, 450), edited - eps
    near(one - plain, -al_s * sg / al * delta, 1e-8)
    near(both - plain, (sg_s - al_s * sg / al) * delta, 1e-8)


def test_boundary_plane():
    """No other plane has a smaller sum; two points have theirs in closed form; the distance is in
    the data's own unit.
    """
    rng = np.random.default_rng(0)
    y = np.repeat([-1.0, 1.0], 12)
    v = rng.normal(size=(24, 3)) + y[:, None] * [0.8, 0.3, 0.0] + 0.5

    def total(w, b, C):
        return (
            w @ w / 2 + b * b / 2 + C * sum(max(0.0, 1 - k * (w @ row + b)) for row, k in zip(v, y))
        )

    for C in (0.05, 1.0):
        w, b = linear_svm(v, y, C, sweeps=2000)
        best = total(w, b, C)
        for size in (1e-3, 1e-2, 0.1, 1.0):
            for d in rng.normal(size=(50, 4)) * size:
                assert total(w + d[:3], b + d[3], C) > best - 1e-7
    # x = -a, a: all of the margin, or what C pays
    for a, C, want in ((2.0, 1.0, 1 / 2), (0.5, 0.1, 2 * 0.1 * 0.5)):
        w, b = linear_svm(np.array([[-a], [a]]), np.array([-1.0, 1.0]), C)
        near([w[0], b], [want, 0.0], 1e-5)

    rows = torch.from_numpy(v)
    found, mean = plane(rows[:12].view(12, 3, 1, 1), rows[12:].view(12, 3, 1, 1)), rows.mean(0)
    spread = sqrt(sum(((row - mean) ** 2).sum().item() for row in rows) / 24)
    w, b = linear_svm(((rows - mean) / spread).numpy(), y)
    want = [spread * (w @ ((row - mean) / spread).numpy() + b) / sqrt(w @ w) for row in rows]
    near(found.distance(rows.view(24, 3, 1, 1)), want, 1e-8)


def test_boundary_push():
    a = F.normalize(rand(12), dim=0)
    wall, v = Plane(a.view(3, 2, 2), 0.7, 1.0, 1.0), rand(3, 3, 2, 2, seed=1)
    for d in (-1.5, 0.0, 2.0):
        pushed = wall.push(v, d)
        for old, new in zip(v.flatten(1).tolist(), pushed.flatten(1).tolist()):
            f = sum(p * q for p, q in zip(a.tolist(), old)) + 0.7
            near(new, [p + (d - f) * q for p, q in zip(old, a.tolist())])
            near(sum(p * q for p, q in zip(a.tolist(), new)) + 0.7, d)


def test_ddib_cycle():
    """Two Gaussians: each way in closed form; and back, the nearer the smaller the steps."""
    sch, x, gaps = schedule.cosine(), torch.tensor([[1.4], [-0.6]], dtype=torch.float64), []
    (m1, c1), (m2, c2) = (0.7, 0.3), (-0.5, 0.8)
    source, target = (Mixture([[m]], [[[c]]]).denoise(sch) for m, c in ((m1, c1), (m2, c2)))
    al, sg = tables(sch, 1000)
    top = al * m1 + sqrt((al**2 * c1 + sg**2) / c1) * (x - m1)  # F_source
    want = m2 + sqrt(c2 / (al**2 * c2 + sg**2)) * (top - al * m2)  # F_target, backwards
    for steps in (50, 200):
        there = bridge(source, target, sch, x, steps=steps)
        back = bridge(target, source, sch, there, steps=steps)
        gaps.append(((there - want).abs().max().item(), (back - x).abs().max().item()))
    assert all(b < 0.4 * a for a, b in zip(*gaps)) and max(gaps[1]) < 0.05, gaps


def contrast(q, k, tau=0.07):
    """L_nce of two lists of vectors (p c)."""
    unit = lambda v: [x / x.norm() for x in v]  # noqa: E731
    q, k, total = unit(q), unit(k), 0.0
    for p in range(len(q)):
        logits = [(q[p] @ v).item() / tau for v in k]
        total += log(sum(exp(z - logits[p]) for z in logits))
    return total / len(q)


def test_zecon_contrast():
    q, k = rand(2, 5, 4), rand(2, 5, 4, seed=1)
    for tau in (0.07, 0.5):
        near(patch_nce(q, k, tau), [contrast(a, b, tau) for a, b in zip(q, k)], 1e-8)


class Levels(Reader):
    """A Reader with an encoder of two levels."""

    def __init__(self):
        super().__init__()
        self.level = nn.ModuleList([Tap(), Tap()])

    def forward(self, x, t, cond):
        h = self.level[0](torch.sin(2 * x) + x.roll(1, 2))
        return super().forward(x, t, cond) + 0.1 * F.interpolate(
            self.level[1](F.avg_pool2d(h, 2)), scale_factor=2
        )


def test_zecon_step(monkeypatch):
    pipe, judge, image, seed = small(Levels()), Judge(), picture(), 3
    monkeypatch.setattr(zecon_file, "clip_of", lambda p: (judge, p.tokenizer))
    a, b, style, content, mse = "a red circle", "a green circle", 2.0, 0.4, 0.7
    zecon(
        pipe,
        image,
        a,
        b,
        strength=0.8,
        style=style,
        content=content,
        mse=mse,
        crops_=2,
        places=3,
        steps=5,
        seed=seed,
    )
    x_t, x_s = pipe.net.asked[4], pipe.net.asked[7]  # 4 moves up; then each asks about x, z and x0
    sch, z, eps = pipe.schedule, 1.5 * image, lambda x: pipe.eps(x, 800, pipe.null()).detach()
    way = F.normalize(
        judge.embed_text(pipe.tokenizer(b)) - judge.embed_text(pipe.tokenizer(a)), dim=1
    )[0].detach()

    def seen(x, places):
        h = torch.sin(2 * x) + x.roll(1, 2)
        return [level[0].flatten(1).T[p[0]] for level, p in zip((h, F.avg_pool2d(h, 2)), places)]

    def loss(x):
        stream, x0, total = (
            [torch.Generator().manual_seed(seed)],
            foreseen(sch, x, eps(x), 800),
            0.0,
        )
        for now, then in zip(*crops([pipe.vae.to_image(x0), image], 2, stream)):
            moved = judge.embed_image(now[None])[0] - judge.embed_image(then[None])[0]
            total -= log((1 + (moved @ way / moved.norm() / way.norm()).item()) / 2) / 2
        where = some_places([16, 4], 3, stream)
        total += content * sum(contrast(q, k) for q, k in zip(seen(x0, where), seen(z, where))) / 2
        return total + mse * sum(v * v for v in (x0 - z).flatten().tolist()) / 48

    g = slope(loss, x_t)
    al_s, sg_s, al, sg = tables(sch, 600, 800)
    std = sg_s / sg * sqrt(sg**2 - (al / al_s * sg_s) ** 2)
    rms = sqrt(sum(v * v for v in g.flatten().tolist()) / 48)
    near(x_s, move(sch, x_t, eps(x_t), 800, 600) - style * std * g / rms, 1e-5)


@pytest.mark.parametrize("t", [1, 300, 700, 1000])
@pytest.mark.parametrize("table", [schedule.scaled_linear, schedule.cosine, schedule.flow])
def test_flowedit(table, t):
    """Divided by k a state lies on the straight line, and eps - x0 is its slope."""
    sch = table()
    x0, n = rand(3, 2), rand(3, 2, seed=1)
    alpha, sigma = sch.at(t)
    k, tau = flow_time(sch, t)
    assert torch.allclose((alpha * x0 + sigma * n) / k, (1 - tau) * x0 + tau * n, atol=1e-6)
    z = (1 - tau) * x0 + tau * n
    v = velocity(lambda x_t, t, cond: n, sch, z, t, None)
    assert torch.allclose(v, n - x0, atol=1e-4 / alpha)
