"""Grids: at which noise levels the few evaluations of a sampler are spent best.

Align Your Steps: Optimizing Sampling Schedules in Diffusion Models, Amirmojtaba Sabour, Sanja
Fidler, Karsten Kreis, 2024, arXiv 2404.14507.

A sampler of 10 steps asks the network 10 times, and somebody has to choose when. Even times are a
habit. The paper optimises the noise levels for a model and publishes them; other numbers of steps
are laid by interpolation of the logarithm, over the place in the list (not over time).

    log level(u) = a line from level to level,  u = i 10 / steps,  i = 0 .. steps    its tables

The paper minimises a bound on a divergence, with the model's own training data. Where a fine
solution is cheap, as on an exact mixture, the aim can be had itself: move one time after the other
while the squared distance to that solution falls (`fitted_times`).

Try: `times=align_your_steps(sch, 10)` for `ddim` and `dpm_solver_pp`; a grid fitted for one of them
given to the other; `fitted_times` with 3 steps.

Weakness: a grid belongs to the model and the sampler that it was made for. The published levels
were found for Stable Diffusion 1.5; a fitted grid has seen its few starts, and a different mixture
likes another one. Our tables know whole times only, so a level becomes the nearest of them.
"""

from collections.abc import Callable, Sequence
from math import exp, log

import torch
from torch import Tensor

from minidiff.core.denoise import Denoise
from minidiff.core.schedule import Schedule, falling

# sigma / alpha at the 11 ends of 10 steps: the paper's table 3, Stable Diffusion 1.5
SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def log_linear(levels: Sequence[float], n: int) -> list[float]:
    """n + 1 levels through the given ones: the same first and last, and between them on straight
    lines of the logarithm over the place in the list.
    """
    last = len(levels) - 1
    logs = [log(value) for value in levels]
    laid = []
    for i in range(n + 1):
        place = i * last / n
        k = min(int(place), last - 1)
        laid.append(exp(logs[k] + (place - k) * (logs[k + 1] - logs[k])))
    return laid


def align_your_steps(sch: Schedule, steps: int = 10, levels: Sequence[float] = SD1) -> list[int]:
    """steps + 1 falling times for `times=`: those nearest to the published levels, or to others,
    and 0 for the last of them, which is the least noise that the model knows.

    ValueError: no step, or more of them than the tables have times.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: a grid has one step or more; 10 is what was published")
    return falling(sch, log_linear(levels, steps)[:-1]) + [0]


@torch.no_grad()
def fitted_times(
    sampler: Callable[..., Tensor],
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    fine: Tensor,
    times: Sequence[int],
    rounds: int = 20,
) -> list[int]:
    """A grid from `times[0]` to `times[-1]` on which the sampler takes the states x (b ..) near to
    `fine` (b ..), what a fine solution made of them: coordinate descent from `times`.

    One inner time after the other is moved down and up by a stride, and stays where the mean
    squared distance is less. The stride is halved when no move helps; with 1 that is the end, or
    after `rounds` rounds.
    """
    ts = sch.checked(times)

    def loss(ts: list[int]) -> float:
        end = sampler(denoise, sch, x, times=ts)
        return (end - fine).pow(2).mean().item()

    best = loss(ts)
    stride = max(1, (ts[0] - ts[-1]) // (2 * len(ts)))
    for _ in range(rounds):
        moved = False
        for i in range(1, len(ts) - 1):
            for t in (ts[i] - stride, ts[i] + stride):
                tried = [*ts[:i], t, *ts[i + 1 :]]
                if not ts[i - 1] > t > ts[i + 1]:
                    continue
                found = loss(tried)
                if found < best:
                    ts, best, moved = tried, found, True
        if not moved and stride == 1:
            break
        stride = stride if moved else stride // 2
    return ts
