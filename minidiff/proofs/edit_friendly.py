"""Is the noise that is read off a picture a better start than fresh noise?"""

import math

import numpy as np
import torch

from minidiff.bench.items import items
from minidiff.bench.scores import grade
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.edict import partial
from minidiff.proofs.prove import Row


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring and changing the ground, against SDEdit and DDIM inversion at the same strength;
    25 steps, 8 pictures.
    """
    its = items("test", min(n, 4), ("recolour", "background"), seed=seed)
    image, source, target = (
        torch.cat([i.image for i in its]),
        [i.source for i in its],
        [i.target for i in its],
    )
    answer, mask = torch.cat([i.answer for i in its]), torch.cat([i.mask for i in its])
    ceiling, strength = pipe.decode(pipe.encode(answer)), 0.64
    same = edit_friendly(pipe, image, source, source, strength=strength, steps=25, seed=seed)
    error = (same - pipe.decode(pipe.encode(image))).abs().max().item()
    found = []
    for x in (
        edit_friendly(pipe, image, source, target, strength=strength, steps=25, seed=seed),
        sdedit(pipe, image, target, strength=strength, steps=25, seed=seed),
        partial(pipe, image, source, target, strength, 25),
    ):
        found.append(
            (
                np.mean([r["score"] for r in grade(x, its, ceiling)]),
                masked_psnr(x, answer, 1 - mask).nanmean().item(),
            )
        )
    (ours, outside), (fresh, fresh_outside), (ode, _) = found
    return [
        Row(
            "same prompt, guidance 3 both ways: correct decimals of the picture",
            -math.log10(max(error, 1e-16)),
            4,
        ),
        Row("EditScore: gain over SDEdit at the same strength", ours - fresh, 0, fresh),
        Row("outside the edit: gain over SDEdit, dB", outside - fresh_outside, 3, fresh_outside),
        Row("EditScore: gain over DDIM inversion at the same strength", ours - ode, 0, ode),
    ]
