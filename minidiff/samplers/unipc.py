"""UniPC: predict a step, look where it ended, and correct it at no cost.

UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, Wenliang Zhao,
Lujia Bai, Yongming Rao, Jie Zhou, Jiwen Lu, 2023, arXiv 2302.04867.

A multistep method continues the guesses of the clean picture it has, over a step in which it knows
none. But the network will be asked at the end of that step anyway, for the next one. UniPC asks,
and then makes the same step once more with that answer among its guesses: now the polynomial is
known at both ends of the step and not continued at all. That buys one order. The answer is kept for
the next step although the state has moved on a little, so the number of evaluations stays.

    x_s = sigma_s / sigma_t x_t + alpha_s h sum_j w_j x0_j      `unipc_move`

with w the exact integrals of the polynomial through the guesses (`exponential_weights`), over the
nodes r_j = (lambda_j - lambda_t) / h: 0 and below for the predictor, and 1 for the corrector's. The
paper's B(h) multiplies and divides and falls out of these. It stays where the paper fixes a weight
at 1/2 instead of solving for it: with two nodes, where

    w_1 = B / (2 r_1),    B = 1 for "bh1", (1 - e^-h) / h for "bh2".

Try: `corrector=False` at the same number of steps; `variant="bh1"` at 5 steps; 8 steps beside 15 of
`dpm_solver_pp`.

Weakness: the kept guess belongs to the predicted state, not to the corrected one, and a parabola is
continued less safely than a line: public code advises order 2 with guidance. The last step, to
sigma = 0, is infinitely long in lambda. It is the last guess itself, without corrector, and the
orders fall towards it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.exponential import check_order, exponential_weights, phi, step_orders
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import Schedule, solver_times


def unipc_move(
    sch: Schedule,
    x_t: Tensor,
    guesses: Sequence[Tensor],
    times: Sequence[int],
    s: int,
    variant: str = "bh2",
) -> Tensor:
    """A state at t = times[0] moved to s > 0 with the `guesses` of the clean picture at `times`.

    The predictor has guesses at t and before; the corrector has one at s as well, the last of them.
    """
    a_s, sig_s = sch.at(s)
    _, sig_t = sch.at(times[0])
    lam_t = sch.lam(times[0])
    h = sch.lam(s) - lam_t
    nodes = [(sch.lam(r) - lam_t) / h for r in times]
    if len(nodes) == 2:
        B = phi(1, -h) if variant == "bh2" else 1.0
        w = B / (2 * nodes[1])  # half the slope, by decree
        weights = [phi(1, -h) - w, w]
    else:
        weights = exponential_weights(nodes, -h)
    x_s = sig_s / sig_t * x_t
    for w, guess in zip(weights, guesses):
        x_s = torch.add(x_s, guess, alpha=a_s * h * w)
    return x_s


@torch.no_grad()
def unipc(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 10,
    order: int = 2,
    variant: str = "bh2",
    corrector: bool = True,
    spacing: str = "linspace",
    start: int | None = None,
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape, in
    `steps` evaluations.

    `order` 1 to 3 of the predictor, one less than the corrected step's; `variant` "bh1" or "bh2";
    `corrector=False`: predict only. `steps`, `spacing`, `start` and `times` as in `solver_times`.
    Raises ValueError for any of them out of range.
    """
    check_order(order, (1, 2, 3))
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant={variant!r} is unknown; choose bh1 or bh2")
    ts = solver_times(sch, steps, spacing, start, times)
    guesses: list[Tensor] = []  # of the clean picture, newest first
    seen: list[int] = []  # the times of them
    begun = x  # the corrected state that the last step started from
    last_order = 0
    for (t, s), now in zip(step_pairs(ts, progress), step_orders(order, ts)):
        x0 = eps_to_x0(sch, x, denoise(x, t, cond), t)  # of the predicted state
        if corrector and last_order:
            both_ends = [*guesses[:last_order], x0]
            x = unipc_move(sch, begun, both_ends, [*seen[:last_order], t], t, variant)
        guesses = [x0, *guesses[: order - 1]]
        seen = [t, *seen[: order - 1]]
        begun = x
        last_order = now
        x = unipc_move(sch, x, guesses[:now], seen[:now], s, variant) if s > 0 else x0
    return x
