"""DPM-Solver: the first of its name, in blocks of two or three evaluations that look ahead.

DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps, Cheng
Lu, Yuhao Zhou, Fan Bao, Jianfei Chen, Chongxuan Li, Jun Zhu, 2022, arXiv 2206.00927.

In lambda = log(alpha / sigma) the linear half of the diffusion equation is solved exactly, and what
is left to approximate is the noise. DDIM takes it to be constant over a step. A block first moves
to a time between, asks there, and then makes the whole move along the line through both answers.
Nothing is remembered from one block to the next.

    x_s = alpha_s / alpha_t x_t - sigma_s h (phi_1 eps_t + w (eps_m - eps_t) / r)      `block_move`
    r   = (lambda_m - lambda_t) / h,    h = lambda_s - lambda_t,    phi_k = phi_k(h)
    w   = phi_1 / 2 in DPM-Solver-2; phi_2 for both of the later moves in DPM-Solver-3

Every time of the grid is asked once: a block of order 2 is two intervals of it, one of order 3
three, and their r is read off the tables. So `steps` counts evaluations, as everywhere here.

Try: `order=2` and 3 at 12 steps beside `dpm_solver_pp`; `spacing="lambda"`, on which r is the
paper's 1/2, or 1/3 and 2/3.

Weakness: at one budget a multistep method has two or three times as many steps, so it usually wins.
Long moves overshoot, for the weights grow like e^h: at 6 evaluations it is far behind DDIM, with
strong guidance still at 12. Order 3 needs r_2 near 2/3, as an even grid in lambda has it; on other
grids it comes back only as they get finer. The last move, to sigma = 0, is infinitely long and so
DDIM's.

`literal` is for comparison with public code, which makes the second move of a block of order 3 with
w = phi_1 / 2, and lowers the order at the end of every grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.exponential import check_order, phi
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule, solver_times


def block_move(
    sch: Schedule,
    x_t: Tensor,
    eps: Tensor,
    eps_m: Tensor,
    t: int,
    m: int,
    s: int,
    taylor: bool = False,
) -> Tensor:
    """A state at t moved to s along the line through the noise eps at t and eps_m at a time m on
    the way (t > m > s > 0).

    What counts of the line's slope is phi_1(h) / 2; with `taylor` its exact integral, phi_2(h).
    """
    a_t, _ = sch.at(t)
    a_s, sig_s = sch.at(s)
    h = sch.lam(s) - sch.lam(t)
    r = (sch.lam(m) - sch.lam(t)) / h
    w = phi(2, h) if taylor else phi(1, h) / 2
    noise = torch.add((phi(1, h) - w / r) * eps, eps_m, alpha=w / r)
    return torch.add(a_s / a_t * x_t, noise, alpha=-sig_s * h)


def block_orders(order: int, ts: list[int], literal: bool = False) -> list[int]:
    """How many intervals of the grid ts each block has: `order` as often as it fits, then what is
    left. The interval that ends at clean is a block of its own; with `literal` so is the last one
    wherever the blocks would come out even.
    """
    n = len(ts) - 1
    alone = ts[-1] == 0 or (literal and n % order == 0)
    full, rest = divmod(n - alone, order)
    return [order] * full + [rest] * (rest > 0) + [1] * alone


@torch.no_grad()
def dpm_solver(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 20,
    order: int = 2,
    spacing: str = "linspace",
    start: int | None = None,
    end: int = 0,
    times: Sequence[int] | None = None,
    literal: bool = False,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape, in
    `steps` evaluations.

    `order` 2 or 3 (1 is DDIM); `steps`, `spacing`, `start`, `end` and `times` as in `solver_times`;
    `literal`: as in public code. Raises ValueError for any of them out of range.
    """
    check_order(order, (1, 2, 3))
    ts = solver_times(sch, steps, spacing, start, times, end)
    sizes = block_orders(order, ts, literal)
    places = [(place, size) for size in sizes for place in range(1, size + 1)]
    for (t, s), (place, size) in zip(step_pairs(ts, progress), places):
        eps = denoise(x, t, cond)
        if place == 1:
            begun, eps_begun, t_begun = x, eps, t  # every move of a block starts here
            x = ddim_step(sch, x, eps, t, s)
        else:
            taylor = size == 3 and not (literal and place == 2)
            x = block_move(sch, begun, eps_begun, eps, t_begun, t, s, taylor)
    return x
