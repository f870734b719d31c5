"""DEIS: continue the noise along a polynomial, and integrate that exactly.

Fast Sampling of Diffusion Models with Exponential Integrator, Qinsheng Zhang, Yongxin Chen, 2022,
arXiv 2204.13902.

DDIM solves the linear half of the diffusion equation exactly and takes the noise to be constant.
DEIS keeps the first and replaces the second: the noise is a polynomial through this answer of the
network and the ones before, whose integral against the linear half is a number for each answer.

    x_s = alpha_s / alpha_t x_t - sigma_s h sum_j w_j eps_j    `deis_step`
    w_j = int_0^1 e^((1 - u) h) L_j(u) du,    L_j: Lagrange's polynomial of the j-th answer

The paper draws the polynomial over t, and integrates on a computer. Here it is drawn over lambda =
log(alpha / sigma), as public code does, which calls that log-rho (rho = sigma / alpha): then the
integrals are formulas (`exponential_weights`), and the step is that of DPM-Solver in multistep
form. Order 1 is DDIM.

Try: order 1, 2 and 3 at 10 steps; beside `dpm_solver_pp`, which continues the clean picture
instead; beside `plms`, which continues the noise without looking at the equation.

Weakness: later papers left the noise for the clean picture, which can be kept in its range, because
of strong guidance on pictures; in the plane nothing of that is to be seen. The last step, to sigma
= 0, is infinitely long in lambda, and DDIM's. `end=1` stops just before, as public code does,
whose order then falls only on grids of fewer than 15 steps (`literal`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.exponential import check_order, exponential_weights, step_orders
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule, solver_times


def deis_step(
    sch: Schedule, x_t: Tensor, answers: Sequence[Tensor], times: Sequence[int], s: int
) -> Tensor:
    """A state at t = times[0] moved to s > 0 with the noise that the network saw at `times`, newest
    first.
    """
    a_t, _ = sch.at(times[0])
    a_s, sig_s = sch.at(s)
    lam_t = sch.lam(times[0])
    h = sch.lam(s) - lam_t
    nodes = [(sch.lam(r) - lam_t) / h for r in times]
    x_s = a_s / a_t * x_t
    for w, eps in zip(exponential_weights(nodes, h), answers):
        x_s = torch.add(x_s, eps, alpha=-sig_s * h * w)
    return x_s


@torch.no_grad()
def deis(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 20,
    order: int = 3,
    spacing: str = "linspace",
    start: int | None = None,
    end: int = 0,
    times: Sequence[int] | None = None,
    literal: bool = False,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    `order` 1 (DDIM) to 3; `steps`, `spacing`, `start`, `end` and `times` as in `solver_times`;
    `literal`: the order at the end as in public code. Raises ValueError for any of them out of
    range.
    """
    check_order(order, (1, 2, 3))
    ts = solver_times(sch, steps, spacing, start, times, end)
    answers: list[Tensor] = []  # of the network, newest first
    seen: list[int] = []  # the times of them
    for (t, s), now in zip(step_pairs(ts, progress), step_orders(order, ts, literal)):
        answers = [denoise(x, t, cond), *answers[: order - 1]]
        seen = [t, *seen[: order - 1]]
        if now == 1:
            x = ddim_step(sch, x, answers[0], t, s)
        else:
            x = deis_step(sch, x, answers[:now], seen[:now], s)
    return x
