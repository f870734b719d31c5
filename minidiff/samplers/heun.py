"""Heun's method with churn: EDM's sampler, second order by asking at both ends of a step.

Elucidating the Design Space of Diffusion-Based Generative Models, Tero Karras, Miika Aittala,
Timo Aila, Samuli Laine, 2022, arXiv 2206.00364 (EDM), algorithm 2; algorithm 1 where churn is 0.

Divided by alpha, every model's state is a picture plus noise of level sigma / alpha, and the noise
is the slope of its path: d x = eps d level. DDIM is Euler's method for that equation. Heun's takes
the step once on trial, asks for the slope at its end as well, and moves along the mean of both.
Before a step, churn may add fresh noise and so raise the level; the step then comes down from
there. Fresh noise forgets what went wrong before it.

    up    = (1 + gamma) level_t,   gamma = min(S_churn / steps, sqrt(2) - 1) inside S_tmin .. S_tmax
    x_u   = x_t + sqrt(up^2 - level_t^2) S_noise z                 (x, divided by alpha)
    x'    = x_u + (level_s - up) eps(x_u, u)                       Euler's step, on trial
    x_s   = x_u + (level_s - up) (eps(x_u, u) + eps(x', s)) / 2    kept as it is where level_s = 0

In alpha and sigma, Euler's step is `ddim_step` and the noise added is `renoise`, so this runs on
VP, VE and flow tables alike. The network is asked about times, and the raised level lies between
two of them. So the state is raised to the level of the nearest time u exactly: the network is told
the truth, and gamma is what is rounded. At T nothing is noisier, and there is no churn.

Try: 10 steps beside 20 of `ddim` (as many evaluations, nearly); `s_churn=40` with 50 steps;
`s_noise` 1.003, the authors' value for ImageNet.

Weakness: two evaluations a step, 2 steps - 1 in all; a multistep method has second order for one
(`dpm_solver_pp`). Churn repairs what sampling did wrong, not what the network says wrong: where its
answers are biased, each of the extra descents repeats the bias. A gamma smaller than half the
distance to the next time of the tables is rounded to none.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noises, step_pairs
from minidiff.core.process import ddim_step, renoise
from minidiff.core.schedule import Schedule, level, nearest


def raised(sch: Schedule, t: int, gamma: float) -> int:
    """The time whose level is nearest to 1 + gamma times that of t; t itself if gamma is small."""
    return max(t, nearest(sch, (1 + gamma) * level(sch, t)))


def churned(sch: Schedule, x_t: Tensor, t: int, gamma: float, noise: Tensor) -> tuple[Tensor, int]:
    """(x_u, u): a state at t, noised up to the time u at which the level is 1 + gamma times as
    high.
    """
    u = raised(sch, t, gamma)
    return renoise(sch, x_t, t, u, noise), u


def heun_step(
    denoise: Denoise, sch: Schedule, x_t: Tensor, t: int, s: int, cond: Cond | None = None
) -> Tensor:
    """One step of second order from t down to s: along the mean of the noises at both ends, the
    second one asked at the end of a trial step. To s = 0 the trial is the step: a network does not
    know the clean end.
    """
    eps_t = denoise(x_t, t, cond)
    trial = ddim_step(sch, x_t, eps_t, t, s)
    if s == 0:
        return trial
    eps_s = denoise(trial, s, cond)
    return ddim_step(sch, x_t, (eps_t + eps_s) / 2, t, s)


@torch.no_grad()
def heun(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 18,
    spacing: str = "karras",
    start: int | None = None,
    times: Sequence[int] | None = None,
    seed: int = 0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape, in
    2 steps - 1 evaluations (`steps` are moves).

    `steps`, `spacing`, `start` and `times` as in `Schedule.timesteps`. s_churn: how much noise is
    added in all, 0 for none, from `seed`; at levels sigma / alpha from s_tmin to s_tmax; s_noise:
    its standard deviation. Raises ValueError for what is out of range.
    """
    if not 0 <= s_churn < math.inf or not 0 <= s_noise < math.inf or not 0 <= s_tmin <= s_tmax:
        raise ValueError(
            f"s_churn={s_churn}, s_tmin={s_tmin}, s_tmax={s_tmax}, s_noise={s_noise}: numbers of 0 "
            "or more were expected, and levels s_tmin <= s_tmax; s_churn=0 adds no noise"
        )
    ts = sch.timesteps(steps, start, spacing, times=times)
    most = min(s_churn / (len(ts) - 1), math.sqrt(2) - 1)
    fresh = noises(x, seed)
    for t, s in step_pairs(ts, progress):
        gamma = most if s_tmin <= level(sch, t) <= s_tmax else 0.0
        if raised(sch, t, gamma) > t:
            x, t = churned(sch, x, t, gamma, s_noise * next(fresh))
        x = heun_step(denoise, sch, x, t, s, cond)
    return x
