"""Does the tuned word keep what the noise destroys, and can one tune too much?"""

from collections.abc import Callable
from inspect import signature

import numpy as np
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.editing.sdedit import sdedit
from minidiff.editing.unitune import unitune
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, counted, gained

N = 4  # of each of two kinds
UPDATES = (0, 20, 40, 80, 160)
GUIDANCE = signature(unitune).parameters["scale"].default
STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Recolour and reshape, n pictures of each, against SDEdit at each strength with the same noise
    and the method's own guidance.
    """
    its = items(split, n, ("recolour", "reshape"), seed)
    ceilings = [pipe.decode(pipe.encode(item.answer)) for item in its]

    def scores(edit: Callable[[Item, int], Tensor]) -> dict[str, np.ndarray]:
        rows = []
        for k, item in enumerate(its):
            rows += grade(edit(item, seed + k), [item], ceilings[k])
        names = ("score", "T", "K", "B")
        return {name: np.array([r[name] for r in rows], dtype=float) for name in names}

    def tuned(updates: int) -> dict[str, np.ndarray]:
        return scores(
            lambda item, seed: unitune(
                pipe, item.image, item.target, updates=updates, seed=seed, **knobs
            )
        )

    def noised(strength: float) -> dict[str, np.ndarray]:
        return scores(
            lambda item, seed: sdedit(
                pipe, item.image, item.target, strength=strength, scale=GUIDANCE, seed=seed
            )
        )

    curve = {updates: tuned(updates) for updates in UPDATES}
    plain = [noised(strength) for strength in STRENGTHS]
    ours = curve[40]
    as_often = [p for p in plain if p["T"].mean() >= ours["T"].mean()] or plain
    match = max(as_often, key=lambda p: p["B"].mean())
    best = max(plain, key=lambda p: p["score"].mean())
    means = {updates: found["score"].mean() for updates, found in curve.items()}
    top = max((20, 40, 80), key=means.get)
    end = max((0, 160), key=means.get)
    rows = [
        gained(
            "40 updates: B, dB outside the edit, over SDEdit's that edits as often",
            ours["B"],
            match["B"],
        ),
        gained(
            "40 updates: untouched attributes kept (K), over the same SDEdit's",
            ours["K"],
            match["K"],
        ),
        gained(
            "40 updates: EditScore over that of SDEdit's best strength",
            ours["score"],
            best["score"],
        ),
        gained(
            "inverted U: best of 20, 40, 80 updates over the better of 0 and 160",
            curve[top]["score"],
            curve[end]["score"],
        ),
    ]
    return counted(rows, len(its))
