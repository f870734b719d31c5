"""CFG++: guide the guess of the picture, and put back the noise of the unconditional answer.

CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models, Hyungjin Chung, Jeongsol
Kim, Geon Yeong Park, Hyelin Nam, Jong Chul Ye, 2024, arXiv 2406.08070.

A step of DDIM goes to the guess of the picture and back up to the next noise level. Classifier-free
guidance uses the guided noise for both. Here the way down is guided, mildly, and the way up takes
the unconditional noise, so that the state stays where noised pictures are.

    eps_lam = eps_null + lam (eps_cond - eps_null),    0 <= lam <= 1
    x_s     = alpha_s x0_hat(x_t, eps_lam) + sigma_s eps_null

The second line is DDIM's step with its second term replaced: `ddim_step(..., eps_dir=eps_null)`.
Written out it is DDIM with classifier-free guidance at a scale that follows the step. With
h = lambda_s - lambda_t, lambda = log(alpha / sigma):

    scale = lam / (1 - exp(-h))

That is about lam / h for short steps, and lam in the last one, to clean.

Try: lam .3 at 20, 50 and 100 steps. The same lam means more in more steps: it is no rate.
Classifier-free guidance at scale 3 gives the same at all three.

Weakness: hence "lam" without the grid says nothing. It changes the step, not the answer of the
denoiser, so it works with this loop and not under other samplers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cfg import guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule
from minidiff.pipe.checks import check_share


def same_scale(sch: Schedule, lam: float, t: int, s: int) -> float:
    """The scale of classifier-free guidance that makes the same step of DDIM from t to s < t."""
    h = sch.lam(s) - sch.lam(t)  # infinite at s = 0
    return lam / -math.expm1(-h)


@torch.no_grad()
def cfg_pp(
    denoise: Denoise,
    null: Cond,
    sch: Schedule,
    x: Tensor,
    cond: Cond,
    *,
    lam: float = 0.3,
    steps: int = 50,
    spacing: str = "linspace",
    start: int | None = None,
    end: int = 0,
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    lam  0 draws without the condition, 1 takes the conditional guess whole. The grid as in
    `Schedule.timesteps`; two evaluations a step. ValueError for what is out of range.
    """
    check_share("lam", lam)
    for t, s in step_pairs(sch.timesteps(steps, start, spacing, end, times), progress):
        e_null = denoise(x, t, null.expand(len(x)))
        e_cond = denoise(x, t, cond)
        x = ddim_step(sch, x, guide(e_null, e_cond, lam), t, s, eps_dir=e_null)
    return x
