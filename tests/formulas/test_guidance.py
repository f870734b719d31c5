"""Guidance."""
from itertools import product

import torch
from by_hand import near, rand, tables

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.data.toy2d import Mixture
from minidiff.guidance.cfg import cfg
from minidiff.guidance.classifier import pull
from minidiff.guidance.ilvr import refine


def test_classifier_guidance():
    """One Gaussian per class: weight 1 must give the class's own noise."""
    sch, mix, t = schedule.linear(), Mixture([[-1.], [.5]], [[[.1]], [[.3]]], weights=[.3, .7]), 400
    x, (al, sg) = rand(5, 1), tables(sch, 400)

    def log_p(x_t, _):
        return mix.log_prob(x_t, al, sg, torch.zeros(len(x_t)).long()) - mix.log_prob(x_t, al, sg)
    got = pull(mix.denoise(sch), sch, log_p, 1.)(x, t, None)
    near(got, mix.denoise(sch)(x, t, Cond(label=torch.zeros(5).long())), 1e-8)
    h, w = 1e-5, 2.5
    slope = (log_p(x + h, t) - log_p(x - h, t))[:, None] / (2 * h)
    near(pull(mix.denoise(sch), sch, log_p, w)(x, t, None), mix.denoise(sch)(x, t, None) - w * sg * slope, 1e-6)


def test_cfg():
    def denoise(x_t, t, cond):
        return x_t * cond.extra["k"].view(-1, 1)
    x, null, cond = rand(3, 4), Cond(extra={"k": torch.tensor([2.])}), Cond(extra={"k": torch.tensor([5., 7., 11.])})
    for scale in (0., 1., 3.):
        want = [[2 * v + scale * (k * v - 2 * v) for v in row] for k, row in zip((5, 7, 11), x.tolist())]
        near(cfg(denoise, null, scale)(x, 500, cond), torch.tensor(want, dtype=torch.float64))


def test_ilvr_exchange():
    x, y, N = rand(1, 2, 4, 4), rand(1, 2, 4, 4, seed=1), 2
    got = refine(x, y, N)
    for c, i, j in product(range(2), range(4), range(4)):
        block = (0, c, slice(i // N * N, i // N * N + N), slice(j // N * N, j // N * N + N))
        near(got[0, c, i, j], x[0, c, i, j] - x[block].mean() + y[block].mean())
        near(got[block].mean(), y[block].mean())
