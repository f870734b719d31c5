"""Networks. The denoisers among them: one record each, and the only list of them.

Every denoiser is called alike,

    net(x, t, cond) -> raw output of x's height and width

with noisy x (b c h w), network time t (b,) and a `Cond`, and has the same taps: what listens to
attention or to features of one of them listens to those of another. A new one is a file of this
folder and a record here; `weights.store.build` then makes it of an entry of `SIZES` that has its
name as a key.
"""

from dataclasses import dataclass

from torch import nn

from minidiff.models.attention_unet import AttentionUNet
from minidiff.models.dit import DiT
from minidiff.models.dual_attention_unet import DualAttentionUNet
from minidiff.models.r2unet import R2UNet
from minidiff.models.unet import UNet

__all__ = ["BACKBONES", "Backbone"]


@dataclass(frozen=True)
class Backbone:
    """One denoising network.

    make     its class; the arguments are those of its entries of `SIZES`
    paper    authors, year, arXiv number, name
    about    one sentence: what is its own
    """

    name: str
    make: type[nn.Module]
    paper: str
    about: str


ALL = (
    Backbone(
        "unet",
        UNet,
        "Ronneberger et al. 2015, 1505.04597, U-Net; Ho et al. 2020, 2006.11239, DDPM",
        "Convolutions that narrow and widen again, with every level's features handed across",
    ),
    Backbone(
        "dit",
        DiT,
        "Peebles, Xie 2022, 2212.09748, DiT",
        "A plain transformer of patches, whose condition shifts, scales and gates every branch",
    ),
    Backbone(
        "attention_unet",
        AttentionUNet,
        "Oktay et al. 2018, 1804.03999, Attention U-Net",
        "A U-Net whose decoder says which places of a skip it wants",
    ),
    Backbone(
        "r2unet",
        R2UNet,
        "Alom et al. 2018, 1802.06955, R2U-Net",
        "A U-Net whose convolutions run several times, on their input and their own last answer",
    ),
    Backbone(
        "dual_attention_unet",
        DualAttentionUNet,
        "Li et al. 2022, Energies 15(12):4238; Hu et al. 2017, 1709.01507, DAttRes-Unet",
        "A U-Net whose skips are gated by place and by channel",
    ),
)

BACKBONES = {b.name: b for b in ALL}
