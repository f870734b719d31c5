"""Does injection hold the layout, at a better price than less noise would?"""

import numpy as np

from minidiff.bench.items import Item, items
from minidiff.editing.plug_and_play import plug_and_play
from minidiff.editing.sdedit import sdedit
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, mean_scores, rank_correlation, together

STEPS = 20
SHARES = (0.0, 0.5, 1.0)
PAIRS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5), (0.8, 0.5), (1.0, 1.0))
STRENGTHS = (0.3, 0.5, 0.7, 0.9)


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Background, texture and recolour by pairs of shares, against SDEdit by strength; and move,
    which must fail.
    """
    each = max(min(n, 3), 1)
    knobs = dict(steps=STEPS) | knobs

    def injected(its: list[Item], features: float, attention: float) -> dict[str, float]:
        asked = together(its)
        options = dict(features=features, attention=attention) | knobs
        edits = plug_and_play(pipe, asked.image, asked.source, asked.target, **options)
        return mean_scores(edits, its, pipe.decode(pipe.encode(asked.answer)))

    def noised(its: list[Item], strength: float) -> dict[str, float]:
        asked = together(its)
        edits = sdedit(pipe, asked.image, asked.target, strength=strength, steps=STEPS, seed=seed)
        return mean_scores(edits, its, pipe.decode(pipe.encode(asked.answer)))

    its = items("test", each, ("background", "texture", "recolour"), seed=seed)
    grid = {pair: injected(its, *pair) for pair in PAIRS}
    rivals = {strength: noised(its, strength) for strength in STRENGTHS}
    for label, m in (grid | rivals).items():
        print(
            f"    {label!s:12} done {m['T']:.2f}  kept {m['K']:.2f}  "
            f"structure distance {1e3 * m['D']:.2f}  EditScore {m['score']:.2f}"
        )
    line = [grid[k, k]["D"] for k in SHARES]

    frontier = sorted((m["D"], m["T"]) for m in rivals.values())
    distances, done = zip(*frontier)
    at_equal_structure = {pair: np.interp(m["D"], distances, done) for pair, m in grid.items()}
    gain = {pair: m["T"] - at_equal_structure[pair] for pair, m in grid.items()}
    best = max(gain, key=gain.get)

    moves = items("test", each, ("move",), seed=seed)
    moved = {k: injected(moves, k, k)["T"] for k in (0.0, 1.0)}
    return [
        Row(
            "structure distance falls as more is injected (0, .5, 1 of both): "
            "smallest fall, of the largest",
            -max(np.diff(line)) / line[0],
            0,
        ),
        Row(
            "the same over all pairs: -rank correlation with the sum of shares",
            -rank_correlation([f + a for f, a in grid], [m["D"] for m in grid.values()]),
            0.8,
        ),
        Row(
            f"edits done at equal structure: gain over SDEdit, best at {best}",
            gain[best],
            0.1,
            grid[best]["T"] - gain[best],
        ),
        Row(
            "move fails, as it must: share not moved under full injection",
            1 - moved[1.0],
            0.8,
            1 - moved[0.0],
        ),
    ]
