"""Inversion."""
from itertools import pairwise

import torch
from by_hand import by_rows, near, rand, tables, words

from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.inversion.ddim import Inverted, invert_step
from minidiff.inversion.edict import down as edict_down
from minidiff.inversion.edict import up as edict_up
from minidiff.inversion.edit_friendly import noise_maps, replay_maps, scattered


def test_inversion_step():
    """Iterated, `invert_step` ends at the x_t that solves the equation; not iterated, eps is of x_s at time t."""
    sch, x_s, s, t, c = schedule.linear(), rand(2, 6), 480, 500, words(.3, .7)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    near(invert_step(by_rows, sch, x_s, s, t, c), (x_s - B * by_rows(x_s, t, c)) / A)
    x_t = invert_step(by_rows, sch, x_s, s, t, c, fixed_point=60)
    near(x_t, (x_s - B * by_rows(x_t, t, c)) / A)
    near(P.ddim_step(sch, x_t, by_rows(x_t, t, c), t, s), x_s)             # which is: a step down returns


def guided_landing(w=3.):
    """A guided DDIM move and the state of an inversion that it should have reached."""
    sch, t, s = schedule.linear(), 500, 480
    goal, c, null = rand(1, 6), words(.3), words(0.)
    z_t = invert_step(by_rows, sch, goal, s, t, c, fixed_point=60)
    e_c, e_null = by_rows(z_t, t, c), by_rows(z_t, t, null)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    return sch, t, s, goal, z_t, e_c, e_null, A, B, w


def test_closed_form_null():
    sch, t, s, goal, z_t, e_c, _, A, B, w = guided_landing()
    u = ((goal - A * z_t) / B - w * e_c) / (1 - w)                         # eps* from the first equation
    near(P.ddim_step(sch, z_t, u + w * (e_c - u), t, s), goal, 1e-8)


def test_closed_form_offset():
    """The share of the null's change that an edit row gets is the share of d that `Inverted.follow` gives it."""
    sch, t, s, goal, z_t, e_c, e_null, A, B, w = guided_landing()
    u = ((goal - A * z_t) / B - w * e_c) / (1 - w)
    source, edit = P.ddim_step(sch, z_t, e_null + w * (e_c - e_null), t, s), rand(1, 6, seed=5)
    for g in (0., .3, 1.):
        left = (1 - w) * B * g * (u - e_null)
        near(left, g * (goal - source), 1e-8)
        near(Inverted([goal, z_t], share=g).follow(torch.cat([source, edit]), 0), torch.cat([goal, edit + left]), 1e-8)


def test_edict_step():
    sch, t, s, c, p = schedule.linear(), 500, 480, words(.3), .9
    x0, y0 = rand(1, 6), rand(1, 6, seed=1)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    x = A * x0 + B * by_rows(y0, t, c)
    y = A * y0 + B * by_rows(x, t, c)
    x = p * x + (1 - p) * y
    y = p * y + (1 - p) * x
    got = edict_down(by_rows, sch, x0, y0, t, s, c, p, False)
    near(torch.cat(got), torch.cat([x, y]))
    near(torch.cat(edict_up(by_rows, sch, *got, s, t, c, p, False)), torch.cat([x0, y0]))


def test_edit_friendly_maps():
    sch, ts, x0 = schedule.linear(), [800, 500, 200, 0], rand(1, 6)
    xs, said, wanted = scattered(sch, x0, ts, seed=1), words(.3), words(1.1)

    def mu(x, t, s, c):
        al_s, sg_s, al, sg = tables(sch, s, t)
        var = sg ** 2 - (al / al_s * sg_s) ** 2
        return al / al_s * sg_s ** 2 / sg ** 2 * x + al_s * var / sg ** 2 * (x - sg * by_rows(x, t, c)) / al
    noises_ = [(x - sch.alpha[t] * x0) / sch.sigma[t] for x, t in zip(xs, ts[:-1])]
    assert all((a - b).abs().max() > .1 for a, b in pairwise(noises_))     # one noise each
    maps, x = noise_maps(by_rows, sch, xs, ts, said), xs[0]
    for r, x_t, x_s, t, s in zip(maps, xs, xs[1:], ts, ts[1:]):
        near(r, x_s - mu(x_t, t, s, said), 1e-8)
        x = mu(x, t, s, wanted) + r
    near(replay_maps(by_rows, sch, xs[0], maps, ts, wanted), x, 1e-8)


def test_edit_friendly_variance():
    """With a model that knows x0: k from the mean's own weights, and the variance of many maps."""
    sch, t, s, x0 = schedule.linear(), 500, 450, .4
    al_s, sg_s, al, sg = tables(sch, s, t)
    k = al / al_s * sg_s ** 2 / sg
    n_t, n_s = rand(40000, 1), rand(40000, 1, seed=1)
    x_t, x_s = al * x0 + sg * n_t, al_s * x0 + sg_s * n_s
    r = noise_maps(lambda x, t, c: n_t, sch, [x_t, x_s], [t, s])[0]
    near(r, sg_s * n_s - k * n_t, 1e-8)
    near(P.posterior(sch, x_t, x_t, t, s)[1], sg_s ** 2 - k ** 2)           # where a sampler has the difference
    assert abs(r.var() / (sg_s ** 2 + k ** 2) - 1) < .03
