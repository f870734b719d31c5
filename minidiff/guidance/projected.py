"""Adaptive projected guidance: keep what guidance changes, drop what it only makes louder.

Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models, Seyedmorteza
Sadat, Otmar Hilliges, Romann M. Weber, 2024, arXiv 2410.02416.

Classifier-free guidance adds a multiple of d = x0_cond - x0_null to the conditional picture. The
part of d that is parallel to the picture makes its contrast larger, which is what over-saturation
is; the part at right angles changes what is shown. So the parallel part is scaled down. Two more
screws: d is cut to a radius, and a share of the last step's sum is taken off (momentum below 0), so
that steps do not push in one direction again and again.

    sum   <- x0_cond - x0_null + momentum sum;         d = sum min(1, radius / |sum|)
    d_par =  <d, x0_cond> / |x0_cond|^2  x0_cond
    x0    =  x0_cond + (scale - 1) (d - d_par + eta d_par)

Try: scale 8 with eta 1 (that is classifier-free guidance), .5 and 0; radius at half of |d|.

Weakness: "parallel to the picture" means louder only where 0 is grey: in pixels from -1 to 1, and
roughly in latents. With momentum the denoiser remembers what it was asked last, so one run at a
time, and a sampler that asks once a step. diffusers starts from x0_null unless told otherwise, and
takes the network's raw output for x0: other methods for eta < 1.
"""

import math

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.process import eps_to_x0, x0_to_eps
from minidiff.core.schedule import Schedule
from minidiff.pipe.checks import check_number, check_share, check_strength


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row, (b 1 ..)."""
    product = (a * b).flatten(1).sum(1)
    return product.view(-1, *[1] * (a.ndim - 1))


def projected_difference(
    difference: Tensor, x0_cond: Tensor, eta: float, radius: float = math.inf
) -> Tensor:
    """A guidance difference (b ..) cut to at most `radius` in length, and of its part parallel to
    the picture x0_cond only the share eta.
    """
    length = dot(difference, difference).sqrt()
    difference = difference * (radius / length.clamp(min=1e-12)).clamp(max=1)
    share = dot(difference, x0_cond) / dot(x0_cond, x0_cond).clamp(min=1e-12)
    parallel = share * x0_cond
    return difference - parallel + eta * parallel


def projected(
    denoise: Denoise,
    null: Cond,
    sch: Schedule,
    scale: float,
    *,
    eta: float = 0.0,
    radius: float = math.inf,
    momentum: float = 0.0,
) -> Denoise:
    """Guide a denoiser by `scale` with projected differences; two evaluations.

    eta       share of the parallel part that is kept, 0 to 1; 1 is classifier-free guidance
    radius    greatest length of the difference, over all values of a picture
    momentum  share of the last step's sum that is added, -1 to 1; below 0 in the paper. A time that
              does not fall begins a new run

    ValueError: numbers out of range; momentum with a time for each row.
    """
    check_strength("scale", scale)
    check_share("eta", eta)
    check_number("momentum", momentum)
    if not -1 <= momentum <= 1:
        raise ValueError(f"momentum={momentum}: a number from -1 to 1 was expected")
    if not radius > 0:
        raise ValueError(f"radius={radius}: expected a length above 0; infinity is no limit")
    last_time = -1
    last_sum = torch.zeros(())

    def guided(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        nonlocal last_time, last_sum
        e_cond = denoise(x_t, t, cond)
        if scale == 1:
            return e_cond
        e_null = denoise(x_t, t, null.expand(len(x_t)))
        x0_cond = eps_to_x0(sch, x_t, e_cond, t)
        difference = x0_cond - eps_to_x0(sch, x_t, e_null, t)
        if momentum:
            if isinstance(t, Tensor):
                raise ValueError("momentum remembers one step: give one time for all rows")
            if t < last_time and last_sum.shape == difference.shape:
                difference = difference + momentum * last_sum
            last_time, last_sum = t, difference
        moved = projected_difference(difference, x0_cond, eta, radius)
        return x0_to_eps(sch, x_t, x0_cond + (scale - 1) * moved, t)

    return guided
