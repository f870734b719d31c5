"""SDEdit inside a mask."""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, draw, recoloured, share
from minidiff.proofs.sdedit import layout_overlap


def prove(pipe: Pipe, n: int, seed: int, strength: float = 0.9) -> list[Row]:
    """One object recoloured, the mask around it alone, against the same edit without a mask."""
    rng = np.random.default_rng(seed)
    scenes = draw(n, seed)
    wanted = [recoloured(s, rng) for s in scenes]
    prompts = [shapes.short_caption(s) for s in wanted]
    image = shapes.render(scenes)
    mask = torch.cat([shapes.edit_mask(a, b) for a, b in zip(scenes, wanted)])
    run = dict(strength=strength, steps=25, seed=seed)
    ours = sdedit(pipe, image, prompts, mask=mask, **run)
    bare = sdedit(pipe, image, prompts, mask=None, **run)

    def right(x: Tensor) -> dict[str, float]:
        return {what: share(v) for what, v in oracle().judge(x, wanted).items()}

    def same(x: Tensor) -> float:
        equal = (x == image).all(1, keepdim=True)
        return share(equal[mask == 0])

    def outside(x: Tensor) -> float:
        return masked_psnr(x, image, 1 - mask).mean().item()

    ours_right = right(ours)
    bare_right = right(bare)
    before_right = right(image)
    return [
        Row(
            "outside the mask: pixels that are the source's to the last bit",
            same(ours),
            1.0,
            same(bare),
        ),
        Row(
            "outside the mask, dB: gain over the edit without a mask",
            outside(ours) - outside(bare),
            6.0,
            outside(bare),
        ),
        Row("inside: colour right", ours_right["color"], 0.9, before_right["color"]),
        Row("inside: shape still right", ours_right["shape"], 0.9, bare_right["shape"]),
        Row(
            "inside: overlap with the object's place (IoU), which a fragment has not",
            layout_overlap(ours, wanted),
            0.7,
            layout_overlap(bare, wanted),
        ),
        Row(
            "position and background kept",
            ours_right["position"] * ours_right["background"],
            0.95,
            bare_right["position"] * bare_right["background"],
        ),
    ]
