"""O2, the learned oracle: reads a picture's attributes and says which of the stated ones are right.

It was trained on its own renders, apart from every generator (`shipped/oracle.py`), and no
technique may import it: what grades the methods must not guide them. Its accuracy on held-out
renders is printed next to every score it gives.

    o = oracle()
    o.read(images)[0]  # {"objects": [{"shape": "circle", ...}], "position": "left", ...}
    o.judge(images, scenes, SHORT)["joint"]  # (b,) bool: all that a short caption states

Weakness: it must choose, so it calls a wavy square a square. Read it together with
`synthesis.silhouette_iou`.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from minidiff.data.shapes import Scene
from minidiff.models.attribute_net import COUNTS, HEADS, PLACES, AttributeNet, canonical

# what `shapes.caption` states beside count, shape and colour
FULL = ("background", "size", "position", "texture")
SHORT = ("background",)  # what `shapes.short_caption` states
NAME = ()  # "red circle"
ATTRIBUTES = ("count", "shape", "color", "size", "position", "background", "texture")
Groups = tuple[str, ...]


def stated(scenes: Sequence[Scene], groups: Groups | Sequence[Groups] = FULL) -> dict[str, Tensor]:
    """{attribute: (b,) bool}: which attributes the prompts name. `groups`: one of FULL, SHORT, NAME
    or any subset of FULL, for all scenes or one each. Count, shape, colour and the relation of two
    objects are always stated.
    """
    rows = [groups] * len(scenes) if all(isinstance(g, str) for g in groups) else groups
    if len(rows) != len(scenes) or any(g not in FULL for row in rows for g in row):
        raise ValueError(
            f"groups {groups!r} for {len(scenes)} scenes: expected words of {FULL}, for all "
            "or one tuple each"
        )
    always = {"position": [len(s.objects) == 2 for s in scenes]}
    objects = [len(s.objects) > 0 for s in scenes]
    out = {
        a: [
            a in row or a not in FULL or k
            for row, k in zip(rows, always.get(a, [False] * len(rows)))
        ]
        for a in ATTRIBUTES
    }
    for a in ("shape", "color", "size", "position"):
        out[a] = [x and y for x, y in zip(out[a], objects)]
    return {a: torch.tensor(v) for a, v in out.items()}


class Oracle:
    """An `AttributeNet` with words around it; pictures are (b, 3, 64, 64) in [-1, 1], on any
    device.
    """

    def __init__(self, net: AttributeNet):
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 64) -> Tensor:
        """(b, width) on the CPU: the feature space of `metrics.frechet`."""
        return torch.cat(
            [self.net.features(x.to(self._device())).cpu() for x in images.float().split(batch)]
        )

    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.no_grad()
    def _choices(self, images: Tensor, batch: int = 64) -> dict[str, list[int]]:
        """Index of the choice of every head; the place is one that fits the number of objects."""
        parts = [self.net(x.to(self._device())) for x in images.float().split(batch)]
        out = {h: torch.cat([p[h] for p in parts]).cpu() for h in HEADS}
        two = out["count"].argmax(1) == COUNTS.index(2)
        allowed = torch.tensor([kind == "two" for kind, _ in PLACES]) == two[:, None]  # b places
        out["place"] = out["place"].masked_fill(~allowed, float("-inf"))
        return {h: v.argmax(1).tolist() for h, v in out.items()}

    def read(self, images: Tensor) -> list[dict]:
        """{"objects": [{"shape", "color", "size"}], "position", "background", "texture"} of each
        picture. Two objects come in canonical order, the left or upper one first; `position` is
        None when there is no object.
        """
        chosen = self._choices(images)
        rows = []
        for i in range(len(images)):
            word = {h: HEADS[h][chosen[h][i]] for h in HEADS}
            objects = [
                {a: word[f"{slot}_{a}"] for a in ("shape", "color", "size")}
                for slot in "ab"[: word["count"]]
            ]
            rows.append(
                {
                    "objects": objects,
                    "position": word["place"][1] if objects else None,
                    "background": word["background"],
                    "texture": word["texture"],
                }
            )
        return rows

    def judge(
        self, images: Tensor, scenes: Sequence[Scene], groups: Groups | Sequence[Groups] = FULL
    ) -> dict[str, Tensor]:
        """Is each attribute of the scenes in the pictures? {attribute: (b,) bool} for ATTRIBUTES,
        and "joint": all that were stated (`groups`, see `stated`). With two objects an attribute
        counts if both are right.
        """
        if len(images) != len(scenes):
            raise ValueError(
                f"{len(images)} pictures for {len(scenes)} scenes: expected one scene for "
                "each picture"
            )
        verdicts = [compare(r, s) for r, s in zip(self.read(images), scenes)]
        right = {a: torch.tensor([v[a] for v in verdicts], dtype=torch.bool) for a in ATTRIBUTES}
        told = stated(scenes, groups)
        return right | {"joint": torch.stack([right[a] | ~told[a] for a in ATTRIBUTES]).all(0)}


def compare(found: dict, s: Scene) -> dict[str, bool]:
    """What `read` found (canonical order) against the scene. If the two objects fit better the
    other way round, they are compared so, and only the position is wrong. What a missing object
    should have been is wrong.
    """
    s, seen = canonical(s), found["objects"]

    def fit(order):
        return sum(
            o[a] == getattr(t, a) for o, t in zip(order, s.objects) for a in ("shape", "color")
        )

    swapped = len(seen) == 2 == len(s.objects) and fit(seen[::-1]) > fit(seen)
    order, enough = seen[::-1] if swapped else seen, len(seen) >= len(s.objects)
    out = {
        a: enough and all(o[a] == getattr(t, a) for o, t in zip(order, s.objects))
        for a in ("shape", "color", "size")
    }
    same = len(seen) == len(s.objects)
    return out | {
        "count": same,
        "position": same and not swapped and (not seen or found["position"] == s.position),
        "background": found["background"] == s.background,
        "texture": found["texture"] == s.texture,
    }


@cache
def oracle(device: str = "cpu") -> Oracle:
    """The shipped oracle. It reads 99.7% of held-out renders right in everything, with one object
    and with two (n 3,000 each), and 99.4% and 99.3% of their round trips through the tiny
    autoencoder (n 1,000 each).
    """
    from minidiff.weights.store import fill, load_weights

    return Oracle(fill(AttributeNet(), load_weights("oracle"), "oracle").to(device))
