"""What the proofs share: a claim with its figure, and the scenes and counts that figures are made
of.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import Item
from minidiff.bench.scores import grade
from minidiff.data import shapes
from minidiff.evaluate.metrics import bootstrap_ci
from minidiff.evaluate.synthesis import coverage_map, fit_ground

# where a threshold comes from, in a word
SOURCES = {
    "paper": "printed in the paper, or what its argument says must come out",
    "identity": "a closed form, or a case in which two things are the same",
    "rival": "what the method is compared with, on the same scenes: outside chance",
    "aim": "set before any figure was known, by what the method is good for",
}


@dataclass(frozen=True)
class Row:
    """One claim: `figure` must be at least `threshold`.

    baseline   what one gets without the technique
    source     where the threshold comes from, one of SOURCES
    n          pictures, pairs or prompts that the figure is made of; 0: none, it is computed
    seeds      noise seeds of each
    low, high  95% interval of a share or a mean over the n (bootstrap), where there is one
    """

    claim: str
    figure: float
    threshold: float
    baseline: float | None = None
    source: str = "aim"
    n: int = 0
    seeds: int = 1
    low: float | None = None
    high: float | None = None

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source={self.source!r}: expected one of {', '.join(SOURCES)}")

    @property
    def holds(self) -> bool:
        """Is the figure at least the threshold? A rival with an interval must be beaten by all of
        it: no winner is named inside chance.
        """
        if self.source == "rival" and self.low is not None:
            return bool(self.low > self.threshold)
        return bool(self.figure >= self.threshold)


def averaged(
    claim: str,
    values,
    threshold: float,
    baseline: float | None = None,
    *,
    source: str = "aim",
    seeds: int = 1,
) -> Row:
    """The claim on a mean of `values`, bools or numbers, one a picture; nans are left out.

    Of several `seeds` a picture, hand in its mean over them: pictures are what is drawn.
    """
    mean, low, high = bootstrap_ci(_numbers(values))
    n = int(np.isfinite(_numbers(values)).sum())
    base = None if baseline is None else float(baseline)
    return Row(claim, mean, threshold, base, source, n, seeds, low, high)


def gained(
    claim: str, ours, theirs, threshold: float = 0.0, *, source: str = "rival", seeds: int = 1
) -> Row:
    """The claim on the paired gain of `ours` over `theirs`, one value a picture in both."""
    theirs = _numbers(theirs)
    gain = _numbers(ours) - theirs
    return averaged(claim, gain, threshold, np.nanmean(theirs), source=source, seeds=seeds)


def counted(rows: list[Row], n: int, seeds: int = 1) -> list[Row]:
    """The rows, those that do not say n and seeds themselves with these."""
    return [r if r.n else replace(r, n=n, seeds=seeds) for r in rows]


def _numbers(values) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


# ---- scenes and scores ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What some items of the bench say, as one batch: pictures, true answers and masks (b c 64 64),
    captions before and after.
    """

    image: Tensor
    answer: Tensor
    mask: Tensor
    source: list[str]
    target: list[str]


def together(its: list[Item]) -> Batch:
    return Batch(
        image=torch.cat([item.image for item in its]),
        answer=torch.cat([item.answer for item in its]),
        mask=torch.cat([item.mask for item in its]),
        source=[item.source for item in its],
        target=[item.target for item in its],
    )


def item_scores(edits: Tensor, its: list[Item], ceiling: Tensor) -> dict[str, np.ndarray]:
    """The bench's scores of edits (b 3 64 64), each (b,): T, K, B, C, D and the EditScore
    ("score"). `ceiling`: the true answers through the autoencoder.
    """
    rows = grade(edits, its, ceiling)
    return {name: _numbers([float(r[name]) for r in rows]) for name in (*"TKBCD", "score")}


def share(right: Tensor) -> float:
    """Share of verdicts (b,) that say yes."""
    return right.float().mean().item()


def draw(n: int, seed: int) -> list[shapes.Scene]:
    """n one-object scenes whose tuples training never saw."""
    rng = np.random.default_rng(seed)
    return [shapes.scene(rng, objects=1, split="test") for _ in range(n)]


def recoloured(s: shapes.Scene, rng: np.random.Generator) -> shapes.Scene:
    """The scene with another object colour, not that of its background."""
    free = [c for c in shapes.COLORS if c not in (s.objects[0].color, s.background)]
    return shapes.edit(s, "color", free[rng.integers(len(free))])


def object_region(image: Tensor, color: str, grow: int = 2) -> Tensor:
    """(1 64 64) of 0 and 1: pixels of a picture (3 64 64) that show the colour rather than the
    ground, grown.
    """
    x = (image.clamp(-1, 1) + 1) / 2
    cover = coverage_map(x, fit_ground(x).image, torch.tensor(shapes.COLORS[color]))
    return F.max_pool2d((cover > 0.3).float()[None], 2 * grow + 1, 1, grow)
