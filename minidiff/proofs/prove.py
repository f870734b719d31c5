"""Toy proofs: what each technique claims, measured on scenes whose right answer is known.

A proof is a function (pipe, n, seed) -> rows in a file of this folder; a row holds the claim, the
baseline, the figure and the threshold. The thresholds were set before the figures were known, and a
proof that fails is printed as failing.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import Item
from minidiff.bench.scores import grade
from minidiff.data import shapes
from minidiff.evaluate.metrics import rank_correlation as rank_correlation  # the proofs' own name
from minidiff.evaluate.synthesis import coverage_map, fit_ground
from minidiff.pipe.pipe import Pipe
from minidiff.techniques import TECHNIQUES


@dataclass(frozen=True)
class Row:
    """One claim: `figure` must be at least `threshold`; `baseline` is what one gets without the
    technique.
    """

    claim: str
    figure: float
    threshold: float
    baseline: float | None = None

    @property
    def holds(self) -> bool:
        return bool(self.figure >= self.threshold)


# ---- what the proofs share -----------------------------------------------------------------------


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


def mean_scores(edits: Tensor, its: list[Item], ceiling: Tensor) -> dict[str, float]:
    """The bench's scores of edits (b 3 64 64), averaged: T, K, B, C, D and the EditScore ("score").
    `ceiling`: the true answers through the autoencoder.
    """
    rows = grade(edits, its, ceiling)
    return {name: float(np.mean([r[name] for r in rows])) for name in (*"TKBCD", "score")}


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


# ---- running them --------------------------------------------------------------------------------


def proofs() -> dict[str, str]:
    """{name: module} of every proof: those of the techniques in their order, then the others."""
    stems = {f.stem for f in Path(__file__).parent.glob("*.py")} - {"__init__", "prove"}
    order = [technique.stem for technique in TECHNIQUES.values() if technique.stem in stems]
    order += sorted(stems - {*order})
    return {stem.replace("_", "-"): f"minidiff.proofs.{stem}" for stem in order}


def prove(pipe: Pipe, *, names: tuple[str, ...] = (), n: int = 24, seed: int = 100) -> dict:
    """Run the proofs named (default: all) on n scenes each; {"rows": [...], "passed": bool}, and a
    printed table.
    """
    if n < 1:
        raise ValueError(f"n={n}: at least one scene is needed")
    known = proofs()
    for name in names:
        if name not in known:
            raise ValueError(f"no proof called {name!r}; there are: {', '.join(known)}")
    rows = []
    for name in names or known:
        proof = import_module(known[name]).prove
        print(f"{name}: {' '.join(proof.__doc__.split())}")
        for r in proof(pipe, n, seed):
            verdict = "holds" if r.holds else "FAILS"
            base = "" if r.baseline is None else f"   (baseline {r.baseline:.2f})"
            print(f"  {verdict}  {r.claim:75} {r.figure:7.2f}  at least {r.threshold:.2f}{base}")
            rows.append(
                {
                    "proof": name,
                    "claim": r.claim,
                    "figure": float(r.figure),
                    "threshold": r.threshold,
                    "baseline": None if r.baseline is None else float(r.baseline),
                    "holds": r.holds,
                }
            )
    return {"rows": rows, "passed": all(r["holds"] for r in rows)}
