"""Attention, norms, blocks, tokens and the autoencoder."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidiff.models.dit import modulate
from newcomers import right, wrong


def split(x, heads):
    b, n, c = x.shape
    return x.view(b, n, heads, c // heads).transpose(1, 2)


def join(x):
    b, h, n, d = x.shape
    return x.transpose(1, 2).reshape(b, n, h * d)


# ---- attention -----------------------------------------------------------------------------------


@right("attention")
def _(q, k, v, heads):
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    return join(F.scaled_dot_product_attention(q, k, v))


@right("attention")
def _(q, k, v, heads):
    out = []
    for qh, kh, vh in zip(q.chunk(heads, 2), k.chunk(heads, 2), v.chunk(heads, 2)):
        logits = torch.bmm(qh, kh.transpose(1, 2)) / math.sqrt(qh.shape[-1])
        out.append(torch.softmax(logits, -1) @ vh)
    return torch.cat(out, -1)


@right("attention")
def _(q, k, v, heads):
    d = q.shape[-1] // heads
    q, k, v = split(q * d**-0.25, heads), split(k * d**-0.25, heads), split(v, heads)
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k)
    e = (logits - logits.amax(-1, keepdim=True)).exp()
    return join(torch.einsum("bhnm,bhmd->bhnd", e / e.sum(-1, keepdim=True), v))


@wrong("attention", "the heads are not put back")
def _(q, k, v, heads):
    b, n, c = q.shape
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    return F.scaled_dot_product_attention(q, k, v).reshape(b, n, c)


@wrong("attention", "the heads are cut out of the tokens")
def _(q, k, v, heads):
    b, n, c = q.shape

    def cut(x):
        return x.reshape(b, heads, -1, c // heads)

    return F.scaled_dot_product_attention(cut(q), cut(k), cut(v)).reshape(b, n, c)


@wrong("attention", "the whole width")
def _(q, k, v, heads):
    scale = q.shape[-1] ** -0.5
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    return join((q @ k.mT * scale).softmax(-1) @ v)


@wrong("attention", "not scaled")
def _(q, k, v, heads):
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    return join((q @ k.mT).softmax(-1) @ v)


@wrong("attention", "divided by d")
def _(q, k, v, heads):
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    return join((q @ k.mT / q.shape[-1]).softmax(-1) @ v)


@wrong("attention", "one head")
def _(q, k, v, heads):
    return F.scaled_dot_product_attention(q, k, v)


@wrong("attention", "softmax over the queries")
def _(q, k, v, heads):
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    return join((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-2) @ v)


# ---- attend --------------------------------------------------------------------------------------


def attend(module, q, k, v, heads, mask=None, hidden=-math.inf, early=False, late=False):
    q, k, v = module.q(split(q, heads)), module.k(split(k, heads)), module.v(split(v, heads))
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])

    def cover(x):
        return x if mask is None else x.masked_fill(mask[:, None, None] == 0, hidden)

    if early:
        probs = module.probs(module.logits(cover(logits)).softmax(-1))
    elif late:
        probs = module.probs(module.logits(logits).softmax(-1))
        probs = probs if mask is None else probs * mask[:, None, None]
    else:
        probs = module.probs(cover(module.logits(logits)).softmax(-1))
    return join(probs @ v)


@right("attend")
def _(module, q, k, v, heads, mask=None):
    return attend(module, q, k, v, heads, mask)


@right("attend")
def _(module, q, k, v, heads, mask=None):
    return attend(module, q, k, v, heads, mask, torch.finfo(q.dtype).min)


@right("attend")
def _(module, q, k, v, heads, mask=None):
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    q, k, v = module.q(q), module.k(k), module.v(v)
    logits = module.logits(torch.einsum("bhnd,bhmd->bhnm", q, k) * q.shape[-1] ** -0.5)
    e = (logits - logits.max(-1, keepdim=True).values).exp()
    if mask is not None:
        e = e * mask[:, None, None, :]
    probs = module.probs(e / e.sum(-1, keepdim=True))
    return rearrange(torch.einsum("bhnm,bhmd->bhnd", probs, v), "b h n d -> b n (h d)")


@wrong("attend", "masked before")
def _(module, q, k, v, heads, mask=None):
    return attend(module, q, k, v, heads, mask, early=True)


@wrong("attend", "masked")
def _(module, q, k, v, heads, mask=None):
    return attend(module, q, k, v, heads, mask, late=True)


@wrong("attend", "nobody is asked")
def _(module, q, k, v, heads, mask=None):
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    bias = None if mask is None else mask[:, None, None].bool()
    return join(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


@wrong("attend", "nobody is followed")
def _(module, q, k, v, heads, mask=None):
    q, k, v = split(q, heads), split(k, heads), split(v, heads)
    module.q(q), module.k(k), module.v(v)
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    module.logits(logits)
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None] == 0, -math.inf)
    probs = logits.softmax(-1)
    module.probs(probs)
    return join(probs @ v)


@wrong("attend", "the mask is not looked at")
def _(module, q, k, v, heads, mask=None):
    return attend(module, q, k, v, heads, None)


@wrong("attend")
def _(module, q, k, v, heads, mask=None):
    return attend(module, q, k, v, heads, None if mask is None else 1 - mask)


@wrong("attend")
def _(module, q, k, v, heads, mask=None):
    q, k, v = split(module.q(q), heads), split(module.k(k), heads), split(module.v(v), heads)
    logits = module.logits(q @ k.mT / math.sqrt(q.shape[-1]))
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None] == 0, -math.inf)
    return join(module.probs(logits.softmax(-1)) @ v)


# ---- causal_mask ---------------------------------------------------------------------------------


@right("causal_mask")
def _(n):
    return torch.zeros(n, n).masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))


@right("causal_mask")
def _(n):
    i = torch.arange(n)
    return torch.where(i[None, :] <= i[:, None], 0.0, -torch.inf)


@right("causal_mask")
def _(n):
    return torch.log(torch.tril(torch.ones(n, n)))


@right("causal_mask")
def _(n):
    return nn.Transformer.generate_square_subsequent_mask(n)


@wrong("causal_mask", "smallest float")
def _(n):
    return torch.full((n, n), torch.finfo(torch.float32).min).triu(1)


@wrong("causal_mask", "minus infinity")
def _(n):
    return torch.full((n, n), -1e9).triu(1)


@wrong("causal_mask", "NaN")
def _(n):
    return (1 - torch.ones(n, n).tril()) * -torch.inf


@wrong("causal_mask", "the task asks for it")
def _(n):
    return torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)


@wrong("causal_mask", "bool")
def _(n):
    return torch.ones(n, n).triu(1).bool()


@wrong("causal_mask", "not itself")
def _(n):
    i = torch.arange(n)
    return torch.where(i[None, :] < i[:, None], 0.0, -torch.inf)


@wrong("causal_mask", "from right to left")
def _(n):
    i = torch.arange(n)
    return torch.where(i[None, :] >= i[:, None], 0.0, -torch.inf)


# ---- geglu ---------------------------------------------------------------------------------------


@right("geglu")
def _(h):
    m = h.shape[-1] // 2
    return h[..., :m] * F.gelu(h[..., m:])


@right("geglu")
def _(h):
    a, g = torch.chunk(h, 2, dim=-1)
    return a * 0.5 * g * (1 + torch.erf(g / math.sqrt(2)))


@right("geglu")
def _(h):
    a, g = h.tensor_split(2, -1)
    return a * g * torch.distributions.Normal(0.0, 1.0).cdf(g)


@wrong("geglu", "the first half is the gate")
def _(h):
    g, a = h.chunk(2, -1)
    return a * F.gelu(g)


@wrong("geglu", "tanh")
def _(h):
    a, g = h.chunk(2, -1)
    return a * F.gelu(g, approximate="tanh")


@wrong("geglu", "SiLU")
def _(h):
    a, g = h.chunk(2, -1)
    return a * F.silu(g)


@wrong("geglu", "every other channel")
def _(h):
    return h[..., ::2] * F.gelu(h[..., 1::2])


@wrong("geglu", "shape is")
def _(h):
    a, g = h.chunk(2, 1) if h.shape[1] > 1 else (h, h)
    return a * F.gelu(g)


# ---- group_norm ----------------------------------------------------------------------------------


@right("group_norm")
def _(x, groups, weight, bias, eps):
    return F.group_norm(x, groups, weight, bias, eps)


@right("group_norm")
def _(x, groups, weight, bias, eps):
    b, c, h, w = x.shape
    g = x.reshape(b, groups, -1)
    mean = g.mean(-1, keepdim=True)
    var = ((g - mean) ** 2).mean(-1, keepdim=True)
    g = (g - mean) * torch.rsqrt(var + eps)
    return g.view(b, c, h, w) * weight.view(1, c, 1, 1) + bias.view(1, c, 1, 1)


@right("group_norm")
def _(x, groups, weight, bias, eps):
    g = rearrange(x, "b (g c) h w -> b g (c h w)", g=groups)
    var = (g**2).mean(-1, keepdim=True) - g.mean(-1, keepdim=True) ** 2
    g = (g - g.mean(-1, keepdim=True)) / torch.sqrt(var + eps)
    out = rearrange(g, "b g (c h w) -> b (g c) h w", h=x.shape[2], w=x.shape[3])
    return out * weight[None, :, None, None] + bias[None, :, None, None]


@wrong("group_norm", "n - 1")
def _(x, groups, weight, bias, eps):
    g = x.flatten(2).reshape(len(x), groups, -1)
    g = (g - g.mean(-1, keepdim=True)) / torch.sqrt(g.var(-1, keepdim=True) + eps)
    return g.view_as(x) * weight[:, None, None] + bias[:, None, None]


@wrong("group_norm", "eps outside")
def _(x, groups, weight, bias, eps):
    g = x.flatten(2).reshape(len(x), groups, -1)
    g = (g - g.mean(-1, keepdim=True)) / (g.std(-1, keepdim=True, unbiased=False) + eps)
    return g.view_as(x) * weight[:, None, None] + bias[:, None, None]


@wrong("group_norm", "weight and bias left out")
def _(x, groups, weight, bias, eps):
    return F.group_norm(x, groups, eps=eps)


@wrong("group_norm", "every channel alone")
def _(x, groups, weight, bias, eps):
    return F.group_norm(x, x.shape[1], weight, bias, eps)


@wrong("group_norm", "interleaved")
def _(x, groups, weight, bias, eps):
    b, c, h, w = x.shape
    g = x.view(b, c // groups, groups, h, w).transpose(1, 2).reshape(b, groups, -1)
    var = g.var(-1, keepdim=True, unbiased=False)
    g = (g - g.mean(-1, keepdim=True)) / torch.sqrt(var + eps)
    g = g.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)
    return g * weight[:, None, None] + bias[:, None, None]


# ---- res_block -----------------------------------------------------------------------------------


@right("res_block")
def _(block, x, temb):
    h = block.conv1(F.silu(block.norm1(x)))
    t = block.time_emb_proj(F.silu(temb))
    h = h + t.unsqueeze(-1).unsqueeze(-1)
    h = block.conv2(F.silu(block.norm2(h)))
    if x.shape[1] != h.shape[1]:
        x = block.conv_shortcut(x)
    return x + h


@right("res_block")
def _(block, x, temb):
    act = nn.SiLU()
    skip = block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x
    h = block.conv1(act(block.norm1(x))) + rearrange(
        block.time_emb_proj(act(temb)), "b c -> b c 1 1"
    )
    return torch.add(skip, block.conv2(act(block.norm2(h))))


@wrong("res_block", "time after the norm")
def _(block, x, temb):
    h = block.conv1(F.silu(block.norm1(x)))
    h = block.norm2(h) + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    h = block.conv2(F.silu(h))
    return h + (block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x)


@wrong("res_block", "time without its SiLU")
def _(block, x, temb):
    h = block.conv1(F.silu(block.norm1(x))) + block.time_emb_proj(temb)[:, :, None, None]
    h = block.conv2(F.silu(block.norm2(h)))
    return h + (block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x)


@wrong("res_block", "no path around")
def _(block, x, temb):
    h = block.conv1(F.silu(block.norm1(x)))
    h = h + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    return block.conv2(F.silu(block.norm2(h)))


@wrong("res_block")
def _(block, x, temb):
    h = F.silu(block.norm1(x)) if x.shape[1] == 0 else block.conv1(block.norm1(x))
    h = F.silu(h) + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    h = F.silu(block.conv2(block.norm2(h)))
    return h + (block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x)


@wrong("res_block")
def _(block, x, temb):
    h = block.conv1(F.relu(block.norm1(x)))
    h = h + block.time_emb_proj(F.relu(temb))[:, :, None, None]
    h = block.conv2(F.relu(block.norm2(h)))
    return h + (block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x)


# ---- modulate ------------------------------------------------------------------------------------


@right("modulate")
def _(x, shift, scale):
    return x + x * scale.unsqueeze(1) + shift.unsqueeze(1)


@right("modulate")
def _(x, shift, scale):
    return torch.stack([row * (1 + s) + b for row, b, s in zip(x, shift, scale)])


@right("modulate")
def _(x, shift, scale):
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


@wrong("modulate", "scale for 1 + scale")
def _(x, shift, scale):
    return x * scale[:, None] + shift[:, None]


@wrong("modulate", "shift and scale exchanged")
def _(x, shift, scale):
    return x * (1 + shift[:, None]) + scale[:, None]


@wrong("modulate")
def _(x, shift, scale):
    return x * (1 + scale) + shift


@wrong("modulate", "shifted first")
def _(x, shift, scale):
    return (x + shift[:, None]) * (1 + scale[:, None])


@wrong("modulate")
def _(x, shift, scale):
    x = F.layer_norm(x, x.shape[-1:])
    return x * (1 + scale[:, None]) + shift[:, None]


# ---- dit_block -----------------------------------------------------------------------------------


@right("dit_block")
def _(x, c, attn, mlp):
    sa, ca, ga, sm, cm, gm = c.chunk(6, dim=-1)
    norm = nn.LayerNorm(x.shape[-1], eps=1e-6, elementwise_affine=False)
    x = x + ga.unsqueeze(1) * attn(modulate(norm(x), sa, ca))
    x = x + gm.unsqueeze(1) * mlp(modulate(norm(x), sm, cm))
    return x


@right("dit_block")
def _(x, c, attn, mlp):
    c = rearrange(c, "b (k d) -> k b 1 d", k=6)
    for i, layer in ((0, attn), (3, mlp)):
        var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
        h = (x - mean) / (var + 1e-6).sqrt()
        x = x + c[i + 2] * layer(h * (1 + c[i + 1]) + c[i])
    return x


def _dit(x, c, attn, mlp, order=(0, 1, 2), eps=1e-6, one=0, correction=0, residual=True):
    parts = c.chunk(6, -1)
    for i, layer in ((0, attn), (3, mlp)):
        shift, scale, gate = (parts[i + o][:, None] for o in order)
        var, mean = torch.var_mean(x, -1, keepdim=True, correction=correction)
        h = (x - mean) / (var + eps).sqrt()
        x = (x if residual else 0) + (one + gate) * layer(h * (1 + scale) + shift)
    return x


@wrong("dit_block", "scale, shift, gate")
def _(x, c, attn, mlp):
    return _dit(x, c, attn, mlp, order=(1, 0, 2))


@wrong("dit_block", "1 + gate")
def _(x, c, attn, mlp):
    return _dit(x, c, attn, mlp, one=1)


@wrong("dit_block")
def _(x, c, attn, mlp):
    return _dit(x, c, attn, mlp, order=(1, 2, 0))


@wrong("dit_block", "n - 1")
def _(x, c, attn, mlp):
    return _dit(x, c, attn, mlp, correction=1)


@wrong("dit_block", "not added")
def _(x, c, attn, mlp):
    return _dit(x, c, attn, mlp, residual=False)


@wrong("dit_block", "both branches from the same x")
def _(x, c, attn, mlp):
    b1, s1, g1, b2, s2, g2 = (v[:, None] for v in c.chunk(6, -1))
    h = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x + g1 * attn(h * (1 + s1) + b1) + g2 * mlp(h * (1 + s2) + b2)


# ---- patchify ------------------------------------------------------------------------------------


@right("patchify")
def _(x, p):
    return F.unfold(x, p, stride=p).transpose(1, 2)


@right("patchify")
def _(x, p):
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)


@right("patchify")
def _(x, p):
    x = x.unfold(2, p, p).unfold(3, p, p)  # b c h w p p
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


@wrong("patchify", "channels last")
def _(x, p):
    return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)


@wrong("patchify", "column by column")
def _(x, p):
    return rearrange(x, "b c (h p) (w q) -> b (w h) (c p q)", p=p, q=p)


@wrong("patchify", "only reshaped")
def _(x, p):
    return x.reshape(len(x), -1, x.shape[1] * p * p)


@wrong("patchify", "columns before rows")
def _(x, p):
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c q p)", p=p, q=p)


@wrong("patchify", "shape is")
def _(x, p):
    return rearrange(x, "b c (h p) (w q) -> b (c h w) (p q)", p=p, q=p)


# ---- unpatchify ----------------------------------------------------------------------------------


@right("unpatchify")
def _(tokens, p, rows):
    b, n, d = tokens.shape
    c = d // (p * p)
    x = tokens.reshape(b, rows, n // rows, p, p, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, rows * p, n // rows * p)


@right("unpatchify")
def _(tokens, p, rows):
    b, n, d = tokens.shape
    columns = n // rows
    t = tokens.unflatten(2, (p * p, -1)).transpose(2, 3).flatten(2)  # b n (c p p)
    return F.fold(t.transpose(1, 2), (rows * p, columns * p), p, stride=p)


@wrong("unpatchify", "channels first")
def _(tokens, p, rows):
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p, q=p)


@wrong("unpatchify", "column by column")
def _(tokens, p, rows):
    return rearrange(tokens, "b (w h) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)


@wrong("unpatchify")
def _(tokens, p, rows):
    side = int(tokens.shape[1] ** 0.5)
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=p, q=p)


@wrong("unpatchify", "only reshaped")
def _(tokens, p, rows):
    b, n, d = tokens.shape
    return tokens.reshape(b, d // p**2, rows * p, n // rows * p)


# ---- position_embedding --------------------------------------------------------------------------


@right("position_embedding")
def _(dim, grid):
    d = dim // 4
    w = 10000.0 ** (-torch.arange(d, dtype=torch.float64) / d)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    ax = x.flatten()[:, None] * w
    ay = y.flatten()[:, None] * w
    return torch.cat([ax.sin(), ax.cos(), ay.sin(), ay.cos()], 1)[None].float()


@right("position_embedding")
def _(dim, grid):
    d = dim // 4
    out = torch.empty(1, grid * grid, dim)
    for n in range(grid * grid):
        for k in range(d):
            for half, place in enumerate((n % grid, n // grid)):
                a = place * 10000 ** (-k / d)
                out[0, n, half * 2 * d + k] = math.sin(a)
                out[0, n, half * 2 * d + d + k] = math.cos(a)
    return out


@right("position_embedding")
def _(dim, grid):
    d = dim // 4
    a = np.arange(grid)[:, None] * 10000.0 ** (-np.arange(d) / d)
    line = np.concatenate([np.sin(a), np.cos(a)], 1)
    xs, ys = np.tile(line, (grid, 1)), np.repeat(line, grid, 0)
    return torch.from_numpy(np.concatenate([xs, ys], 1)).float().unsqueeze(0)


@wrong("position_embedding", "rows first")
def _(dim, grid):
    d = dim // 4
    w = 10000.0 ** (-torch.arange(d) / d)
    x, y = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    ax, ay = x.flatten()[:, None] * w, y.flatten()[:, None] * w
    return torch.cat([ax.sin(), ax.cos(), ay.sin(), ay.cos()], 1)[None]


@wrong("position_embedding", "cosines first")
def _(dim, grid):
    d = dim // 4
    w = 10000.0 ** (-torch.arange(d) / d)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    ax, ay = x.flatten()[:, None] * w, y.flatten()[:, None] * w
    return torch.cat([ax.cos(), ax.sin(), ay.cos(), ay.sin()], 1)[None]


@wrong("position_embedding", "sine and cosine in turn")
def _(dim, grid):
    d = dim // 4
    w = 10000.0 ** (-torch.arange(d) / d)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    halves = []
    for v in (x, y):
        a = v.flatten()[:, None] * w
        halves.append(torch.stack([a.sin(), a.cos()], -1).flatten(1))
    return torch.cat(halves, 1)[None]


@wrong("position_embedding", "shape is")
def _(dim, grid):
    d = dim // 4
    w = 10000.0 ** (-torch.arange(d) / d)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    ax, ay = x.flatten()[:, None] * w, y.flatten()[:, None] * w
    return torch.cat([ax.sin(), ax.cos(), ay.sin(), ay.cos()], 1)


@wrong("position_embedding", "the task asks for it")
def _(dim, grid):
    d = dim // 4
    w = 10000.0 ** (-torch.arange(d, dtype=torch.float64) / d)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    ax, ay = x.flatten()[:, None] * w, y.flatten()[:, None] * w
    return torch.cat([ax.sin(), ax.cos(), ay.sin(), ay.cos()], 1)[None]


# ---- gaussian_kl ---------------------------------------------------------------------------------


@right("gaussian_kl")
def _(mean, logvar):
    return 0.5 * torch.mean(mean.pow(2) + torch.exp(logvar) - 1 - logvar)


@right("gaussian_kl")
def _(mean, logvar):
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(q, p).mean()


@right("gaussian_kl")
def _(mean, logvar):
    terms = (mean**2 + logvar.exp() - 1 - logvar) / 2
    return terms.sum() / mean.numel()


@right("gaussian_kl")
def _(mean, logvar):
    return -0.5 * (1 + logvar - mean**2 - logvar.exp()).mean((1, 2, 3)).mean()


@wrong("gaussian_kl", "log sigma for log variance")
def _(mean, logvar):
    var = logvar.exp() ** 2
    return 0.5 * (mean**2 + var - 1 - var.log()).mean()


@wrong("gaussian_kl", "summed over")
def _(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum()


@wrong("gaussian_kl", "summed over the picture")
def _(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()


@wrong("gaussian_kl", "the half")
def _(mean, logvar):
    return (mean**2 + logvar.exp() - 1 - logvar).mean()


@wrong("gaussian_kl", "gradient")
def _(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean().item()


@wrong("gaussian_kl", "the sign")
def _(mean, logvar):
    return 0.5 * (1 + logvar - mean**2 - logvar.exp()).mean()


@wrong("gaussian_kl", "shape is")
def _(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean((1, 2, 3))


# ---- latent_scale --------------------------------------------------------------------------------


@right("latent_scale")
def _(latents):
    return 1 / latents.std(unbiased=False)


@right("latent_scale")
def _(latents):
    return 1 / ((latents - latents.mean()) ** 2).mean().sqrt()


@right("latent_scale")
def _(latents):
    return 1 / latents.flatten().std(correction=0).item()


@right("latent_scale")
def _(latents):
    return 1 / latents.numpy().std()


@wrong("latent_scale", "n - 1")
def _(latents):
    return 1 / latents.std()


@wrong("latent_scale", "not inverted")
def _(latents):
    return latents.std(correction=0)


@wrong("latent_scale", "one over the variance")
def _(latents):
    return 1 / latents.var(correction=0)


@wrong("latent_scale", "about zero")
def _(latents):
    return 1 / (latents**2).mean().sqrt()


@wrong("latent_scale", "each channel")
def _(latents):
    return 1 / latents.std((0, 2, 3), correction=0).mean()


@wrong("latent_scale", "shape is")
def _(latents):
    return 1 / latents.std((0, 2, 3), correction=0)
