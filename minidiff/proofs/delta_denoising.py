"""Does the difference of two scores edit without the blur of one?"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import items
from minidiff.editing.delta_denoising import delta_denoising
from minidiff.evaluate.metrics import masked_psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, gained, item_scores, together

N = 64


def detail(x: Tensor, keep: Tensor) -> Tensor:
    """Energy (b,) of what is finer than four pixels, where `keep` (b 1 h w) is 1."""
    coarse = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")
    energy = (x - coarse).square().mean(1, keepdim=True)
    return (energy * keep).sum((1, 2, 3)) / keep.sum((1, 2, 3))


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring, 50 iterations, against plain score distillation with the same settings."""
    its = items("test", n, ("recolour",), seed=seed)
    asked = together(its)
    outside = 1 - asked.mask
    copy = pipe.decode(pipe.encode(asked.image))
    ceiling = pipe.decode(pipe.encode(asked.answer))

    def measured(kind: str) -> dict[str, np.ndarray]:
        out = delta_denoising(
            pipe, asked.image, asked.source, asked.target, kind=kind, iterations=50, seed=seed
        )
        sharp = detail(out, outside) / detail(copy, outside)
        return item_scores(out, its, ceiling) | {
            "kept": masked_psnr(out, copy, outside).numpy(),
            "blur": (sharp.log2().abs()).numpy(),
        }

    ours = measured("dds")
    plain = measured("sds")
    return [
        averaged("the edit is there (T)", ours["T"], 0.8, plain["T"].mean()),
        gained(
            "outside the edit, dB to the copy: gain over plain distillation",
            ours["kept"],
            plain["kept"],
        ),
        gained(
            "detail outside, factors of two off the copy's: saved on plain distillation",
            -ours["blur"],
            -plain["blur"],
        ),
        gained("EditScore: gain over plain distillation", ours["score"], plain["score"]),
    ]
