"""Inversion."""

from itertools import pairwise

import torch
from by_hand import (
    Descent,
    by_rows,
    guided,
    move,
    near,
    picture,
    rand,
    slope,
    small,
    tables,
    weight_slope,
    words,
)

from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.inversion.ddim import Inverted, invert, invert_step
from minidiff.inversion.edict import down as edict_down
from minidiff.inversion.edict import up as edict_up
from minidiff.inversion.edit_friendly import noise_maps, replay_maps, scattered
from minidiff.inversion.null_text import learn_null
from minidiff.inversion.pivotal_tuning import BANK, Near, leading, tune


def test_inversion_step():
    """Iterated, `invert_step` ends at the x_t that solves the equation; not iterated, eps is of x_s
    at time t.
    """
    sch, x_s, s, t, c = schedule.linear(), rand(2, 6), 480, 500, words(0.3, 0.7)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    near(invert_step(by_rows, sch, x_s, s, t, c), (x_s - B * by_rows(x_s, t, c)) / A)
    x_t = invert_step(by_rows, sch, x_s, s, t, c, fixed_point=60)
    near(x_t, (x_s - B * by_rows(x_t, t, c)) / A)
    near(P.ddim_step(sch, x_t, by_rows(x_t, t, c), t, s), x_s)  # which is: a step down returns


def guided_landing(w=3.0):
    """A guided DDIM move and the state of an inversion that it should have reached."""
    sch, t, s = schedule.linear(), 500, 480
    goal, c, null = rand(1, 6), words(0.3), words(0.0)
    z_t = invert_step(by_rows, sch, goal, s, t, c, fixed_point=60)
    e_c, e_null = by_rows(z_t, t, c), by_rows(z_t, t, null)
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg
    return sch, t, s, goal, z_t, e_c, e_null, A, B, w


def test_closed_form_null():
    sch, t, s, goal, z_t, e_c, _, A, B, w = guided_landing()
    u = ((goal - A * z_t) / B - w * e_c) / (1 - w)  # eps* from the first equation
    near(P.ddim_step(sch, z_t, u + w * (e_c - u), t, s), goal, 1e-8)


def test_closed_form_offset():
    """The share of the null's change that an edit row gets is the share of d that `Inverted.follow`
    gives it.
    """
    sch, t, s, goal, z_t, e_c, e_null, A, B, w = guided_landing()
    u = ((goal - A * z_t) / B - w * e_c) / (1 - w)
    source, edit = P.ddim_step(sch, z_t, e_null + w * (e_c - e_null), t, s), rand(1, 6, seed=5)
    for g in (0.0, 0.3, 1.0):
        left = (1 - w) * B * g * (u - e_null)
        near(left, g * (goal - source), 1e-8)
        near(
            Inverted([goal, z_t], share=g).follow(torch.cat([source, edit]), 0),
            torch.cat([goal, edit + left]),
            1e-8,
        )


def test_edict_step():
    sch, t, s, c, p = schedule.linear(), 500, 480, words(0.3), 0.9
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
    xs, said, wanted = scattered(sch, x0, ts, seed=1), words(0.3), words(1.1)

    def mu(x, t, s, c):
        al_s, sg_s, al, sg = tables(sch, s, t)
        var = sg**2 - (al / al_s * sg_s) ** 2
        return (
            al / al_s * sg_s**2 / sg**2 * x + al_s * var / sg**2 * (x - sg * by_rows(x, t, c)) / al
        )

    noises_ = [(x - sch.alpha[t] * x0) / sch.sigma[t] for x, t in zip(xs, ts[:-1])]
    assert all((a - b).abs().max() > 0.1 for a, b in pairwise(noises_))  # one noise each
    maps, x = noise_maps(by_rows, sch, xs, ts, said), xs[0]
    for r, x_t, x_s, t, s in zip(maps, xs, xs[1:], ts, ts[1:]):
        near(r, x_s - mu(x_t, t, s, said), 1e-8)
        x = mu(x, t, s, wanted) + r
    near(replay_maps(by_rows, sch, xs[0], maps, ts, wanted), x, 1e-8)


def test_edit_friendly_variance():
    """With a model that knows x0: k from the mean's own weights, and the variance of many maps."""
    sch, t, s, x0 = schedule.linear(), 500, 450, 0.4
    al_s, sg_s, al, sg = tables(sch, s, t)
    k = al / al_s * sg_s**2 / sg
    n_t, n_s = rand(40000, 1), rand(40000, 1, seed=1)
    x_t, x_s = al * x0 + sg * n_t, al_s * x0 + sg_s * n_s
    r = noise_maps(lambda x, t, c: n_t, sch, [x_t, x_s], [t, s])[0]
    near(r, sg_s * n_s - k * n_t, 1e-8)
    # where a sampler has the difference
    near(P.posterior(sch, x_t, x_t, t, s)[1], sg_s**2 - k**2)
    assert abs(r.var() / (sg_s**2 + k**2) - 1) < 0.03


def test_null_text(monkeypatch):
    """In place of Adam one plain step down the distance, which a difference foretells; and what it
    ends in.
    """
    monkeypatch.setattr(torch.optim, "Adam", Descent)
    pipe, x, goal, w, lr = small(), rand(1, 3, 4, 4), rand(1, 3, 4, 4, seed=1), 3.0, 1.0
    sch, t, s, cond, null = pipe.schedule, 500, 400, pipe.embed("a red circle"), pipe.null().text
    al_s, sg_s, al, sg = tables(sch, s, t)
    A = al_s / al
    B = sg_s - A * sg

    def landed(null):
        e, e_c = (pipe.eps(x, t, c).detach() for c in (Cond(text=null), cond))
        return A * x + B * (e + w * (e_c - e))

    def distance(null):
        return sum(v * v for v in (landed(null) - goal).flatten().tolist()) / 48

    want = null - lr * slope(distance, null)
    got, land, errors = learn_null(
        pipe, x, goal, t, s, cond, null, scale=w, inner=1, lr=lr, enough=0.0
    )
    near(got, want, 1e-6)
    near(land, landed(want), 1e-6)
    near(errors[:, 0], [distance(null), distance(want)], 1e-6)
    assert distance(want) < distance(null) - 1e-4


def test_pivotal_tuning(monkeypatch):
    """The noise that leads from state to state; then two plain steps down L, foretold by
    differences.
    """
    sch = schedule.cosine()
    x_t, x_s, t, s = (
        rand(2, 3, 4, 4),
        rand(2, 3, 4, 4, seed=1),
        torch.tensor([600, 300]),
        torch.tensor([500, 100]),
    )
    found = leading(sch, x_t, x_s, t, s)
    for i in range(2):
        near(move(sch, x_t[i], found[i], t[i].item(), s[i].item()), x_s[i], 1e-8)

    monkeypatch.setattr(torch.optim, "Adam", Descent)
    pipe, image, prompt, w, lam, lr, reach, seed = (
        small(),
        picture(),
        "a red circle",
        3.0,
        5.0,
        0.1,
        2.0,
        1,
    )
    states, cond, g = (
        invert(pipe, image, prompt, steps=4),
        pipe.embed(prompt),
        torch.Generator().manual_seed(seed),
    )
    weight, ts = pipe.net.attn2.to_k.weight, [1000, 750, 500, 250, 0]
    others = Near(
        pipe, states[0], cond, reach, noise((BANK, 3, 4, 4), seed, dtype=torch.float64), g
    )
    near((others.text - cond.text).flatten(1).norm(dim=1), torch.full((BANK,), reach), 1e-6)
    untuned, losses, want = weight.data, [], weight.data

    def said(at, k):
        weight.data = at
        return [
            pipe.eps(others.x[j : j + 1], others.t[j], Cond(text=others.text[j : j + 1])).detach()
            for j in k
        ]

    for _ in range(2):
        rows = [int((k + v) * 4 / 5) for k, v in enumerate(torch.rand(5, generator=g).tolist())]
        k = torch.randperm(BANK, generator=g)[:5]
        before = said(untuned, k)
        weight.data = want

        def terms(rows=rows, k=k, before=before):
            pivot = 0.0
            for i in rows:
                z_t, z_s, (al_s, sg_s, al, sg) = (
                    states[-1 - i],
                    states[-2 - i],
                    tables(pipe.schedule, ts[i + 1], ts[i]),
                )
                A = al_s / al
                eps = (z_s - A * z_t) / (sg_s - A * sg)
                pivot += (guided(pipe, z_t, ts[i], cond, w) - eps).square().mean().item() / 5
            kept = (
                sum((a - b).square().mean().item() for a, b in zip(said(weight.data, k), before))
                / 5
            )
            return pivot, kept

        losses.append(terms())
        want = weight.data - lr * weight_slope(lambda: terms()[0] + lam * terms()[1], weight)
    weight.data = untuned
    got = tune(
        pipe,
        [weight],
        states,
        prompt,
        updates=2,
        lr=lr,
        locality=lam,
        reach=reach,
        scale=w,
        seed=seed,
    )
    near(got, losses, 1e-6)
    near(weight, want, 1e-6)
    assert losses[0][1] == 0 < losses[1][1] and (want - untuned).abs().max() > 0.01
