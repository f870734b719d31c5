"""Does a crude painting become a picture, and stay where it was?"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw, object_region, rank_correlation, recoloured
from minidiff.shipped.autoencoder import psnr


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Strokes to picture: every object a round blob on a plain ground, every strength, one
    noise.
    """
    scenes, judge = draw(n, seed), oracle()
    guide, prompts = (
        shapes.render([blobs(s) for s in scenes]),
        [shapes.short_caption(s) for s in scenes],
    )
    right = lambda x: judge.judge(x, scenes, SHORT)["joint"].float().mean().item()  # noqa: E731
    strengths = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    pictures = [sdedit(pipe, guide, prompts, strength=s, steps=25, seed=seed) for s in strengths]
    fresh = pipe.generate(prompts, steps=25, seed=seed)
    faithful, real, layout = zip(
        *[(psnr(x, guide).mean().item(), right(x), _layout(x, scenes)) for x in pictures]
    )
    print(f"    the blobs     right {right(guide):.2f}  overlap {_layout(guide, scenes):.3f}")
    for s, r, o, d in zip(strengths, real, layout, faithful):
        print(f"    strength {s:<4} right {r:.2f}  overlap {o:.3f}  {d:.1f} dB to the blobs")
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
            _layout(fresh, scenes),
        ),
    ]


def blobs(scene: shapes.Scene) -> shapes.Scene:
    """The scene as strokes paint it: colours and places, no outline and no pattern."""
    return replace(
        scene, objects=tuple(replace(o, shape="circle") for o in scene.objects), texture="plain"
    )


def prove_masked(pipe: Pipe, n: int, seed: int, strength: float = 0.9) -> list[Row]:
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
            _layout(ours, wanted),
            0.7,
            _layout(bare, wanted),
        ),
        Row(
            "position and background kept",
            share(a, "position") * share(a, "background"),
            0.95,
            share(b, "position") * share(b, "background"),
        ),
    ]


def _layout(images: Tensor, scenes: list[shapes.Scene]) -> float:
    """Mean IoU of the objects' pixels with the true masks of the scenes."""
    found = (
        torch.stack([object_region(x, s.objects[0].color, 0) for x, s in zip(images, scenes)]) > 0.5
    )
    true = shapes.object_masks(scenes)[:, :1] > 0.5
    return (
        ((found & true).sum((1, 2, 3)) / (found | true).sum((1, 2, 3)).clamp_min(1)).mean().item()
    )
