"""Perturbed-attention guidance: lead away from what the network draws when it may not look around.

Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, Donghoon Ahn et al., 2024,
arXiv 2403.17377; with blurred queries: Smoothed Energy Guidance, Susung Hong, 2024,
arXiv 2408.00760.

Guidance needs a worse answer to lead away from. Take it from the same network: in some of its
self-attentions every place may look only at itself (the map becomes the identity, so that the
output is v), or all places ask the same question (every query is the mean query, the limit of an
infinite blur). What is lost is how parts belong together, and away from that leads towards it. No
condition is needed, so unconditional models profit too.

    eps = eps(x_t) + scale (eps(x_t) - eps_perturbed(x_t))

Try: the middle block alone, then all layers; scale 1 to 5 without any prompt; `cfg` around it, four
evaluations a step.

Weakness: which layers is a choice by trial. A second evaluation at every step, and at high scales
the same glare as any other guidance. Scales of public code are not all the same number: some write
eps_perturbed + scale (eps - eps_perturbed), whose scale is 1 + this one.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from minidiff.core.denoise import Denoise
from minidiff.core.taps import tap
from minidiff.pipe.checks import check_strength

MIDDLE = r"^mid_block"


def perturbed_attention(
    denoise: Denoise,
    net: nn.Module,
    scale: float,
    *,
    layers: str = MIDDLE,
    how: Literal["alone", "alike"] = "alone",
) -> Denoise:
    """The denoiser led away from its answer with some self-attention spoilt.

    net     the network behind `denoise`; its attentions but `attn2`, which read the prompt
    layers  a regular expression: which taps' names (default: the middle block; a transformer has
            none, take "blocks")
    how     "alone": a place looks at itself; "alike": every place asks the mean question
    scale   0 leaves the answer as it is, to the bit

    KeyError: no self-attention of such a name. ValueError: a scale below 0, an unknown `how`.
    """
    check_strength("scale", scale)
    if how not in PERTURBED:
        raise ValueError(f"how={how!r} is unknown; choose one of {', '.join(PERTURBED)}")
    tensor, spoilt = PERTURBED[how]
    pattern = rf"^(?=.*(?:{layers}))(?!.*attn2).*\.{tensor}$"
    with tap(net, pattern, lambda x, name: None):
        pass  # a name that matches nothing is refused now, not in the first step

    def guided(x_t, t, cond):
        eps = denoise(x_t, t, cond)
        if scale == 0:
            return eps
        with tap(net, pattern, lambda x, name: spoilt(x)):
            worse = denoise(x_t, t, cond)
        return eps + scale * (eps - worse)

    return guided


def looks_at_itself(probs: Tensor) -> Tensor:
    """Attention maps (b h n n) in which every place sees itself only."""
    n = probs.shape[-1]
    return torch.eye(n, dtype=probs.dtype, device=probs.device).expand_as(probs)


def asks_alike(q: Tensor) -> Tensor:
    """Queries (b h n d), all of them the mean one."""
    return q.mean(2, keepdim=True).expand_as(q)


PERTURBED = {"alone": ("probs", looks_at_itself), "alike": ("q", asks_alike)}
