"""The KL autoencoder of latent diffusion (Rombach et
al. 2022, 2112.10752; Kingma & Welling 2013, 1312.6114).

Pictures (b 3 H W) in [-1, 1] <-> latents (b 4 H/f W/f), f = patch * 2^(levels-1). Diffusion happens
on `scale * mean`, so latents have about unit variance (0.18215 for Stable Diffusion).

    z ~ N(mean(x), std(x)^2),   loss = reconstruction + beta KL(N(mean, std^2) || N(0, 1))

`patch` > 1 folds pixels into channels before the first convolution and unfolds after the last
(sub-pixel head): a tiny model then never works at full resolution. With patch 1 this is Stable
Diffusion's network, name for name. Without gradients, on a CPU, decoding runs channels-last: the
same picture for two thirds of the memory. Decoding in tiles would save more and paint another
picture, since GroupNorm's statistics are of the whole of it. Weakness: what it blurs, no edit can
keep; so every score in this project is printed beside the round trip's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.models.attention import SpatialAttention
from minidiff.models.blocks import Downsample, GroupNorm, ResBlock, Upsample, silu


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over every value of (b c h w); a scalar
    tensor.
    """
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


@dataclass(frozen=True)
class Gaussian:
    """Posterior q(z|x): `mean` and `logvar`, each (b c h w), unscaled."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL to N(0, 1) in nats, averaged over every latent value."""
        return gaussian_kl(self.mean, self.logvar)


class Block(nn.Module):
    """ResBlocks, then maybe a change of resolution. Iterating gives them in
    order: a caller who runs them one by one holds the largest maps no
    longer than a `forward` of the whole, whose input would live to its end.
    """

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, change: str | None):
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResBlock(c_in if i == 0 else c_out, c_out, None, groups, 1e-6) for i in range(layers)]
        )
        if change == "down":
            self.downsamplers = nn.ModuleList([Downsample(c_out, pad=0)])
        if change == "up":
            self.upsamplers = nn.ModuleList([Upsample(c_out)])

    def __iter__(self) -> Iterator[nn.Module]:
        return chain(
            self.resnets, getattr(self, "downsamplers", ()), getattr(self, "upsamplers", ())
        )


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResBlock(channels, channels, None, groups, 1e-6) for _ in range(2)]
        )
        self.attentions = nn.ModuleList([SpatialAttention(channels, 1, groups)])

    def forward(self, h: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](h)))


class Encoder(nn.Module):
    def __init__(self, c_in: int, latent: int, channels: tuple[int, ...], layers: int, groups: int):
        super().__init__()
        n = len(channels)
        self.conv_in = nn.Conv2d(c_in, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                Block(
                    channels[max(i - 1, 0)],
                    channels[i],
                    layers,
                    groups,
                    "down" if i < n - 1 else None,
                )
                for i in range(n)
            ]
        )
        self.mid_block = Middle(channels[-1], groups)
        self.conv_norm_out = GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for layer in chain(*self.down_blocks):
            h = layer(h)
        return self.conv_out(silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    def __init__(
        self, c_out: int, latent: int, channels: tuple[int, ...], layers: int, groups: int
    ):
        super().__init__()
        n = len(channels)
        c = tuple(reversed(channels))
        self.conv_in = nn.Conv2d(latent, c[0], 3, padding=1)
        self.mid_block = Middle(c[0], groups)
        self.up_blocks = nn.ModuleList(
            [
                Block(c[max(i - 1, 0)], c[i], layers + 1, groups, "up" if i < n - 1 else None)
                for i in range(n)
            ]
        )
        self.conv_norm_out = GroupNorm(groups, c[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(c[-1], c_out, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for layer in chain(*self.up_blocks):
            h = layer(h)
        return self.conv_out(silu(self.conv_norm_out(h)))


class VAE(nn.Module):
    """`channels` per level, `layers` ResBlocks a level
    (one more in the decoder), `groups` of GroupNorm.
    """

    def __init__(
        self,
        in_channels: int = 3,
        latent: int = 4,
        channels: tuple[int, ...] = (128, 256, 512, 512),
        layers: int = 2,
        groups: int = 32,
        patch: int = 1,
        scale: float = 0.18215,
    ):
        super().__init__()
        self.patch = patch
        self.scale = scale
        self.latent = latent
        self.factor = patch * 2 ** (len(channels) - 1)
        self.encoder = Encoder(in_channels * patch**2, latent, channels, layers, groups)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.decoder = Decoder(in_channels * patch**2, latent, channels, layers, groups)

    def encode(self, x: Tensor) -> Gaussian:
        """Picture (b 3 H W) in [-1, 1] -> posterior over unscaled latents (b c H/f W/f)."""
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(
                f"picture of {x.shape[-2]}x{x.shape[-1]}: both sides must be multiples of "
                f"{self.factor}"
            )
        x = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)  # b c h w each
        return Gaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents (b c h w) -> picture (b 3 H W), about [-1, 1], not clamped."""
        h = self.post_quant_conv(z)  # b c h w
        if not torch.is_grad_enabled() and z.device.type == "cpu":  # convolutions copy less
            h = h.contiguous(memory_format=torch.channels_last)
        x = self.decoder(h).contiguous()
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    def to_latent(self, x: Tensor) -> Tensor:
        """Scaled posterior mean: what the denoiser works on."""
        return self.scale * self.encode(x).mean

    def to_image(self, z: Tensor) -> Tensor:
        """Scaled latents -> picture clamped to [-1, 1]."""
        return self.decode(z / self.scale).clamp(-1, 1)
