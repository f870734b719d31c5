"""Do two prompts tell where the edit belongs, and is that worth it?"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.editing.diffedit import diffedit, difference, threshold_mask
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row


def overlap(a: Tensor, b: Tensor) -> float:
    """Mean IoU of masks (b 1 h w) of 0 and 1."""
    return ((a * b).sum((1, 2, 3)) / (a + b).clamp(max=1).sum((1, 2, 3)).clamp_min(1)).mean().item()


def parts(its: list[Item]) -> tuple:
    """(pictures, answers, exact masks, source prompts, target prompts)."""
    stack = lambda k: torch.cat([getattr(i, k) for i in its])  # noqa: E731
    return (
        stack("image"),
        stack("answer"),
        stack("mask"),
        [i.source for i in its],
        [i.target for i in its],
    )


def mean_score(out: Tensor, its: list[Item], ceiling: Tensor, key: str = "score") -> float:
    return float(np.mean([r[key] for r in grade(out, its, ceiling)]))


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring and reshaping, 8 pictures, against SDEdit at the same number of network
    evaluations.
    """
    its, rows, rng = (
        items("test", min(n, 4), ("recolour", "reshape"), seed=seed),
        [],
        np.random.default_rng(seed),
    )
    image, answer, true, source, target = parts(its)
    m = threshold_mask(difference(pipe, pipe.encode(image), source, target, seed=seed))
    scattered = m.flatten(1)[:, torch.from_numpy(rng.permutation(m[0].numel()))].view_as(m)
    found, chance = (F.interpolate(x, image.shape[-2:]).cpu() for x in (m, scattered))
    half = len(its) // 2
    for kind, part in (("recolour", slice(0, half)), ("reshape", slice(half, None))):
        rows.append(
            Row(
                f"{kind}: overlap (IoU) of the mask found with the exact one",
                overlap(found[part], true[part]),
                0.5,
                overlap(chance[part], true[part]),
            )
        )
    ceiling, gains = pipe.decode(pipe.encode(answer)), []
    for steps in (10, 25):
        out = diffedit(pipe, image, source, target, steps=steps, seed=seed)
        ours, nfe = mean_score(out, its, ceiling), 2 * 10 + 3 * int(steps * 0.8)
        other = max(
            mean_score(
                sdedit(pipe, image, target, strength=s, steps=round(nfe / (2 * s)), seed=seed),
                its,
                ceiling,
            )
            for s in (0.5, 0.7)
        )
        gains.append((ours - other, other))
        rows.append(
            Row(
                f"EditScore: gain over the better of two SDEdits at {nfe} evaluations",
                ours - other,
                0,
                other,
            )
        )
    floor = masked_psnr(ceiling, answer, 1 - true).nanmean().item()
    kept = masked_psnr(out, answer, 1 - true).nanmean().item()
    return [
        *rows,
        Row(
            "outside the exact mask: gain over the autoencoder's copy of the truth, dB",
            kept - floor,
            0,
            floor,
        ),
    ]
