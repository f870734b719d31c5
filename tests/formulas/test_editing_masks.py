"""Editing by what is noised, mixed in and held: whole pictures and masks."""

from itertools import pairwise, product
from math import acos, sqrt
from types import SimpleNamespace

import torch
from by_hand import (
    Descent,
    Judge,
    by_rows,
    foreseen,
    guided,
    middle,
    move,
    near,
    noised,
    picture,
    rand,
    slope,
    small,
    tables,
    weight_slope,
    words,
)
from torch import nn

import minidiff
from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.core.denoise import noise, noises
from minidiff.editing.blended_diffusion import Wish, _paint, spherical, views
from minidiff.editing.blended_latent import blended_latent, tune_decoder
from minidiff.editing.delta_denoising import score_gradient
from minidiff.editing.diffedit import difference, threshold_mask
from minidiff.editing.inpaint import inpaint
from minidiff.editing.magicmix import ghosting, magicmix
from minidiff.editing.sdedit import sdedit
from minidiff.editing.sige import normalise, sparse_conv, statistics
from minidiff.pipe.masks import to_latent_mask

PROMPT = "a red circle on a blue background"


def test_sdedit_start():
    """What the network is shown first: the picture's latents, noised to the time that `strength`
    says.
    """
    pipe, seen = minidiff.build("tiny", seed=0), []
    net = pipe.net.forward
    pipe.net.forward = lambda x, t, cond: seen.append((x, t)) or net(x, t, cond)
    image = rand(1, 3, 64, 64).clamp(-1, 1).float()
    sdedit(
        pipe, image, "a red circle on a blue background", strength=0.5, steps=4, scale=1.0, seed=3
    )
    t0 = pipe.schedule.timesteps(4, spacing=pipe.spacing)[2]
    z, n = pipe.encode(image), torch.randn(pipe.shape, generator=torch.Generator().manual_seed(3))
    near(
        seen[0][0][0],
        pipe.schedule.alpha[t0].item() * z[0] + pipe.schedule.sigma[t0].item() * n,
        1e-5,
    )
    assert len(seen) == 2 and seen[0][1].item() == t0 - 1


def test_diffedit_mask():
    pipe = SimpleNamespace(schedule=schedule.linear(), eps=by_rows, embed=lambda p: words(float(p)))
    z, total = rand(1, 2, 4, 4), 0.0
    g = torch.Generator().manual_seed(7)
    torch.randn(2, 4, 4, generator=g)  # a stream's first draw is for a start
    for _ in range(3):
        z_t = P.q_sample(pipe.schedule, z, 500, torch.randn(2, 4, 4, generator=g)[None])
        total = (
            total
            + (by_rows(z_t, 500, words(1.1)) - by_rows(z_t, 500, words(0.3)))
            .abs()
            .sum(1, keepdim=True)
            / 2
        )
    near(difference(pipe, z, ".3", "1.1", level=0.5, samples=3, seed=7), total / 3, 1e-6)
    d, theta = rand(3, 1, 4, 4).abs() ** 3, 0.5
    got = threshold_mask(d, theta)
    for row, m in zip(d, got):
        mean = sum(row.flatten().tolist()) / 16
        near(
            m.flatten(),
            torch.tensor(
                [float(min(v, 3 * mean) / (3 * mean) > theta) for v in row.flatten().tolist()]
            ),
        )
    assert 0 < got.mean() < 1


def test_delta_denoising():
    pipe = SimpleNamespace(schedule=schedule.linear())
    z, z0, n, t = (
        rand(1, 2, 4, 4),
        rand(1, 2, 4, 4, seed=1),
        rand(1, 2, 4, 4, seed=2),
        torch.tensor([400]),
    )
    al, sg = tables(pipe.schedule, 400)
    shown = lambda x, c: by_rows(al * x + sg * n, 400, c)  # noqa: E731
    y, y0 = words(1.1), words(0.3)

    def run(given):
        return score_gradient(lambda x, t, c: by_rows(x, 400, c), pipe, z, z0, y, given, t, n)

    near(run(None), al * sg * (shown(z, y) - n), 1e-8)
    near(run(y0), al * sg * (shown(z, y) - shown(z0, y0)), 1e-8)


def walked(pipe, image, ts, w, seed, mend):
    """Latents drawn from the noised picture along ts; `mend(i, s, x, y)`: x after move i, y the
    picture as noisy as x.
    """
    z, n = 1.5 * image, noise(image.shape, seed, dtype=torch.float64)
    x = noised(pipe.schedule, z, ts[0], n)
    for i, (t, s) in enumerate(pairwise(ts)):
        x = move(pipe.schedule, x, guided(pipe, x, t, pipe.embed(PROMPT), w), t, s)
        x = mend(i, s, x, noised(pipe.schedule, z, s, n))
    return x


def test_inpaint_blend():
    pipe, image, mask = small(), picture(2), middle()
    want = walked(
        pipe, image, [800, 600, 400, 200, 0], 2.0, 3, lambda i, s, x, y: torch.where(mask > 0, x, y)
    )
    got = inpaint(
        pipe, image, PROMPT, mask=mask, strength=0.8, steps=5, scale=2.0, seed=3, decode=False
    )
    near(got, want, 1e-8)


def grown(mask, k):
    """By k cells, cell by cell."""
    out = torch.zeros_like(mask)
    for i, j in product(range(4), range(4)):
        out[..., i, j] = max(
            mask[0, 0, a, b]
            for a, b in product(range(4), range(4))
            if max(abs(a - i), abs(b - j)) <= k
        )
    return out


def test_blended_latent(monkeypatch):
    pipe, image, mask = small(), picture(), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., 0, 1] = 1
    sizes = [1, 1, 0, 0]  # of 4 moves the last quarter has none
    want = walked(
        pipe,
        image,
        [800, 600, 400, 200, 0],
        2.0,
        3,
        lambda i, s, x, y: torch.where(grown(mask, sizes[i]) > 0, x, y),
    )
    run = dict(mask=mask, strength=0.8, grow=1, background="none", steps=5, scale=2.0, seed=3)
    near(blended_latent(pipe, image, PROMPT, **run), want / 1.5, 1e-8)

    monkeypatch.setattr(torch.optim, "Adam", Descent)  # two plain steps down the decoder's loss
    pipe.vae.decoder = nn.Conv2d(3, 3, 1, bias=False).double()
    pipe.vae.decoder.weight.data = rand(3, 3, 1, 1) * 0.2
    pipe.vae.decode = lambda u: pipe.vae.decoder(u)
    u, w = rand(1, 3, 4, 4, seed=5) * 0.4, pipe.vae.decoder.weight
    got, kept = (
        tune_decoder(pipe, u * pipe.vae.scale, image, mask, iterations=2, lr=0.02),
        w.data.clone(),
    )
    first = pipe.vae.decoder(u).detach()

    def loss():
        y, inside = pipe.vae.decoder(u), mask.expand_as(u) > 0
        return (((y - first)[inside] ** 2).sum() + 100 * ((y - image)[~inside] ** 2).sum()) / 48

    for _ in range(2):
        w.data = w.data - 0.02 * weight_slope(loss, w)
    near(got, pipe.vae.decoder(u), 1e-6)
    assert (w - kept).abs().max() > 0.05 and got.abs().max() < 1


def test_magicmix_mix():
    pipe, image, nu = small(), picture(2), 0.7
    want = walked(
        pipe,
        image,
        [800, 600, 400, 200, 0],
        2.0,
        3,
        lambda i, s, x, y: nu * x + (1 - nu) * y if s >= 0.4 * 1000 else x,
    )
    near(
        magicmix(pipe, image, PROMPT, kmin=0.4, kmax=0.8, nu=nu, steps=5, scale=2.0, seed=3),
        want / 1.5,
        1e-8,
    )


def test_magicmix_ghosting():
    source, free, out = picture(2, 1), picture(2, 2), picture(2, 3)
    for row, share in (
        (0, 0.4),
        (1, -0.3),
        (2, 1.3),
    ):  # no rest: between the two, and beyond either
        out[:, :, row] = source[:, :, row] + share * (free - source)[:, :, row]
    want, kinds = [], set()
    for s, g, o in zip(source, free, out):
        found = []
        for i, j in product(range(4), range(4)):
            a, b, c = (v[:, i, j].tolist() for v in (s, g, o))
            d = [q - p for p, q in zip(a, b)]
            d2 = sum(v * v for v in d)
            if d2 > 0.6**2:
                share = sum((z - p) * v for z, p, v in zip(c, a, d)) / d2
                r2 = sum((z - p - share * v) ** 2 for z, p, v in zip(c, a, d))
                kinds |= {share < 0, share > 1, 2 + (r2 > d2)}
                cut = min(max(share, 0.0), 1.0)
                found.append(4 * cut * (1 - cut) * max(1 - r2 / d2, 0.0))
        want.append(sum(found) / len(found))
    near(ghosting(out, source, free), want, 1e-9)
    assert kinds == {False, True, 2, 3}
    near(ghosting((source + free) / 2, source, free), torch.ones(2), 1e-9)


def painted(weight, limit, mask):
    """The first move of a run: what the network was asked, and by hand: the loss as a function of
    x_t, and the rest.
    """
    pipe, image, judge, ts, seed = small(), picture(seed=7), Judge(), [700, 500, 300, 0], 3
    said = judge.embed_text(pipe.tokenizer(PROMPT)).detach()
    z = pipe.encode(image)
    wish = Wish(judge, said, mask.to(z), image.to(z), weight, limit, 2)
    _paint(pipe, z, to_latent_mask(mask, pipe), ts, wish, 1, seed, False)
    x_t, x_s = pipe.net.asked[:2]
    al, sg = tables(pipe.schedule, 700)

    def loss(x):
        x0 = (x - sg * pipe.eps(x, 700, pipe.null())) / al
        seen = pipe.vae.to_image(sg * x0 + (1 - sg) * x)
        shown = torch.where(mask > 0, seen, image)
        angles = [
            acos((e * said[0]).sum().item())
            for e in judge.embed_image(views(shown, 2, [torch.Generator().manual_seed(seed)]))
        ]
        beyond = sum(max(abs(v) - 1, 0.0) ** 2 for v in seen.flatten().tolist()) / 48
        return weight * sum(a * a / 2 for a in angles) / 2 + limit * beyond

    return (
        pipe,
        1.5 * image,
        x_t,
        x_s,
        loss,
        noise(x_t.shape, seed, dtype=torch.float64),
        next(noises(x_t, seed)),
    )


def test_blended_diffusion_step():
    mask = middle()
    pipe, z, x_t, x_s, loss, n_back, n = painted(3.0, 2.0, mask)
    sch, (al_s, sg_s, al, sg) = pipe.schedule, tables(pipe.schedule, 500, 700)
    near(x_t, noised(sch, z, 700, n_back))
    eps = pipe.eps(x_t, 700, pipe.null()).detach()
    var = (sg_s / sg) ** 2 * (sg**2 - (al / al_s * sg_s) ** 2)
    mean = al_s * foreseen(sch, x_t, eps, 700) + sqrt(sg_s**2 - var) * eps
    want = torch.where(
        mask > 0, mean - var * slope(loss, x_t) + sqrt(var) * n, noised(sch, z, 500, n_back)
    )
    near(x_s, want, 1e-6)
    assert (var * slope(loss, x_t)).abs().max() > 0.01


def test_blended_diffusion_loss():
    """The distance is half the squared angle; either term alone is what pulls."""
    a, b = (nn.functional.normalize(rand(20, 4, seed=k), dim=1) for k in (1, 2))
    near(spherical(a, b), [acos(v) ** 2 / 2 for v in (a * b).sum(1).tolist()], 1e-9)
    mask, pulls = torch.ones_like(middle()), []
    for weight, limit in ((0.001, 0.0), (3.0, 0.0), (0.001, 5.0)):  # weight 0 asks nobody
        pipe, _, x_t, x_s, loss, _, _ = painted(weight, limit, mask)
        pulls.append((x_s, slope(loss, x_t)))
    al_s, sg_s, al, sg = tables(pipe.schedule, 500, 700)
    var = (sg_s / sg) ** 2 * (sg**2 - (al / al_s * sg_s) ** 2)
    for x_s, g in pulls[1:]:
        near(x_s - pulls[0][0], -var * (g - pulls[0][1]), 1e-6)
        assert (x_s - pulls[0][0]).abs().max() > 1e-3


def test_sige_gather():
    """Convolution by loops: the tiles that touch the mask are new, the others as they were."""
    for stride, size in ((1, (7, 6)), (2, (4, 3))):
        conv, x, kept = (
            nn.Conv2d(2, 3, 3, stride, 1).double(),
            rand(1, 2, 7, 6),
            rand(1, 3, *size, seed=1),
        )
        mask, o = torch.zeros(1, 1, *size, dtype=torch.float64), 2
        mask[0, 0, 2, 1] = 1
        want, w = kept.clone(), conv.weight
        for c, i, j in product(range(3), range(size[0]), range(size[1])):
            if (i // o, j // o) == (2 // o, 1 // o):
                want[0, c, i, j] = conv.bias[c].item() + sum(
                    (w[c, e, a, b] * x[0, e, stride * i + a - 1, stride * j + b - 1]).item()
                    for e, a, b in product(range(2), range(3), range(3))
                    if 0 <= stride * i + a - 1 < 7 and 0 <= stride * j + b - 1 < 6
                )
        got, _ = sparse_conv(conv, x, kept, mask, o)
        near(got, want)
        assert (got != kept).sum() == 12
    norm, first, x = nn.GroupNorm(2, 4).double(), rand(1, 4, 3, 3) * 2 + 1, rand(1, 4, 3, 3, seed=1)
    norm.weight.data, norm.bias.data = rand(4, seed=2), rand(4, seed=3)
    got = normalise(norm, x, *statistics(norm, first))
    for c in range(4):
        mine = first[0, c // 2 * 2 : c // 2 * 2 + 2].flatten().tolist()
        mu = sum(mine) / 18
        sigma = sqrt(sum((v - mu) ** 2 for v in mine) / 18 + norm.eps)
        near(got[0, c], norm.weight[c].item() * (x[0, c] - mu) / sigma + norm.bias[c].item())
