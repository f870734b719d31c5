"""ControlNet: a picture (edges, pose, depth) says where things are, the prompt what they are.

Adding Conditional Control to Text-to-Image Diffusion Models, Lvmin Zhang, Anyi Rao,
Maneesh Agrawala, 2023, arXiv 2302.05543.

The trained UNet stays as it is. A copy of its way down reads the same noisy latents plus the hint,
and what it finds is added to the skips and to the bottleneck of the original through 1x1
convolutions Z that start at zero: on the first day the copy changes nothing, and it can only learn
to help.

    the copy            h_0 = conv_in(x_t) + E(hint),    h_k = block_k(h_{k-1}, t, text)
                        E: 3 convolutions of stride 2 for Stable Diffusion
    the frozen network  skip_k <- skip_k + s_k Z_k(h_k),    h <- h + s_mid Z_mid(mid(h_last))
                        the paper's eq. 2, block by block

The residuals reach the network through its taps `skip.k` and `h`, so a controlled denoiser is a
denoiser: guidance goes around it, and several hints are one inside the other (their residuals add
up).

Try: scale 0 to 1.5; an empty prompt and `scale=torch.logspace(-1, 0, 13)`, the weights of "guess
mode" (deep residuals count more); interval=(400, 1000): the hint lays out the picture, the prompt
alone finishes it.

Weakness: one network of 361 million parameters per kind of hint, run at every step next to the
UNet, and bound to the UNet it was trained with: `controlled` refuses a pair whose shapes differ,
but cannot see a wrong training. A T2I-Adapter is the cheap alternative.
"""

import copy
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.taps import Tap, tap, tap_names
from minidiff.models.unet import UNet
from minidiff.pipe.pipe import Pipe

HINT = (16, 32, 96, 256)  # widths of E; every one after the first halves the picture
MODULES = ("conv_in", "time_embedding", "class_embedding", "down_blocks", "mid_block")
NUMBERS = ("c0", "cos_first", "shift", "in_channels", "classes")


def zero(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with weight and bias 0. Its gradient is not 0, since its input is not."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class HintEmbedding(nn.Module):
    """E: picture (b 3 H W) -> features (b out H/f W/f),
    f = 2 ** (number of widths - 1); zero at first.
    """

    def __init__(self, channels: Sequence[int], out: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for a, b in pairwise(channels):
            self.blocks += [nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2)]
        self.conv_out = zero(nn.Conv2d(channels[-1], out, 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        h = F.silu(self.conv_in(hint))
        for conv in self.blocks:
            h = F.silu(conv(h))
        return self.conv_out(h)


class ControlNet(nn.Module):
    """x_t (b c h w), network time (b,), Cond, hint (b 3 f*h
    f*w) -> what to add at each tap of the UNet, by its name.

    unet_args      the arguments of the UNet it steers (none: Stable Diffusion 1)
    hint_channels  widths of the hint's convolutions; their number sets the factor f between picture
                   and latent
    source         take over this UNet's way down (a copy of it) instead of `unet_args`: what
                   `from_unet` does
    """

    # the same walk over the same names
    embed_time = UNet.embed_time
    down = UNet.down
    middle = UNet.middle

    def __init__(
        self, hint_channels: Sequence[int] = HINT, *, source: UNet | None = None, **unet_args
    ):
        super().__init__()
        unet = UNet(**unet_args) if source is None else source
        for name in NUMBERS:
            setattr(self, name, getattr(unet, name))
        for name in MODULES:
            if hasattr(unet, name):
                setattr(
                    self,
                    name,
                    getattr(unet, name) if source is None else copy.deepcopy(getattr(unet, name)),
                )
        self.level = nn.ModuleList([Tap() for _ in self.down_blocks])
        self.h = Tap()
        widths = [self.conv_in.out_channels]
        for level in self.down_blocks:
            widths += [level.resnets[-1].conv2.out_channels] * (
                len(level.resnets) + hasattr(level, "downsamplers")
            )
        self.factor = 2 ** (len(hint_channels) - 1)
        self.taps = [*(f"skip.{k}" for k in range(len(widths))), "h"]
        self.controlnet_cond_embedding = HintEmbedding(hint_channels, widths[0])
        self.controlnet_down_blocks = nn.ModuleList([zero(nn.Conv2d(c, c, 1)) for c in widths])
        self.controlnet_mid_block = zero(nn.Conv2d(widths[-1], widths[-1], 1))

    @classmethod
    def from_unet(cls, unet: UNet, factor: int = 8) -> "ControlNet":
        """A ControlNet to be trained for `unet` (changes
        nothing yet). factor: picture over latent, 1, 2, 4 or 8.
        """
        if not isinstance(unet, UNet):
            raise ValueError(
                f"{type(unet).__name__} has no way down to copy: a ControlNet is made from a UNet"
            )
        if factor not in (1, 2, 4, 8):
            raise ValueError(
                f"factor={factor}: the hint is shrunk to the latent's size by 1, 2, 4 or 8 (the "
                "VAE's factor)"
            )
        like = next(unet.parameters())
        net = cls(HINT[: factor.bit_length()], source=unet).to(like.device, like.dtype)
        return net.train(unet.training).requires_grad_(True)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None, hint: Tensor) -> dict[str, Tensor]:
        cond = Cond() if cond is None else cond
        # 4 channels serve an inpainting UNet of 9, too
        if cond.image is not None and x.shape[1] < self.in_channels:
            x = torch.cat([x, cond.image], dim=1)
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"input has {x.shape[1]} channels (with cond.image), the ControlNet takes "
                f"{self.in_channels}"
            )
        h = self.factor * x.shape[2]
        w = self.factor * x.shape[3]
        if tuple(hint.shape[1:]) != (3, h, w):
            raise ValueError(
                f"hint of shape {tuple(hint.shape)}: at this size the ControlNet takes (b, 3, {h}, "
                f"{w}), the pixels of the picture to be drawn"
            )
        temb = self.embed_time(t, cond, x.dtype)
        h, skips = self.down(self.conv_in(x) + self.controlnet_cond_embedding(hint), temb, cond)
        out = [conv(s) for conv, s in zip(self.controlnet_down_blocks, skips)]
        return dict(zip(self.taps, [*out, self.controlnet_mid_block(self.middle(h, temb, cond))]))


def controlled(
    pipe: Pipe,
    controlnet: ControlNet,
    hint: Tensor,
    scale: float | Sequence[float] | Tensor = 1.0,
    *,
    interval: tuple[float, float] | None = None,
    denoise: Denoise | None = None,
) -> Denoise:
    """`pipe.eps` steered by a hint (1 or b, 3, H, W) in [0,
    1] at pixel size; wrap it in `cfg` or `cfg_batched`.

    hint      row i of a batch takes row i % b of the hint, so both branches of `cfg_batched` get it
    scale     one number, or one per residual: the skips in the order they are made, then the
              bottleneck
    interval  (lo, hi] in schedule indices, outside of which the ControlNet is not even run
    denoise   what to steer, unguided: pipe.eps (default), or another controlled or adapted denoiser
              of the same pipe

    ValueError: a hint or scales of wrong size or range, a ControlNet of another network.
    """
    check_hint(hint, 3)
    found = len(tap_names(pipe.net, r"^(skip\.\d+|h)$"))
    model = pipe.name or "this model"
    if found != len(controlnet.taps):
        raise ValueError(
            f"this ControlNet feeds {len(controlnet.taps)} taps (skips and bottleneck), {model} "
            f"has {found}: they do not belong together"
        )
    theirs = dict(pipe.net.named_parameters())
    for name, p in controlnet.named_parameters():
        # 4 channels for inpainting's 9
        if name in theirs and theirs[name].shape != p.shape and name != "conv_in.weight":
            raise ValueError(
                f"this ControlNet is not for {model}: its {name} is {tuple(p.shape)}, the "
                f"network's {tuple(theirs[name].shape)}"
            )
    hint = hint.to(pipe.device, pipe.dtype)
    scales = dict(zip(controlnet.taps, spread(scale, len(controlnet.taps))))

    def residuals(x_t: Tensor, t: Tensor, cond: Cond | None) -> dict[str, Tensor]:
        out = controlnet(x_t, t, cond, tile(hint, len(x_t)))
        return {name: scales[name] * r for name, r in out.items()}

    return steered(pipe, residuals, interval, denoise)


# ---- for every network that steers another by adding to its activations --------------------------


def steered(
    pipe: Pipe,
    residuals: Callable[[Tensor, Tensor, Cond | None], dict[str, Tensor]],
    interval: tuple[float, float] | None = None,
    denoise: Denoise | None = None,
) -> Denoise:
    """A denoiser that adds `residuals(x_t, network time,
    cond)`, {name of a tap: tensor}, inside `pipe.net`.
    """
    base, (lo, hi) = denoise or pipe.eps, interval or (-1, float("inf"))

    def eps(x_t: Tensor, t: int | Tensor, cond: Cond | None) -> Tensor:
        index = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        on = ((lo < index) & (index <= hi)).to(x_t.dtype).view(-1, 1, 1, 1)  # b 1 1 1
        if not on.any():
            return base(x_t, t, cond)
        # as Pipe.eps: t - 1
        extra = residuals(x_t, index - 1, cond.expand(len(x_t)) if cond is not None else None)
        names = "|".join(map(re.escape, extra))
        with tap(pipe.net, f"^({names})$", lambda y, name: y + on * extra[name]):
            return base(x_t, t, cond)

    return eps


def check_hint(hint: Tensor, channels: int) -> None:
    """ValueError unless the hint is (b, channels, H, W) in [0, 1]; exactly -1 is allowed:
    inpainting nets mark holes so.
    """
    if hint.ndim != 4 or hint.shape[1] != channels or not hint.is_floating_point():
        raise ValueError(
            f"hint is {hint.dtype} of shape {tuple(hint.shape)}, expected (b, {channels}, H, W), "
            "float"
        )
    if ((hint < 0) & (hint != -1) | (hint > 1)).any():
        raise ValueError(
            f"hint has values from {hint.min():.3g} to {hint.max():.3g}, expected [0, 1]: divide "
            "bytes by 255, take (x + 1) / 2 of a picture in [-1, 1]"
        )


def spread(scale: float | Sequence[float] | Tensor, n: int) -> Tensor:
    """One number for n places, or n numbers -> (n,)."""
    scale = torch.as_tensor(scale, dtype=torch.float32, device="cpu")
    if scale.shape not in ((), (n,)):
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}, expected one number or {n} of them"
        )
    return scale.expand(n)


def tile(rows: Tensor, b: int) -> Tensor:
    """Rows (n ..) repeated as a whole to b rows, as `cfg_batched` repeats its batch."""
    if b % len(rows):
        raise ValueError(f"{len(rows)} hints for a batch of {b} rows: give one, or one per picture")
    return rows.repeat(b // len(rows), 1, 1, 1)
