"""DPM-Solver++(2M): second order, one evaluation a step, and steady under strong guidance.

DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, Cheng Lu, Yuhao
Zhou, Fan Bao, Jianfei Chen, Chongxuan Li, Jun Zhu, 2022, arXiv 2211.01095.

Written in the clean picture instead of the noise, and in lambda = log(alpha / sigma) instead of t,
the linear half of the diffusion equation has an exact solution. Only the guess of x0 is left to
approximate; along lambda it is nearly a line, and that line is drawn through this guess and the one
before.

    D   = x0_t + (x0_t - x0_before) h / (2 h_before),    h = lambda_s - lambda_t
    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) D    the paper's algorithm 2

Try: 10 steps beside 50 of `ddim`; guidance scale 10 beside `plms`; `spacing="trailing"` at 5 steps.

Weakness: the first step has no guess before, and the last, to sigma = 0, is infinitely long in
lambda: both are DDIM's. So how close to clean the last step begins decides what fine detail is
lost. The grid is the caller's; on "linspace" and "leading" it is the public one, which leaves out
the time next to clean, so that this step is as long as the others.
"""

import math

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import Schedule


def solver_times(
    sch: Schedule, steps: int, spacing: str = "linspace", start: int | None = None
) -> list[int]:
    """steps + 1 times from `start` (default T) to 0, as public code lays them for this solver.

    "linspace" and "leading" count steps + 1 points, of which the last is dropped: that one lies
    next to clean, where a second-order step would divide by a lambda about to be infinite.
    "trailing" keeps away from it by itself.
    """
    ts = sch.timesteps(steps, start, spacing)
    # every time visited: nothing can be dropped
    if spacing == "trailing" or steps == (start or sch.T):
        return ts
    return sch.timesteps(steps + 1, start, spacing)[:-2] + [0]


@torch.no_grad()
def dpm_solver(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 20,
    spacing: str = "linspace",
    start: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    `steps`, `spacing` and `start` as in `solver_times`. Raises ValueError for any of them out of
    range.
    """
    before = None
    h_before = math.inf
    for t, s in step_pairs(solver_times(sch, steps, spacing, start), progress):
        a_t, sig_t = sch.at(t)
        a_s, sig_s = sch.at(s)
        x0 = eps_to_x0(sch, x, denoise(x, t, cond), t)
        h = math.log(a_s / sig_s) - math.log(a_t / sig_t) if s > 0 else math.inf
        D = x0
        if before is not None and s > 0:  # along lambda, on the line through both
            D = x0 + (x0 - before) * (h / (2 * h_before))
        x = sig_s / sig_t * x - a_s * math.expm1(-h) * D
        before = x0
        h_before = h
    return x
