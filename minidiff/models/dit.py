"""DiT: a transformer as denoiser.

William Peebles, Saining Xie, "Scalable Diffusion Models with Transformers", 2022, arXiv 2212.09748.

Patches are tokens; the condition c (time, class) shifts, scales and gates every branch
(adaLN-Zero):

    x += g1 attn(LN(x) (1 + s1) + b1)
    x += g2 mlp(LN(x) (1 + s2) + b2)
    (b1, s1, g1, b2, s2, g2) = W silu(c)

W starts at zero, so each block starts as the identity. With `classes` this is the paper's network,
name for name; with `context` a cross-attention to the text follows each self-attention (as
PixArt-alpha, Chen et al. 2023, 2310.00426, does) and the mean text state joins c. Taps:
`blocks.i.attn.*` (self), `blocks.i.attn2.*` (cross), `blocks.i.out`, so attention control written
for the UNet runs here unchanged. Weakness: nothing in it knows which tokens are neighbours, which
costs pictures to learn; `local` builds it in. Try `patch=1`.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minidiff.core.cond import Cond
from minidiff.core.taps import Tap
from minidiff.models.attention import Attention, add_taps, attend
from minidiff.models.blocks import timestep_embedding
from minidiff.models.modulate import modulate


def position_embedding(dim: int, grid: int) -> Tensor:
    """Fixed 2-D sinusoids (1, grid^2, dim): first half of the width for x, second for y, each sines
    then cosines.
    """
    quarter = dim // 4
    omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * omega  # grid dim/4
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # grid dim/2
    x = line[None, :].expand(grid, -1, -1)  # row column dim/2
    y = line[:, None].expand(-1, grid, -1)
    return rearrange(torch.cat([x, y], dim=-1), "h w d -> 1 (h w) d").float()


def unpatchify(tokens: Tensor, p: int, rows: int) -> Tensor:
    """Tokens (b n p*p*c), row by row with `rows` rows of patches, inside a token row, column,
    channel -> picture (b c h w).
    """
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)


class SelfAttention(nn.Module):
    """Self-attention with one fused projection, as the official checkpoints store it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        add_taps(self)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # b n d each
        return self.out(self.proj(attend(self, q, k, v, self.heads)))


class MLP(nn.Module):
    """Two layers, token by token; with `local` each inner channel also has its own 3x3 filter over
    the square of tokens (Mix-FFN: SegFormer, Xie et al. 2021, 2105.15203; in a diffusion
    transformer: Sana, Xie et al. 2024, 2410.10629).
    """

    def __init__(self, dim: int, inner: int, local: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner) if local else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)  # b n inner
        if self.conv:
            square = rearrange(h, "b (r c) d -> b d r c", r=math.isqrt(h.shape[1]))
            h = rearrange(self.conv(square), "b d r c -> b (r c) d")
        return self.fc2(F.gelu(h, approximate="tanh"))


class DiTBlock(nn.Module):
    def __init__(
        self, dim: int, heads: int, context: int | None, mlp_ratio: int = 4, local: bool = False
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.mlp = MLP(dim, mlp_ratio * dim, local)
        if context:
            self.norm_cross = nn.LayerNorm(dim)
            self.attn2 = Attention(dim, heads, context)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.slots = nn.ModuleList()
        self.out = Tap()

    def forward(self, x: Tensor, c: Tensor, cond: Cond) -> Tensor:
        b1, s1, g1, b2, s2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)  # b d each
        branch = self.attn(modulate(self.norm1(x), b1, s1))  # b n d
        x = x + g1[:, None] * branch
        for slot in self.slots:
            x = slot(x, cond)
        if hasattr(self, "attn2"):
            x = x + self.attn2(self.norm_cross(x), cond.text, cond.mask)
        branch = self.mlp(modulate(self.norm2(x), b2, s2))
        return self.out(x + g2[:, None] * branch)


class FinalLayer(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class Embedder(nn.Module):
    """A named holder, so that keys read `t_embedder.mlp.0`, `y_embedder.embedding_table`,
    `x_embedder.proj`.
    """

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, module in parts.items():
            self.add_module(name, module)


class DiT(nn.Module):
    """Noisy latent (b c h w), network time (b,), Cond -> raw output (b c h w), twice the channels
    if `learn_sigma`.

    size     side of the latent
    patch    side of a token
    classes  number of labels; index `classes` stands for none
    context  width of `cond.text`
    local    3x3 filters between neighbouring tokens inside every MLP (not in the paper)
    """

    def __init__(
        self,
        size: int = 32,
        patch: int = 2,
        in_channels: int = 4,
        dim: int = 1152,
        depth: int = 28,
        heads: int = 16,
        classes: int | None = 1000,
        context: int | None = None,
        learn_sigma: bool = True,
        local: bool = False,
    ):
        super().__init__()
        self.patch = patch
        self.classes = classes
        self.in_channels = in_channels
        self.channels_out = in_channels * (2 if learn_sigma else 1)
        self.x_embedder = Embedder(proj=nn.Conv2d(in_channels, dim, patch, stride=patch))
        self.t_embedder = Embedder(
            mlp=nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        )
        if classes:
            self.y_embedder = Embedder(embedding_table=nn.Embedding(classes + 1, dim))
        if context:
            self.text_embedder = Embedder(proj=nn.Linear(context, dim))
        self.pos_embed = nn.Parameter(position_embedding(dim, size // patch), requires_grad=False)
        self.blocks = nn.ModuleList(
            [DiTBlock(dim, heads, context, local=local) for _ in range(depth)]
        )
        self.final_layer = FinalLayer(dim, patch**2 * self.channels_out)
        self.reset()

    def reset(self) -> None:
        """The paper's start: every block the identity, output zero."""
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        patches = self.x_embedder.proj
        bound = math.sqrt(6 / (patches.out_channels + patches.weight[0].numel()))
        nn.init.uniform_(patches.weight, -bound, bound)  # Xavier's, as of a matrix
        nn.init.zeros_(patches.bias)
        for m in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(m.weight, std=0.02)
        if self.classes:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        silent = [self.final_layer.linear, self.final_layer.adaLN_modulation[1]]
        for block in self.blocks:
            silent.append(block.adaLN_modulation[1])
            if hasattr(block, "attn2"):
                silent.append(block.attn2.to_out[0])
            conv = block.mlp.conv
            if conv:
                nn.init.dirac_(conv.weight, groups=conv.groups)  # the paper's MLP
                nn.init.zeros_(conv.bias)
        for m in silent:
            nn.init.zeros_(m.weight)
            nn.init.zeros_(m.bias)

    def condition(self, t: Tensor, cond: Cond, dtype: torch.dtype) -> Tensor:
        """c (b d): time, plus the class, plus the mean text state."""
        c = self.t_embedder.mlp(timestep_embedding(t, 256).to(dtype))
        if self.classes:
            if cond is None or cond.label is None:
                raise ValueError(
                    f"this model is class-conditional: cond.label (b,) in 0..{self.classes} "
                    "is missing"
                )
            c = c + self.y_embedder.embedding_table(cond.label)
        if hasattr(self, "text_embedder"):
            c = c + self.text_embedder.proj(cond.text.mean(1))
        return c

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        rows = x.shape[2] // self.patch
        h = rearrange(self.x_embedder.proj(x), "b d h w -> b (h w) d")  # b n d
        h = h + self.pos_embed
        c = self.condition(t, cond, x.dtype)
        for block in self.blocks:
            h = block(h, c, cond)
        return unpatchify(self.final_layer(h, c), self.patch, rows)
