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
from minidiff.proofs.claims import Row, mean_scores, together


def overlap(a: Tensor, b: Tensor) -> float:
    """Mean IoU of masks (b 1 h w) of 0 and 1."""
    both = (a * b).sum((1, 2, 3))
    either = (a + b).clamp(max=1).sum((1, 2, 3))
    return (both / either.clamp_min(1)).mean().item()


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring and reshaping, 8 pictures, against SDEdit at the same number of network
    evaluations.
    """
    its = items("test", min(n, 4), ("recolour", "reshape"), seed=seed)
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
            Row(
                f"{kind}: overlap (IoU) of the mask found with the exact one",
                overlap(found[part], asked.mask[part]),
                0.5,
                overlap(chance[part], asked.mask[part]),
            )
        )

    ceiling = pipe.decode(pipe.encode(asked.answer))
    for steps in (10, 25):
        out = diffedit(pipe, asked.image, asked.source, asked.target, steps=steps, seed=seed)
        ours = mean_scores(out, its, ceiling)["score"]
        nfe = 2 * 10 + 3 * int(steps * 0.8)
        others = []
        for strength in (0.5, 0.7):
            knobs = dict(strength=strength, steps=round(nfe / (2 * strength)), seed=seed)
            noised = sdedit(pipe, asked.image, asked.target, **knobs)
            others.append(mean_scores(noised, its, ceiling)["score"])
        rows.append(
            Row(
                f"EditScore: gain over the better of two SDEdits at {nfe} evaluations",
                ours - max(others),
                0,
                max(others),
            )
        )

    outside = 1 - asked.mask
    floor = masked_psnr(ceiling, asked.answer, outside).nanmean().item()
    kept = masked_psnr(out, asked.answer, outside).nanmean().item()
    rows.append(
        Row(
            "outside the exact mask: gain over the autoencoder's copy of the truth, dB",
            kept - floor,
            0,
            floor,
        )
    )
    return rows
