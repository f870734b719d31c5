"""CFG-Zero*: guide from the best multiple of the unconditional velocity, and begin standing still.

CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models, Weichen Fan et al., 2025,
arXiv 2503.18886.

A network that has not learned enough gives velocities of the wrong length, and guidance multiplies
that fault. So take that multiple of the unconditional velocity which is nearest to the conditional
one (least squares, one number a picture), and guide from there. And where the first velocity is
worse than none, take none.

    s* = <v_cond, v_null> / |v_null|^2,    v = s* v_null + scale (v_cond - s* v_null)
    v  = 0 in the first steps

v is the flow's velocity, eps - x0: on any tables the derivative of x / (alpha + sigma) by
sigma / (alpha + sigma). For another quantity, such as eps, s* is another number.

Try: scale 1, where s* drops out; `still` at 4% of the steps, and why it helps a model that has not
converged.

Weakness: the authors say themselves that a model which profits much from standing still has not
learned enough. s* near 1 changes nothing.
"""

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.process import eps_to_x0, to_eps
from minidiff.core.schedule import Schedule
from minidiff.guidance.projected import dot
from minidiff.pipe.checks import check_strength


def guide_zero(v_null: Tensor, v_cond: Tensor, scale: float) -> Tensor:
    """Guided velocity (b ..) from the multiple of v_null that is nearest to v_cond."""
    s = dot(v_cond, v_null) / dot(v_null, v_null).clamp(min=1e-12)
    return s * v_null + scale * (v_cond - s * v_null)


def cfg_zero(
    denoise: Denoise, null: Cond, sch: Schedule, scale: float, *, still: int | None = None
) -> Denoise:
    """Guide a denoiser by `scale` from the best multiple of its unconditional velocity.

    still   no velocity at times above this index; default: none
    scale   1 returns the conditional answer, to the bit, where it moves

    ValueError: a scale below 0, `still` outside the tables.
    """
    check_strength("scale", scale)
    if still is not None and not 0 < still <= sch.T:
        raise ValueError(f"still={still}: expected a time in 1..{sch.T} of {sch.name!r}")
    last = sch.T if still is None else still

    def moving(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        e_cond = denoise(x_t, t, cond)
        if scale == 1:
            return e_cond
        e_null = denoise(x_t, t, null.expand(len(x_t)))
        v_cond = e_cond - eps_to_x0(sch, x_t, e_cond, t)
        v_null = e_null - eps_to_x0(sch, x_t, e_null, t)
        return to_eps(sch, x_t, guide_zero(v_null, v_cond, scale), t, "flow")

    def guided(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        waits = torch.as_tensor(t > last)  # one for all rows, or one each
        if not waits.any():
            return moving(x_t, t, cond)
        standing = to_eps(sch, x_t, 0 * x_t, t, "flow")
        if waits.all():
            return standing
        rows = waits.view(-1, *[1] * (x_t.ndim - 1))
        return torch.where(rows, standing, moving(x_t, t, cond))

    return guided
