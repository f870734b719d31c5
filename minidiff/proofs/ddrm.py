"""Are twenty steps enough, and is the picture better than the best guess without a model?"""

import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, draw, gained
from minidiff.proofs.ddnm import SEEDS, bicubic, likenesses, over_noises, pixels
from minidiff.proofs.repaint import half_holes
from minidiff.restoration.ddrm import ddrm_sample
from minidiff.restoration.operators import LinearOp, hole, superres

# Table 1 of the paper, four times super-resolution of ImageNet without noise, PSNR of bicubic
# enlargement and of DDRM in 20 steps; written down from memory, not read again
PAPER_GAIN = 26.55 - 25.65


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """32x32 scenes, nothing told, 8 noises each: four and two times fewer pixels at 20 and 100
    steps, half of an object.
    """
    pipe = pixels(pipe)
    scenes = draw(n, seed)
    image = shapes.render(scenes, 32)
    sr4 = superres(4)
    sr2 = superres(2)
    cut = hole(half_holes(scenes, 32))

    def restored(op: LinearOp, seed: int, **knobs) -> Tensor:
        return ddrm_sample(pipe, op.A(image), op, seed=seed, **knobs).cpu()

    def likeness(op: LinearOp, **knobs) -> Tensor:
        return over_noises(lambda s: restored(op, s, **knobs), image, seed)

    def color_right(x: Tensor) -> Tensor:
        return oracle().judge(enlarged(x).clamp(-1, 1), scenes, ())["color"]

    plain = likenesses(bicubic(sr4.A(image)), image)
    plain2 = likenesses(bicubic(sr2.A(image), 2), image)
    short = likeness(sr4)
    kept = psnr(sr4.A(restored(sr4, seed)), sr4.A(image))
    filled = color_right(restored(cut, seed))
    holed = color_right(cut.A(image)).float().mean()
    run = dict(seeds=SEEDS)
    return [
        gained(
            "four times super-resolution, 20 steps, dB: gain over bicubic",
            short,
            plain,
            PAPER_GAIN,
            source="paper",
            **run,
        ),
        gained("two times: gain over bicubic, dB", likeness(sr2), plain2, **run),
        averaged(
            "four times: PSNR of the measurement that the result gives",
            kept,
            40.0,
            source="identity",
        ),
        gained(
            "20 steps, less what 100 give, dB",
            short,
            likeness(sr4, steps=100),
            -0.5,
            source="paper",
            **run,
        ),
        averaged("half of an object: completed in its colour", filled, 0.7, holed),
    ]


def enlarged(x: Tensor) -> Tensor:
    """Pictures (b 3 32 32) at the size that the oracle reads."""
    return F.interpolate(x, (64, 64), mode="bicubic")
