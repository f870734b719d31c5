"""EDICT: exact diffusion inversion via coupled transformations.

Bram Wallace, Akash Gokul, Nikhil Naik, 2022, arXiv 2211.12446.

A DDIM step cannot be undone exactly: its noise was predicted from a state that is gone. EDICT keeps
two states and moves each by the noise predicted from the other. So the state whose noise is needed
is always still there.

    x <- A x + B eps(y, t);    y <- A y + B eps(x, t)    A, B: the DDIM move from t to s;
                                                         in every other step y goes first
    x <- p x + (1 - p) y;      y <- p y + (1 - p) x

Read from the last line to the first, every line can be solved for what it changed: the inverse,
with guidance or without. To edit: up to `strength` with the source prompt, down with the target
prompt.

Try: the same prompt twice, at any scale: the picture comes back to rounding. `p` 1 (no mixing, x
and y drift apart on the way down), .93, .8 (they drift apart on the way up: a factor p^-2 every
step).

Weakness: two networks' work per step, both ways; and exact noise is not yet a good start for an
edit, for at a high scale it is far from Gaussian. Exactness needs states in float64, not the
network: a float32 network asked twice the same thing answers twice the same. So only the states are
kept in float64 here, and the edit costs no more than in float32.
"""

import warnings
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe


def doubled(pipe: Pipe, scale: float) -> Denoise:
    """The guided denoiser for states in float64 on
    the CPU; the network stays what and where it is.
    """
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    return lambda x_t, t, cond: denoise(x_t.to(pipe.device, pipe.dtype), t, cond).to(
        "cpu", torch.float64
    )


def down(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    y: Tensor,
    t: int,
    s: int,
    cond: Cond | None,
    p: float,
    swap: bool,
) -> tuple[Tensor, Tensor]:
    """One coupled step from time t to s < t; `swap`: y is moved first."""
    x, y = (y, x) if swap else (x, y)
    x = ddim_step(sch, x, denoise(y, t, cond), t, s)  # the coupled moves
    y = ddim_step(sch, y, denoise(x, t, cond), t, s)
    x, y = (y, x) if swap else (x, y)
    x = p * x + (1 - p) * y  # the mixing, one after the other
    return x, p * y + (1 - p) * x


def up(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    y: Tensor,
    s: int,
    t: int,
    cond: Cond | None,
    p: float,
    swap: bool,
) -> tuple[Tensor, Tensor]:
    """What undoes `down`: from time s to t > s, its lines in reverse order."""
    y = (y - (1 - p) * x) / p
    x = (x - (1 - p) * y) / p
    x, y = (y, x) if swap else (x, y)
    y = ddim_step(sch, y, denoise(x, t, cond), s, t)
    x = ddim_step(sch, x, denoise(y, t, cond), s, t)
    return (y, x) if swap else (x, y)


@torch.no_grad()
def edict_invert(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    y: Tensor,
    ts: list[int],
    cond: Cond | None = None,
    *,
    p: float = 0.93,
    leapfrog: bool = True,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The pair (x, y) at ts[0] from which `edict_sample` leads to the given one at ts[-1]; ts
    falls, states in float64.
    """
    steps = list(enumerate(pairwise(ts)))  # parity counts from the noise
    for i, (t, s) in tqdm(steps[::-1], leave=False, disable=not progress):
        x, y = up(denoise, sch, x, y, s, t, cond, p, leapfrog and i % 2 == 1)
    return x, y


@torch.no_grad()
def edict_sample(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    y: Tensor,
    ts: list[int],
    cond: Cond | None = None,
    *,
    p: float = 0.93,
    leapfrog: bool = True,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The pair (x, y) at ts[-1] from the one at ts[0]."""
    for i, (t, s) in enumerate(tqdm(list(pairwise(ts)), leave=False, disable=not progress)):
        x, y = down(denoise, sch, x, y, t, s, cond, p, leapfrog and i % 2 == 1)
    return x, y


@door
def edict(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    strength: float = 0.7,
    p: float = 0.93,
    leapfrog: bool = True,
    steps: int = 50,
    scale: float | None = None,
    progress: bool = False,
) -> Tensor:
    """Edit pictures `image` (b 3 H W) from what `source`
    says to what `target` says; returns (b 3 H W).

    strength  share of the steps that is undone and run again: 0 returns the autoencoder's copy
    p         weight of a state against its twin when they are mixed; 1 is no mixing
    leapfrog  take turns in which state moves first
    scale     guidance, the same both ways; default: the model's own

    Identical prompts give the autoencoder's copy, to rounding. ValueError: strength outside 0..1, p
    outside (0, 1].
    """
    ts = pipe.timesteps(steps, strength)
    if not 0 < p <= 1:
        raise ValueError(
            f"p={p}: a weight above 0 and at most 1 was expected; .93 is usual, 1 is no mixing"
        )
    if (apart := p ** (-2 * (len(ts) - 1))) > 1e4:
        warnings.warn(
            f"p={p} over {len(ts) - 1} steps drives the two states apart, by a factor of up to "
            f"{apart:.0e}: the inverse stays exact, but no edit starts well from there; raise p",
            stacklevel=2,
        )
    z = pipe.encode(image).to("cpu", torch.float64)
    denoise = doubled(pipe, scale)
    run = dict(p=p, leapfrog=leapfrog, progress=progress)
    x, y = edict_invert(denoise, pipe.schedule, z, z, ts, pipe.embed(source), **run)
    x, y = edict_sample(denoise, pipe.schedule, x, y, ts, pipe.embed(target), **run)
    return pipe.decode(x.to(pipe.device, pipe.dtype))
