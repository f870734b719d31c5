"""Is what was asked for drawn in the hole, and does it join what surrounds it?

Of a network of four channels, which is what the tiny weights are: it blends. The path of nine
channels, whose network sees the surroundings, has no trained tiny weights; its parity with
diffusers is tested at random weights.
"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.inpaint import inpaint
from minidiff.evaluate.metrics import masked_psnr, psnr, rank_correlation
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import (
    Row,
    averaged,
    counted,
    draw,
    gained,
    share,
)

N = 48


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """A hole over the object, and a caption that puts another shape of another colour there."""
    rng = np.random.default_rng(seed)
    scenes = draw(n, seed)
    wanted = [_another(s, rng) for s in scenes]
    prompts = [shapes.short_caption(s) for s in wanted]
    image = shapes.render(scenes)
    mask = square_around(scenes)

    def run(mask: Tensor = mask, **knobs) -> Tensor:
        return inpaint(pipe, image, prompts, mask=mask, steps=25, seed=seed, **knobs)

    def right(x: Tensor, what: str) -> Tensor:
        return oracle().judge(x, wanted, SHORT)[what]

    ours = run()
    everywhere = run(mask=torch.ones_like(mask))
    fresh = pipe.generate(prompts, steps=25, seed=seed)
    strengths = (0.4, 0.6, 0.8, 1.0)
    kept = [psnr(run(strength=s), image).mean().item() for s in strengths]
    lost = right(fresh, "joint").float() - right(everywhere, "joint").float()
    rows = [
        *[
            averaged(
                f"hole over the object: {what} right",
                right(ours, what),
                0.85,
                share(right(image, what)),
            )
            for what in ("color", "shape")
        ],
        Row(
            "outside the hole, dB (50 is equal to the last bit)",
            masked_psnr(ours, image, 1 - mask).min().item(),
            50.0,
            masked_psnr(fresh, image, 1 - mask).mean().item(),
            source="identity",
        ),
        gained(
            "step across the hole's edge (x 100): saved on pasting a fresh picture in",
            -100 * seam(ours, mask),
            -100 * seam(_pasted(fresh, image, mask), mask),
        ),
        averaged(
            "a hole as large as the picture: joint accuracy, 1 is text-to-image's",
            1 - lost,
            0.95,
            source="identity",
        ),
        Row(
            "strength against likeness to the picture: -rank correlation",
            -rank_correlation(strengths, kept),
            0.9,
            source="identity",
        ),
    ]
    return counted(rows, n)


def square_around(scenes: list[shapes.Scene], grow: int = 4) -> Tensor:
    """(b 1 64 64): the box of the object, `grow` pixels wider on each side."""
    out = torch.zeros(len(scenes), 1, 64, 64)
    for present, box in zip(shapes.object_masks(scenes)[:, 0] > 0, out):
        rows = present.any(1).nonzero()
        columns = present.any(0).nonzero()
        top = max(rows.min() - grow, 0)
        left = max(columns.min() - grow, 0)
        box[0, top : rows.max() + 1 + grow, left : columns.max() + 1 + grow] = 1
    return out


def seam(x: Tensor, mask: Tensor) -> Tensor:
    """Mean |difference| (b,) of neighbouring pixels of x (b 3 H W) of which one is in the hole and
    one is not.
    """
    total = torch.zeros(len(x))
    count = torch.zeros(len(x))
    for dim in (2, 3):
        edge = mask.diff(dim=dim).abs()
        total += (edge * x.cpu().diff(dim=dim).abs()).sum((1, 2, 3))
        count += 3 * edge.sum((1, 2, 3))
    return total / count.clamp_min(1)


def _another(s: shapes.Scene, rng: np.random.Generator) -> shapes.Scene:
    """The scene with another shape, of another colour that is not its ground's."""
    colors = [c for c in shapes.COLORS if c not in (s.objects[0].color, s.background)]
    forms = [f for f in shapes.SHAPES if f != s.objects[0].shape]
    recoloured = shapes.edit(s, "color", colors[rng.integers(len(colors))])
    return shapes.edit(recoloured, "shape", forms[rng.integers(len(forms))])


def _pasted(x: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    return mask * x + (1 - mask) * image
