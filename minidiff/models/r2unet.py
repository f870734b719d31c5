"""R2U-Net: each convolution runs several times, on its input and on its own last answer.

Recurrent Residual Convolutional Neural Network based on U-Net (R2U-Net) for Medical Image
Segmentation, Md Zahangir Alom, Mahmudul Hasan, Chris Yakopcic, Tarek M. Taha, Vijayan K. Asari,
2018, arXiv 1802.06955.

A deeper network sees farther and has more parameters. A recurrent convolution sees farther with the
same ones: f is applied again to the sum of the input and of what f said before. Two of these, one
after the other, make the block's branch, and a 1x1 convolution makes the road around it.

    h_0 = f(x),   h_k = f(x + h_{k-1}),  k = 1 ... t          (recurrent convolution, RCL)
    out = x' + RCL_2(RCL_1(x') + time),   x' = conv1x1(x)     (the block)

So f is asked t + 1 times, three times at the usual t = 2, with t = 0's parameters. Time (and class)
come in between the two, as in the ResBlock. f is convolution, norm, ReLU in the paper; here it is
GroupNorm, SiLU, convolution, as everywhere in this house, so that the sums are not cut off at 0 and
t = 0 is a ResBlock behind a 1x1 convolution.

Try: `recurrence` 0, 1, 2 with the same weights: what do the further rounds change?

Weakness: three times the work of a convolution for the parameters of one. A plain block of the same
cost has three times the parameters, and that is the comparison to make. All rounds share one f, so
none can do what the others do not.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from minidiff.models.blocks import ResBlock, silu
from minidiff.models.unet import UNet


def recurrent(f: Callable[[Tensor], Tensor], x: Tensor, t: int) -> Tensor:
    """h_t of h_0 = f(x), h_k = f(x + h_{k-1})."""
    h = f(x)
    for _ in range(t):
        h = f(x + h)
    return h


class RecurrentBlock(ResBlock):
    """The ResBlock whose two convolutions are recurrent ones, behind a 1x1 convolution. Names, tap
    and the arguments behind c_out are the ResBlock's.
    """

    def __init__(self, c_in: int, c_out: int, *block, recurrence: int = 2):
        super().__init__(c_out, c_out, *block)
        self.recurrence = recurrence
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        def first(h: Tensor) -> Tensor:
            return self.conv1(silu(self.norm1(h)))

        def second(h: Tensor) -> Tensor:
            return self.conv2(self.dropout(silu(self.normed_with_time(h, temb))))

        x = self.conv_shortcut(x)  # b c h w
        h = recurrent(first, x, self.recurrence)
        return x + self.h(recurrent(second, h, self.recurrence))


class R2UNet(UNet):
    """The UNet of recurrent blocks. `recurrence` is the paper's t; the others are `UNet`'s."""

    def __init__(self, *, recurrence: int = 2, **unet):
        if not isinstance(recurrence, int) or recurrence < 0:
            raise ValueError(f"recurrence={recurrence!r}: expected a whole number from 0")
        super().__init__(block=partial(RecurrentBlock, recurrence=recurrence), **unet)
