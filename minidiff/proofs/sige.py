"""After a small change: how much need not be computed, and what does leaving it out cost?"""

from minidiff.bench.items import Item, items
from minidiff.editing.sdedit import strokes
from minidiff.editing.sige import compare
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, gained, together

N = 12


def small(n: int, seed: int) -> list[Item]:
    """Recolourings that change at most 15% of the picture."""
    recoloured = items("test", 8 * n, ("recolour",), seed=seed)
    return [item for item in recoloured if item.mask.mean() <= 0.15][:n]


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """A crude repainting of a small object, SDEdit in 20 steps, sparse against dense."""
    its = small(n, seed)
    asked = together(its)
    changed = asked.mask * strokes(asked.answer) + (1 - asked.mask) * asked.image
    r = compare(pipe, asked.image, asked.source, asked.target, changed=changed, steps=20, seed=seed)
    truths = [item.truth for item in its]
    sparse = oracle().judge(r["sparse"], truths, SHORT)["joint"]
    dense = oracle().judge(r["dense"], truths, SHORT)["joint"]
    unedited = psnr(asked.image, r["dense"]).mean()
    rows = [
        Row("multiply-adds: -(share of the dense run's)", -r["macs"], -0.4, -1.0),
        averaged(
            "likeness of the sparse to the dense edit, dB",
            psnr(r["sparse"], r["dense"]),
            35,
            unedited,
        ),
        gained(
            "all that the prompt states is right, less the dense edit's",
            sparse,
            dense,
            -0.05,
            source="paper",
        ),
    ]
    return counted(rows, len(its))
