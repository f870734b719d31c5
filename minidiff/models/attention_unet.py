"""Attention U-Net: the decoder says which places of a skip it wants.

Attention U-Net: Learning Where to Look for the Pancreas, Ozan Oktay, Jo Schlemper, Loic Le Folgoc,
Matthew Lee and others, 2018, arXiv 1804.03999.

A skip carries the encoder's features of every place, also of those that do not matter. The decoder
already knows, coarsely, what is where. So compare the two at each place with a small additive
attention, which gives one number between 0 and 1, and multiply the skip by it.

    alpha = sigmoid(psi(relu(W_x x + W_g g))),    skip <- alpha x

x is the skip, g what the decoder has so far; W_x, W_g and psi are 1x1 convolutions, W_x and W_g to
half of the skip's channels, psi to one. Much public code (not the authors') puts a BatchNorm behind
each. Here W_x and W_g have a GroupNorm: a batch of a denoiser mixes times, so its statistics are
those of no one time, and at sampling all rows have the same time. psi has none: a norm of its one
map would make every map open somewhere and shut somewhere.

Here g has the skip's size already, since a level of this decoder ends with the doubling. In the
paper g is coarser: W_x has stride 2 there, and alpha is enlarged. The tap `gate.i.alpha` shows the
map of skip i.

Try: look at alpha at early and late times; `tap(net, "alpha", ...)` that opens all gates.

Weakness: one number a place for all channels. The gate asks what the decoder knows, and at high
noise that is little. Nothing makes alpha say what a person would call attention.
"""

from math import gcd

import torch
from torch import Tensor, nn

from minidiff.core.taps import Tap
from minidiff.models.blocks import GroupNorm
from minidiff.models.unet import UNet


class AttentionGate(nn.Module):
    """Skip x (b c h w) and the decoder's g (b d h w) -> x times alpha (b 1 h w)."""

    def __init__(self, channels: int, below: int, groups: int = 32):
        super().__init__()
        inner = max(channels // 2, 1)
        self.W_x = nn.Conv2d(channels, inner, 1)
        self.W_g = nn.Conv2d(below, inner, 1)
        self.norm_x, self.norm_g = (GroupNorm(gcd(groups, inner), inner) for _ in range(2))
        self.psi = nn.Conv2d(inner, 1, 1)
        self.alpha = Tap()

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        both = torch.relu(self.norm_x(self.W_x(x)) + self.norm_g(self.W_g(g)))  # b c/2 h w
        return x * self.alpha(torch.sigmoid(self.psi(both)))


class AttentionUNet(UNet):
    """The UNet with a gate on each skip. Arguments are those of `UNet`."""

    def __init__(self, *, groups: int = 32, **unet):
        super().__init__(groups=groups, **unet)
        self.gate = nn.ModuleList(
            [AttentionGate(skip, below, groups) for below, skip in self.joins]
        )

    def join(self, i: int, h: Tensor, skip: Tensor) -> Tensor:
        return super().join(i, h, self.gate[i](skip, h))
