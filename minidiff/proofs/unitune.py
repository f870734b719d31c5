"""Does the tuned word keep what the noise destroys, and can one tune too much?"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.editing.sdedit import sdedit
from minidiff.editing.unitune import unitune
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row

UPDATES = (0, 20, 40, 80, 160)
STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Recolour and reshape rendered pictures, against SDEdit at each strength with the same noise
    and guidance.
    """
    its = items(split, max(n // 12, 1), ("recolour", "reshape"), seed)
    ceilings = [pipe.decode(pipe.encode(item.answer)) for item in its]

    def scores(edit: Callable[[Item, int], Tensor]) -> dict[str, float]:
        rows = []
        for k, item in enumerate(its):
            rows += grade(edit(item, seed + k), [item], ceilings[k])
        return {name: float(np.mean([r[name] for r in rows])) for name in ("score", "T", "K", "B")}

    def tuned(updates: int) -> dict[str, float]:
        return scores(
            lambda item, seed: unitune(
                pipe, item.image, item.target, updates=updates, seed=seed, **knobs
            )
        )

    def noised(strength: float) -> dict[str, float]:
        return scores(
            lambda item, seed: sdedit(
                pipe, item.image, item.target, strength=strength, scale=4.0, seed=seed
            )
        )

    curve = {updates: tuned(updates) for updates in UPDATES}
    plain = [noised(strength) for strength in STRENGTHS]
    ours = curve[40]
    as_often = [p for p in plain if p["T"] >= ours["T"]] or plain
    match = max(as_often, key=lambda p: p["B"])
    best = max(p["score"] for p in plain)
    top = max(curve[updates]["score"] for updates in (20, 40, 80))
    ends = max(curve[0]["score"], curve[160]["score"])
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
            top - ends,
            0,
            ends,
        ),
    ]
