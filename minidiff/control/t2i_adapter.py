"""T2I-Adapter: a small network that reads the hint once and helps the UNet's encoder at every step.

T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion
Models, Chong Mou, Xintao Wang, Liangbin Xie, Yanze Wu, Jian Zhang, Zhongang Qi, Ying Shan, Xiaohu
Qie, 2023, arXiv 2302.08453.

The network already knows how to draw; it only has to be told where. The hint is folded to the size
of the latent and turned into one feature map per level of the UNet, which is added to what the
encoder has at the end of that level (before it is halved, and before it is kept as a skip). Neither
the noise nor the time is read, so one run serves all steps.

    F_1..F_n = adapter(hint),   F_l = stage_l(pool(F_{l-1})),   stage: x + conv(relu(conv(x))), a
    few times
    encoder_l <- encoder_l + sum_k w_k F_l^k                     several adapters k, trained apart

    stage   full   3x3 and 1x1 convolutions at the level's width, twice: 77 million parameters, SD 1
            light  3x3 and 3x3 at a quarter of it, 4 times, 1x1 in and out: 19 million, for coarse
                   hints such as colour

Try: scale 0 to 1.5; interval=(500, 1000): early steps lay out the picture, later ones hardly need
the adapter; a sketch and a palette at once, `adapted(pipe, b, palette, denoise=adapted(pipe, a,
sketch))`.

Weakness: features that do not see the noisy picture cannot correct it, so a hint holds less firmly
than a ControlNet's.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.control.controlnet import check_hint, spread, steered, tile
from minidiff.core.denoise import Denoise
from minidiff.pipe.pipe import Pipe


class AdapterBlock(nn.Module):
    """x + block2(relu(block1(x))), block2 with a kernel of 1 or 3."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class Stage(nn.Module):
    """One level: halve (but for the first), change the width,
    blocks. A light one works at a quarter of the width.
    """

    def __init__(self, c_in: int, c_out: int, layers: int, light: bool, halve: bool):
        super().__init__()
        self.halve = halve
        width = c_out // 4 if light else c_out
        if light or c_in != c_out:
            self.in_conv = nn.Conv2d(c_in, width, 1)
        self.resnets = nn.ModuleList(
            [AdapterBlock(width, 3 if light else 1) for _ in range(layers)]
        )
        if light:
            self.out_conv = nn.Conv2d(width, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # odd sizes as the UNet rounds them
        x = F.avg_pool2d(x, 2, ceil_mode=True) if self.halve else x
        x = self.in_conv(x) if hasattr(self, "in_conv") else x
        for block in self.resnets:
            x = block(x)
        return self.out_conv(x) if hasattr(self, "out_conv") else x


class T2IAdapter(nn.Module):
    """Hint (b in_channels f*h f*w) in [0, 1] -> one feature map per level: (b C_l h/2^l w/2^l).

    in_channels  3, or 1 for grey hints (sketch, canny)
    channels     the widths of the UNet's levels; factor f: picture over latent
    light        the small variant; layers: blocks a level (default: 2 for full, 4 for light)
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (320, 640, 1280, 1280),
        layers: int | None = None,
        factor: int = 8,
        light: bool = False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.factor = factor
        layers = layers or (4 if light else 2)
        c = in_channels * factor**2
        if not light:
            self.conv_in = nn.Conv2d(c, channels[0], 3, padding=1)
            c = channels[0]
        self.body = nn.ModuleList()
        for i, w in enumerate(channels):
            self.body.append(Stage(c, w, layers, light, halve=i > 0))
            c = w

    def forward(self, hint: Tensor) -> list[Tensor]:
        f, (h, w) = self.factor, hint.shape[-2:]
        if hint.ndim != 4 or hint.shape[1] != self.in_channels or h % f or w % f:
            raise ValueError(
                f"hint of shape {tuple(hint.shape)}: this T2I-Adapter takes (b, "
                f"{self.in_channels}, H, W), H and W multiples of {f}"
            )
        x = F.pixel_unshuffle(hint, f)  # b c*f*f h w
        x = self.conv_in(x) if hasattr(self, "conv_in") else x
        features = []
        for stage in self.body:
            x = stage(x)
            features.append(x)
        return features


def adapted(
    pipe: Pipe,
    adapter: T2IAdapter,
    hint: Tensor,
    scale: float | Sequence[float] | Tensor = 1.0,
    *,
    interval: tuple[float, float] | None = None,
    denoise: Denoise | None = None,
) -> Denoise:
    """`pipe.eps` helped by a hint (1 or b, c, H, W) in [0,
    1] at pixel size; wrap it in `cfg` or `cfg_batched`.

    The adapter runs here, once. hint, interval and denoise are those of `controlled`; scale: one
    number, or one per level. ValueError: a hint or scales of wrong size or range, an adapter of
    another network.
    """
    check_hint(hint, adapter.in_channels)
    widths = tuple(
        level.resnets[-1].conv2.out_channels for level in getattr(pipe.net, "down_blocks", ())
    )
    if widths != adapter.channels:
        raise ValueError(
            f"this T2I-Adapter is for levels of {adapter.channels} channels, "
            f"{pipe.name or 'this model'} has {widths or 'none'}: they do not belong together"
        )
    features = adapter(hint.to(pipe.device, pipe.dtype))
    features = {
        f"level.{i}": w * f for i, (w, f) in enumerate(zip(spread(scale, len(features)), features))
    }

    def residuals(x_t, t, cond) -> dict[str, Tensor]:
        size = tuple(x_t.shape[2:])
        have = tuple(features["level.0"].shape[2:])
        if size != have:
            raise ValueError(
                f"the hint fits latents of {have}, these are {size}: it must be {adapter.factor} "
                f"times larger"
            )
        return {name: tile(f, len(x_t)) for name, f in features.items()}

    return steered(pipe, residuals, interval, denoise)
