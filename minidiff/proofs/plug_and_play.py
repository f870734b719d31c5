"""Does injection hold the layout, at a better price than less noise would?"""

import numpy as np

from minidiff.bench.items import Item, items
from minidiff.editing.plug_and_play import plug_and_play
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import rank_correlation
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import (
    Row,
    averaged,
    counted,
    gained,
    item_scores,
    together,
)

N = 8  # of each of three kinds
STEPS = 20
SHARES = (0.0, 0.5, 1.0)
PAIRS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5), (0.8, 0.5), (1.0, 1.0))
OURS = (0.8, 0.5)  # the paper's
STRENGTHS = (0.3, 0.5, 0.7, 0.9)


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Background, texture and recolour, n of each, by pairs of shares, against SDEdit by strength;
    and move, which must fail.
    """
    knobs = dict(steps=STEPS) | knobs

    def injected(its: list[Item], features: float, attention: float) -> dict[str, np.ndarray]:
        asked = together(its)
        options = dict(features=features, attention=attention) | knobs
        edits = plug_and_play(pipe, asked.image, asked.source, asked.target, **options)
        return item_scores(edits, its, pipe.decode(pipe.encode(asked.answer)))

    def noised(its: list[Item], strength: float) -> dict[str, np.ndarray]:
        asked = together(its)
        edits = sdedit(pipe, asked.image, asked.target, strength=strength, steps=STEPS, seed=seed)
        return item_scores(edits, its, pipe.decode(pipe.encode(asked.answer)))

    its = items("test", n, ("background", "texture", "recolour"), seed=seed)
    grid = {pair: injected(its, *pair) for pair in PAIRS}
    rivals = {strength: noised(its, strength) for strength in STRENGTHS}
    for label, m in (grid | rivals).items():
        print(
            f"    {label!s:12} done {m['T'].mean():.2f}  kept {m['K'].mean():.2f}  structure "
            f"distance {1e3 * m['D'].mean():.2f}  EditScore {m['score'].mean():.2f}"
        )
    distance = {pair: m["D"].mean() for pair, m in grid.items()}
    line = [distance[k, k] for k in SHARES]
    ours = grid[OURS]
    # SDEdit whose pictures keep as much structure, or nearly
    near = min(STRENGTHS, key=lambda s: abs(rivals[s]["D"].mean() - distance[OURS]))
    moves = items("test", n, ("move",), seed=seed)
    moved = {k: injected(moves, k, k)["T"] for k in (0.0, 1.0)}
    rows = [
        Row(
            "structure distance falls as more is injected (0, .5, 1 of both): "
            "smallest fall, of the largest",
            -max(np.diff(line)) / line[0],
            0,
            source="paper",
        ),
        Row(
            "the same over all pairs: -rank correlation with the sum of shares",
            -rank_correlation([f + a for f, a in grid], list(distance.values())),
            0.8,
        ),
        gained(
            f"edits done at equal structure (SDEdit at strength {near}): gain",
            ours["T"],
            rivals[near]["T"],
        ),
        averaged(
            "move fails, as it must: share not moved under full injection",
            1 - moved[1.0],
            0.8,
            1 - moved[0.0].mean(),
            source="paper",
        ),
    ]
    return counted(rows, len(its))
