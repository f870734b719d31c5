"""Is the noise that is read off a picture a better start than fresh noise, or than inverted
noise?
"""

import numpy as np
from torch import Tensor

from minidiff.bench.items import items
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, gained, item_scores, together
from minidiff.proofs.edict import decimals, partial

N = 24  # of each of two kinds
STRENGTHS = (0.36, 0.48, 0.64, 0.8, 0.92)  # of DDIM inversion


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring and changing the ground, n pictures of each, 25 steps at the model's own
    guidance: against SDEdit at the same strength, and DDIM inversion at the same share of edits
    done.
    """
    its = items("test", n, ("recolour", "background"), seed=seed)
    asked = together(its)
    image = asked.image
    knobs = dict(strength=0.64, steps=25)
    same = edit_friendly(pipe, image, asked.source, asked.source, seed=seed, **knobs)
    error = (same - pipe.decode(pipe.encode(image))).abs().max().item()
    ceiling = pipe.decode(pipe.encode(asked.answer))

    def scores(edits: Tensor) -> dict[str, np.ndarray]:
        around = masked_psnr(edits, asked.answer, 1 - asked.mask).cpu().numpy()
        return item_scores(edits, its, ceiling) | {"outside": around}

    ours = scores(edit_friendly(pipe, image, asked.source, asked.target, seed=seed, **knobs))
    fresh = scores(sdedit(pipe, image, asked.target, seed=seed, **knobs))
    inverted = {}
    for strength in STRENGTHS:
        out = partial(pipe, image, asked.source, asked.target, strength=strength, steps=25)
        inverted[strength] = scores(out)
    as_often = min(STRENGTHS, key=lambda s: abs(inverted[s]["T"].mean() - ours["T"].mean()))
    ode = inverted[as_often]
    best = max(STRENGTHS, key=lambda s: inverted[s]["score"].mean())
    rows = [
        Row(
            "same prompt, equal guidance both ways: correct decimals of the picture",
            decimals(error),
            4,
            source="identity",
        ),
        gained("EditScore: gain over SDEdit at the same strength", ours["score"], fresh["score"]),
        averaged("the edit is there (T)", ours["T"], 0.7, ode["T"].mean()),
        gained(
            f"outside the edit, dB: gain over DDIM inversion that edits as often (strength "
            f"{as_often})",
            ours["outside"],
            ode["outside"],
        ),
        gained(
            f"EditScore: gain over DDIM inversion at its best strength ({best})",
            ours["score"],
            inverted[best]["score"],
        ),
    ]
    return counted(rows, len(its))
