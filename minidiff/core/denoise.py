"""Denoisers and the one loop that runs them.

A `Denoise` is any callable (x_t, t, cond) -> eps_hat. A pipe's `eps`, an exact mixture, a guided or
counted version of either: all look alike, so guidance is a function from Denoise to Denoise, and
guidances stack. A method that changes the loop writes its own: the three lines of `sample` are the
pattern, not a framework.

Picture i of a batch owns one random stream, seeded with seed + i on the CPU. Its first draw is the
starting noise (`noise`), the later ones are the noises of the steps (`noises`). So the noise of a
picture depends on its own seed only, bit for bit: not on the batch it is drawn in, not on the
device it is for. The picture made of it is the same to rounding; tutorials/seeds.md has the
figures, and says that seeds 2**32 apart are one seed.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from minidiff.core.cond import Cond
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule


class Denoise(Protocol):
    def __call__(self, x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        """The noise in x_t (b ..). t: an index of the
        schedule, one int for all rows or a LongTensor (b,).
        """


Step = Callable[..., Tensor]  # (sch, x_t, eps, t, s) -> x_s


def step_pairs(ts: list[int], progress: bool = False) -> Iterator[tuple[int, int]]:
    """The pairs (t, s) of a list of times, with a progress bar if asked."""
    return tqdm(list(pairwise(ts)), leave=False) if progress else pairwise(ts)


@torch.no_grad()
def sample(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    ts: list[int],
    cond: Cond | None = None,
    step: Step = ddim_step,
    progress: bool = False,
) -> Tensor:
    """Carry x from time ts[0] to ts[-1]; `step` is (sch, x_t, eps, t, s) -> x_s. No gradients.

    Rising times invert; eps is then taken at the cleaner end of every move, which only an exact
    denoiser knows at 0.
    """
    for t, s in step_pairs(ts, progress):
        x = step(sch, x, denoise(x, t, cond), t, s)
    return x


@torch.no_grad()
def trace(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    ts: list[int],
    cond: Cond | None = None,
    step: Step = ddim_step,
    progress: bool = False,
) -> list[Tensor]:
    """As `sample`, but every state on the way: element i is at time ts[i]."""
    xs = [x]
    for t, s in step_pairs(ts, progress):
        xs.append(step(sch, xs[-1], denoise(xs[-1], t, cond), t, s))
    return xs


class Counted:
    """A denoiser that counts its evaluations in `nfe`: one
    per row, as papers count (a guided picture costs two).
    """

    def __init__(self, denoise: Denoise):
        self.denoise = denoise
        self.nfe = 0

    def __call__(self, x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        self.nfe += len(x_t)
        return self.denoise(x_t, t, cond)


def _streams(b: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(b)]


def _draw(
    shape: Sequence[int],
    streams: list[torch.Generator],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    if len(streams) == 1:  # the same numbers, without a copy
        drawn = torch.randn((1, *shape), generator=streams[0])
    else:
        drawn = torch.stack([torch.randn(shape, generator=g) for g in streams])
    return drawn.to(device=device, dtype=dtype)


def noise(
    shape: Sequence[int],
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Unit Gaussian of that shape; row i depends on seed
    + i alone (drawn in float32 on the CPU, then cast).
    """
    return _draw(tuple(shape[1:]), _streams(shape[0], seed), device, dtype)


def noises(like: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """Endless unit Gaussians shaped like `like`, independent
    of `noise(like.shape, seed)` and of each other.
    """
    streams = _streams(len(like), seed)
    # the first draw of each stream was the starting noise
    _draw(like.shape[1:], streams, None, None)
    while True:
        yield _draw(like.shape[1:], streams, like.device, like.dtype)
