"""The questions of ShapesEditBench: a picture, what is wanted, and the true answer.

An item is a scene and the same scene with one thing changed, every nuisance held fixed, so the
edited picture and the mask of what may change are known to the pixel. The prompts leave out what
the edit does not touch (size, position, texture): what a caption leaves out, an edit can preserve.
Scenes come from the tuples that training never saw; "dev", to tune on, and "test" share none of
them.

    recolour reshape resize   one object of one or two
    move                      the one object, to a named place
    add delete                the second of two objects
    background texture        of the ground
"""

import inspect
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.data.shapes import Scene

KINDS = ("recolour", "reshape", "resize", "move", "add", "delete", "background", "texture")
# what a caption must say for that edit to show
SAID = {"resize": "size", "move": "position", "texture": "texture"}


@dataclass(frozen=True)
class Item:
    """`source` and `target` are captions of `scene` and `truth`; `words`: the word that changes in
    each, or None.
    """

    kind: str
    scene: Scene
    truth: Scene
    source: str
    target: str
    seed: int

    @cached_property
    def image(self) -> Tensor:
        """The picture to edit, (1 3 64 64) in [-1, 1]."""
        return shapes.render(self.scene)

    @cached_property
    def answer(self) -> Tensor:
        """The true edited picture (1 3 64 64)."""
        return shapes.render(self.truth)

    @cached_property
    def mask(self) -> Tensor:
        """(1 1 64 64): 1 where the two differ, grown by a pixel."""
        return shapes.edit_mask(self.scene, self.truth)

    @cached_property
    def misread(self) -> str:
        """The source caption with one wrong word: another ground, or another colour of the first
        object if the ground is what the edit is about.
        """
        word = self.scene.objects[0].color if self.kind == "background" else self.scene.background
        said = self.source.split() + self.target.split()
        wrong = next(c for c in shapes.COLORS if c not in said)
        return " ".join(wrong if w == word else w for w in self.source.split())

    @cached_property
    def words(self) -> tuple[str, str] | None:
        a, b = self.source.split(), self.target.split()
        changed = [(x, y) for x, y in zip(a, b) if x != y]
        return changed[0] if len(a) == len(b) and len(changed) == 1 else None


def in_split(s: Scene, split: str) -> bool:
    """Is the scene one to tune on ("dev") or one to report on ("test")? By its first tuple, so no
    tuple is in both.
    """
    o = s.objects[0]
    return (zlib.crc32(f"split {o.shape} {o.color} {s.background}".encode()) % 3 == 0) == (
        split == "dev"
    )


def items(
    split: str = "dev", n: int = 8, kinds: tuple[str, ...] = KINDS, seed: int = 0
) -> list[Item]:
    """n items of every kind; item i of a kind is the same whatever n is. ValueError for an unknown
    split or kind.
    """
    if split not in ("dev", "test"):
        raise ValueError(f"split {split!r}: expected 'dev' (to tune on) or 'test' (to report)")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is unknown; choose from {', '.join(KINDS)}")
    return [_item(kind, split, i, seed) for kind in kinds for i in range(n)]


def given(
    fn, its: Item | list[Item], *, masked: bool = False, misread: bool = False, **more
) -> dict:
    """What a technique may ask for by name, of what one or several items know: prompts become
    lists, pictures a batch. A mask goes to those that need one, or with `masked` to all that take
    one; `misread`: the source caption has a wrong word. `more`: what else is known.
    """
    its = [its] if isinstance(its, Item) else its
    words = lambda what: getattr(its[0], what) if len(its) == 1 else [getattr(i, what) for i in its]  # noqa: E731
    cat = lambda what: torch.cat([getattr(i, what) for i in its])  # noqa: E731
    known = {
        "image": cat("image"),
        "source": words("misread" if misread else "source"),
        "target": words("target"),
        "prompt": words("target"),
        "mask": cat("mask"),
        "seed": its[0].seed,
    } | more
    asked = inspect.signature(fn).parameters
    return {
        k: v
        for k, v in known.items()
        if k in asked and (k != "mask" or masked or asked[k].default is inspect.Parameter.empty)
    }


def _item(kind: str, split: str, i: int, seed: int) -> Item:
    rng = np.random.default_rng([seed, KINDS.index(kind), split == "test", i])
    two = kind in ("add", "delete") or (kind != "move" and i % 2 == 1)
    while not in_split(s := shapes.scene(rng, objects=1 + two, split="test"), split):
        pass
    pick = lambda names: str(rng.choice(list(names)))  # noqa: E731
    index = int(rng.integers(2)) if two else 0
    if kind == "add":  # "delete" backwards: the other object stays in place
        s, truth = shapes.edit(s, "delete", index=1), s
    elif kind == "delete":
        truth = shapes.edit(s, "delete", index=1)
    else:
        what = {"recolour": "color", "reshape": "shape", "resize": "size", "move": "position"}.get(
            kind, kind
        )
        free = {
            "color": shapes.COLORS.keys() - {o.color for o in s.objects} - {s.background},
            "shape": set(shapes.SHAPES) - {o.shape for o in s.objects},
            "position": shapes.POSITIONS.keys() - {s.position},
            "size": shapes.SIZES.keys() - {s.objects[index].size},
            "texture": set(shapes.TEXTURES) - {s.texture},
            "background": shapes.BACKGROUNDS.keys() - {s.background} - {o.color for o in s.objects},
        }[what]
        truth = shapes.edit(s, what, pick(sorted(free)), index=index)
    said = {group: SAID.get(kind) == group for group in ("size", "position", "texture")}
    return Item(
        kind,
        s,
        truth,
        shapes.caption(s, **said),
        shapes.caption(truth, **said),
        int(rng.integers(2**31)),
    )
