"""Restoration."""

from itertools import pairwise, product
from math import sqrt

import torch
from by_hand import foreseen, middle, near, noised, picture, rand, small, tables

from minidiff.core.denoise import noise, noises
from minidiff.restoration.ddnm import trust
from minidiff.restoration.ddrm import _mix
from minidiff.restoration.operators import blur, lossy
from minidiff.restoration.repaint import repaint


def test_null_space():
    """A as a matrix, and its pseudo-inverse by torch: the operator of the method must agree."""
    mask = (rand(1, 1, 2, 2) > 0).double()
    op = lossy(mask, factor=2, grey=True)
    basis = torch.eye(48, dtype=torch.float64).view(48, 3, 4, 4)
    A = op.A(basis).flatten(1).T  # 4 48
    x, y = rand(2, 3, 4, 4), op.A(rand(2, 3, 4, 4, seed=1))
    plus = torch.linalg.pinv(A)
    want = [plus @ v.flatten() + u.flatten() - plus @ (A @ u.flatten()) for u, v in zip(x, y)]
    near(op.project(x, y).flatten(1), torch.stack(want), 1e-8)
    near(op.A(op.project(x, y)), y, 1e-8)


def test_ddnm_plus():
    op, a, eta, sigma, sigma_y = blur(4, 4), 0.8, 0.85, 0.4, 0.1
    lam, d = trust(op, sigma_y, a, eta * sigma, rand(1, 1, 4, 4))
    for i, j in product(range(4), range(4)):
        s = op.s[i, j].item()
        theirs = a * sigma_y / s if s else 0.0
        want = min(1.0, eta * sigma / theirs) if s else 1.0
        near(
            [lam[i, j], d[i, j] ** 2],
            [want, max((eta * sigma) ** 2 - (want * theirs) ** 2, 0.0)],
            1e-7,
        )
    assert lam.min() < 1


def test_ddrm_lines():
    op = blur(4, 4, sigma=1.0, cut=0.2)
    x0, eps, n, ybar = (rand(1, 1, 4, 4, seed=k) for k in range(4))
    a, sigma, sigma_y, eta, eta_b, used = 0.8, 0.3, 0.15, 0.85, 0.7, set()
    got = _mix(op, ybar, x0, eps, n, a, sigma, sigma_y, eta, eta_b)
    h0, he, hn = (op.Vt(v) for v in (x0, eps, n))
    for i, j in product(range(4), range(4)):
        s, p, q, r, y = (v[..., i, j].item() for v in (op.s, h0, he, hn, ybar))
        if s == 0:
            line, want = "unseen", a * p + sigma * (sqrt(1 - eta**2) * q + eta * r)
        elif a * sigma_y / s > sigma:
            line, want = (
                "noisy",
                a * p + sigma * (sqrt(1 - eta**2) * (y - p) / (sigma_y / s) + eta * r),
            )
        else:
            left = sqrt(sigma**2 - (eta_b * a * sigma_y / s) ** 2)
            line, want = "clean", a * ((1 - eta_b) * p + eta_b * y) + left * r
        used.add(line)
        near(got[0, 0, i, j], want, 1e-8)
    assert used == {"unseen", "noisy", "clean"}


def test_repaint_step():
    """A way down that turns back once, state by state: the hole by DDIM with eta 1, which is DDPM,
    written with eps.
    """
    pipe, image, mask, seed = small(), picture(2), middle(), 3
    sch, null, x = pipe.schedule, pipe.embed(""), noise((2, 3, 4, 4), seed, dtype=torch.float64)
    inside, outside, asked = noises(x, seed), noises(x, seed + 2**31), []
    repaint(pipe, image, mask=mask, length=2, repeats=2, window=(0.2, 0.3), steps=4, seed=seed)
    seen = list(pipe.net.asked)
    for t, s in pairwise([1000, 750, 500, 250, 750, 500, 250, 0]):
        al_s, sg_s, al, sg = tables(sch, s, t)
        n = next(inside)
        if s > t:
            x = al_s / al * x + sqrt(sg_s**2 - (al_s / al * sg) ** 2) * n
            continue
        asked.append(x)
        eps = pipe.eps(x, t, null).detach()
        var = (sg_s / sg) ** 2 * (sg**2 - (al / al_s * sg_s) ** 2)
        drawn = al_s * foreseen(sch, x, eps, t) + sqrt(sg_s**2 - var) * eps + sqrt(var) * n
        x = torch.where(mask > 0, drawn, noised(sch, 1.5 * image, s, next(outside)))
    near(torch.stack(seen), torch.stack(asked), 1e-8)
