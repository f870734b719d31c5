"""Do two prompts tell where the edit belongs, and is that worth it?"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import items
from minidiff.editing.diffedit import diffedit, difference, threshold_mask
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, gained, item_scores, together

N = 24  # of each of two kinds


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU (b,) of masks (b 1 h w) of 0 and 1."""
    both = (a * b).sum((1, 2, 3))
    either = (a + b).clamp(max=1).sum((1, 2, 3))
    return both / either.clamp_min(1)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring and reshaping, n pictures of each, against SDEdit at the same number of network
    evaluations.
    """
    its = items("test", n, ("recolour", "reshape"), seed=seed)
    asked = together(its)
    z = pipe.encode(asked.image)
    mask = threshold_mask(difference(pipe, z, asked.source, asked.target, seed=seed))
    order = np.random.default_rng(seed).permutation(mask[0].numel())
    scattered = mask.flatten(1)[:, torch.from_numpy(order)].view_as(mask)
    size = asked.image.shape[-2:]
    found = F.interpolate(mask, size).cpu()
    chance = F.interpolate(scattered, size).cpu()
    half = len(its) // 2
    rows = []
    for kind, part in (("recolour", slice(0, half)), ("reshape", slice(half, None))):
        rows.append(
            averaged(
                f"{kind}: overlap (IoU) of the mask found with the exact one",
                overlap(found[part], asked.mask[part]),
                0.5,
                overlap(chance[part], asked.mask[part]).mean(),
            )
        )

    ceiling = pipe.decode(pipe.encode(asked.answer))
    for steps in (10, 25):
        out = diffedit(pipe, asked.image, asked.source, asked.target, steps=steps, seed=seed)
        ours = item_scores(out, its, ceiling)["score"]
        nfe = 2 * 10 + 3 * int(steps * 0.8)
        others = []
        for strength in (0.5, 0.7):
            knobs = dict(strength=strength, steps=round(nfe / (2 * strength)), seed=seed)
            noised = sdedit(pipe, asked.image, asked.target, **knobs)
            others.append(item_scores(noised, its, ceiling)["score"])
        rows.append(
            gained(
                f"EditScore: gain over the better of two SDEdits at {nfe} evaluations",
                ours,
                max(others, key=np.mean),
            )
        )

    outside = 1 - asked.mask
    rows.append(
        gained(
            "outside the exact mask: gain over the autoencoder's copy of the truth, dB",
            masked_psnr(out, asked.answer, outside),
            masked_psnr(ceiling, asked.answer, outside),
        )
    )
    return counted(rows, len(its))
