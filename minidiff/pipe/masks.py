"""Masks: 1 where the edit happens, everywhere in this
project. Published code disagrees with itself about that.
"""

import torch.nn.functional as F
from torch import Tensor

from minidiff.pipe.pipe import Pipe


def check_mask(mask: Tensor, image: Tensor) -> Tensor:
    """The mask as (1 or b, 1, H, W) of 0 and 1 beside the
    picture (b 3 H W); ValueError says what does not fit.

    Empty and full masks are allowed: nothing is edited, or everything.
    """
    if (
        mask.ndim != 4
        or mask.shape[1] != 1
        or mask.shape[-2:] != image.shape[-2:]
        or len(mask) not in (1, len(image))
    ):
        raise ValueError(
            f"mask is {tuple(mask.shape)}, the picture {tuple(image.shape)}: expected (1 or b, 1, "
            "H, W)"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"mask holds values of {mask.min():.3g} to {mask.max():.3g}: expected only 0 (keep) "
            "and 1 (edit); threshold it, such as (mask > .5).float()"
        )
    return mask.to(image)


def to_latent_mask(mask: Tensor, pipe: Pipe) -> Tensor:
    """Picture mask (b 1 H W) -> latent mask (b 1 h
    w): a latent is edited if any of its pixels is.
    """
    return F.max_pool2d(mask.to(pipe.device, pipe.dtype), pipe.factor)


def paste(out: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """The picture (b 3 H W) with `out` inside the
    mask: outside, the pixels never changed at all.
    """
    return mask * out.to(image) + (1 - mask) * image
