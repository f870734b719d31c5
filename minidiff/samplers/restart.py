"""Restart: noise that forgets errors, in a few large portions, between steps that make few.

Restart Sampling for Improving Generative Processes, Yilun Xu, Mingyang Deng, Xiang Cheng, Yonglong
Tian, Ziming Liu, Tommi Jaakkola, 2023, arXiv 2306.14878.

A sampler without noise makes small errors and keeps all of them. One with noise at every step
forgets them, and makes larger ones, since noise and long steps do not go together. Restart
separates the two. It samples without noise down to a low level. Then, K times: as much noise as
leads back to a high level in one go, and down again without noise. What two states had in common
with their errors is drowned in the same way as the errors; the way down pulls both to the data.

    x_high = (a x_low + sqrt(var) z)    one jump of the forward process, `renoise`
    x_low  = ODE(x_high, high -> low)   K times, Heun's steps

For Gaussian data of standard deviation c, noise leaves an error of the mean as it is, and the way
down shrinks it (levels are sigma / alpha): by sqrt((c^2 + low^2) / (c^2 + high^2)), each time.

Try: `Interval(0.1, 2, steps=10, times=K)` for K from 0 to 4; an interval where the network is bad,
and one where it is good.

Weakness: two evaluations for each of its steps, and where to restart is a choice for each model. It
forgets what came before the interval, never what the network says inside it: with a network that is
wrong below `high`, every restart repeats the error. RePaint's jumps (restoration/repaint.py) are
restarts with a mask.

A level is not always a time. `low` is moved to the nearest time of the grid, where the walk is
interrupted, `high` to the nearest of the tables. Intervals are a list, so two may begin at one time
(in a table keyed by that time, the second would replace the first).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noises, step_pairs
from minidiff.core.process import renoise
from minidiff.core.schedule import RHO, Schedule, falling, level, nearest
from minidiff.samplers.heun import heun_step


@dataclass(frozen=True)
class Interval:
    """From noise level low up to high (sigma / alpha), and down again in that many steps: `times`
    times.
    """

    low: float = 0.1
    high: float = 2.0
    steps: int = 10
    times: int = 2


def restarted(
    denoise: Denoise, sch: Schedule, x: Tensor, ts: list[int], noise: Tensor, cond: Cond | None
) -> Tensor:
    """One restart of a state at ts[-1]: noised up to ts[0], and back along the falling times ts."""
    x = renoise(sch, x, ts[-1], ts[0], noise)
    for t, s in pairwise(ts):
        x = heun_step(denoise, sch, x, t, s, cond)
    return x


def descent(sch: Schedule, grid: list[int], interval: Interval) -> list[int]:
    """The falling times of an interval, even in level^(1/7); the last is one of the grid.

    ValueError: levels that are out of order, or nearer to each other than there are steps.
    """
    if not 0 < interval.low < interval.high or interval.steps < 1 or interval.times < 0:
        raise ValueError(f"{interval}: expected 0 < low < high, 1 step or more, 0 times or more")
    noisy = [t for t in grid[1:] if t > 0]
    if not noisy:
        raise ValueError("one step leaves no time to restart from: take 2 steps or more")
    low = min(noisy, key=lambda t: abs(level(sch, t) - interval.low))
    high = nearest(sch, interval.high)
    if high <= low:
        raise ValueError(
            f"{interval}: its low end is moved to time {low}, the nearest of the grid, and that is "
            f"above its high end, time {high}: take more steps, or a wider interval"
        )
    if high - low < interval.steps:
        raise ValueError(
            f"{interval}: from time {low}, the nearest of the grid, up to {high} there are "
            f"{high - low} times, fewer than its steps; widen it, or give it fewer"
        )
    top, bottom = (level(sch, t) ** (1 / RHO) for t in (high, low))
    n = interval.steps
    levels = [(top + i / n * (bottom - top)) ** RHO for i in range(n + 1)]
    return falling(sch, levels)


@torch.no_grad()
def restart(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 18,
    spacing: str = "karras",
    start: int | None = None,
    times: Sequence[int] | None = None,
    intervals: Sequence[Interval] = (Interval(),),
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape, in
    2 steps - 1 evaluations and 2 for each step of each restart.

    `steps`, `spacing`, `start` and `times` as in `Schedule.timesteps`; `intervals`: where to start
    again, with noise from `seed`. Raises ValueError for what is out of range.
    """
    ts = sch.timesteps(steps, start, spacing, times=times)
    detours = [(descent(sch, ts, interval), interval.times) for interval in intervals]
    fresh = noises(x, seed)
    for t, s in step_pairs(ts, progress):
        x = heun_step(denoise, sch, x, t, s, cond)
        for down, often in detours:
            for _ in range(often if down[-1] == s else 0):
                x = restarted(denoise, sch, x, down, next(fresh), cond)
    return x
