"""DDIM inversion: the noise from which a picture would have been drawn.

Jiaming Song, Chenlin Meng, Stefano Ermon, "Denoising Diffusion Implicit Models", 2020,
arXiv 2010.02502; as an encoder: Prafulla Dhariwal, Alex Nichol, 2021, arXiv 2105.05233.

Sampling with eta = 0 solves an ordinary differential equation, and such an equation can be run
backwards. The exact inverse of a step is implicit, since its eps belongs to a state that is not
known yet. The explicit form takes eps at the state that is known:

    x_t = (x_s - B eps(x_s, t)) / A    the network sees the lower state and the HIGHER time
    A   = alpha_s / alpha_t,  B = sigma_s - A sigma_t

Try: 10, 50, 200 steps (the round trip's error falls as 1 / steps); `fixed_point=3`; replaying with
guidance 5, which breaks it (the loss null-text inversion was invented for).

Weakness: the error of the explicit form, worst in few steps. `fixed_point` iterates the implicit
equation instead, x <- (x_s - B eps(x, t)) / A, and keeps an iterate only while the residual falls:
it is not a contraction at every step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, sample, step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe


@dataclass(frozen=True)
class Inverted:
    """A picture's way to noise, and what makes guided sampling
    follow it back: what an inversion hands to an edit.

    states  [clean, ..., noise], (b c h w) each
    nulls   what guidance compares with, one Cond per step from the noise on; None: the empty prompt
    share   None: nothing more. Else sources are put back on `states` after every step, and edits
            get that share of the
            same offset: 0 is direct inversion, 1 the closed form of null-text inversion
            (editing/real_pictures.py)
    eta     of the moves: 0 are DDIM's; 1 are those of ancestral sampling without their noise, which
            is then the offset, as in edit-friendly inversion
    """

    states: list[Tensor]
    nulls: list[Cond] | None = None
    share: float | None = None
    eta: float = 0.0

    def follow(self, x: Tensor, i: int) -> Tensor:
        """Rows [sources, edits] (2b c h w) after step i, corrected."""
        if self.share is None:
            return x
        return follow(x, self.states[-2 - i], self.share)


def follow(x: Tensor, goal: Tensor, share: float) -> Tensor:
    """Rows x = [sources, edits] (2b c h w) after a move: sources go to `goal` (b c h w), edits by
    the share of the same offset.
    """
    source, edit = x.chunk(2)
    return torch.cat([goal, edit + share * (goal - source)])


def invert_step(
    denoise: Denoise,
    sch: Schedule,
    x_s: Tensor,
    s: int,
    t: int,
    cond: Cond | None,
    fixed_point: int = 0,
) -> Tensor:
    """One move up, from x_s at time s to time t > s. The
    network is asked about t only: never about 0, unknown to it.
    """

    def up(x):
        return ddim_step(sch, x_s, denoise(x, t, cond), s, t)

    y = up(x_s)  # the explicit form
    best = float("inf")
    for _ in range(fixed_point):
        y2 = up(y)  # the implicit equation once more
        residual = (y2 - y).abs().amax().item()
        if residual >= best:
            break
        y = y2
        best = residual
    return y


@torch.no_grad()
def ddim_invert(
    denoise: Denoise,
    sch: Schedule,
    x0: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 50,
    fixed_point: int = 0,
    spacing: str = "trailing",
    end: int = 0,
    progress: bool = False,
) -> list[Tensor]:
    """All states from clean to noise, (b ..) each: element i is at time i of the rising grid that
    `Schedule.timesteps` lays with `steps`, `spacing` and `end`.
    """
    xs = [x0]
    rising = sch.timesteps(steps, spacing=spacing, end=end)[::-1]
    for s, t in step_pairs(rising, progress):
        xs.append(invert_step(denoise, sch, xs[-1], s, t, cond, fixed_point))
    return xs


@door
@torch.no_grad()
def invert(
    pipe: Pipe,
    image: Tensor,
    prompt: str = "",
    *,
    steps: int = 50,
    fixed_point: int = 0,
    progress: bool = False,
) -> list[Tensor]:
    """The latents of a picture (b 3 H W) on its way to
    noise: [clean, ..., noise], steps + 1 states (b c h w).

    prompt       what describes the picture; "" is the unconditional model
    fixed_point  iterations of the implicit equation per step, 0 to 3; cost 1 + that many

    There is no guidance on the way up (scale 1). Start any edit from the last state.
    """
    if fixed_point < 0:
        raise ValueError(f"fixed_point={fixed_point}: give 0 (explicit) or a few iterations")
    return ddim_invert(
        pipe.eps,
        pipe.schedule,
        pipe.encode(image),
        pipe.embed(prompt),
        steps=steps,
        fixed_point=fixed_point,
        spacing=pipe.spacing,
        end=pipe.end,
        progress=progress,
    )


@torch.no_grad()
def replay(
    pipe: Pipe,
    x_T: Tensor,
    prompt: str = "",
    *,
    steps: int = 50,
    scale: float = 1.0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W) from inverted noise: with the
    same prompt the round trip, with another one an edit.
    """
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    ts = pipe.timesteps(steps)
    return pipe.decode(
        sample(denoise, pipe.schedule, x_T, ts, pipe.embed(prompt), progress=progress)
    )
