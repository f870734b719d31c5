"""DPM-Solver++(2M) and (3M): one evaluation a step, and steady under strong guidance.

DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, Cheng Lu, Yuhao
Zhou, Fan Bao, Jianfei Chen, Chongxuan Li, Jun Zhu, 2022, arXiv 2211.01095.

Written in the clean picture instead of the noise, and in lambda = log(alpha / sigma) instead of t,
the linear half of the diffusion equation has an exact solution. Only the guess of x0 is left to
approximate; along lambda it is nearly a line, and that line is drawn through this guess and the one
before (2M), or a parabola through this one and the two before (3M).

    D   = x0_t + (x0_t - x0_before) h / (2 h_before),    h = lambda_s - lambda_t
    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) D    the paper's algorithm 2, `dpm_step`

Try: 10 steps beside 50 of `ddim`; guidance scale 10 beside `plms`; `spacing="trailing"` at 5 steps;
`order=3` with and without `literal`.

Weakness: the first step has no guess before, and the last, to sigma = 0, is infinitely long in
lambda: both are DDIM's. So how close to clean the last step begins decides what fine detail is
lost. The grid is the caller's; on "linspace" and "leading" it is the public one, which leaves out
the time next to clean, so that this step is as long as the others. A parabola is continued less
safely than a line: at 6 steps 2M is ahead of 3M, and with strong guidance at 12 (the page has
tables).

`literal` is for comparison with public code. Its 3M counts the parabola's bend once, where the
integral has it twice: that is of order 2 again (measured in the test of this file).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.exponential import check_order, phi, step_orders
from minidiff.core.process import ddim_step, eps_to_x0
from minidiff.core.schedule import Schedule, solver_times


def continued(sch: Schedule, x0: Tensor, x0_before: Tensor, r: int, t: int, s: int) -> Tensor:
    """The line through two guesses of the clean picture, at r and at t, as far as the middle of the
    step from t to s (in lambda): what a step of second order takes for x0.
    """
    h = sch.lam(s) - sch.lam(t)
    h_before = sch.lam(t) - sch.lam(r)
    return x0 + (x0 - x0_before) * (h / (2 * h_before))


def dpm_step(
    sch: Schedule, x_t: Tensor, x0: Tensor, x0_before: Tensor, r: int, t: int, s: int
) -> Tensor:
    """One step of second order from t to s (r > t > s > 0): x0 is the guess of the clean picture at
    t, x0_before the one at r, the time before.
    """
    a_s, sig_s = sch.at(s)
    _, sig_t = sch.at(t)
    D = continued(sch, x0, x0_before, r, t, s)
    h = sch.lam(s) - sch.lam(t)
    return sig_s / sig_t * x_t - a_s * math.expm1(-h) * D


def dpm_step_3(
    sch: Schedule,
    x_t: Tensor,
    guesses: Sequence[Tensor],
    times: Sequence[int],
    s: int,
    bend: float = 2.0,
) -> Tensor:
    """One step of third order from times[0] to s > 0: `guesses` of the clean picture at the three
    `times`, newest first. `bend`: how often the parabola's second term counts.
    """
    x0, x0_1, x0_2 = guesses
    t, t_1, t_2 = times
    a_s, sig_s = sch.at(s)
    _, sig_t = sch.at(t)
    h = sch.lam(s) - sch.lam(t)
    r_0 = (sch.lam(t) - sch.lam(t_1)) / h
    r_1 = (sch.lam(t_1) - sch.lam(t_2)) / h
    new = (x0 - x0_1) / r_0  # two slopes, in steps of h
    old = (x0_1 - x0_2) / r_1
    D2 = (new - old) / (r_0 + r_1)  # the parabola is x0 + D1 u + D2 u^2, u = 0 at t and 1 at s
    D1 = torch.add(new, D2, alpha=r_0)
    D = torch.add(phi(1, -h) * x0, D1, alpha=phi(2, -h))
    D = torch.add(D, D2, alpha=bend * phi(3, -h))  # the integral of e^.. u^2 is 2 phi_3
    return torch.add(sig_s / sig_t * x_t, D, alpha=a_s * h)


@torch.no_grad()
def dpm_solver_pp(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 20,
    order: int = 2,
    spacing: str = "linspace",
    start: int | None = None,
    times: Sequence[int] | None = None,
    literal: bool = False,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    `order` 2 or 3 (1 is DDIM); `steps`, `spacing`, `start` and `times` as in `solver_times`;
    `literal`: 3M as in public code. Raises ValueError for any of them out of range.
    """
    check_order(order, (1, 2, 3))
    ts = solver_times(sch, steps, spacing, start, times)
    guesses: list[Tensor] = []  # of the clean picture, newest first
    seen: list[int] = []  # the times of them
    for (t, s), now in zip(step_pairs(ts, progress), step_orders(order, ts, literal)):
        eps = denoise(x, t, cond)
        guesses = [eps_to_x0(sch, x, eps, t), *guesses[:2]]
        seen = [t, *seen[:2]]
        if now == 1:
            x = ddim_step(sch, x, eps, t, s)
        elif now == 2:
            x = dpm_step(sch, x, guesses[0], guesses[1], seen[1], t, s)
        else:
            x = dpm_step_3(sch, x, guesses, seen, s, bend=1.0 if literal else 2.0)
    return x
