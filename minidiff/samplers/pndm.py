"""F-PNDM: the pseudo numerical method with its Runge-Kutta start.

Pseudo Numerical Methods for Diffusion Models on Manifolds, Luping Liu, Yi Ren, Zhijie Lin,
Zhou Zhao, 2022, arXiv 2202.09778 (PNDM).

A multistep method with four weights wants four answers of the network before it can begin. `plms`
makes do with the one or two that it has; this is the paper's other answer: three steps of Runge and
Kutta at four evaluations each. As everywhere in that paper, DDIM's formula makes every move (that
is the "pseudo"), here from t to the middle m and to the end s.

    e1 = eps(x, t)                        x1 = move(x, e1, t -> m)
    e2 = eps(x1, m)                       x2 = move(x, e2, t -> m)
    e3 = eps(x2, m)                       x3 = move(x, e3, t -> s)
    e4 = eps(x3, s)                       e' = (e1 + 2 e2 + 2 e3 + e4) / 6
    x_s = move(x, e', t -> s)             remembered: e1, the answer at the start

From the fourth step on it is `plms`: `plms_noise` continues the last four answers.

Try: beside `plms` at equal steps (the same picture, nearly) and at equal evaluations, 11 against
19; tables whose sigma / alpha is even in time, on which both are of fourth order.

Weakness: steps + 9 evaluations, of which 12 belong to the first three steps, and they buy almost
nothing: the multistep part makes the error (measured in the test of this file). Stable Diffusion
was released without this start. The weights 1 2 2 1 are those of fourth order for even strides of
what is integrated over, and that is sigma / alpha, not time: on the tables of models the steps of
the start are of order 2, as the whole is. All that is said in `plms.py` of strides, guidance and
pure noise holds here too.

A middle (t + s) / 2 that is no whole time is rounded down: the state is moved to that time and the
network asked about it, so only the weights are meant for half an index more. Public code
(diffusers) moves the state to one neighbour of such a middle and asks about the other; with even
strides both do the same. A step of Runge and Kutta asks at its end, which must not be clean: the
last step to 0 is always a multistep one, so fewer than four steps start with fewer of them, N + 3
min(3, N - 1) evaluations. (That code, asked for fewer than four, stops before it is clean.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule
from minidiff.samplers.plms import plms_noise, refuse_pure_noise

STARTING = 3  # steps of Runge and Kutta


def runge_kutta(
    denoise: Denoise, sch: Schedule, x: Tensor, t: int, s: int, cond: Cond | None = None
) -> tuple[Tensor, Tensor]:
    """(x_s, e1): one step of fourth order from t to s, t > s > 0, and the noise at its start."""
    m = (t + s) // 2
    e1 = denoise(x, t, cond)
    e2 = denoise(ddim_step(sch, x, e1, t, m), m, cond)
    e3 = denoise(ddim_step(sch, x, e2, t, m), m, cond)
    e4 = denoise(ddim_step(sch, x, e3, t, s), s, cond)
    mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6
    return ddim_step(sch, x, mean, t, s), e1


@torch.no_grad()
def pndm(
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
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape, in
    steps + 9 evaluations.

    `steps`, `spacing`, `start`, `end` and `times` as in `Schedule.timesteps`. Raises ValueError for
    what is out of range, and for a start in almost pure noise.
    """
    ts = sch.timesteps(steps, start, spacing, end, times)
    refuse_pure_noise("pndm", sch, ts[0])
    old: list[Tensor] = []  # the last four answers, newest first
    for k, (t, s) in enumerate(step_pairs(ts, progress)):
        if k < STARTING and k < len(ts) - 2:
            x, eps = runge_kutta(denoise, sch, x, t, s, cond)
            old = [eps, *old]
        else:
            old = [denoise(x, t, cond), *old[:3]]
            x = ddim_step(sch, x, plms_noise(old), t, s)
    return x
