"""Editing by tuning: in place of Adam one plain step, which a difference of the loss foretells."""

from itertools import pairwise
from math import ceil, log

import torch
import torch.nn.functional as F
from by_hand import Descent, Judge, guided, move, near, noised, picture, slope, small, weight_slope

from minidiff.core.cond import Cond
from minidiff.core.denoise import noise, noises
from minidiff.editing.diffusion_clip import clip_loss, invert_to, tune
from minidiff.editing.imagic import learned
from minidiff.editing.unitune import unitune

SOURCE, TARGET = "a red circle", "a green star"


def sampled(pipe, x, ts, cond, w):
    for t, s in pairwise(ts):
        x = move(pipe.schedule, x, guided(pipe, x, t, cond, w), t, s)
    return x


def test_diffusion_clip_loss(monkeypatch):
    monkeypatch.setattr(torch.optim, "Adam", Descent)
    pipe, judge, image, (lam, mu), lr = small(), Judge(), picture(2), (3.0, 0.8), 0.05
    ids = [pipe.tokenizer(p) for p in (SOURCE, TARGET)]
    way = (judge.embed_text(ids[1]) - judge.embed_text(ids[0]))[0].detach()
    out = picture(2, seed=5)

    def likeness(new, old):
        moved = judge.embed_image(new[None])[0] - judge.embed_image(old[None])[0]
        return ((moved @ way) / (moved.norm() * way.norm())).item()

    near(
        clip_loss(judge, out, judge.embed_image(image), F.normalize(way, dim=0)[None]),
        [-log((1 + likeness(a, b)) / 2) for a, b in zip(out, image)],
        1e-8,
    )

    def loss():
        z = x
        for t, s in ((800, 400), (400, 0)):
            z = move(pipe.schedule, z, pipe.eps(z, t, cond).detach(), t, s)
        each = [
            -lam * log((1 + likeness(a, b)) / 2)
            + mu * sum(map(abs, (a - b).flatten().tolist())) / 48
            for a, b in zip(pipe.vae.to_image(z), image)
        ]
        return sum(each) / 2

    cond, w = pipe.embed(SOURCE).expand(2), pipe.net.attn2.to_k.weight
    x = invert_to(pipe, image, cond, pipe.schedule.timesteps(25, start=800, spacing="trailing"))
    want = w.data - lr * weight_slope(loss, w)
    run = dict(clip=lam, keep=mu, weights="to_k", judge=judge)
    style = tune(pipe, image, SOURCE, TARGET, train_steps=2, updates=1, lr=lr, **run)
    near(style["attn2.to_k.weight"], want, 1e-6)
    assert (want - w).abs().max() > 0.01


def lesson(pipe, z, seed, b=8):
    """E |eps(z_t, t, text) - n|^2 as `fit_picture` draws it: one time in each band. A function of
    the text.
    """
    g = torch.Generator().manual_seed(seed)
    n, u = next(noises(z.expand(b, -1, -1, -1), seed)), torch.rand(b, generator=g)
    ts = [ceil(1000 * (k + v) / b) for k, v in enumerate(u.tolist())]
    assert [(t - 1) * b // 1000 for t in ts] == list(range(b))

    def loss(text):
        errors = [
            pipe.eps(noised(pipe.schedule, z, t, e[None]), t, Cond(text=text)) - e
            for t, e in zip(ts, n)
        ]
        return sum(v * v for v in torch.stack(errors).flatten().tolist()) / (48 * b)

    return loss


def test_imagic_stages(monkeypatch):
    """One plain step of stage A on the words, one of stage B on the weights at the words found,
    then the walk.
    """
    monkeypatch.setattr(torch.optim, "Adam", Descent)
    pipe, image, seed = small(), picture(), 5
    w, e_target = pipe.net.attn2.to_k.weight, pipe.embed(TARGET).text
    loss = lesson(pipe, 1.5 * image, seed)
    e_opt = e_target - 20 * slope(loss, e_target)
    tuned = w.data - 0.5 * weight_slope(lambda: loss(e_opt), w)
    with learned(
        pipe,
        image,
        TARGET,
        text_updates=1,
        net_updates=1,
        text_lr=20.0,
        lr=0.5,
        inverted=False,
        steps=2,
        scale=2.0,
        seed=seed,
    ) as walk:
        near(walk.e_opt, e_opt, 1e-6)
        near(w, tuned, 1e-6)
        for eta, got in zip((0.0, 0.3, 1.0), walk([0.0, 0.3, 1.0])):
            cond = Cond(text=walk.e_opt + eta * (e_target - walk.e_opt))
            near(
                got,
                pipe.decode(sampled(pipe, pipe.noise(1, seed), [1000, 500, 0], cond, 2.0))[0],
                1e-8,
            )
    assert (e_opt - e_target).abs().max() > 0.1 and (tuned - w).abs().max() > 0.01


def test_unitune(monkeypatch):
    monkeypatch.setattr(torch.optim, "Adam", Descent)
    pipe, image, seed, lr = small(), picture(), 5, 0.5
    loss, rare = lesson(pipe, 1.5 * image, seed), pipe.embed("<new1>").text
    got = unitune(
        pipe, image, TARGET, updates=1, strength=0.8, lr=lr, steps=5, scale=2.0, seed=seed
    )
    weights = list(pipe.net.parameters())
    tuned = [p.data - lr * weight_slope(lambda: loss(rare), p) for p in weights]
    for p, v in zip(weights, tuned):
        p.data = v
    x = noised(pipe.schedule, 1.5 * image, 800, noise(image.shape, seed, dtype=torch.float64))
    x = sampled(pipe, x, [800, 600, 400, 200, 0], pipe.embed(f"<new1> {TARGET}"), 2.0)
    near(got, pipe.decode(x), 1e-6)
