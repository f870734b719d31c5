"""Editing by what is noised, mixed in and held: whole pictures and masks."""
from types import SimpleNamespace

import torch
from by_hand import by_rows, near, rand, tables, words

import minidiff
from minidiff.core import process as P
from minidiff.core import schedule
from minidiff.editing.delta_denoising import score_gradient
from minidiff.editing.diffedit import difference, threshold_mask
from minidiff.editing.sdedit import sdedit


def test_sdedit_start():
    """What the network is shown first: the picture's latents, noised to the time that `strength` says."""
    pipe, seen = minidiff.build("tiny", seed=0), []
    net = pipe.net.forward
    pipe.net.forward = lambda x, t, cond: seen.append((x, t)) or net(x, t, cond)
    image = rand(1, 3, 64, 64).clamp(-1, 1).float()
    sdedit(pipe, image, "a red circle on a blue background", strength=.5, steps=4, scale=1., seed=3)
    t0 = pipe.schedule.timesteps(4, spacing=pipe.spacing)[2]
    z, n = pipe.encode(image), torch.randn(pipe.shape, generator=torch.Generator().manual_seed(3))
    near(seen[0][0][0], pipe.schedule.alpha[t0].item() * z[0] + pipe.schedule.sigma[t0].item() * n, 1e-5)
    assert len(seen) == 2 and seen[0][1].item() == t0 - 1


def test_diffedit_mask():
    pipe = SimpleNamespace(schedule=schedule.linear(), eps=by_rows, embed=lambda p: words(float(p)))
    z, total = rand(1, 2, 4, 4), 0.
    g = torch.Generator().manual_seed(7)
    torch.randn(2, 4, 4, generator=g)                                      # a stream's first draw is for a start
    for _ in range(3):
        z_t = P.q_sample(pipe.schedule, z, 500, torch.randn(2, 4, 4, generator=g)[None])
        total = total + (by_rows(z_t, 500, words(1.1)) - by_rows(z_t, 500, words(.3))).abs().sum(1, keepdim=True) / 2
    near(difference(pipe, z, ".3", "1.1", level=.5, samples=3, seed=7), total / 3, 1e-6)
    d, theta = rand(3, 1, 4, 4).abs() ** 3, .5
    got = threshold_mask(d, theta)
    for row, m in zip(d, got):
        mean = sum(row.flatten().tolist()) / 16
        near(m.flatten(), torch.tensor([float(min(v, 3 * mean) / (3 * mean) > theta) for v in row.flatten().tolist()]))
    assert 0 < got.mean() < 1


def test_delta_denoising():
    pipe = SimpleNamespace(schedule=schedule.linear())
    z, z0, n, t = rand(1, 2, 4, 4), rand(1, 2, 4, 4, seed=1), rand(1, 2, 4, 4, seed=2), torch.tensor([400])
    al, sg = tables(pipe.schedule, 400)
    shown = lambda x, c: by_rows(al * x + sg * n, 400, c)  # noqa: E731
    y, y0 = words(1.1), words(.3)
    run = lambda given: score_gradient(lambda x, t, c: by_rows(x, 400, c), pipe, z, z0, y, given, t, n)    # noqa: E731
    near(run(None), al * sg * (shown(z, y) - n), 1e-8)
    near(run(y0), al * sg * (shown(z, y) - shown(z0, y0)), 1e-8)
