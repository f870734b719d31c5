"""Does a crude painting become a picture, and stay where it was?"""

from dataclasses import replace

import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, draw, object_region, rank_correlation, share


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Strokes to picture: every object a round blob on a plain ground, every strength, one
    noise.
    """
    scenes = draw(n, seed)
    prompts = [shapes.short_caption(s) for s in scenes]
    guide = shapes.render([blobs(s) for s in scenes])

    def right(x: Tensor) -> float:
        return share(oracle().judge(x, scenes, SHORT)["joint"])

    print(
        f"    the blobs     right {right(guide):.2f}  overlap {layout_overlap(guide, scenes):.3f}"
    )
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
            f"    strength {strength:<4} right {real[-1]:.2f}  overlap {layout[-1]:.3f}  "
            f"{faithful[-1]:.1f} dB to the blobs"
        )
    fresh = pipe.generate(prompts, steps=25, seed=seed)
    base = max(right(fresh), 0.01)
    best = max(zip(real, layout), key=lambda v: min(v[0] / base / 0.9, v[1] / 0.7))
    return [
        Row(
            "strength against likeness to the guide: -rank correlation",
            -rank_correlation(strengths, faithful),
            0.9,
        ),
        Row(
            "strength against attributes right: rank correlation",
            rank_correlation(strengths, real),
            0.9,
            real[0],
        ),
        Row(
            "at the best strength: attributes right, of text-to-image's",
            best[0] / base,
            0.9,
            real[0],
        ),
        Row(
            "at the same strength: overlap with the painted object's place (IoU)",
            best[1],
            0.7,
            layout_overlap(fresh, scenes),
        ),
    ]


def blobs(scene: shapes.Scene) -> shapes.Scene:
    """The scene as strokes paint it: colours and places, no outline and no pattern."""
    objects = tuple(replace(o, shape="circle") for o in scene.objects)
    return replace(scene, objects=objects, texture="plain")


def layout_overlap(images: Tensor, scenes: list[shapes.Scene]) -> float:
    """Mean IoU of the objects' pixels with the true masks of the scenes."""
    regions = [object_region(x, s.objects[0].color, 0) for x, s in zip(images, scenes)]
    seen = torch.stack(regions) > 0.5
    true = shapes.object_masks(scenes)[:, :1] > 0.5
    both = (seen & true).sum((1, 2, 3))
    either = (seen | true).sum((1, 2, 3))
    return (both / either.clamp_min(1)).mean().item()
