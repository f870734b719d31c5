"""Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation.

Narek Tumanyan, Michal Geyer, Shai Bagon, Tali Dekel, 2022, arXiv 2211.12572.

What a network computes on its way already holds the layout: a ResBlock a third of the way up knows
which part is which, and queries and keys of self-attention know which pixels belong together. So
invert the picture, run the source beside the edit at every time, and copy those two kinds of
features over; the words decide what is left, colour and texture.

    rows: [source at z*_t, null at z_t, target at z_t]
                                  z*_t is the picture's own DDIM inversion, read back at time t
    h <- h of the source          one ResBlock's branch (decoder layer n / 3 of n), in the first
                                  `features` of the steps
    q, k <- q, k of the source    self-attention from that layer on, in the first `attention` of
                                  the steps
    z_s from eps_null + scale (eps_target - eps_null): only the edit's state moves

A ResBlock's branch is copied before it is added to the skip, as the authors do; n / 3 is their
layer 4 of Stable Diffusion's 12. A transformer has no ResBlocks: there it is the output of block n
/ 3, the whole stream, a heavier hand.

Try: `features` and `attention` from 0 (the inverted noise replayed with the new words) to 1;
`away=1` on a picture whose old look shines through; the same with model tiny-dit.

Weakness: the layout is copied, so nothing can move; that is measured, and printed, beside what
works. (A shape can change on the tiny model, whose features at this layer are 8x8.) And features
are only as good as the inversion: the authors take 999 steps of it. Here the source row is never
propagated, it is read from the inversion's own states, so errors of the inversion cannot pile up in
what is copied.
"""

import re

import torch
from torch import Tensor, nn

from minidiff.core.cfg import guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap, tap_names
from minidiff.inversion.ddim import invert
from minidiff.pipe.checks import check_share, door
from minidiff.pipe.pipe import Pipe


def sites(net: nn.Module) -> tuple[str, str]:
    """(pattern of the one tap for features, pattern of the taps
    q and k of self-attention), for a UNet or a transformer.
    """
    # in the order they run
    blocks = tap_names(net, r"^(up_blocks\.\d+\.resnets\.\d+\.h|blocks\.\d+\.out)$")
    if not blocks:
        raise ValueError(
            "this network has neither decoder ResBlocks (UNet) nor blocks (DiT) to copy features "
            "between"
        )
    rest = [
        re.escape(name.rpartition(".")[0].replace("resnets", "attentions"))
        for name in blocks[len(blocks) // 3 :]
    ]
    at = "^" + re.escape(blocks[len(blocks) // 3]) + "$"
    return at, rf"^({'|'.join(rest)})\.(transformer_blocks\.\d+\.attn1\.|attn\.)?[qk]$"


def copy_source(b: int, on: bool):
    """fn for a tap: the first b rows in place of all others, while `on`."""

    def fn(x, name):
        return torch.cat([x[:b]] * (len(x) // b)) if on else None

    return fn


@door
@torch.no_grad()
def plug_and_play(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    features: float = 0.8,
    attention: float = 0.5,
    away: float = 0.0,
    steps: int = 50,
    scale: float | None = None,
    progress: bool = False,
) -> Tensor:
    """Pictures `image` (b 3 H W) in [-1, 1], described by `source` ("" will do), redrawn as
    `target` says: (b 3 H W).

    features   share of the steps, from noise on, in which a ResBlock's features are the source's
    attention  the same for queries and keys of self-attention
    away       guide away from `source`, too: share that has taken the empty prompt's place at the
               last step, 0 to 1

    There is no seed: inversion and sampling are deterministic. With target = source, scale 1 and no
    injection this is the round trip of `inversion.ddim`. ValueError: a share outside 0..1, sizes or
    numbers of prompts that do not fit.
    """
    check_share("features", features)
    check_share("attention", attention)
    check_share("away", away)
    b = len(image)
    sch = pipe.schedule
    ts = pipe.timesteps(steps)
    old = pipe.embed(source).expand(b)
    new = pipe.embed(target).expand(b)
    null = pipe.null(b)
    # rows: [source, null, target, maybe away]
    cond = Cond.cat([old, null, new, *([old] if away else [])])
    at, attends = sites(pipe.net)
    states = invert(pipe, image, source, steps=steps)  # z*, clean to noise
    x = states[-1]
    for i, (t, s) in enumerate(step_pairs(ts, progress)):
        rows = torch.cat([states[-1 - i], *[x] * (len(cond) // b - 1)])
        with (
            tap(pipe.net, at, copy_source(b, i < features * steps)),
            tap(pipe.net, attends, copy_source(b, i < attention * steps)),
        ):
            _, e_null, e_new, *e_old = pipe.eps(rows, t, cond).chunk(len(cond) // b)
        if away:
            # the published code's negative prompt: more of it with every step
            e_null = torch.lerp(e_null, e_old[0], away * i / max(steps - 1, 1))
        x = ddim_step(sch, x, guide(e_null, e_new, scale), t, s)
    return pipe.decode(x)
