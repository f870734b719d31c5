"""Two solvers of second order on the straightened path, both of which run either way: the midpoint
rule, which RF-Solver is, and FireFlow, which is the same for half the price.

Taming Rectified Flow for Inversion and Editing, Jiangshan Wang, Junfu Pu, Zhongang Qi, Jiayi Guo,
Yue Ma, Nisha Huang, Yuxin Chen, Xiu Li, Ying Shan, 2024, arXiv 2411.04746 (RF-Solver).
FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing, Yingying Deng, Xiangyu He,
Changwang Mei, Peisong Wang, Fan Tang, 2024, arXiv 2412.07517.

Divide a state by k = alpha + sigma. It then lies between data and noise, the share tau = sigma / k
of the way, and moves with the velocity v = eps - x0. RF-Solver adds the term of second order of
Taylor's series, with the derivative of v measured by a second look, at m in the middle of the step:

    z_s = z_t + h v_t + h^2 / 2 (v_m - v_t) / (tau_m - tau_t),    h = tau_s - tau_t

With m exactly in the middle that is z_t + h v_m, the midpoint rule. FireFlow needs v_t only to get
to the middle, and takes what it has for it: the velocity in the middle of the step before. That one
is wrong by as much as v changes over half a step and half the step before, which is small enough
not to cost the order.

    z_m = z_t + (tau_m - tau_t) v_before,    z_s = z_t + h v(z_m, m),    v_before <- v(z_m, m)

The middle is a time of the tables, the nearest; the term above stands for any m, so nothing is lost
by that. FireFlow's rule is off by half an index at most. Between neighbours there is no middle:
RF-Solver then looks at the end of the step (Heun's rule), FireFlow takes Euler's step.

Try: steps 5, 10, 20 beside `ddim` at equal evaluations; `rf_solver.invert` and back, with guidance
1 and 5.

Weakness: both hold for velocities that change smoothly. Under strong guidance they do not, and
FireFlow's v is then half a step old. Neither is exactly its own inverse: `edict` is.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.schedule import Schedule, flow_time, nearest


def straight_step(sch: Schedule, x_t: Tensor, v: Tensor, t: int, s: int) -> Tensor:
    """Move a state from t to s, up or down, along a velocity v of x / k; with the v of t that is
    `ddim_step`.
    """
    k_t, tau_t = flow_time(sch, t)
    k_s, tau_s = flow_time(sch, s)
    return torch.add(k_s / k_t * x_t, v, alpha=k_s * (tau_s - tau_t))


def straight_velocity(
    denoise: Denoise, sch: Schedule, x_t: Tensor, t: int, cond: Cond | None
) -> Tensor:
    """v = eps - x0 of a state at t. A clean state, of which the network knows no noise, is shown to
    it as one of index 1.
    """
    eps = denoise(x_t, max(t, 1), cond)
    alpha, sigma = sch.at(t)
    return torch.sub((alpha + sigma) / alpha * eps, x_t, alpha=1 / alpha)


def middle(sch: Schedule, t: int, s: int) -> int:
    """The time of the tables, 1 or more, that is nearest to half of the way from t to s in tau."""
    tau = (flow_time(sch, t)[1] + flow_time(sch, s)[1]) / 2
    return nearest(sch, tau / (1 - tau))  # tau as sigma / alpha


def midpoint_step(
    denoise: Denoise, sch: Schedule, x_t: Tensor, t: int, s: int, cond: Cond | None = None
) -> Tensor:
    """One step of RF-Solver from t to s, up or down."""
    v_t = straight_velocity(denoise, sch, x_t, t, cond)
    m = middle(sch, t, s)
    if m == t:  # neighbours
        m = s
    if m == 0:
        return straight_step(sch, x_t, v_t, t, s)
    v_m = straight_velocity(denoise, sch, straight_step(sch, x_t, v_t, t, m), m, cond)
    tau_t, tau_m, tau_s = (flow_time(sch, time)[1] for time in (t, m, s))
    half = (tau_s - tau_t) / 2 / (tau_m - tau_t)  # 1 for the exact middle
    v = torch.lerp(v_t, v_m, half)  # v_t + half (v_m - v_t)
    return straight_step(sch, x_t, v, t, s)


def fireflow_step(
    denoise: Denoise,
    sch: Schedule,
    x_t: Tensor,
    v: Tensor,
    t: int,
    s: int,
    cond: Cond | None = None,
) -> tuple[Tensor, Tensor]:
    """(x_s, v_m): one step of FireFlow from t to s, up or down; v is the velocity to get to the
    middle with, v_m the one found there.
    """
    m = middle(sch, t, s)
    v_m = straight_velocity(denoise, sch, straight_step(sch, x_t, v, t, m), m, cond)
    return straight_step(sch, x_t, v_m, t, s), v_m


def midpoint_walk(
    denoise: Denoise, sch: Schedule, x: Tensor, ts: list[int], cond: Cond | None, progress: bool
) -> Iterator[Tensor]:
    """The states after each move along the times ts, which fall or rise."""
    for t, s in step_pairs(ts, progress):
        x = midpoint_step(denoise, sch, x, t, s, cond)
        yield x


def fireflow_walk(
    denoise: Denoise, sch: Schedule, x: Tensor, ts: list[int], cond: Cond | None, progress: bool
) -> Iterator[Tensor]:
    """The same with FireFlow's steps; the first begins with an evaluation of its own."""
    v = straight_velocity(denoise, sch, x, ts[0], cond)
    for t, s in step_pairs(ts, progress):
        x, v = fireflow_step(denoise, sch, x, v, t, s, cond)
        yield x


@torch.no_grad()
def midpoint(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 10,
    spacing: str = "trailing",
    start: int | None = None,
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape, in
    2 steps evaluations.

    `steps`, `spacing`, `start` and `times` as in `Schedule.timesteps`. Raises ValueError for any of
    them out of range.
    """
    ts = sch.timesteps(steps, start, spacing, times=times)
    for moved in midpoint_walk(denoise, sch, x, ts, cond, progress):
        x = moved
    return x


@torch.no_grad()
def fireflow(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 20,
    spacing: str = "trailing",
    start: int | None = None,
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """The same in steps + 1 evaluations."""
    ts = sch.timesteps(steps, start, spacing, times=times)
    for moved in fireflow_walk(denoise, sch, x, ts, cond, progress):
        x = moved
    return x
