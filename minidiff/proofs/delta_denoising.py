"""Does the difference of two scores edit without the blur of one?"""

import torch

from minidiff.bench.items import items
from minidiff.editing.delta_denoising import delta_denoising
from minidiff.evaluate.metrics import masked_psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.diffedit import mean_score, parts
from minidiff.proofs.prove import Row


def detail(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Energy (b,) of what is finer than four pixels, where `keep` (b 1 h w) is 1."""
    fine = x - torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(x, 4), scale_factor=4, mode="bilinear"
    )
    return (fine.square().mean(1, keepdim=True) * keep).sum((1, 2, 3)) / keep.sum((1, 2, 3))


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring, 6 pictures, 50 iterations, against plain score distillation with the same
    settings.
    """
    its = items("test", min(n, 6), ("recolour",), seed=seed)
    image, answer, mask, source, target = parts(its)
    copy, ceiling = pipe.decode(pipe.encode(image)), pipe.decode(pipe.encode(answer))
    run = dict(iterations=50, seed=seed)
    ours, plain = (
        delta_denoising(pipe, image, source, target, kind=k, **run) for k in ("dds", "sds")
    )
    kept = [masked_psnr(x, copy, 1 - mask).nanmean().item() for x in (ours, plain)]
    sharp = [(detail(x, 1 - mask) / detail(copy, 1 - mask)).median().item() for x in (ours, plain)]
    hit = [mean_score(x, its, ceiling, "T") for x in (ours, plain)]
    score = [mean_score(x, its, ceiling) for x in (ours, plain)]
    return [
        Row("the edit is there (T)", hit[0], 0.8, hit[1]),
        Row("outside the edit: gain over plain distillation, dB", kept[0] - kept[1], 3, kept[1]),
        Row(
            "detail outside the edit: -|share of the copy's - 1|",
            -abs(sharp[0] - 1),
            -0.2,
            -abs(sharp[1] - 1),
        ),
        Row("EditScore: gain over plain distillation", score[0] - score[1], 0.1, score[1]),
    ]
