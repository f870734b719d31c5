"""Does one push across a flat wall change what it should, and only that?"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minidiff.core.denoise import noise
from minidiff.data import shapes
from minidiff.editing.boundary import Plane, Planes, boundaries, boundary
from minidiff.evaluate.oracle import ATTRIBUTES, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw

WHAT, OLD, NEW = "background", "white", "black"
KNOBS = dict(distance=1.0, steps=25)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """The ground from white to black: planes from 16 labelled renders of each kind, n other scenes
    pushed.
    """
    known, scenes = _pairs(draw(16, seed + 1)), _pairs(draw(n, seed))
    before, after = (pipe.encode(shapes.render(side)) for side in zip(*known))
    walls = boundaries(pipe, before, after, [400, 520], steps=25)
    red, blue = ([shapes.edit(a, "color", c) for a, _ in known] for c in ("red", "blue"))
    hue = boundaries(
        pipe, *(pipe.encode(shapes.render(s)) for s in (red, blue)), [520, 1000], steps=25
    )
    image, truth, judge = shapes.render([a for a, _ in scenes]), [b for _, b in scenes], oracle()

    def score(space: str, planes: Planes) -> tuple[float, float]:
        out = boundary(pipe, image, "", "", space=space, planes=planes, seed=seed, **KNOBS).cpu()
        right = judge.judge(out, truth)
        return right[WHAT].float().mean().item(), np.mean(
            [right[a].float().mean() for a in ATTRIBUTES if a != WHAT]
        )

    chosen = {400: walls[400]}
    (hit, kept), (z_only, _), (h_only, _) = (score(space, chosen) for space in ("both", "z", "h"))
    chance, _ = score("both", {400: tuple(_turned(w, seed + i) for i, w in enumerate(walls[400]))})
    return [
        Row(
            "colour: unseen pictures on their side of h's plane at .5 T",
            hue[520][1].accuracy,
            0.9,
            0.5,
        ),
        Row(
            "colour at T: share on the wrong side (half is chance)",
            1 - hue[1000][1].accuracy,
            0.35,
            0.5,
        ),
        Row(
            "ground: unseen pictures on their side of h's plane at .5 T",
            walls[520][1].accuracy,
            0.9,
            0.5,
        ),
        Row("pushed in z and h: the new ground is read", hit, 0.5, 0.0),
        Row("at the same distance: other attributes kept", kept, 0.8),
        Row("the gain of both spaces over z alone", hit - z_only, 0.0, z_only),
        Row("the gain of both spaces over h alone", hit - h_only, 0.0, h_only),
        Row("random normals, the same length: edits that do not happen", 1 - chance, 0.85),
    ]


def _pairs(scenes: list[shapes.Scene]) -> list[tuple[shapes.Scene, shapes.Scene]]:
    return [(shapes.edit(s, WHAT, OLD), shapes.edit(s, WHAT, NEW)) for s in scenes]


@dataclass(frozen=True)
class _Sideways(Plane):
    """A wall whose pushes are as long as ever, but along a random axis."""

    along: Tensor | None = None

    def push(self, v: Tensor, d: Tensor | float) -> Tensor:
        return v + (d - self.distance(v))[:, None, None, None] * self.along


def _turned(wall: Plane, seed: int) -> _Sideways:
    a = noise((1, *wall.normal.shape), seed)[0].to(wall.normal)
    return _Sideways(
        wall.normal, wall.offset, wall.depth, wall.accuracy, a / torch.linalg.vector_norm(a)
    )
