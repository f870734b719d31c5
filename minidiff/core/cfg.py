"""Classifier-free guidance: walk away from what the model would do unasked.

Classifier-Free Diffusion Guidance, Jonathan Ho, Tim Salimans, 2022, arXiv 2207.12598. Rescaling:
Shanchuan Lin et al., 2023, arXiv 2305.08891. Limited interval: Tuomas Kynkaanniemi et al., 2024,
arXiv 2404.07724.

One network learns the noise with and without the condition (dropped in a tenth of the training
rows). Their difference points from "any picture" to "a picture of this", and sampling follows it
further than it reaches.

    eps = eps_null + scale (eps_cond - eps_null)

`scale` is Stable Diffusion's: 1 is off, 0 unconditional; the paper's w is scale - 1. A negative
prompt is just another `null`.

Try: scale 1, 3, 8 on a toy mixture (spread falls, the mean is pushed outwards: this does not sample
p(x) p(c|x)^scale); interval=(100, 700) at scale 8; rescale=0.7 when pictures come out
over-saturated.

Weakness: two evaluations per step, too little variety and over-saturated pictures at high scales.
The interval skips the second evaluation where guidance only hurts, `rescale` restores the spread of
the conditional prediction, and `cfg_batched` does both evaluations in one call. `cfg` keeps them
apart for methods that edit one branch only.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise


def guide(e_null: Tensor, e_cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, eq. 6 with w = scale - 1:
    from the unconditional noise past the conditional one.
    """
    return e_null + scale * (e_cond - e_null)


def rescale(guided: Tensor, e_cond: Tensor, phi: float) -> Tensor:
    """Guided noise (b c h w) with each row's standard deviation brought towards that of the
    conditional noise `e_cond`, by the share phi.
    """
    dims = tuple(range(1, guided.ndim))
    ratio = e_cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return phi * ratio * guided + (1 - phi) * guided  # as Lin et al. do


def guide_within(
    e_null: Tensor, e_cond: Tensor, scale: float, t: Tensor, lo: float, hi: float
) -> Tensor:
    """`guide` in the rows whose time t (b,) has lo < t <= hi; the others keep the conditional noise
    (b c h w).
    """
    on = ((lo < t) & (t <= hi)).view(-1, *[1] * (e_cond.ndim - 1))
    return torch.where(on, guide(e_null, e_cond, scale), e_cond)


def cfg(
    denoise: Denoise,
    null: Cond,
    scale: float,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoise:
    """Guide a denoiser by `scale`, with two calls (one where
    guidance is off: scale 1 or t outside the interval).

    null: 1 or b rows. interval: (lo, hi] in schedule indices. rescale: Lin's phi, 0 (off) to 1.
    ValueError for a scale that is negative or no number, or a rescale outside 0..1.
    """

    def two(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        return denoise(x_t, t, null.expand(len(x_t))), denoise(x_t, t, cond)

    return _guided(denoise, two, scale, interval, rescale)


def cfg_batched(
    denoise: Denoise,
    null: Cond,
    scale: float,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoise:
    """As `cfg`, but one call on twice the rows; `null`
    must then have the same fields as the condition.
    """

    def one(x_t: Tensor, t: int | Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        b = len(x_t)
        rows = Cond.cat([null.expand(b), cond.expand(b)])  # rows: [null, cond]
        t = torch.cat([t, t]) if isinstance(t, Tensor) else t
        e_null, e_cond = denoise(torch.cat([x_t, x_t]), t, rows).chunk(2)  # 2b .. -> b .., b ..
        return e_null, e_cond

    return _guided(denoise, one, scale, interval, rescale)


def _guided(
    denoise: Denoise,
    both: Callable[..., tuple[Tensor, Tensor]],
    scale: float,
    interval: tuple[float, float] | None,
    phi: float,
) -> Denoise:
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}: a finite number was expected")
    if scale < 0:
        raise ValueError(
            f"scale={scale} is negative; 1 is no guidance, 7.5 usual; to avoid something make it "
            "the null"
        )
    if not 0 <= phi <= 1:
        raise ValueError(f"rescale={phi} is outside 0..1; 0 is off, 0.7 usual")
    lo, hi = interval or (-1, float("inf"))
    if not lo < hi:
        raise ValueError(
            f"interval={interval}: two times (lo, hi] with lo below hi were expected, such as "
            "(400, 1000)"
        )

    def guided(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        on = (lo < t) & (t <= hi)  # a bool, or one per row
        if scale == 1 or not torch.as_tensor(on).any():
            return denoise(x_t, t, cond)
        e_null, e_cond = both(x_t, t, cond)
        if isinstance(t, Tensor):
            eps = guide_within(e_null, e_cond, scale, t, lo, hi)
        else:
            eps = guide(e_null, e_cond, scale)
        # rows that are not guided have the spread of the conditional noise already
        return rescale(eps, e_cond, phi) if phi else eps

    return guided
