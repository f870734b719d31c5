"""Does one push across a flat wall change what it should, and only that?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff.core.denoise import noise
from minidiff.data import shapes
from minidiff.editing.boundary import Plane, Planes, boundaries, boundary
from minidiff.evaluate.oracle import ATTRIBUTES, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, draw, gained

WHAT = "background"
OLD = "white"
NEW = "black"
KNOBS = dict(distance=1.0, steps=25)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """The ground from white to black: planes from 16 labelled renders of each kind, n other scenes
    pushed.
    """
    known = _pairs(draw(16, seed + 1))
    white, black = ([pair[k] for pair in known] for k in (0, 1))
    walls = _walls(pipe, white, black, [400, 520])
    red = [shapes.edit(s, "color", "red") for s in white]
    blue = [shapes.edit(s, "color", "blue") for s in white]
    hue = _walls(pipe, red, blue, [520, 1000])

    scenes = _pairs(draw(n, seed))
    image = shapes.render([before for before, _ in scenes])
    truth = [after for _, after in scenes]
    judge = oracle()

    def score(space: str, planes: Planes) -> tuple[Tensor, Tensor]:
        """Of each picture: has it the new ground, share of the other attributes kept."""
        out = boundary(pipe, image, "", "", space=space, planes=planes, seed=seed, **KNOBS).cpu()
        right = judge.judge(out, truth)
        others = [right[a].float() for a in ATTRIBUTES if a != WHAT]
        return right[WHAT].float(), torch.stack(others).mean(0)

    chosen = {400: walls[400]}
    hit, kept = score("both", chosen)
    z_only, _ = score("z", chosen)
    h_only, _ = score("h", chosen)
    turned = tuple(_turned(wall, seed + i) for i, wall in enumerate(walls[400]))
    chance, _ = score("both", {400: turned})
    rows = [
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
        averaged("pushed in z and h: the new ground is read", hit, 0.5, 0.0),
        averaged("at the same distance: other attributes kept", kept, 0.8),
        gained("the new ground: gain of both spaces over z alone", hit, z_only),
        gained("the new ground: gain of both spaces over h alone", hit, h_only),
        gained("the new ground: gain over random normals of the same length", hit, chance),
    ]
    return counted(rows, n)


def _pairs(scenes: list[shapes.Scene]) -> list[tuple[shapes.Scene, shapes.Scene]]:
    return [(shapes.edit(s, WHAT, OLD), shapes.edit(s, WHAT, NEW)) for s in scenes]


def _walls(
    pipe: Pipe, before: list[shapes.Scene], after: list[shapes.Scene], ts: list[int]
) -> Planes:
    before_z = pipe.encode(shapes.render(before))
    after_z = pipe.encode(shapes.render(after))
    return boundaries(pipe, before_z, after_z, ts, steps=25)


@dataclass(frozen=True)
class _Sideways(Plane):
    """A wall whose pushes are as long as ever, but along a random axis."""

    along: Tensor | None = None

    def push(self, v: Tensor, d: Tensor | float) -> Tensor:
        gap = d - self.distance(v)
        return v + gap[:, None, None, None] * self.along


def _turned(wall: Plane, seed: int) -> _Sideways:
    axis = noise((1, *wall.normal.shape), seed)[0].to(wall.normal)
    along = axis / torch.linalg.vector_norm(axis)
    return _Sideways(wall.normal, wall.offset, wall.depth, wall.accuracy, along)
