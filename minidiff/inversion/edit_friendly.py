"""An edit-friendly DDPM noise space: inversion of ancestral sampling.

Inbar Huberman-Spiegelglas, Vladimir Kulikov, Tomer Michaeli, 2023, arXiv 2304.06140.

Ancestral sampling adds fresh noise at every step, so a picture can be drawn in countless ways. This
paper chooses one that is good to edit. It noises the picture to every time, each time with a noise
of its own. No sampler would walk from one of these states to the next. But the step between them
can be called noise, and is kept:

    x_t = alpha_t x0 + sigma_t n_t    the n_t are independent
    r_t = x_s - mean(x_t; source)     the noise maps; mean(x_t): where the model expects x_s
    x_s = mean(x_t; target) + r_t     the edit: the same noise under other words

With the same prompt this returns the picture, exactly, step for step. With another prompt the r_t
hold it in place: they are larger than sampling noise and each takes back part of the one before, so
the layout is in all of them.

Try: `strength` .4 to .9; another `seed` gives another edit of the same picture, which an ODE
cannot.

Weakness: how much is held is one number again, `strength`. And usual code divides r_t by the
sampler's deviation, which is 0 in the last step, and loses what the model cannot draw; r_t itself
needs no division, and the replay is exact to the end.
"""

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noises, step_pairs
from minidiff.core.process import eps_to_x0, posterior, q_sample
from minidiff.core.schedule import Schedule
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe


def scattered(sch: Schedule, x0: Tensor, ts: list[int], seed: int = 0) -> list[Tensor]:
    """The picture x0 (b ..) noised to every time of ts but
    the last, each with its own noise; the last state is x0.
    """
    return [q_sample(sch, x0, t, n) for t, n in zip(ts[:-1], noises(x0, seed))] + [x0]


def mean(sch: Schedule, x_t: Tensor, eps: Tensor, t: int, s: int) -> Tensor:
    """Where ancestral sampling expects x_s, before it adds its noise; `eps` is the network's."""
    expected, _ = posterior(sch, x_t, eps_to_x0(sch, x_t, eps, t), t, s)
    return expected


def noise_map(sch: Schedule, x_t: Tensor, x_s: Tensor, eps: Tensor, t: int, s: int) -> Tensor:
    """r_t of one step: what leads from x_t to x_s, beyond what the model expects."""
    return x_s - mean(sch, x_t, eps, t, s)


@torch.no_grad()
def noise_maps(
    denoise: Denoise,
    sch: Schedule,
    xs: list[Tensor],
    ts: list[int],
    cond: Cond | None = None,
    progress: bool = False,
) -> list[Tensor]:
    """r_t of every step, from each state of `xs` to the next."""
    return [
        noise_map(sch, x, after, denoise(x, t, cond), t, s)
        for x, after, (t, s) in zip(xs, xs[1:], step_pairs(ts, progress))
    ]


@torch.no_grad()
def replay_maps(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    maps: list[Tensor],
    ts: list[int],
    cond: Cond | None = None,
    progress: bool = False,
) -> Tensor:
    """From x at ts[0] to ts[-1] with the noise maps given in place of fresh noise."""
    for r, (t, s) in zip(maps, step_pairs(ts, progress)):
        x = mean(sch, x, denoise(x, t, cond), t, s) + r
    return x


@door
def edit_friendly(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    strength: float = 0.64,
    source_scale: float | None = None,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Edit pictures `image` (b 3 H W) from what `source`
    says to what `target` says; returns (b 3 H W).

    strength      share of the steps whose noise is kept and replayed: 0 returns the autoencoder's
                  copy
    source_scale  guidance while the noise is read off, by default the model's own; less than
                  `scale` strengthens all that is said, size too
    scale         guidance of the edit; default: the model's own

    Identical prompts give the autoencoder's copy, to rounding, if the two scales are equal.
    ValueError: strength outside 0..1, a negative scale.
    """
    ts = pipe.timesteps(steps, strength)
    sch = pipe.schedule
    z = pipe.encode(image)
    known, wanted = (cfg_batched(pipe.eps, pipe.null(), w) for w in (source_scale, scale))
    xs = scattered(sch, z, ts, seed)
    maps = noise_maps(known, sch, xs, ts, pipe.embed(source), progress)
    return pipe.decode(replay_maps(wanted, sch, xs[0], maps, ts, pipe.embed(target), progress))
