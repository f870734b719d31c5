"""Ten forced choices that say what a scene shows, and their right answers.

Number of objects, place, background, texture, and shape, colour and size of what lies in slots A
and B. "A left of B" and "B right of A" are one and the same picture, so nothing can tell them
apart. Scenes of two objects are therefore read in canonical order: slot A holds the left or the
upper object, and two relations remain of four.
"""

import torch
from torch import Tensor

from minidiff.data.shapes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, TEXTURES, Scene

COUNTS = (0, 1, 2)
PLACES = tuple(("one", p) for p in POSITIONS) + (("two", "left"), ("two", "above"))
_OBJECT = {"shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES)}
HEADS = {
    "count": COUNTS,
    "place": PLACES,
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
    **{f"{slot}_{what}": words for slot in "ab" for what, words in _OBJECT.items()},
}
NOTHING = -100  # label of a head that has no right answer (cross_entropy's own)


def canonical(s: Scene) -> Scene:
    """The same picture with the left or upper object first;
    scenes with fewer than two objects are returned as is.

    (Where two objects overlap the order also says which lies on top: use this for labels, not for
    rendering.)
    """
    if len(s.objects) < 2 or s.position in ("left", "above"):
        return s
    return Scene(
        s.objects[::-1],
        {"right": "left", "below": "above"}[s.position],
        s.background,
        s.texture,
        s.phase,
        s.tint,
    )


def labels(scenes: list[Scene]) -> Tensor:
    """Right answers, (b, 10) in the order of `HEADS`; NOTHING
    for slots without an object and for places of nothing.
    """
    rows = []
    for s in map(canonical, scenes):
        n = len(s.objects)
        row = [
            COUNTS.index(n),
            PLACES.index((("one", "two")[n - 1], s.position)) if n else NOTHING,
            HEADS["background"].index(s.background),
            TEXTURES.index(s.texture),
        ]
        for k in range(2):
            row += [
                words.index(getattr(s.objects[k], what)) if k < n else NOTHING
                for what, words in _OBJECT.items()
            ]
        rows.append(row)
    return torch.tensor(rows)
