"""Dual-attention residual U-Net: a skip is gated by place and by channel.

Li et al., dual-attention residual U-Net (DAttRes-Unet), Energies 2022, 15(12):4238. The channel
gate: Squeeze-and-Excitation Networks, Jie Hu, Li Shen, Samuel Albanie, Gang Sun, Enhua Wu, 2017,
arXiv 1709.01507.

The attention gate of the Attention U-Net says where to look, with one number for all channels.
Squeeze-and-excitation says what to look at, with one number for all places: the mean over the
pixels tells how much of each channel there is, and a small network turns that into a weight for
each channel. Here a skip passes both.

    z = mean over pixels of x,   s = sigmoid(W_2 relu(W_1 z)),   x <- s x       (channels)
    alpha = sigmoid(psi(relu(W_x x + W_g g))),                   x <- alpha x   (places)

W_1 divides the number of channels by `ratio` (16 in the paper of 2017), but never below one.

What is known of the wiring: a residual encoder, and both gates on the skips. Which gate comes first
is known to us from a figure only, and the order here is a choice: channels, then places. The
authors' encoder is a ResNet-18 that was trained on photographs; here it is the UNet's own
ResBlocks, which are residual, and nothing is trained before.

Try: opening one of the two gates by a tap (`excite.i.s`, `gate.i.alpha`): which one does a trained
network need?

Weakness: two gates multiply, so what one shuts the other cannot open. The means over the pixels of
a noisy input are mostly those of its noise.
"""

import torch
from torch import Tensor, nn

from minidiff.core.taps import Tap
from minidiff.models.attention_unet import AttentionUNet


class SqueezeExcite(nn.Module):
    """x (b c h w) times s (b c 1 1), which the means of x decide."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        if ratio < 1:
            raise ValueError(f"ratio={ratio}: expected 1 or more, by which channels are divided")
        inner = max(channels // ratio, 1)
        self.W_1 = nn.Linear(channels, inner)
        self.W_2 = nn.Linear(inner, channels)
        self.s = Tap()

    def forward(self, x: Tensor) -> Tensor:
        z = x.mean((2, 3))  # b c
        s = torch.sigmoid(self.W_2(torch.relu(self.W_1(z))))
        return x * self.s(s[:, :, None, None])


class DualAttentionUNet(AttentionUNet):
    """The UNet with both gates on each skip. `ratio` is the channel gate's; the others are
    `UNet`'s.
    """

    def __init__(self, *, ratio: int = 16, **unet):
        super().__init__(**unet)
        self.excite = nn.ModuleList([SqueezeExcite(skip, ratio) for _, skip in self.joins])

    def join(self, i: int, h: Tensor, skip: Tensor) -> Tensor:
        return super().join(i, h, self.excite[i](skip))
