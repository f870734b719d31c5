"""Convolutional pieces that the UNet and the VAE share: ResBlock, up- and down-sampling, and the time embedding.

(Ho, Jain, Abbeel 2020, 2006.11239; Rombach et al. 2022, 2112.10752.) Names are those of public checkpoints.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.taps import Tap


def timestep_embedding(t: Tensor, dim: int, cos_first: bool = True, shift: float = 0) -> Tensor:
    """Sinusoidal embedding of network times t (b,) -> (b, dim): frequencies 10000^(-k / (dim/2 - shift)).

    Stable Diffusion and DiT put the cosines first with shift 0; the 2020 DDPM code puts sines first with shift 1.
    """
    half = dim // 2
    freq = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - shift))
    angle = t[:, None].float() * freq                                                          # b half
    return torch.cat([angle.cos(), angle.sin()] if cos_first else [angle.sin(), angle.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim, out), nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResBlock(nn.Module):
    """GN SiLU conv, + time, GN SiLU conv, + shortcut. The tap `h` sees the branch before the residual sum."""

    def __init__(self, c_in: int, c_out: int, time: int | None = None, groups: int = 32, eps: float = 1e-5,
                 dropout: float = 0.):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, eps=eps), nn.Conv2d(c_in, c_out, 3, padding=1)
        if time:
            self.time_emb_proj = nn.Linear(time, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out, eps=eps), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        if c_in != c_out:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)
        self.h = Tap()

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.h(self.conv2(self.dropout(F.silu(self.norm2(h)))))                            # b c h w
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


class Downsample(nn.Module):
    """Stride-2 convolution. pad=1: symmetric (SD UNet); pad=0: one row and column of zeros at the end (VAE, DDPM)."""

    def __init__(self, channels: int, pad: int = 1):
        super().__init__()
        self.pad, self.conv = pad, nn.Conv2d(channels, channels, 3, stride=2, padding=pad)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.pad else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
