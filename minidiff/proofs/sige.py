"""After a small change: how much need not be computed, and what does leaving it out cost?"""

from minidiff.bench.items import Item, items
from minidiff.editing.sdedit import strokes
from minidiff.editing.sige import compare
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, share, together


def small(n: int, seed: int) -> list[Item]:
    """Recolourings that change at most 15% of the picture."""
    recoloured = items("test", 4 * n, ("recolour",), seed=seed)
    return [item for item in recoloured if item.mask.mean() <= 0.15][:n]


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """A crude repainting of a small object, 6 pictures, SDEdit in 20 steps, sparse against
    dense.
    """
    its = small(min(n, 6), seed)
    asked = together(its)
    changed = asked.mask * strokes(asked.answer) + (1 - asked.mask) * asked.image
    r = compare(pipe, asked.image, asked.source, asked.target, changed=changed, steps=20, seed=seed)
    truths = [item.truth for item in its]
    sparse = share(oracle().judge(r["sparse"], truths, SHORT)["joint"])
    dense = share(oracle().judge(r["dense"], truths, SHORT)["joint"])
    like = psnr(r["sparse"], r["dense"]).mean().item()
    unedited = psnr(asked.image, r["dense"]).mean().item()
    return [
        Row("multiply-adds: -(share of the dense run's)", -r["macs"], -0.4, -1.0),
        Row(
            "likeness of the sparse to the dense edit, dB",
            like,
            35,
            unedited,
        ),
        Row(
            "all that the prompt states is right: -|sparse - dense|",
            -abs(sparse - dense),
            0.0,
            dense,
        ),
    ]
