"""The questions of ShapesEditBench: a picture, what is wanted, and the true answer.

An item is a scene and the same scene with one thing changed, every nuisance held fixed, so the
edited picture and the mask of what may change are known to the pixel. The prompts leave out what
the edit does not touch (size, position, texture): what a caption leaves out, an edit can preserve.
Scenes come from the tuples that training never saw; "dev", to tune on, and "test" share none of
them. "hard" are the scenes of "test" as somebody else would draw them, with light, marks and
outlines that no caption names and no denoiser saw (data/unseen.py), the same in source and truth;
"hard-dev" those of "dev". So a method's fall from a split to its hard one is taken item by item.

    recolour reshape resize   one object of one or two
    move                      the one object, to a named place
    add delete                the second of two objects
    background texture        of the ground
"""

import inspect
import json
import zlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes, unseen
from minidiff.data.shapes import SIZES, Scene
from minidiff.data.unseen import Unseen

KINDS = ("recolour", "reshape", "resize", "move", "add", "delete", "background", "texture")
# split -> the one whose scenes it has
SPLITS = {"dev": "dev", "test": "test", "hard": "test", "hard-dev": "dev"}
ITEMS_VERSION = 2  # of the questions: with another one, items of equal names may differ
# what an edit changes, where it is not called so
FIELDS = {"recolour": "color", "reshape": "shape", "resize": "size", "move": "position"}
# what a caption must say for that edit to show
# where an order sends things; the added object is the second of the two
_TO = {
    "center": "to the center",
    "left": "to the left",
    "right": "to the right",
    "top": "to the top",
    "bottom": "to the bottom",
}
_BESIDE = {"left": "right of", "right": "left of", "above": "below", "below": "above"}
SAID = {"resize": "size", "move": "position", "texture": "texture"}


@dataclass(frozen=True)
class Item:
    """`source` and `target` are captions of `scene` and `truth`; `words`: the word that changes in
    each, or None. `nuisance`: what is laid over both, or None. Pictures are graded at 64 pixels;
    those of an item of another `size` are drawn at that size and averaged.
    """

    kind: str
    scene: Scene
    truth: Scene
    source: str
    target: str
    seed: int
    nuisance: Unseen | None = None
    size: int = shapes.SIZE

    def drawn(self, scene: Scene) -> Tensor:
        """A scene as a picture of this item, (1 3 size size) in [-1, 1]."""
        if self.nuisance is None:
            return shapes.render(scene, self.size)
        return unseen.render(scene, self.nuisance, self.size)

    def graded(self, scene: Scene) -> Tensor:
        """The same at 64 pixels, (1 3 64 64)."""
        return F.avg_pool2d(self.drawn(scene), self.size // shapes.SIZE)

    @cached_property
    def image(self) -> Tensor:
        """The picture to edit, (1 3 64 64) in [-1, 1]."""
        return self.graded(self.scene)

    @cached_property
    def answer(self) -> Tensor:
        """The true edited picture (1 3 64 64)."""
        return self.graded(self.truth)

    @cached_property
    def truths(self) -> Tensor:
        """All true answers as pictures (n 3 64 64), that of `truth` first."""
        return torch.cat([self.graded(scene) for scene in admissible(self)])

    @cached_property
    def mask(self) -> Tensor:
        """(1 1 64 64): 1 where the two differ by more than 2/255, grown by a pixel."""
        return shapes.mask_between(self.image, self.answer)

    @cached_property
    def instruction(self) -> str:
        """The edit as an order: "make the circle green"."""
        return instruction(self.kind, self.scene, self.truth)

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
    if split not in SPLITS:
        raise ValueError(
            f"split {split!r}: expected 'dev' or 'hard-dev' (to tune on), 'test' or 'hard' (to "
            "report)"
        )
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is unknown; choose from {', '.join(KINDS)}")
    return [_item(kind, split, i, seed) for kind in kinds for i in range(n)]


def admissible(item: Item) -> list[Scene]:
    """All true answers, the item's own first: an added object may have any size."""
    if item.kind != "add":
        return [item.truth]
    kept, new = item.truth.objects
    others = [replace(new, size=size) for size in SIZES if size != new.size]
    return [item.truth, *[replace(item.truth, objects=(kept, other)) for other in others]]


def instruction(kind: str, before: Scene, after: Scene) -> str:
    """What a person would say to get from one scene to the other."""
    if kind == "background":
        return f"make the background {after.background}"
    if kind == "texture":
        plain = after.texture == "plain"
        return (
            "remove the pattern of the background"
            if plain
            else (f"make the background {after.texture}")
        )
    if kind == "move":
        return f"move the {before.objects[0].shape} {_TO[after.position]}"
    if kind == "add":
        kept, new = after.objects
        return f"add a {new.color} {new.shape} {_BESIDE[after.position]} the {kept.shape}"
    if kind == "delete":
        lost = before.objects[1]
        return f"remove the {lost.color} {lost.shape}"
    old, new = next((a, b) for a, b in zip(before.objects, after.objects) if a != b)
    if kind == "recolour":
        return f"make the {old.shape} {new.color}"
    if kind == "resize":
        return f"make the {old.shape} {new.size}"
    return f"turn the {old.shape} into a {new.shape}"


def fingerprint(its: list[Item]) -> str:
    """SHA-256 of what items ask and show: of the descriptions of their scenes, for pixels differ in
    the last bit from one processor to the next. Numbers are rounded to a thousandth.
    """
    text = json.dumps([_rounded(asdict(item)) for item in its], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def _rounded(value):
    """A tree of dicts, lists and tuples with its floats rounded."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value


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
    numbers = [seed, KINDS.index(kind), SPLITS[split] == "test", i]
    item = _plain_item(kind, SPLITS[split], i, np.random.default_rng(numbers))
    if SPLITS[split] == split:
        return item
    rng = np.random.default_rng([*numbers, 1])
    return replace(item, nuisance=unseen.unseen(rng, [item.scene, *admissible(item)]))


def _plain_item(kind: str, split: str, i: int, rng: np.random.Generator) -> Item:
    two = kind in ("add", "delete") or (kind != "move" and i % 2 == 1)
    s = _scene(rng, 1 + two, split)
    index = int(rng.integers(2)) if two else 0
    if kind == "add":  # "delete" backwards: the other object stays in place
        truth = s
        s = shapes.edit(truth, "delete", index=1)
    elif kind == "delete":
        truth = shapes.edit(s, "delete", index=1)
    else:
        truth = _changed(s, kind, index, rng)
    return _asked(kind, s, truth, seed=int(rng.integers(2**31)))


def _scene(rng: np.random.Generator, objects: int, split: str) -> Scene:
    """A scene of "dev" or of "test"."""
    while True:
        s = shapes.scene(rng, objects=objects, split="test")
        if in_split(s, split):
            return s


def _changed(s: Scene, kind: str, index: int, rng: np.random.Generator) -> Scene:
    """One word of the scene, or of its object `index`, drawn anew; no edit that adds or deletes."""
    field = FIELDS.get(kind, kind)
    value = str(rng.choice(sorted(_free(s, field, index))))
    return shapes.edit(s, field, value, index=index)


def _asked(kind: str, before: Scene, after: Scene, seed: int) -> Item:
    """An item whose captions say what the edit is about."""
    said = {group: SAID.get(kind) == group for group in ("size", "position", "texture")}
    source = shapes.caption(before, **said)
    target = shapes.caption(after, **said)
    return Item(kind, scene=before, truth=after, source=source, target=target, seed=seed)


def chains(split: str = "dev", n: int = 8, seed: int = 0, turns: int = 5) -> list[list[Item]]:
    """n chains of successive edits, each a list of items: the truth of one is the scene of the
    next. An editor is given the first source alone and goes on with its own pictures. A third of
    the chains stay with one object, in a third one of two is deleted on the way, in a third one is
    added. Kinds do not repeat in a chain. ValueError for an unknown split or more than five turns.
    """
    if split not in SPLITS or not 1 <= turns <= 5:
        raise ValueError(
            f"split {split!r}, {turns} turns: expected one of {', '.join(SPLITS)}, and 1 to 5"
        )
    return [_chain(split, i, seed, turns) for i in range(n)]


def _chain(split: str, i: int, seed: int, turns: int) -> list[Item]:
    numbers = [seed, len(KINDS), SPLITS[split] == "test", i]
    rng = np.random.default_rng(numbers)
    passing = (None, "delete", "add")[i % 3]  # what happens to the second object
    whole = _scene(rng, 2 if passing else 1, SPLITS[split])
    kinds = ["recolour", "reshape", "resize", "background", "texture"]
    if passing is None:
        kinds.append("move")
    kinds = [str(kind) for kind in rng.permutation(kinds)[:turns]]
    if passing:
        kinds[int(rng.integers(turns))] = passing
    both = passing == "delete"
    chain = []
    for kind in kinds:
        before = whole if both or not passing else shapes.edit(whole, "delete", index=1)
        if kind in ("add", "delete"):
            both = kind == "add"
        else:
            whole = _changed(whole, kind, int(rng.integers(2)) if both else 0, rng)
        after = whole if both or not passing else shapes.edit(whole, "delete", index=1)
        chain.append(_asked(kind, before, after, seed=int(rng.integers(2**31))))
    if SPLITS[split] == split:
        return chain
    scenes = [chain[0].scene]
    for item in chain:
        scenes += admissible(item)
    nuisance = unseen.unseen(np.random.default_rng([*numbers, 1]), scenes)
    return [replace(item, nuisance=nuisance) for item in chain]


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
