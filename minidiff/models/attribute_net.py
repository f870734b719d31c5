"""A small convolutional network that says what is in
a picture of the toy world: the learned oracle's body.

Ten forced choices share one trunk: number of objects, place, background, texture, and shape, colour
and size of the objects in slots A and B. The trunk keeps where things are (its last map is
flattened, not pooled), because the slots are defined by place.

"A left of B" and "B right of A" are one and the same picture, so no network can tell them apart.
Two-object scenes are therefore read in canonical order: slot A holds the left or the upper object,
and two relations remain of four.

Weakness: a forced choice sees neither wavy edges nor a filled ring (`evaluate/synthesis.py`
measures those). Try changing: pool the last map instead of flattening it, and watch the place and
slot B fail.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class Stage(nn.Module):
    """Halve the map, then one residual block."""

    def __init__(self, c_in: int, c_out: int, groups: int):
        super().__init__()
        self.down = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(groups, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.conv = nn.Conv2d(c_out, c_out, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.down(h)))
        return h + F.relu(self.norm2(self.conv(h)))


class AttributeNet(nn.Module):
    """64x64 pictures -> logits of `HEADS`. `width` numbers are the penultimate layer, the features
    of the Frechet distance; `channels` one per stage.
    """

    def __init__(
        self, channels: tuple[int, ...] = (24, 48, 96, 128), width: int = 96, groups: int = 8
    ):
        super().__init__()
        c = channels
        self.conv_in = nn.Conv2d(3, c[0], 5, stride=2, padding=2)  # 64 -> 32
        # -> 16 -> 8 -> 4
        self.stages = nn.ModuleList([Stage(a, b, groups) for a, b in pairwise(c)])
        self.fc = nn.Linear(c[-1] * (64 // 2 ** len(c)) ** 2, width)
        self.final_layer = nn.Linear(width, sum(map(len, HEADS.values())))

    def features(self, x: Tensor) -> Tensor:
        """Pictures (b 3 64 64) in [-1, 1] -> (b, width), not negative."""
        if x.shape[1:] != (3, 64, 64):
            raise ValueError(
                f"pictures of shape {tuple(x.shape)}: expected (b, 3, 64, 64) in [-1, 1]; resize "
                "them first"
            )
        h = F.relu(self.conv_in(x))
        for stage in self.stages:
            h = stage(h)
        return F.relu(self.fc(h.flatten(1)))  # b c h w -> b d

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """{head: logits (b, choices)}."""
        logits = self.final_layer(self.features(x)).split([len(v) for v in HEADS.values()], dim=1)
        return dict(zip(HEADS, logits))
