"""Does the difference of two scores edit without the blur of one?"""

import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import items
from minidiff.editing.delta_denoising import delta_denoising
from minidiff.evaluate.metrics import masked_psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, mean_scores, together


def detail(x: Tensor, keep: Tensor) -> Tensor:
    """Energy (b,) of what is finer than four pixels, where `keep` (b 1 h w) is 1."""
    coarse = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")
    energy = (x - coarse).square().mean(1, keepdim=True)
    return (energy * keep).sum((1, 2, 3)) / keep.sum((1, 2, 3))


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring, 6 pictures, 50 iterations, against plain score distillation with the same
    settings.
    """
    its = items("test", min(n, 6), ("recolour",), seed=seed)
    asked = together(its)
    outside = 1 - asked.mask
    copy = pipe.decode(pipe.encode(asked.image))
    ceiling = pipe.decode(pipe.encode(asked.answer))

    def measured(kind: str) -> dict[str, float]:
        out = delta_denoising(
            pipe, asked.image, asked.source, asked.target, kind=kind, iterations=50, seed=seed
        )
        sharp = (detail(out, outside) / detail(copy, outside)).median().item()
        return mean_scores(out, its, ceiling) | {
            "kept": masked_psnr(out, copy, outside).nanmean().item(),
            "blur": abs(sharp - 1),
        }

    ours = measured("dds")
    plain = measured("sds")
    return [
        Row("the edit is there (T)", ours["T"], 0.8, plain["T"]),
        Row(
            "outside the edit: gain over plain distillation, dB",
            ours["kept"] - plain["kept"],
            3,
            plain["kept"],
        ),
        Row(
            "detail outside the edit: -|share of the copy's - 1|",
            -ours["blur"],
            -0.2,
            -plain["blur"],
        ),
        Row(
            "EditScore: gain over plain distillation",
            ours["score"] - plain["score"],
            0.1,
            plain["score"],
        ),
    ]
