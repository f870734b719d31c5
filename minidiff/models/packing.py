"""Convolution weights packed once: the layout a CPU's
kernels want, made ahead instead of in every call.

oneDNN, which computes PyTorch's convolutions on x86 processors, keeps weights in blocks of an order
of its own, and PyTorch re-orders the plain ones in EVERY call. Where few pixels meet many weights
(Stable Diffusion's inner levels, 1280 channels at 8x8 and 16x16) that is up to two thirds of a
convolution's time.

    with packed(pipe.net):
        image = pipe.generate("a red circle", steps=20)

Same result to rounding. Names, parameters and hooks stay what they are: only the class of each
Conv2d is another one for the length of the block. Weights are packed at their first use, for the
shape of that input, and anew when shape or weights change (`weight.data` edited behind PyTorch's
back is not noticed).

Weakness: a second copy of the convolution weights (2.4 GB for sd15 in float32) while the block
lasts, and private operators of PyTorch. Where they are missing, on other devices, and while
gradients are recorded, the plain convolution runs. Try: batch 1 against batch 4; the more pixels
there are, the less the packing is worth.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class PackedConv2d(nn.Conv2d):
    """What `packed` turns a Conv2d into. Never constructed."""

    pack, key = None, None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.ndim != 4:
            return super().forward(x)
        w = self.weight
        how = (self.padding, self.stride, self.dilation, self.groups)
        key = (x.shape, w.dtype, w.data_ptr(), w._version)
        if self.key != key:
            self.key = key
            self.pack = reorder(w, *how, x.shape)
        if self.pack is None:
            return super().forward(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.pack, self.bias, *how, "none", [], ""
        )


def reorder(weight: Tensor, padding, stride, dilation, groups: int, shape) -> Tensor | None:
    """The weight in oneDNN's own order, or None where this PyTorch cannot make it."""
    try:
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, stride, dilation, groups, shape
        )
    except (AttributeError, RuntimeError):  # no oneDNN in this build, or not for this dtype
        return None


@contextmanager
def packed(net: nn.Module) -> Iterator[None]:
    """Run the convolutions of `net` on packed weights
    while the block lasts, without gradients and on a CPU.
    """
    convs = [m for m in net.modules() if type(m) is nn.Conv2d and m.padding_mode == "zeros"]
    for m in convs:
        m.__class__ = PackedConv2d
    try:
        yield
    finally:
        for m in convs:
            m.__class__ = nn.Conv2d
            m.__dict__.pop("pack", None), m.__dict__.pop("key", None)
