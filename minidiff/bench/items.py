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
# what an edit changes, where it is not called so
FIELDS = {"recolour": "color", "reshape": "shape", "resize": "size", "move": "position"}
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
        right = self.scene.objects[0].color if self.kind == "background" else self.scene.background
        used = self.source.split() + self.target.split()
        wrong = next(color for color in shapes.COLORS if color not in used)
        return " ".join(wrong if word == right else word for word in self.source.split())

    @cached_property
    def nouns(self) -> tuple[str, str] | None:
        """What the edited object is called in each caption; None where the edit is of no object's
        looks, or where its name is in the caption twice.
        """
        if self.kind not in ("recolour", "reshape", "resize"):
            return None
        for old, new in zip(self.scene.objects, self.truth.objects):
            once = self.source.split().count(old.shape) == self.target.split().count(new.shape) == 1
            if old != new and once:
                return old.shape, new.shape
        return None

    @cached_property
    def words(self) -> tuple[str, str] | None:
        source = self.source.split()
        target = self.target.split()
        changed = [(old, new) for old, new in zip(source, target) if old != new]
        return changed[0] if len(source) == len(target) and len(changed) == 1 else None


def in_split(s: Scene, split: str) -> bool:
    """Is the scene one to tune on ("dev") or one to report on ("test")? By its first tuple, so no
    tuple is in both.
    """
    first = s.objects[0]
    number = zlib.crc32(f"split {first.shape} {first.color} {s.background}".encode())
    return (number % 3 == 0) == (split == "dev")


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
    batch = [its] if isinstance(its, Item) else its
    source = [item.misread if misread else item.source for item in batch]
    target = [item.target for item in batch]
    if len(batch) == 1:
        source = source[0]
        target = target[0]
    known = {
        "image": torch.cat([item.image for item in batch]),
        "source": source,
        "target": target,
        "prompt": target,
        "mask": torch.cat([item.mask for item in batch]),
        "seed": batch[0].seed,
    } | more
    asked = inspect.signature(fn).parameters
    must_mask = "mask" in asked and asked["mask"].default is inspect.Parameter.empty
    if not (masked or must_mask):
        del known["mask"]
    return {name: value for name, value in known.items() if name in asked}


def _item(kind: str, split: str, i: int, seed: int) -> Item:
    rng = np.random.default_rng([seed, KINDS.index(kind), split == "test", i])
    two = kind in ("add", "delete") or (kind != "move" and i % 2 == 1)
    s = shapes.scene(rng, objects=1 + two, split="test")
    while not in_split(s, split):
        s = shapes.scene(rng, objects=1 + two, split="test")
    index = int(rng.integers(2)) if two else 0
    if kind == "add":  # "delete" backwards: the other object stays in place
        truth = s
        s = shapes.edit(truth, "delete", index=1)
    elif kind == "delete":
        truth = shapes.edit(s, "delete", index=1)
    else:
        field = FIELDS.get(kind, kind)
        value = str(rng.choice(sorted(_free(s, field, index))))
        truth = shapes.edit(s, field, value, index=index)
    said = {group: SAID.get(kind) == group for group in ("size", "position", "texture")}
    return Item(
        kind,
        scene=s,
        truth=truth,
        source=shapes.caption(s, **said),
        target=shapes.caption(truth, **said),
        seed=int(rng.integers(2**31)),
    )


def _free(s: Scene, field: str, index: int) -> set[str]:
    """Values to which an edit may change a field of the scene, or of its object `index`."""
    colors = {o.color for o in s.objects}
    if field == "color":
        return shapes.COLORS.keys() - colors - {s.background}
    if field == "shape":
        return set(shapes.SHAPES) - {o.shape for o in s.objects}
    if field == "size":
        return shapes.SIZES.keys() - {s.objects[index].size}
    if field == "position":
        return shapes.POSITIONS.keys() - {s.position}
    if field == "texture":
        return set(shapes.TEXTURES) - {s.texture}
    return shapes.BACKGROUNDS.keys() - {s.background} - colors
