"""Dynamic thresholding: a guess of the picture that leaves the range is scaled back into it.

Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Imagen), Chitwan
Saharia et al., 2022, arXiv 2205.11487.

Strong guidance throws x0_hat out of [-1, 1], where no training picture was; the next step starts
from there, and colours burn out. Clamping to [-1, 1] (static thresholding) leaves large flat areas
at the ends of the range. So find for each picture the value s below which the share `quantile` of
its absolute values lies, and if s is more than 1, clamp to [-s, s] and divide by s.

    s  = max(1, quantile of |x0_hat|),    x0_hat <- clamp(x0_hat, -s, s) / s

Try: guidance 10 on "tiny-pixel" with quantile .995, .9, and 1 against none.

Weakness: it is for pixels. Latents have no range, and scaling them is not a contrast. A picture
that should be black and white loses contrast, too.
"""

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.process import eps_to_x0, x0_to_eps
from minidiff.core.schedule import Schedule
from minidiff.pipe.checks import check_share


def thresholded(x0: Tensor, quantile: float) -> Tensor:
    """Guesses of pictures (b ..) in [-1, 1], each divided by its own s >= 1; those inside are
    returned as they are.
    """
    sizes = x0.flatten(1).abs().float()
    s = torch.stack([row.quantile(quantile) for row in sizes]).clamp(min=1).to(x0.dtype)
    s = s.view(-1, *[1] * (x0.ndim - 1))
    return torch.maximum(torch.minimum(x0, s), -s) / s


def dynamic_threshold(denoise: Denoise, sch: Schedule, quantile: float = 0.995) -> Denoise:
    """The denoiser whose guesses of the picture stay in [-1, 1]: put it around all guidance.

    quantile  share of the values that may not be clamped, 0 to 1. ValueError: outside.
    """
    check_share("quantile", quantile)

    def guided(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        eps = denoise(x_t, t, cond)
        x0 = eps_to_x0(sch, x_t, eps, t)
        inside = thresholded(x0, quantile)
        changed = (inside != x0).flatten(1).any(1).view(-1, *[1] * (x_t.ndim - 1))
        # a picture inside the range keeps its answer to the bit
        return torch.where(changed, x0_to_eps(sch, x_t, inside, t), eps)

    return guided
