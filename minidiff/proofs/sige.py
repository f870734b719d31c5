"""After a small change: how much need not be computed, and what does leaving it out cost?"""

from minidiff.bench.items import Item, items
from minidiff.editing.sdedit import strokes
from minidiff.editing.sige import compare
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.diffedit import parts
from minidiff.proofs.prove import Row


def small(n: int, seed: int) -> list[Item]:
    """Recolourings that change at most 15% of the picture."""
    return [i for i in items("test", 4 * n, ("recolour",), seed=seed) if i.mask.mean() <= 0.15][:n]


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """A crude repainting of a small object, 6 pictures, SDEdit in 20 steps, sparse against
    dense.
    """
    its = small(min(n, 6), seed)
    image, answer, mask, source, target = parts(its)
    changed, truths = mask * strokes(answer) + (1 - mask) * image, [i.truth for i in its]
    r = compare(pipe, image, source, target, changed=changed, steps=20, seed=seed)
    right = [
        oracle().judge(x, truths, SHORT)["joint"].float().mean().item()
        for x in (r["sparse"], r["dense"])
    ]
    like = psnr(r["sparse"], r["dense"]).mean().item()
    return [
        Row("multiply-adds: -(share of the dense run's)", -r["macs"], -0.4, -1.0),
        Row(
            "likeness of the sparse to the dense edit, dB",
            like,
            35,
            psnr(image, r["dense"]).mean().item(),
        ),
        Row(
            "all that the prompt states is right: -|sparse - dense|",
            -abs(right[0] - right[1]),
            0.0,
            right[1],
        ),
    ]
