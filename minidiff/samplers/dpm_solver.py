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
from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.process import ddim_step, eps_to_x0
from minidiff.core.schedule import Schedule, solver_times


def dpm_step(
    sch: Schedule, x_t: Tensor, x0: Tensor, x0_before: Tensor, r: int, t: int, s: int
) -> Tensor:
    """One step of second order from t to s (r > t > s > 0): x0 is the guess of the clean picture at
    t, x0_before the one at r, the time before.
    """
    a_t, sig_t = sch.at(t)
    a_s, sig_s = sch.at(s)
    a_r, sig_r = sch.at(r)
    lam_t = math.log(a_t / sig_t)
    h = math.log(a_s / sig_s) - lam_t
    h_before = lam_t - math.log(a_r / sig_r)
    D = x0 + (x0 - x0_before) * (h / (2 * h_before))  # along lambda, on the line through both
    return sig_s / sig_t * x_t - a_s * math.expm1(-h) * D


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
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    `steps`, `spacing`, `start` and `times` as in `solver_times`. Raises ValueError for any of them
    out of range.
    """
    # the last guess of the clean picture, and the time of it
    before: tuple[Tensor, int] | None = None
    for t, s in step_pairs(solver_times(sch, steps, spacing, start, times), progress):
        eps = denoise(x, t, cond)
        x0 = eps_to_x0(sch, x, eps, t)
        if before is None or s == 0:
            x = ddim_step(sch, x, eps, t, s)
        else:
            x0_before, r = before
            x = dpm_step(sch, x, x0, x0_before, r, t, s)
        before = (x0, t)
    return x
