"""Does a crude painting become a picture, and stay where it was?"""

from dataclasses import replace

import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import psnr, rank_correlation
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import (
    Row,
    counted,
    draw,
    gained,
    object_region,
    share,
)

N = 48


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Strokes to picture: every object a round blob on a plain ground, every strength, one
    noise.
    """
    scenes = draw(n, seed)
    prompts = [shapes.short_caption(s) for s in scenes]
    guide = shapes.render([blobs(s) for s in scenes])

    def right(x: Tensor) -> Tensor:
        return oracle().judge(x, scenes, SHORT)["joint"].float()

    painted = layout_overlap(guide, scenes)
    print(f"    the blobs     right {right(guide).mean():.2f}  overlap {painted.mean():.3f}")
    strengths = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    faithful = []
    real = []
    layout = []
    for strength in strengths:
        x = sdedit(pipe, guide, prompts, strength=strength, steps=25, seed=seed)
        faithful.append(psnr(x, guide).mean().item())
        real.append(right(x))
        layout.append(layout_overlap(x, scenes))
        print(
            f"    strength {strength:<4} right {real[-1].mean():.2f}  "
            f"overlap {layout[-1].mean():.3f}  {faithful[-1]:.1f} dB to the blobs"
        )
    fresh = pipe.generate(prompts, steps=25, seed=seed)
    base = max(share(right(fresh)), 0.01)
    # the least strength that draws as well as the model does by itself, or nearly
    enough = next((i for i, r in enumerate(real) if r.mean() >= 0.9 * base), len(real) - 1)
    rows = [
        Row(
            "strength against likeness to the guide: -rank correlation",
            -rank_correlation(strengths, faithful),
            0.9,
            source="paper",
        ),
        gained("attributes right: gain from strength .2 to .9", real[-1], real[0]),
        Row(
            f"at strength {strengths[enough]}: attributes right, of text-to-image's",
            share(real[enough]) / base,
            0.9,
            share(real[0]),
        ),
        gained(
            "at the same strength: overlap with the object's place (IoU), less the blob's own",
            layout[enough],
            painted,
            -0.05,
            source="paper",
        ),
        gained(
            "the same overlap: gain over text-to-image",
            layout[enough],
            layout_overlap(fresh, scenes),
        ),
    ]
    return counted(rows, n)


def blobs(scene: shapes.Scene) -> shapes.Scene:
    """The scene as strokes paint it: colours and places, no outline and no pattern."""
    objects = tuple(replace(o, shape="circle") for o in scene.objects)
    return replace(scene, objects=objects, texture="plain")


def layout_overlap(images: Tensor, scenes: list[shapes.Scene]) -> Tensor:
    """IoU (b,) of the objects' pixels with the true masks of the scenes."""
    regions = [object_region(x, s.objects[0].color, 0) for x, s in zip(images, scenes)]
    seen = torch.stack(regions) > 0.5
    true = shapes.object_masks(scenes)[:, :1] > 0.5
    both = (seen & true).sum((1, 2, 3))
    either = (seen | true).sum((1, 2, 3))
    return both / either.clamp_min(1)
