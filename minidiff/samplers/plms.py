"""PLMS: four evaluations' worth of accuracy for the price of one, by remembering the last three.

Pseudo Numerical Methods for Diffusion Models on Manifolds, Luping Liu, Yi Ren, Zhijie Lin,
Zhou Zhao, 2022, arXiv 2202.09778 (PNDM). Without its Runge-Kutta warm-up this is the sampler Stable
Diffusion was released with.

DDIM moves along the noise at the start of a step, as if it stayed the same. Over the step it
changes, smoothly, and a multistep method continues its course from the last four values; DDIM's own
formula then makes the move, so that a single step with the true noise is still exact (that is the
"pseudo").

    e'  = (55 e_t - 59 e_t+1 + 37 e_t+2 - 9 e_t+3) / 24    the paper's linear multistep
    x_s = ddim_step(x_t, e', t, s)                         its transfer to the next time

Try: steps 10, 20, 50 beside `ddim` at one seed; `extrapolate="v"` on an eps-model (the order falls
back to 1).

Weakness: the weights belong to even strides and to an e that is smooth in t; under sigma ~ sqrt(t),
as linear betas make it near clean, the last steps are of order 1, with a small error. The warm-up
has fewer values to go by: its first step costs one evaluation more (a trial move, then the move
along the mean of both ends), and of 5 steps it is most. Weights as large as 59 / 24 amplify what
strong guidance does to the noise; `dpm_solver_pp` serves better there. And a continued e is not the
noise of this very state: that costs 1 / alpha, too much where alpha is almost 0, so such a start is
refused.

`literal` and `extrapolate` are for comparison with public code. `literal` is explained in
`samplers/ddim.py`. For a v-model that code extrapolates v, and turns the result into noise with the
state at the start of the step, which stands still while v moves: so it is of order 1 and behind
DDIM (measured in the test of this file).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.process import ddim_step, eps_to_x0, target, to_eps
from minidiff.core.schedule import Schedule

# newest first
WEIGHTS = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms_noise(old: list[Tensor]) -> Tensor:
    """What to move along: the course of the last 1 to 4 answers of the network, newest first,
    continued over the step to come; for even strides.
    """
    newest, *others = WEIGHTS[len(old) - 1]
    continued = newest * old[0]
    for weight, answer in zip(others, old[1:]):
        continued = continued.add(answer, alpha=weight)
    return continued


def refuse_pure_noise(name: str, sch: Schedule, t: int) -> None:
    """ValueError if alpha is almost 0 at t, where a continued noise costs 1 / alpha."""
    alpha, _ = sch.at(t)
    if alpha < 0.005:
        raise ValueError(
            f"{name} divides by alpha, {alpha:.1g} at time {t} of schedule {sch.name!r}; use ddim "
            'or dpm++, or spacing="leading", which starts later'
        )


@torch.no_grad()
def plms(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 50,
    spacing: str = "leading",
    start: int | None = None,
    end: int = 0,
    times: Sequence[int] | None = None,
    literal: bool = False,
    prediction: str = "eps",
    extrapolate: str | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T),
    to a clean x0 of the same shape, in steps + 1 evaluations.

    `steps`, `spacing`, `start`, `end` and `times` as in `Schedule.timesteps`; `literal`: every move
    of a grid that is not one's own is start // steps long, and what a v-model predicts is
    extrapolated as v; `extrapolate`: the quantity whose course is continued, one of `PREDICTIONS`
    (default: eps, or that literal v).
    Raises ValueError for what is out of range.
    """
    if extrapolate is None:
        extrapolate = "v" if literal and prediction == "v" else "eps"
    ts = sch.timesteps(steps, start, spacing, end, times)
    stride = (start or sch.T) // max(steps, 1)
    if extrapolate == "eps":
        refuse_pure_noise("plms", sch, ts[0])

    # what the network says, as the quantity that is extrapolated
    def look(x: Tensor, t: int) -> Tensor:
        eps = denoise(x, t, cond)
        if extrapolate == "eps":
            return eps
        return target(sch, eps_to_x0(sch, x, eps, t), eps, t, extrapolate)

    def move(x: Tensor, out: Tensor, t: int, s: int) -> Tensor:
        eps = out if extrapolate == "eps" else to_eps(sch, x, out, t, extrapolate)
        return ddim_step(sch, x, eps, t, s)  # the paper's transfer is DDIM's move

    old: list[Tensor] = []  # the last four answers, newest first
    for k, (t, s) in enumerate(step_pairs(ts, progress)):
        s = max(t - stride, end) if literal and times is None else s
        old = [look(x, t), *old[:3]]
        if k == 0 and len(ts) > 2:
            u = ts[1]
            trial = move(x, old[0], t, s)
            mean = (old[0] + look(trial, u)) / 2
            x = move(x, mean, u + t - s, u)  # from t to s; from a little later if `literal`
        else:
            x = move(x, plms_noise(old), t, s)
    return x
