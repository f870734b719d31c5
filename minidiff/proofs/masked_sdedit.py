"""SDEdit inside a mask."""

import numpy as np
import torch

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw, recoloured
from minidiff.proofs.sdedit import layout_overlap


def prove(pipe: Pipe, n: int, seed: int, strength: float = 0.9) -> list[Row]:
    """One object recoloured, the mask around it alone, against the same edit without a mask."""
    rng, scenes, judge = np.random.default_rng(seed), draw(n, seed), oracle()
    wanted = [recoloured(s, rng) for s in scenes]
    image, prompts = shapes.render(scenes), [shapes.short_caption(e) for e in wanted]
    mask = torch.cat([shapes.edit_mask(a, b) for a, b in zip(scenes, wanted)])
    ours, bare = (
        sdedit(pipe, image, prompts, strength=strength, steps=25, seed=seed, mask=m)
        for m in (mask, None)
    )
    (a, b, before) = (judge.judge(x, wanted) for x in (ours, bare, image))
    share = lambda v, what: v[what].float().mean().item()  # noqa: E731
    same = lambda x: (x == image).all(1, keepdim=True)[mask == 0].float().mean().item()  # noqa: E731
    return [
        Row(
            "outside the mask: pixels that are the source's to the last bit",
            same(ours),
            1.0,
            same(bare),
        ),
        Row(
            "outside the mask, dB: gain over the edit without a mask",
            masked_psnr(ours, image, 1 - mask).mean().item()
            - masked_psnr(bare, image, 1 - mask).mean().item(),
            6.0,
            masked_psnr(bare, image, 1 - mask).mean().item(),
        ),
        Row("inside: colour right", share(a, "color"), 0.9, share(before, "color")),
        Row("inside: shape still right", share(a, "shape"), 0.9, share(b, "shape")),
        Row(
            "inside: overlap with the object's place (IoU), which a fragment has not",
            layout_overlap(ours, wanted),
            0.7,
            layout_overlap(bare, wanted),
        ),
        Row(
            "position and background kept",
            share(a, "position") * share(a, "background"),
            0.95,
            share(b, "position") * share(b, "background"),
        ),
    ]
