"""Does injection hold the layout, at a better price than less noise would?"""

import numpy as np
import torch

from minidiff.bench.items import items
from minidiff.bench.scores import grade
from minidiff.editing.plug_and_play import plug_and_play
from minidiff.editing.sdedit import sdedit
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, rank_correlation

STEPS, SHARES = 20, (0.0, 0.5, 1.0)
PAIRS = (
    (0.0, 0.0),
    (0.5, 0.0),
    (0.0, 0.5),
    (0.5, 0.5),
    (0.8, 0.5),
    (1.0, 1.0),
)  # features, attention
STRENGTHS = (0.3, 0.5, 0.7, 0.9)


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Background, texture and recolour by pairs of shares, against SDEdit by strength; and move,
    which must fail.
    """
    per = max(min(n, 3), 1)
    its, far = (
        items("test", per, kinds, seed=seed)
        for kinds in (("background", "texture", "recolour"), ("move",))
    )
    knobs = dict(steps=STEPS) | knobs

    def given(some):
        return (
            torch.cat([i.image for i in some]),
            [i.source for i in some],
            [i.target for i in some],
        )

    def measure(x, some):
        ceiling = pipe.decode(pipe.encode(torch.cat([i.answer for i in some])))
        rows = grade(x, some, ceiling)
        return {k: float(np.mean([r[k] for r in rows])) for k in ("T", "D", "K", "score")}

    image, source, target = given(its)
    grid = {
        (f, a): measure(
            plug_and_play(pipe, image, source, target, features=f, attention=a, **knobs), its
        )
        for f, a in PAIRS
    }
    noised = [
        measure(sdedit(pipe, image, target, strength=s, steps=STEPS, seed=seed), its)
        for s in STRENGTHS
    ]
    for label, m in [*grid.items(), *zip(STRENGTHS, noised)]:
        print(
            f"    {label!s:12} done {m['T']:.2f}  kept {m['K']:.2f}  structure distance "
            f"{1e3 * m['D']:.2f}  "
            f"EditScore {m['score']:.2f}"
        )
    frontier = sorted((m["D"], m["T"]) for m in noised)
    gain = {k: m["T"] - np.interp(m["D"], *zip(*frontier)) for k, m in grid.items()}
    best = max(gain, key=gain.get)
    line = [grid[v, v]["D"] for v in SHARES]
    moved = {
        v: measure(plug_and_play(pipe, *given(far), features=v, attention=v, **knobs), far)["T"]
        for v in (0.0, 1.0)
    }
    return [
        Row(
            (
                "structure distance falls as more is injected (0, .5, 1 of both): smallest fall, "
                "of the largest"
            ),
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
