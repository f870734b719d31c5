"""SDEdit inside a mask: are strokes in a picture redrawn, and all else left alone?"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit, strokes
from minidiff.evaluate.metrics import masked_psnr
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, draw, gained, recoloured, share
from minidiff.proofs.sdedit import layout_overlap


def prove(pipe: Pipe, n: int, seed: int, strength: float = 0.6) -> list[Row]:
    """One object painted over in another colour by crude strokes, the mask around it alone, as in
    the paper; against the same edit without a mask.
    """
    rng = np.random.default_rng(seed)
    scenes = draw(n, seed)
    wanted = [recoloured(s, rng) for s in scenes]
    prompts = [shapes.short_caption(s) for s in wanted]
    image = shapes.render(scenes)
    mask = torch.cat([shapes.edit_mask(a, b) for a, b in zip(scenes, wanted)])
    painted = mask * strokes(shapes.render(wanted)) + (1 - mask) * image
    run = dict(strength=strength, steps=25, seed=seed)
    ours = sdedit(pipe, painted, prompts, mask=mask, outside=image, **run)
    bare = sdedit(pipe, painted, prompts, mask=None, **run)

    def right(x: Tensor) -> dict[str, Tensor]:
        return oracle().judge(x, wanted)

    def same(x: Tensor) -> float:
        equal = (x == image).all(1, keepdim=True)
        return share(equal[mask == 0])

    def outside(x: Tensor) -> Tensor:
        return masked_psnr(x, image, 1 - mask)

    def place(right: dict[str, Tensor]) -> Tensor:
        return right["position"] & right["background"]

    ours_right = right(ours)
    bare_right = right(bare)
    before_right = right(image)
    rows = [
        Row(
            "outside the mask: pixels that are the source's to the last bit",
            same(ours),
            1.0,
            same(bare),
            source="identity",
        ),
        gained(
            "outside the mask, dB: gain over the edit without a mask",
            outside(ours),
            outside(bare),
            6.0,
            source="aim",
        ),
        averaged("inside: colour right", ours_right["color"], 0.9, share(before_right["color"])),
        averaged("inside: shape still right", ours_right["shape"], 0.9, share(bare_right["shape"])),
        averaged(
            "inside: overlap with the object's place (IoU), which a fragment has not",
            layout_overlap(ours, wanted),
            0.7,
            layout_overlap(bare, wanted).mean(),
        ),
        averaged("position and background kept", place(ours_right), 0.95, share(place(bare_right))),
    ]
    return counted(rows, n)
