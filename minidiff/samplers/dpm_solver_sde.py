"""SDE-DPM-Solver++(2M): the second order of 2M, with the noise of ancestral sampling.

DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, Cheng Lu, Yuhao
Zhou, Fan Bao, Jianfei Chen, Chongxuan Li, Jun Zhu, 2022, arXiv 2211.01095. Its variant for the
diffusion's stochastic equation; the eta between the two is that of k-diffusion's `dpmpp_2m_sde`.

Noise on the way repairs what earlier steps did wrong, because a state that is blurred and sharpened
again forgets where it came from. DDPM pays for it with many steps. In lambda the linear half of the
stochastic equation has an exact solution too, so here the noise costs no accuracy of its own, and
the guess of x0 is continued along a line as in `dpm_solver_pp`.

    x_s = sigma_s / sigma_t e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) D
          + sigma_s sqrt(1 - e^(-2 eta h)) z                                  `sde_step`

with h and D those of 2M. Eta 0 is 2M. A first-order step at eta 1 (D = x0) is DDPM's, with the
small variance: the test of this file compares.

Try: eta 0, .5 and 1 at 15, 25 and 50 steps at one seed; two values of `seed` at eta 1.

Weakness: another picture for every number of steps, so nothing settles. With less than about 15
steps the noise does not get repaired in time, and 2M is better. Between 0 and 1, eta is not DDIM's:
there it is a share of the deviation of the noise, here of the rate at which it comes in.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noises, step_pairs
from minidiff.core.exponential import step_orders
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import Schedule, solver_times
from minidiff.samplers.dpm_solver_pp import continued


def sde_step(
    sch: Schedule, x_t: Tensor, D: Tensor, t: int, s: int, eta: float, noise: Tensor | None
) -> Tensor:
    """One draw of the state at s, 0 < s < t, where D stands for the clean picture during the whole
    step; at eta 0 no noise is needed.
    """
    a_s, sig_s = sch.at(s)
    _, sig_t = sch.at(t)
    h = sch.lam(s) - sch.lam(t)
    x_s = sig_s / sig_t * math.exp(-eta * h) * x_t
    x_s = torch.add(x_s, D, alpha=-a_s * math.expm1(-(1 + eta) * h))
    if noise is None:
        return x_s
    return torch.add(x_s, noise, alpha=sig_s * math.sqrt(-math.expm1(-2 * eta * h)))


@torch.no_grad()
def dpm_solver_sde(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 25,
    eta: float = 1.0,
    seed: int = 0,
    spacing: str = "linspace",
    start: int | None = None,
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    eta 0 (2M, no noise) to 1 (the diffusion's own), the noise from `seed`; `steps`, `spacing`,
    `start` and `times` as in `solver_times`. Raises ValueError for any of them out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside 0..1; 0 is without noise, 1 the diffusion's own")
    fresh = noises(x, seed)
    ts = solver_times(sch, steps, spacing, start, times)
    before: tuple[Tensor, int] | None = None  # the last guess of the clean picture, and its time
    for (t, s), order in zip(step_pairs(ts, progress), step_orders(2, ts)):
        x0 = eps_to_x0(sch, x, denoise(x, t, cond), t)
        D = x0
        if order == 2 and before is not None:
            x0_before, r = before
            D = continued(sch, x0, x0_before, r, t, s)
        z = next(fresh) if eta and s > 0 else None
        x = sde_step(sch, x, D, t, s, eta, z) if s > 0 else x0
        before = (x0, t)
    return x
