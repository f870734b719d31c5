"""Another style, the same content?"""

import numpy as np
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.editing.zecon import zecon
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw

CONTENT = ("count", "shape", "color", "size", "position")

STYLES = (1.0, 2.0, 3.0)  # of the run without the contrast


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Plain white grounds to striped ones, against the same without the contrast, and against
    SDEdit at equal success.
    """
    scenes = [
        shapes.edit(shapes.edit(s, "background", "white"), "texture", "plain")
        for s in draw(n, seed)
    ]
    truth = [shapes.edit(s, "texture", "striped") for s in scenes]
    image = shapes.render(scenes)
    source, target = (
        [shapes.caption(s, size=False, position=False) for s in side] for side in (scenes, truth)
    )
    ours = _score(zecon(pipe, image, source, target, seed=seed), truth)
    bare = [
        _score(zecon(pipe, image, source, target, style=k, content=0.0, mse=0.0, seed=seed), truth)
        for k in STYLES
    ]
    other = [
        _score(sdedit(pipe, image, target, strength=s, steps=25, seed=seed), truth)
        for s in (0.6, 0.7, 0.8, 0.9)
    ]
    near = lambda found: min(found, key=lambda f: abs(f[0] - ours[0]))  # noqa: E731 - the run of most equal success
    return [
        Row("the new style is read", ours[0], 0.6, near(other)[0]),
        Row("content kept (count, shape, colour, size, place)", ours[1], 0.9, near(other)[1]),
        Row(
            "without the contrast, at equal success: content that is lost",
            ours[1] - near(bare)[1],
            0.1,
            near(bare)[1],
        ),
        Row(
            "against SDEdit at equal success: content kept more by",
            ours[1] - near(other)[1],
            0.0,
            near(other)[1],
        ),
    ]


def _score(images: Tensor, truth: list[shapes.Scene]) -> tuple[float, float]:
    """(share with the new texture, share of content attributes that are right)."""
    right = oracle().judge(images.cpu(), truth)
    return right["texture"].float().mean().item(), float(
        np.mean([right[a].float().mean() for a in CONTENT])
    )
