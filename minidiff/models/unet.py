"""The one UNet: Stable Diffusion's, the 2020 DDPM's and the tiny ones, by arguments.

(Ronneberger et al. 2015, 1505.04597; Ho, Jain, Abbeel 2020, 2006.11239; Rombach et al. 2022,
2112.10752.)

    h, skips = encode(x, t, cond);   out = decode(mid(h), skips)

Levels halve the resolution; each holds ResBlocks, after which an attention block may follow:
"cross" (self- and cross-attention transformer), "self" (plain attention over pixels) or None.
Module names are the diffusers names, so the folder layout of public checkpoints loads with an
identity map. Taps: `skip.i`, `h` (the bottleneck), `level.i` (the end of a level on the way down:
what is added there is in its skip and flows on), the taps inside ResBlocks and attention. What a
paper adds at a block (ControlNet residuals, T2I-Adapter features, FreeU scales) goes through those
taps. Papers that build another U-Net change one of two things: the block (an argument), or how a
skip joins the decoder (`join`, which a subclass extends).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.cond import Cond
from minidiff.core.taps import Tap
from minidiff.models.attention import SpatialAttention, SpatialTransformer
from minidiff.models.blocks import Downsample, ResBlock, TimeEmbedding, Upsample, timestep_embedding


class Level(nn.Module):
    """ResBlocks of one resolution with their attention, then maybe a change of resolution."""

    def __init__(
        self,
        resnets: list[ResBlock],
        attentions: list[nn.Module],
        change: Downsample | Upsample | None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        if change is not None:
            self.add_module(
                "downsamplers" if isinstance(change, Downsample) else "upsamplers",
                nn.ModuleList([change]),
            )

    def run(self, i: int, h: Tensor, temb: Tensor, cond: Cond) -> Tensor:
        """ResBlock i and its attention."""
        h = self.resnets[i](h, temb)
        return self.attentions[i](h, cond) if hasattr(self, "attentions") else h


class UNet(nn.Module):
    """Noisy picture or latent (b c h w), network time (b,), Cond -> raw output (b out h w).

    in_channels   5, 7, 8, 9 for conditional variants: `cond.image` is concatenated to x (depth,
                  inpainting, ...)
    channels      width of each level; layers: ResBlocks a level (one more on the way up)
    attention     kind per level; mid: kind at the bottleneck; heads: number of heads (one, or one
                  per level)
    context       width of `cond.text`; classes: number of class labels (index `classes` = none)
    linear        SD 2's linear projections; groups, eps of GroupNorm; cos_first, shift of the time
                  embedding
    pad           1: symmetric downsampling (SD), 0: zeros at the end (DDPM)
    time          "add": time is added to the features; "scale_shift": it scales and shifts them
    block         what makes a block: called as ResBlock is
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers: int = 2,
        attention: tuple[str | None, ...] = ("cross", "cross", "cross", None),
        mid: str | None = "cross",
        heads: int | tuple[int, ...] = 8,
        context: int | None = 768,
        classes: int | None = None,
        linear: bool = False,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        cos_first: bool = True,
        shift: float = 0,
        pad: int = 1,
        time: str = "add",
        block: Callable[..., ResBlock] = ResBlock,
    ):
        super().__init__()
        if time not in ("add", "scale_shift"):
            raise ValueError(f'time={time!r}: expected "add" or "scale_shift"')
        n = len(channels)
        c0 = channels[0]
        ct = 4 * channels[0]
        if len(attention) != n:
            raise ValueError(f"{n} levels of channels but {len(attention)} attention kinds")
        self.c0 = c0
        self.cos_first = cos_first
        self.shift = shift
        self.in_channels = in_channels
        self.classes = classes
        heads = (heads,) * n if isinstance(heads, int) else heads

        def attend(kind: str | None, c: int, level: int) -> list[nn.Module]:
            if kind == "cross":
                return [SpatialTransformer(c, heads[level], context, groups, linear)]
            return [SpatialAttention(c, heads[level], groups, eps)] if kind == "self" else []

        def res(c_in: int, c_out: int) -> ResBlock:
            return block(c_in, c_out, ct, groups, eps, dropout, time == "scale_shift")

        self.conv_in = nn.Conv2d(in_channels, c0, 3, padding=1)
        self.time_embedding = TimeEmbedding(c0, ct)
        if classes:
            self.class_embedding = nn.Embedding(classes + 1, ct)
        self.down_blocks = nn.ModuleList()
        widths = [c0]
        c = c0
        for i, w in enumerate(channels):
            resnets = [res(c if j == 0 else w, w) for j in range(layers)]
            down = Downsample(w, pad) if i < n - 1 else None
            c = w
            self.down_blocks.append(
                Level(resnets, [a for _ in resnets for a in attend(attention[i], w, i)], down)
            )
            widths += [w] * (layers + (down is not None))
        self.mid_block = Level([res(c, c), res(c, c)], attend(mid, c, n - 1), None)
        self.level, self.skip = (
            nn.ModuleList([Tap() for _ in each]) for each in (channels, widths)
        )
        self.h = Tap()
        self.joins: list[tuple[int, int]] = []  # of each skip: channels from below, its own
        self.up_blocks = nn.ModuleList()
        for i, w in reversed(list(enumerate(channels))):
            resnets = []
            for _ in range(layers + 1):
                self.joins.insert(0, (c, widths.pop()))
                resnets.append(res(sum(self.joins[0]), w))
                c = w
            up = Upsample(w) if i > 0 else None
            self.up_blocks.append(
                Level(resnets, [a for _ in resnets for a in attend(attention[i], w, i)], up)
            )
        self.conv_norm_out = nn.GroupNorm(groups, c0, eps=eps)
        self.conv_out = nn.Conv2d(c0, out_channels, 3, padding=1)

    def embed_time(self, t: Tensor, cond: Cond, dtype: torch.dtype) -> Tensor:
        """(b, 4 c0): time, plus the class if the model has classes."""
        temb = self.time_embedding(
            timestep_embedding(t, self.c0, self.cos_first, self.shift).to(dtype)
        )
        if self.classes:
            if cond is None or cond.label is None:
                raise ValueError(
                    f"this model is class-conditional: cond.label (b,) in 0..{self.classes} is "
                    "missing"
                )
            temb = temb + self.class_embedding(cond.label)
        return temb

    def encode(self, x: Tensor, temb: Tensor, cond: Cond) -> tuple[Tensor, list[Tensor]]:
        """Down path: deepest features (b c h w) before the
        middle block, and the skips in the order they were made.
        """
        return self.down(self.conv_in(x), temb, cond)

    def down(self, h: Tensor, temb: Tensor, cond: Cond) -> tuple[Tensor, list[Tensor]]:
        """`encode` from behind the first convolution, where a ControlNet adds its hint."""
        skips = [h]
        for level, end in zip(self.down_blocks, self.level):
            for i in range(len(level.resnets)):
                h = level.run(i, h, temb, cond)
                h = end(h) if i == len(level.resnets) - 1 else h
                skips.append(h)
            for down in getattr(level, "downsamplers", ()):
                h = down(h)
                skips.append(h)
        return h, skips

    def middle(self, h: Tensor, temb: Tensor, cond: Cond) -> Tensor:
        """The bottleneck, whose result the tap `h` sees."""
        h = self.mid_block.resnets[0](h, temb)
        for attention in getattr(self.mid_block, "attentions", ()):
            h = attention(h, cond)
        return self.h(self.mid_block.resnets[1](h, temb))

    def decode(self, h: Tensor, skips: list[Tensor], temb: Tensor, cond: Cond) -> Tensor:
        """Up path from the bottleneck to the output;
        each ResBlock takes one skip, last made first.
        """
        stack = [tap(s) for tap, s in zip(self.skip, skips)]
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                skip = stack.pop()
                h = level.run(i, self.join(len(stack), h, skip), temb, cond)
            for up in getattr(level, "upsamplers", ()):
                h = up(h, stack[-1].shape[-2:])
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def join(self, i: int, h: Tensor, skip: Tensor) -> Tensor:
        """What a block of the decoder sees: h from below and skip i, (b c+skip h w)."""
        return torch.cat([h, skip], dim=1)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        cond = Cond() if cond is None else cond
        x = x if cond.image is None else torch.cat([x, cond.image], dim=1)
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"input has {x.shape[1]} channels (with cond.image), the network takes "
                f"{self.in_channels}"
            )
        temb = self.embed_time(t, cond, x.dtype)
        h, skips = self.encode(x, temb, cond)
        return self.decode(self.middle(h, temb, cond), skips, temb, cond)
