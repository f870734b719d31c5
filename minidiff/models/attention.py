"""Attention and the transformer block of the Stable Diffusion
UNet (Vaswani et al. 2017; Rombach et al. 2022, 2112.10752).

    out = softmax(q k^T / sqrt(d)) v

One function, `attend`, serves UNet, VAE and DiT. It exposes the taps `q k v logits probs out`;
attention maps are formed while someone listens to `logits` or `probs` (and in bfloat16 training on
a CPU), otherwise the fused kernel runs (they agree to 4e-7 in float32). Module names are the public
ones (`to_q`, `to_out.0`, `ff.net.0.proj`), so real checkpoints load with an identity map.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minidiff.core.taps import Tap

EXPLICIT_KEYS = 256
TAPS = ("q", "k", "v", "logits", "probs", "out")


def add_taps(module: nn.Module) -> None:
    """Give an attention module its six taps."""
    for name in TAPS:
        module.add_module(name, Tap())


def attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Multi-head attention of projected q (b n c), k and
    v (b m c) through the taps of `module`; returns b n c.

    `mask` (b m), 1 = attend, hides key tokens. Scale is head_dim ** -0.5.
    """
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    q = module.q(q)
    k = module.k(k)
    v = module.v(v)
    # b 1 1 m
    bias = (
        None
        if mask is None
        else torch.where(mask.bool(), 0.0, -torch.inf).to(q.dtype)[:, None, None, :]
    )
    watched = module.logits.fns or module.probs.fns
    if watched or (k.shape[2] <= EXPLICIT_KEYS and _learns_in_bfloat16(q)):
        logits = module.logits(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)  # b h n m
        probs = module.probs((logits if bias is None else logits + bias).softmax(-1))
        out = probs @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return rearrange(out, "b h n d -> b n (h d)")


def _learns_in_bfloat16(q: Tensor) -> bool:
    """Is this a training step in bfloat16 on a CPU? There the fused kernel's backward pass takes
    several times as long as writing the map down.
    """
    return q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16


class Attention(nn.Module):
    """Self-attention, or cross-attention to a context of width `context`."""

    def __init__(self, dim: int, heads: int, context: int | None = None, bias: bool = False):
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context or dim, dim, bias=bias)
        self.to_v = nn.Linear(context or dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        add_taps(self)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        c = x if context is None else context
        h = attend(self, self.to_q(x), self.to_k(c), self.to_v(c), self.heads, mask)  # b n c
        return self.out(self.to_out[0](h))


class SpatialAttention(nn.Module):
    """GroupNorm, single- or multi-head self-attention over
    pixels, residual: the VAE's and the 2020 DDPM's block.
    """

    def __init__(self, channels: int, heads: int = 1, groups: int = 32, eps: float = 1e-6):
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        add_taps(self)

    def forward(self, x: Tensor, cond=None) -> Tensor:
        h = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        h = attend(self, self.to_q(h), self.to_k(h), self.to_v(h), self.heads)
        h = self.out(self.to_out[0](h))
        return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])


def geglu(h: Tensor) -> Tensor:
    """a * gelu(g) of the two halves (a, g) of the channels: h (b n 2m) -> (b n m)."""
    a, g = h.chunk(2, dim=-1)
    return a * F.gelu(g)


class GEGLU(nn.Module):
    """a * gelu(g), both halves from one projection (Shazeer 2020, 2002.05202)."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.net = nn.ModuleList(
            [GEGLU(dim, mult * dim), nn.Identity(), nn.Linear(mult * dim, dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """x += self(x); slots; x += cross(x, text); x += ff(x). `slots` is empty until an adapter
    (GLIGEN, IP-Adapter...) puts modules `slot(x, cond) -> x` there.
    """

    def __init__(self, dim: int, heads: int, context: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, heads)
        self.attn2 = Attention(dim, heads, context)
        self.ff = FeedForward(dim)
        self.slots = nn.ModuleList()

    def forward(self, x: Tensor, cond) -> Tensor:
        x = x + self.attn1(self.norm1(x))  # b n c
        for slot in self.slots:
            x = slot(x, cond)
        x = x + self.attn2(self.norm2(x), cond.text, cond.mask)
        return x + self.ff(self.norm3(x))


class PixelLinear(nn.Linear):
    """A 1x1 convolution of pixels that are tokens (b n c): a linear layer, and cheaper as one. Its
    weight keeps the convolution's shape (out in 1 1), as it is in files.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out)
        self.weight = nn.Parameter(self.weight[:, :, None, None].detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class SpatialTransformer(nn.Module):
    """Pixels as tokens through a TransformerBlock. SD 1
    projects with 1x1 convolutions, SD 2 with linear layers.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context: int,
        groups: int = 32,
        linear: bool = False,
        depth: int = 1,
    ):
        super().__init__()
        make = nn.Linear if linear else PixelLinear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = make(channels, channels)
        self.proj_out = make(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, heads, context) for _ in range(depth)]
        )

    def forward(self, x: Tensor, cond) -> Tensor:
        h = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.transformer_blocks:
            h = block(h, cond)
        h = rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=x.shape[2])
        return x + h
