"""Norms and blocks: GroupNorm and the UNet's ResBlock by hand, and how a condition enters a DiT
(adaLN-Zero).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import draws
from minidiff.learn.exercises.networks import UNET
from minidiff.models.blocks import ResBlock
from minidiff.models.dit import DiTBlock, modulate

DIT = "tutorials/weights/dit.md"


# ---- GroupNorm -----------------------------------------------------------------------------------


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (b c h w), normalised over each group of c / groups channels and all pixels, then times
    weight (c,) plus bias.
    """
    y = x.unflatten(1, (groups, -1))  # b g c/g h w
    y = (y - y.mean((2, 3, 4), keepdim=True)) / (
        y.var((2, 3, 4), keepdim=True, correction=0) + eps
    ).sqrt()
    return y.flatten(1, 2) * weight[:, None, None] + bias[:, None, None]


def slow_group_norm(x, groups, weight, bias, eps):
    out = torch.zeros_like(x)
    size = x.shape[1] // groups
    for b in range(len(x)):
        for c in range(x.shape[1]):
            first = c // size * size
            group = x[b, first : first + size].double().flatten()
            mean = group.sum() / group.numel()
            var = ((group - mean) ** 2).sum() / group.numel()
            normal = (x[b, c].double() - mean) / (var + eps) ** 0.5
            out[b, c] = (normal * weight[c] + bias[c]).float()
    return out


def normed(dims=(2, 3, 4), correction=0, outside=False, interleaved=False):
    def wrong(x, groups, weight, bias, eps):
        if interleaved:
            y = x.unflatten(1, (-1, groups)).transpose(1, 2)
        else:
            y = x.unflatten(1, (groups, -1))
        var = y.var(dims, keepdim=True, correction=correction)
        spread = var.sqrt() + eps if outside else (var + eps).sqrt()
        y = (y - y.mean(dims, keepdim=True)) / spread
        if interleaved:
            y = y.transpose(1, 2)
        return y.flatten(1, 2) * weight[:, None, None] + bias[:, None, None]

    return wrong


def norm_cases(seed):
    sizes = (
        (1.0, (1, 2, 2, 2), 1, 1e-5),
        (3.0, (2, 6, 3, 4), 3, 1e-6),
        (0.05, (2, 8, 2, 2), 2, 1e-2),
    )
    cases = []
    for spread, shape, groups, eps in sizes:
        x, weight, bias = draws(seed + 7 * groups, shape, shape[1:2], shape[1:2])
        cases.append((spread * x, groups, weight, bias, eps))
    return cases


norm = Exercise(
    "group_norm",
    "core",
    "GroupNorm of x (b c h w): channels in `groups` consecutive groups; each group of each "
    "picture is brought to mean 0 and variance 1 over its channels and all pixels, $(x - \\mu) / "
    "\\sqrt{\\mathrm{var} + \\epsilon}$ with the variance divided by n, then scaled and shifted "
    "per channel by `weight` and `bias` (c,).",
    group_norm,
    slow_group_norm,
    norm_cases,
    apart="PyTorch has this layer, and the networks use it",
    mutants=(
        Mutant(
            "divided by n - 1",
            normed(correction=1),
            "The default of `var` and `std`. Norms of every framework divide by n; on a small map "
            "the difference shows.",
        ),
        Mutant(
            "eps outside the root",
            normed(outside=True),
            "Harmless until a group is nearly constant; there it is the square of what was meant.",
        ),
        Mutant(
            "statistics of the whole batch",
            normed(dims=(0, 2, 3, 4)),
            "Then a picture depends on its neighbours in the batch, and guidance, which puts two "
            "conditions in one batch, mixes them.",
        ),
        Mutant(
            "groups interleaved",
            normed(interleaved=True),
            "Channel i in group i mod g: another layout than the one checkpoints were trained "
            "with.",
        ),
        Mutant(
            "every channel alone",
            lambda x, g, weight, bias, eps: group_norm(x, x.shape[1], weight, bias, eps),
            "That is instance norm: how strong a channel is beside the others of its group is "
            "lost.",
        ),
        Mutant(
            "weight and bias left out",
            lambda x, g, weight, bias, eps: F.group_norm(x, g, eps=eps),
            "Every norm in these networks is followed by a scale and a shift of its own for each "
            "channel.",
        ),
    ),
    hints=(
        "Give the channels an axis for the group: `x.unflatten(1, (groups, -1))`.",
        "Mean and variance over the axes (2, 3, 4), with keepdim and correction=0.",
        "`y = (y - mean) / (var + eps).sqrt()`; flatten(1, 2); `* weight[:, None, None] + bias[:, "
        "None, None]`.",
    ),
    tolerance=2e-5,
    about="GroupNorm by hand",
    page=UNET,
)


# ---- ResBlock ------------------------------------------------------------------------------------


def res_block(block: ResBlock, x: Tensor, temb: Tensor) -> Tensor:
    """The UNet's residual block: x (b c_in h w), time embedding (b e) -> (b c_out h w), with the
    weights of `block`.
    """
    h = block.conv1(F.silu(block.norm1(x)))
    h = h + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    h = block.conv2(F.silu(block.norm2(h)))
    return h + (block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x)


def conv3(layer, x):
    h, w = x.shape[2:]
    x = F.pad(x, (1, 1, 1, 1))
    total = layer.bias[:, None, None]
    for i in range(3):
        for j in range(3):
            window = x[:, :, i : i + h, j : j + w]
            total = total + torch.einsum("oc,bchw->bohw", layer.weight[:, :, i, j], window)
    return total


def slow_silu(v):
    return v / (1 + (-v).exp())


def slow_norm(norm, v):
    return slow_group_norm(v, norm.num_groups, norm.weight, norm.bias, norm.eps)


def slow_res_block(
    block, x, temb, late=False, bare=False, activated=False, timeless=False, around=True
):
    time = temb if bare else slow_silu(temb)
    time = torch.einsum("be,oe->bo", time, block.time_emb_proj.weight) + block.time_emb_proj.bias
    time = time[:, :, None, None]
    first = slow_silu(slow_norm(block.norm1, x))
    h = conv3(block.conv1, first)
    if late:
        h = slow_norm(block.norm2, h) + time
    elif timeless:
        h = slow_norm(block.norm2, h)
    else:
        h = slow_norm(block.norm2, h + time)
    if activated:
        x = first
    if not around:
        x = torch.zeros_like(h)
    elif hasattr(block, "conv_shortcut"):
        one = block.conv_shortcut
        x = torch.einsum("oc,bchw->bohw", one.weight[:, :, 0, 0], x) + one.bias[:, None, None]
    return conv3(block.conv2, slow_silu(h)) + x


def block_like(**how):
    return lambda block, x, temb: slow_res_block(block, x, temb, **how)


def res_cases(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        same = ResBlock(4, 4, 6, groups=2).requires_grad_(False)
        wider = ResBlock(4, 6, 8, groups=2).requires_grad_(False)
    return [
        (same, *draws(seed, (1, 4, 3, 3), (1, 6))),
        (wider, *draws(seed, (2, 4, 4, 5), (2, 8))),
    ]


def as_the_unet(fn):
    block, x, temb = res_cases(7)[1]
    return fn(block, x, temb), block(x, temb)


residual = Exercise(
    "res_block",
    "core",
    "The forward pass of the UNet's ResBlock, with the layers of `block`: norm1, SiLU, conv1; "
    "plus time_emb_proj of the SiLU of `temb` (b e), for every pixel the same; norm2, SiLU, "
    "conv2; plus the input, through conv_shortcut where the block has one (the number of channels "
    "changes). x (b c_in h w) -> (b c_out h w).",
    res_block,
    slow_res_block,
    res_cases,
    apart="the package has it as a method, `ResBlock.forward`, which also saves memory and "
    "serves a tap; a fact compares the two",
    facts=(Fact("it is the network's own block", as_the_unet),),
    mutants=(
        Mutant(
            "time after the norm",
            block_like(late=True),
            "Some networks scale and shift there. In this one the norm comes after the sum, and "
            "trained weights rely on it.",
        ),
        Mutant(
            "time without its SiLU",
            block_like(bare=True),
            "The embedding network ends in a linear layer; the SiLU is each block's own. Easily "
            "forgotten, since shapes fit.",
        ),
        Mutant(
            "time not added",
            block_like(timeless=True),
            "The block no longer knows how noisy its input is, and removes the average amount of "
            "noise at every time.",
        ),
        Mutant(
            "the activated input in the shortcut",
            block_like(activated=True),
            "The variable x was overwritten by silu(norm1(x)): the residual path is no longer a "
            "path around.",
        ),
        Mutant(
            "no path around",
            block_like(around=False),
            "The input is not added at the end. Forty such blocks in a row cannot be trained.",
        ),
    ),
    hints=(
        "Two halves of norm, SiLU, convolution; a sum in the middle and one at the end.",
        "`block.time_emb_proj(F.silu(temb))[:, :, None, None]` is added between conv1 and norm2.",
        'The end: `h + (block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x)`.',
    ),
    tolerance=3e-5,
    about="the UNet's residual block",
    page=UNET,
)


# ---- adaLN ---------------------------------------------------------------------------------------


def slow_modulate(x, shift, scale):
    out = torch.empty_like(x)
    for b in range(len(x)):
        for n in range(x.shape[1]):
            out[b, n] = x[b, n] + x[b, n] * scale[b] + shift[b]
    return out


def with_zeros(fn):
    x = torch.ones(1, 2, 3)
    zeros = torch.zeros(1, 3)
    return fn(x, zeros, zeros), x


adaln = Exercise(
    "modulate",
    "warm-up",
    "How a condition speaks to a DiT: tokens x (b n d), normalised before, are scaled and "
    "shifted, all tokens of a picture alike: $x (1 + \\text{scale}) + \\text{shift}$, with shift "
    "and scale (b d).",
    modulate,
    slow_modulate,
    lambda seed: [draws(seed, (1, 2, 3), (1, 3), (1, 3)), draws(seed, (3, 3, 4), (3, 4), (3, 4))],
    facts=(
        Fact(
            "with zeros nothing happens",
            with_zeros,
        ),
    ),
    mutants=(
        Mutant(
            "scale for 1 + scale",
            lambda x, b, s: x * s[:, None] + b[:, None],
            "The layer that makes these numbers starts at zero; then the network would begin by "
            "deleting its input.",
        ),
        Mutant(
            "shift and scale exchanged",
            lambda x, b, s: modulate(x, s, b),
            "One of the six chunks for another: nothing complains, and a trained network draws "
            "noise.",
        ),
        Mutant(
            "shifted first",
            lambda x, b, s: (x + b[:, None]) * (1 + s[:, None]),
            "Then the shift is scaled as well.",
        ),
    ),
    hints=(
        "A missing axis: tokens.",
        "`scale[:, None]` is (b 1 d).",
        "`x * (1 + scale[:, None]) + shift[:, None]`.",
    ),
    about="how a condition speaks to a DiT: scale and shift",
    page=DIT,
)


def dit_block(x: Tensor, c: Tensor, attn: nn.Module, mlp: nn.Module) -> Tensor:
    """adaLN-Zero: tokens x (b n d), c (b 6d) with the chunks shift, scale, gate of attn, then of
    mlp; returns (b n d).
    """
    b1, s1, g1, b2, s2, g2 = c.chunk(6, 1)
    normal = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    x = x + g1[:, None] * attn(modulate(normal, b1, s1))
    normal = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x + g2[:, None] * mlp(modulate(normal, b2, s2))


def slow_dit_block(
    x,
    c,
    attn,
    mlp,
    order=(0, 1, 2),
    one=0.0,
    parallel=False,
    norm=True,
    around=True,
    unbiased=0,
):
    start = x
    chunks = c.split(x.shape[2], 1)
    for branch, layer in enumerate((attn, mlp)):
        own = chunks[3 * branch : 3 * branch + 3]
        shift, scale, gate = own[order[0]], own[order[1]], own[order[2]]
        h = start if parallel else x
        if norm:
            h = h - h.mean(-1, keepdim=True)
            var = h.square().sum(-1, keepdim=True) / (h.shape[-1] - unbiased)
            h = h / (var + 1e-6).sqrt()
        x = (x if around else 0 * x) + (gate[:, None] + one) * layer(slow_modulate(h, shift, scale))
    return x


def adaln_like(**how):
    return lambda x, c, attn, mlp: slow_dit_block(x, c, attn, mlp, **how)


def mix_tokens(h):
    return 0.5 * h.flip(1) + 0.2 * h.cumsum(1)


def dit_cases(seed):
    return [
        (*draws(seed, (b, n, d), (b, 6 * d)), mix_tokens, torch.tanh)
        for b, n, d in ((1, 2, 3), (2, 5, 8))
    ]


def as_the_dit(fn):
    torch.manual_seed(0)
    block = DiTBlock(8, 2, None).requires_grad_(False)
    x, c = draws(3, (2, 4, 8), (2, 8))
    return fn(x, block.adaLN_modulation(c), block.attn, block.mlp), block(x, c, None)


def with_shut_gates(fn):
    x = torch.ones(1, 2, 2).cumsum(1)
    return fn(x, torch.zeros(1, 12), mix_tokens, torch.tanh), x


adaln_zero = Exercise(
    "dit_block",
    "core",
    "A DiT block. c (b 6d) holds shift, scale and gate for `attn`, then for `mlp`, each (b d). "
    "Twice: LayerNorm without weights over the channels (eps 1e-6), modulate, the layer, times "
    "the gate, added to x (b n d). The second branch sees what the first one made.",
    dit_block,
    slow_dit_block,
    dit_cases,
    apart="the package has it as a method, `DiTBlock.forward`, with cross-attention and adapters "
    "between the two branches; a fact compares the two",
    facts=(
        Fact(
            "gates of zero: the block is the identity",
            with_shut_gates,
        ),
        Fact("it is the network's own block", as_the_dit),
    ),
    tolerance=2e-5,
    mutants=(
        Mutant(
            "scale, shift, gate",
            adaln_like(order=(1, 0, 2)),
            "Public DiTs store shift first. Some later models store scale first in their last "
            "layer; taking one order for both is a common conversion bug.",
        ),
        Mutant(
            "1 + gate",
            adaln_like(one=1.0),
            "Scale gets the 1, the gate does not: with it the block does not start as the "
            "identity, which is the Zero in the name.",
        ),
        Mutant(
            "both branches from the same x",
            adaln_like(parallel=True),
            "Parallel blocks exist, but trained as such.",
        ),
        Mutant(
            "no norm",
            adaln_like(norm=False),
            "The modulation then scales whatever size the tokens have grown to.",
        ),
        Mutant(
            "not added to x",
            adaln_like(around=False),
            "The branch is a correction. Without x it starts as zero, and the gates stop "
            "everything.",
        ),
        Mutant(
            "the variance divided by n - 1",
            adaln_like(unbiased=1),
            "The default of `var` and `std`. LayerNorm divides by n.",
        ),
    ),
    hints=(
        "`c.chunk(6, 1)` in the order b1, s1, g1, b2, s2, g2.",
        "`x = x + g1[:, None] * attn(modulate(norm(x), b1, s1))`.",
        "The same line again with mlp and the second three; norm is `F.layer_norm(v, "
        "v.shape[-1:], eps=1e-6)`.",
    ),
    about="a DiT block with its gates (adaLN-Zero)",
    page=DIT,
)

EXERCISES = (norm, residual, adaln, adaln_zero)
