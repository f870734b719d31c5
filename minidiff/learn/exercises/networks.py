"""What the networks are built of: attention and the place where papers look into it, gates, norms,
the residual block.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import draws
from minidiff.models.attention import GEGLU, add_taps, attend, geglu
from minidiff.models.text import causal_mask

UNET = "tutorials/weights/sd1_and_sd2.md"
P2P = "tutorials/editing/prompt_to_prompt.md"
TEXT = "tutorials/weights/text.md"


# ---- attention -----------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of q (b n c) to k and v (b m c); returns (b n c). Head h owns channels h
    c/heads and on.
    """
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    probs = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # b h n m
    return rearrange(probs @ v, "b h n d -> b n (h d)")


def slow_attention(q, k, v, heads):
    out = torch.zeros_like(q)
    d = q.shape[2] // heads
    for b in range(len(q)):
        for h in range(heads):
            own = slice(h * d, (h + 1) * d)
            for i in range(q.shape[1]):
                products = [(q[b, i, own] * key).sum() for key in k[b, :, own]]
                logits = torch.stack(products) / math.sqrt(d)
                weights = (logits - logits.max()).exp()
                weights = weights / weights.sum()
                out[b, i, own] = sum(w * value for w, value in zip(weights, v[b, :, own]))
    return out


def split(x, heads, axes="h d"):
    return rearrange(x, f"b n ({axes}) -> b h n d", h=heads)


def other_attention(axes="h d", scale=lambda c, d: d**-0.5, over=-1):
    def wrong(q, k, v, heads):
        factor = scale(q.shape[2], q.shape[2] // heads)
        logits = split(q, heads, axes) @ split(k, heads, axes).mT * factor
        out = logits.softmax(over) @ split(v, heads, axes)
        return rearrange(out, f"b h n d -> b n ({axes})")

    return wrong


def heads_not_put_back(q, k, v, heads):
    """(b h n d), read as if it were (b n h d)."""
    out = other_attention()(q, k, v, heads)
    return split(out, heads).reshape(q.shape)


def heads_of_tokens(q, k, v, heads):
    """(b n c), read as if it were (b h n d)."""

    def cut(x):
        return x.reshape(len(x), heads, x.shape[1], -1)

    probs = (cut(q) @ cut(k).mT * (q.shape[2] // heads) ** -0.5).softmax(-1)
    return (probs @ cut(v)).reshape(q.shape)


def attention_cases(seed):
    sizes = ((1, 1, 2, 2, 1), (2, 3, 5, 8, 2), (1, 4, 4, 12, 4))
    return [(*draws(seed + 9 * h, (b, n, c), (b, m, c), (b, m, c)), h) for b, n, m, c, h in sizes]


def equal_keys(fn):
    values = torch.arange(12.0).view(1, 3, 4)
    mean = torch.tensor([[4.0, 5, 6, 7]]).expand(1, 2, 4)
    return fn(torch.ones(1, 2, 4), torch.ones(1, 3, 4), values, 2), mean


heads = Exercise(
    "attention",
    "core",
    "Queries q (b n c), keys and values k, v (b m c), already projected. Cut the c channels into "
    "`heads` equal blocks (head h owns channels h c/heads and following), in each form "
    "$\\mathrm{softmax}(q k^T / \\sqrt{d})\\,v$ with d = c / heads, and put the blocks side by "
    "side again: (b n c).",
    attention,
    slow_attention,
    attention_cases,
    apart="from scratch, for reading: the package's networks all go through `attend`, which "
    "takes PyTorch's fused kernel while nobody listens, and is an exercise of its own",
    facts=(
        Fact(
            "if all keys are equal, everyone gets the mean of the values",
            equal_keys,
        ),
    ),
    mutants=(
        Mutant(
            "divided by the root of the whole width",
            other_attention(scale=lambda c, d: c**-0.5),
            "Each head's products have only c / heads terms. Scaled for c terms, attention is too "
            "flat: every pixel mixes a bit of every word.",
        ),
        Mutant(
            "not scaled",
            other_attention(scale=lambda c, d: 1.0),
            "Logits grow with the width, softmax saturates, and each query takes a single token.",
        ),
        Mutant(
            "heads interleaved",
            other_attention("d h"),
            "A reshape with the axes in the other order: every head then gets one channel in each "
            "block. Trained weights mean nothing in that order.",
        ),
        Mutant(
            "softmax over the queries",
            other_attention(over=-2),
            "Each token is shared out among the pixels. It is what slot attention does; here no "
            "row sums to 1.",
        ),
        Mutant(
            "the heads are not put back",
            heads_not_put_back,
            "(b h n d) is reshaped to (b n c) without `transpose(1, 2)` first: the shape fits, and "
            "the channels of a token are those of its neighbours.",
        ),
        Mutant(
            "the heads are cut out of the tokens",
            heads_of_tokens,
            "`view(b, heads, n, d)` of a (b n c) tensor mixes tokens and channels. View it as (b "
            "n heads d), then transpose.",
        ),
        Mutant(
            "divided by d, not by its root",
            other_attention(scale=lambda c, d: 1 / d),
            "A sum of d products has a spread of the root of d. Divided by d, attention is too "
            "flat.",
        ),
        Mutant(
            "one head",
            lambda q, k, v, heads: attention(q, k, v, 1),
            "`heads` is not looked at: every query asks one question in place of several.",
        ),
    ),
    hints=(
        "einops writes the split in one line, and the join as its reverse.",
        '`rearrange(x, "b n (h d) -> b h n d", h=heads)`; then two matrix products with a softmax '
        "between.",
        '`probs = (q @ k.mT * d ** -.5).softmax(-1)`; `rearrange(probs @ v, "b h n d -> b n (h '
        'd)")`.',
    ),
    about="several heads of attention, by hand",
    page=UNET,
)


# ---- attention with taps -------------------------------------------------------------------------


def listening(name, fn):
    module = nn.Module()
    add_taps(module)
    if fn:
        module.get_submodule(name).fns.append(fn)
    return module


def slow_attend(module, q, k, v, heads, mask=None):
    q = module.q(torch.stack(q.chunk(heads, -1), 1))  # b h n d
    k = module.k(torch.stack(k.chunk(heads, -1), 1))
    v = module.v(torch.stack(v.chunk(heads, -1), 1))
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    weights = module.logits(logits).exp()
    if mask is not None:
        weights = weights * mask[:, None, None]
    probs = module.probs(weights / weights.sum(-1, keepdim=True))
    out = torch.einsum("bhnm,bhmd->bhnd", probs, v)
    return torch.cat(out.unbind(1), -1)


def flipped(probs):
    return probs.flip(-1)


def doubled(probs):
    return 2 * probs


def tapped(seed):
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    q, k, v = draws(seed, (2, 4, 6), (2, 3, 6), (2, 3, 6))
    return [
        (listening("probs", None), q, k, v, 1, None),
        (listening("probs", flipped), q, k, v, 2, None),
        (listening("logits", doubled), q, k, v, 2, mask),
        (listening("logits", torch.tanh), q, k, v, 2, mask),  # minus infinity would become -1
        (listening("probs", doubled), q, k, v, 3, mask),
        (listening("v", flipped), q, k, v, 2, mask),
        (listening("k", flipped), q, k, v, 2, mask),
        (listening("q", doubled), q, k, v, 3, None),
    ]


def attend_like(
    look=True, look_inside=True, mask_late=False, mask_early=False, normed=False, blind=False
):
    def wrong(module, q, k, v, heads, mask=None):
        q, k, v = (split(x, heads) for x in (q, k, v))
        if look_inside:
            q = module.q(q)
            k = module.k(k)
            v = module.v(v)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        seen = torch.ones(len(q), k.shape[2]) if mask is None or blind else mask
        seen = seen[:, None, None].to(q)
        if mask_early:
            logits = logits + seen.log()
            seen = torch.ones_like(seen)
        if look:
            logits = module.logits(logits)
        if mask_late:
            probs = logits.softmax(-1) * seen
        else:
            probs = (logits + seen.log()).softmax(-1)
        if look:
            probs = module.probs(probs)
        if normed:
            probs = probs / probs.sum(-1, keepdim=True)
        return rearrange(probs @ v, "b h n d -> b n (h d)")

    return wrong


tap = Exercise(
    "attend",
    "core",
    "Multi-head attention (the exercise `attention`) with five places to listen in. `module.q`, "
    "`.k`, `.v` are called with the split tensors (b h n d), `module.logits` with the scaled "
    "products (b h n m) before any mask, `module.probs` with the softmax; each returns the tensor "
    "to go on with, which a listener may have replaced. `mask` (b m) is 1 for tokens that may be "
    "seen, or None. All of prompt-to-prompt enters through `probs`.",
    attend,
    slow_attend,
    tapped,
    mutants=(
        Mutant(
            "nobody sees the maps",
            attend_like(look=False),
            "A fused kernel is fast and shows no maps: an edit of them then silently does "
            "nothing. So the maps must be formed while somebody listens.",
        ),
        Mutant(
            "nobody is asked, or nobody is followed",
            attend_like(look=False, look_inside=False),
            "Plain attention. A tap must be called, and what it returns is what to go on with.",
        ),
        Mutant(
            "masked before the tap",
            attend_like(mask_early=True),
            "A listener then meets minus infinity among the logits, and may turn it into a number "
            "or into NaN. `logits` shows the products; the mask comes after it.",
        ),
        Mutant(
            "the mask is not looked at",
            attend_like(blind=True),
            "Padding is attended to: a short prompt is mostly padding.",
        ),
        Mutant(
            "masked after the softmax",
            attend_like(mask_late=True),
            "Hidden tokens take their share away: the rest no longer sums to 1, and the output "
            "shrinks with padding.",
        ),
        Mutant(
            "renormalised after the tap",
            attend_like(normed=True),
            "What the listener does to the sum of a row, such as a word said louder, is undone at "
            "once.",
        ),
    ),
    hints=(
        "Five calls: q, k, v, logits, probs, in that order.",
        "A hidden token has a logit of minus infinity: `torch.where(mask.bool(), 0., -torch.inf)`.",
        "`probs = module.probs((module.logits(q @ k.mT * d ** -.5) + bias).softmax(-1))`; then "
        "`probs @ v`.",
    ),
    about="attention with places to listen in",
    page=P2P,
)


# ---- causal mask ---------------------------------------------------------------------------------


causal = Exercise(
    "causal_mask",
    "warm-up",
    "CLIP's text tower reads from left to right: token i may look at tokens 0 .. i. Return what "
    "is added to the logits, (n, n) in float32, rows are queries: 0 where looking is allowed, "
    "minus infinity elsewhere.",
    causal_mask,
    lambda n: torch.tensor([[0.0 if j <= i else -math.inf for j in range(n)] for i in range(n)]),
    lambda seed: [(2,), (5 + seed,)],
    facts=(
        Fact(
            "token i shares its attention among i + 1 tokens",
            lambda fn: (fn(4).softmax(-1).diagonal(), 1 / torch.arange(1, 5.0)),
        ),
    ),
    mutants=(
        Mutant(
            "not itself",
            lambda n: torch.full((n, n), -torch.inf).triu(0),
            "The first token may look nowhere; its softmax is 0 / 0, and NaN spreads over the "
            "whole prompt.",
        ),
        Mutant(
            "from right to left",
            lambda n: torch.full((n, n), -torch.inf).tril(-1),
            "Upper and lower triangle exchanged: every word knows only what follows.",
        ),
        Mutant(
            "a mask to multiply with",
            lambda n: torch.ones(n, n).tril(),
            "1 and 0, added to logits, hide nothing: the future is only a factor e less likely.",
        ),
        Mutant(
            "the smallest float for minus infinity",
            lambda n: torch.full((n, n), torch.finfo(torch.float32).min).triu(1),
            "The softmax is the same wherever a token may look somewhere. Added to a second mask "
            "it overflows, in float16 it is no such number, and here minus infinity was asked.",
        ),
    ),
    hints=(
        "A triangle.",
        "`triu(1)` keeps what lies strictly above the diagonal.",
        "`torch.full((n, n), -torch.inf).triu(1)`.",
    ),
    about="who may look at whom in CLIP's text tower",
    page=TEXT,
)


# ---- GEGLU ---------------------------------------------------------------------------------------


def slow_geglu(h):
    a, g = h.double().chunk(2, -1)
    below = [(1 + math.erf(z / math.sqrt(2))) / 2 for z in g.flatten().tolist()]
    return (a * g * torch.tensor(below, dtype=torch.float64).view_as(g)).to(h.dtype)


def gated(act, first=False):
    def wrong(h):
        a, g = h.chunk(2, -1)
        return act(a) * g if first else a * act(g)

    return wrong


def against_module(fn):
    module = GEGLU(4, 6).requires_grad_(False)
    (x,) = draws(5, (2, 3, 4))
    return fn(module.proj(x)), module(x)


gate = Exercise(
    "geglu",
    "warm-up",
    "The feed-forward gate of Stable Diffusion's transformer blocks: one projection has made h (b "
    "n 2m); its first half a and second half g give $a \\cdot \\mathrm{gelu}(g)$, (b n m), with "
    "the exact (erf) gelu.",
    geglu,
    slow_geglu,
    lambda seed: [draws(seed, (1, 1, 4)), draws(seed, (2, 3, 12))],
    facts=(Fact("it is the network's own layer", against_module),),
    mutants=(
        Mutant(
            "the first half is the gate",
            gated(F.gelu, first=True),
            "Shapes fit, nothing complains, and a loaded checkpoint draws noise: the order of the "
            "halves is part of the file format.",
        ),
        Mutant(
            "the tanh approximation",
            gated(lambda g: F.gelu(g, approximate="tanh")),
            "DiT's layers want it, Stable Diffusion's do not. Off by less than a thousandth a "
            "layer: too little to see, enough to fail every comparison.",
        ),
        Mutant(
            "a sigmoid gate",
            gated(torch.sigmoid),
            "That is GLU. Its gate never passes zero and never grows.",
        ),
        Mutant(
            "SiLU for gelu",
            gated(F.silu),
            "SwiGLU, the gate of most language models. These weights were trained with gelu.",
        ),
        Mutant(
            "every other channel",
            lambda h: h[..., ::2] * F.gelu(h[..., 1::2]),
            "The halves lie one behind the other, not interleaved.",
        ),
    ),
    hints=(
        "Halve, gate, multiply.",
        "`a, g = h.chunk(2, -1)` gives the halves.",
        "`return a * F.gelu(g)`.",
    ),
    about="the gate of a transformer's feed-forward layer",
    page=UNET,
)

EXERCISES = (heads, tap, causal, gate)
