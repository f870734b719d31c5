"""Are twenty steps enough, and is the picture better than the best guess without a model?"""

import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, draw, share
from minidiff.proofs.ddnm import bicubic, likeness, pixels
from minidiff.proofs.repaint import half_holes
from minidiff.restoration.ddrm import ddrm_sample
from minidiff.restoration.operators import LinearOp, hole, superres


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """32x32 scenes, nothing told: four and two times fewer pixels at 20 and 100 steps, half of an
    object.
    """
    pipe = pixels(pipe)
    scenes = draw(n, seed)
    image = shapes.render(scenes, 32)
    sr4 = superres(4)
    sr2 = superres(2)
    cut = hole(half_holes(scenes, 32))

    def run(op: LinearOp, **knobs) -> Tensor:
        return ddrm_sample(pipe, op.A(image), op, seed=seed, **knobs).cpu()

    def color_right(x: Tensor) -> float:
        return share(oracle().judge(x, scenes, ())["color"])

    short = run(sr4)
    kept = psnr(sr4.A(short), sr4.A(image)).mean().item()
    short_db = likeness(short, image)
    long_db = likeness(run(sr4, steps=100), image)
    plain_db = likeness(bicubic(sr4.A(image)), image)
    fine_gain = likeness(run(sr2), image) - likeness(bicubic(sr2.A(image), 2), image)
    return [
        Row(
            "four times super-resolution, 20 steps: dB above bicubic", short_db - plain_db, 3.0, 0.0
        ),
        Row("two times: dB above bicubic", fine_gain, 3.0, 0.0),
        Row("four times: PSNR of the measurement that the result gives", kept, 40.0),
        Row("20 steps against 100: dB", short_db - long_db, -0.5),
        Row(
            "half of an object: completed in its colour",
            color_right(enlarged(run(cut)).clamp(-1, 1)),
            0.7,
            color_right(enlarged(cut.A(image))),
        ),
    ]


def enlarged(x: Tensor) -> Tensor:
    """Pictures (b 3 32 32) at the size that the oracle reads."""
    return F.interpolate(x, (64, 64), mode="bicubic")
