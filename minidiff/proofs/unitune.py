"""Does the tuned word keep what the noise destroys, and is there such a thing as too much
tuning?
"""

import numpy as np

from minidiff.bench.items import items
from minidiff.bench.scores import grade
from minidiff.editing.sdedit import sdedit
from minidiff.editing.unitune import unitune
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row

UPDATES = (0, 20, 40, 80, 160)
STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Recolour and reshape rendered pictures, against SDEdit at each strength with the same noise
    and guidance.
    """
    its = items(split, max(n // 12, 1), ("recolour", "reshape"), seed)
    copies = [pipe.decode(pipe.encode(i.answer)) for i in its]

    def scores(edit):
        rows = [grade(edit(i, seed + k), [i], c)[0] for k, (i, c) in enumerate(zip(its, copies))]
        return {w: float(np.mean([r[w] for r in rows])) for w in ("score", "T", "K", "B")}

    curve = [
        scores(lambda i, s, u=u: unitune(pipe, i.image, i.target, updates=u, seed=s, **knobs))
        for u in UPDATES
    ]
    plain = [
        scores(lambda i, s, v=v: sdedit(pipe, i.image, i.target, strength=v, scale=4.0, seed=s))
        for v in STRENGTHS
    ]
    ours = curve[UPDATES.index(40)]
    # edits as often, or more
    match = max([p for p in plain if p["T"] >= ours["T"]] or plain, key=lambda p: p["B"])
    best, top = max(p["score"] for p in plain), max(c["score"] for c in curve[1:-1])
    return [
        Row(
            "40 updates: B, dB outside the edit, over SDEdit's that edits as often",
            ours["B"] - match["B"],
            0,
            match["B"],
        ),
        Row(
            "40 updates: untouched attributes kept (K), over the same SDEdit's",
            ours["K"] - match["K"],
            0,
            match["K"],
        ),
        Row(
            "40 updates: EditScore over that of SDEdit's best strength",
            ours["score"] - best,
            0,
            best,
        ),
        Row(
            "inverted U: best of 20, 40, 80 updates over the better of 0 and 160",
            top - max(curve[0]["score"], curve[-1]["score"]),
            0,
            max(curve[0]["score"], curve[-1]["score"]),
        ),
    ]
