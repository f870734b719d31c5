"""Convolutional pieces that the UNet and the VAE share:
ResBlock, up- and down-sampling, and the time embedding.

(Ho, Jain, Abbeel 2020, 2006.11239; Rombach et al. 2022, 2112.10752.) Names are those of public
checkpoints. Without gradients the activations and sums below are written over their own input, so
that fewer large maps live at once; the numbers are the same to the last bit.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.taps import Tap
from minidiff.models.modulate import modulate


def timestep_embedding(t: Tensor, dim: int, cos_first: bool = True, shift: float = 0) -> Tensor:
    """Sinusoidal embedding of network times t (b,) ->
    (b, dim): frequencies 10000^(-k / (dim/2 - shift)).

    Stable Diffusion and DiT put the cosines first with shift 0; the 2020 DDPM code puts sines first
    with shift 1.
    """
    half = dim // 2
    freq = torch.exp(
        -math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - shift)
    )
    angle = t[:, None].float() * freq  # b half
    return torch.cat(
        [angle.cos(), angle.sin()] if cos_first else [angle.sin(), angle.cos()], dim=-1
    )


def silu(x: Tensor) -> Tensor:
    """SiLU, in place while no gradient is recorded: only for an x that nobody else holds."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class GroupNorm(nn.GroupNorm):
    """GroupNorm whose statistics are exact on channels-last maps, too.

    On a CPU PyTorch then adds up the whole map in float32, one pixel after the other: off by 2e-4
    at 512x512. Here rows are summed first and their sums in float64. Any other input goes to
    PyTorch's kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = (
            x.ndim == 4
            and x.is_contiguous(memory_format=torch.channels_last)
            and not x.is_contiguous()
        )
        if (
            not last
            or torch.is_grad_enabled()
            or x.dtype != torch.float32
            or x.device.type != "cpu"
        ):
            return super().forward(x)
        rows = x.permute(0, 2, 3, 1)  # b h w c
        g = self.num_groups
        total = rows.sum(2).double().sum(1)  # b c
        # strips stay in the cache
        square = sum(strip.square().sum(2).double().sum(1) for strip in rows.split(8, dim=1))
        # b g 1
        mean, square = (
            s.unflatten(1, (g, -1)).mean(2, keepdim=True) / x[0, 0].numel() for s in (total, square)
        )
        # b g c/g
        scale = self.weight.unflatten(0, (g, -1)) * (square - mean**2 + self.eps).rsqrt()
        shift = self.bias.unflatten(0, (g, -1)) - mean * scale
        scale, shift = (v.flatten(1)[:, :, None, None].float() for v in (scale, shift))  # b c 1 1
        return torch.addcmul(shift, x, scale)


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResBlock(nn.Module):
    """GN SiLU conv, + time, GN SiLU conv, + shortcut.
    The tap `h` sees the branch before the residual sum. With `scale_shift` time is not added: it
    scales and shifts what comes out of the second norm (Dhariwal, Nichol 2021, 2105.05233, ADM).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        time: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        if time:
            self.time_emb_proj = nn.Linear(time, 2 * c_out if scale_shift else c_out)
        self.norm2 = GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        if c_in != c_out:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)
        self.h = Tap()

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = silu(self.normed_with_time(h, temb))
        h = self.h(self.conv2(self.dropout(h)))  # b c h w
        x = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        # a listener may keep h
        reuse = not torch.is_grad_enabled() and not self.h.fns and h.dtype == x.dtype
        return h.add_(x) if reuse else x + h

    def normed_with_time(self, h: Tensor, temb: Tensor | None) -> Tensor:
        """h (b c h w) through the second norm, with what time says before or after it."""
        if temb is None:
            return self.norm2(h)
        said = self.time_emb_proj(F.silu(temb))  # temb is everyone's
        if self.scale_shift:
            scale, shift = said.chunk(2, dim=1)  # b c each
            return modulate(self.norm2(h), shift, scale)
        return self.norm2(h + said[:, :, None, None])


class Downsample(nn.Module):
    """Stride-2 convolution. pad=1: symmetric (SD UNet);
    pad=0: one row and column of zeros at the end (VAE, DDPM).
    """

    def __init__(self, channels: int, pad: int = 1):
        super().__init__()
        self.pad = pad
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=pad)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.pad else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel four times, then a convolution. `size`: one
    row or column less, where an odd size had been halved.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(
            F.interpolate(x, size or tuple(2 * n for n in x.shape[-2:]), mode="nearest")
        )
