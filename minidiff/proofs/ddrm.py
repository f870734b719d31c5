"""Are twenty steps enough, and is the picture better than the best guess without a model?"""

import torch.nn.functional as F

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.ddnm import bicubic, likeness, pixels
from minidiff.proofs.prove import Row, draw
from minidiff.proofs.repaint import half_holes
from minidiff.restoration.ddrm import ddrm_sample
from minidiff.restoration.operators import hole, superres


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """32x32 scenes, nothing told: four and two times fewer pixels at 20 and 100 steps, half of an
    object.
    """
    pipe, scenes = pixels(pipe), draw(n, seed)
    image, mask = shapes.render(scenes, 32), half_holes(scenes, 32)
    sr, sr2, cut = superres(4), superres(2), hole(mask)
    run = lambda op, **k: ddrm_sample(pipe, op.A(image), op, seed=seed, **k).cpu()  # noqa: E731
    short, long, fine, filled = run(sr), run(sr, steps=100), run(sr2), run(cut)
    kept = psnr(sr.A(short), sr.A(image)).mean().item()
    big = F.interpolate(filled, (64, 64), mode="bicubic").clamp(-1, 1)
    right = lambda x: oracle().judge(x, scenes, ())["color"].float().mean().item()  # noqa: E731
    blank = F.interpolate(cut.A(image), (64, 64), mode="bicubic")
    a, b, c = (likeness(x, image) for x in (short, long, bicubic(sr.A(image))))
    return [
        Row("four times super-resolution, 20 steps: dB above bicubic", a - c, 3.0, 0.0),
        Row(
            "two times: dB above bicubic",
            likeness(fine, image) - likeness(bicubic(sr2.A(image), 2), image),
            3.0,
            0.0,
        ),
        Row("four times: PSNR of the measurement that the result gives", kept, 40.0),
        Row("20 steps against 100: dB", a - b, -0.5),
        Row("half of an object: completed in its colour", right(big), 0.7, right(blank)),
    ]
