"""FreeU: trust the backbone of a trained U-Net more and its skips less, for free.

FreeU: Free Lunch in Diffusion U-Net, Chenyang Si, Ziqi Huang, Yuming Jiang, Ziwei Liu, 2023,
arXiv 2309.11497.

In the decoder of a U-Net two things are put side by side: what came up from below, which denoises,
and the skip, which carries detail. The authors find that the skips make the decoder overlook the
former. So multiply half of the backbone's channels by b > 1. That alone makes pictures too smooth,
so take away from the skip what is smooth: multiply its lowest frequencies by s < 1. Nothing is
trained.

    h[:, :C/2] <- b h[:, :C/2],   skip <- IFFT(mask FFT(skip)),  mask: s at the lowest, else 1

Try: b alone, s alone; one level of the decoder at a time.

Weakness: the factors are found by looking at pictures, for each model anew. It changes every
answer, so what it gives in one quality it takes from another: measure. Which half of the channels
is scaled is an accident of training.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from minidiff.core.denoise import Denoise
from minidiff.pipe.checks import check_strength


def low_frequencies(x: Tensor, factor: float, radius: int = 1) -> Tensor:
    """x (b c h w) with the frequencies from -radius to radius - 1 along both axes times a factor,
    in float32 (the transform is not made for less).
    """
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    h, w = x.shape[-2:]
    mask = torch.ones(h, w, device=x.device)
    rows = slice(max(h // 2 - radius, 0), h // 2 + radius)
    columns = slice(max(w // 2 - radius, 0), w // 2 + radius)
    mask[rows, columns] = factor
    spectrum = torch.fft.ifftshift(spectrum * mask, dim=(-2, -1))
    return torch.fft.ifftn(spectrum, dim=(-2, -1)).real.to(x.dtype)


def backbone_widths(net: nn.Module) -> list[list[int]]:
    """For each level of a U-Net's decoder, deepest first, how many of the channels that enter each
    of its blocks came from below; the others are the skip's.
    """
    width = net.mid_block.resnets[-1].conv2.out_channels
    levels = []
    for level in net.up_blocks:
        widths = []
        for block in level.resnets:
            widths.append(width)
            width = block.conv2.out_channels
        levels.append(widths)
    return levels


def freeu(
    denoise: Denoise,
    net: nn.Module,
    *,
    b: Sequence[float] = (1.2, 1.4),
    s: Sequence[float] = (0.9, 0.2),
) -> Denoise:
    """The denoiser of a U-Net `net` with other weights of backbone and skips in the first levels of
    its decoder, deepest first: as many as `b` and `s` have numbers. All ones change nothing, to the
    bit.

    ValueError: a network without up_blocks, lists of different lengths or longer than the decoder,
    numbers below 0.
    """
    if not hasattr(net, "up_blocks"):
        raise ValueError("FreeU weighs the skips of a U-Net; this network has no up_blocks")
    levels = backbone_widths(net)
    if len(b) != len(s) or not 1 <= len(b) <= len(levels):
        raise ValueError(
            f"b={tuple(b)}, s={tuple(s)}: expected as many of each, 1 to {len(levels)}, one for "
            "each level of the decoder from the deepest"
        )
    for name, values in (("b", b), ("s", s)):
        for value in values:
            check_strength(name, value)

    def weighed(width: int, b_here: float, s_here: float) -> Callable:
        def hook(module: nn.Module, args: tuple) -> tuple | None:
            if b_here == s_here == 1:
                return None
            backbone, skip = args[0][:, :width], args[0][:, width:]
            scaled = torch.cat([b_here * backbone[:, : width // 2], backbone[:, width // 2 :]], 1)
            skip = skip if s_here == 1 else low_frequencies(skip, s_here)
            return (torch.cat([scaled, skip], 1), *args[1:])

        return hook

    def guided(x_t, t, cond):
        with ExitStack() as stack:
            for level, widths, b_here, s_here in zip(net.up_blocks, levels, b, s):
                for block, width in zip(level.resnets, widths):
                    handle = block.register_forward_pre_hook(weighed(width, b_here, s_here))
                    stack.callback(handle.remove)
            return denoise(x_t, t, cond)

    return guided
