"""Does a thumbnail decide colours and places, and the prompt the rest?"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw, rank_correlation
from minidiff.restoration.ilvr import ilvr, low_band


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """References of 8 x 8 pixels, in which a shape cannot be read, and a caption that names it."""
    scenes, judge = draw(n, seed), oracle()
    prompts, small = (
        [shapes.short_caption(s) for s in scenes],
        F.avg_pool2d(shapes.render(scenes), 8),
    )
    ref = F.interpolate(small, size=pipe.image_size, mode="bilinear")
    run = lambda factor, seed=seed: ilvr(pipe, ref, prompts, factor=factor, steps=25, seed=seed)  # noqa: E731
    right = lambda x, what: judge.judge(x, scenes, SHORT)[what].float().mean().item()  # noqa: E731
    coarse = lambda x: _likeness(F.avg_pool2d(x, 8), small)  # noqa: E731
    factors = (1, 2, 4, 8, 16)
    swept = [run(f) for f in factors]
    ours, other = swept[1], run(2, seed + 1000)
    held = _likeness(low_band(pipe.encode(ours), 2), low_band(pipe.encode(ref), 2))
    free = [pipe.generate(prompts, steps=25, seed=s) for s in (seed, seed + 1000)]
    strengths = (0.3, 0.5, 0.7)
    noised = [sdedit(pipe, ref, prompts, strength=s, steps=25, seed=seed) for s in strengths]
    # SDEdit of equal likeness
    near = min(range(3), key=lambda i: abs(coarse(noised[i]) - coarse(ours)))
    again = sdedit(pipe, ref, prompts, strength=strengths[near], steps=25, seed=seed + 1000)
    return [
        Row(
            "factor 2: correlation of the coarse latents, encoded again, with the reference's",
            held,
            0.98,
            _likeness(low_band(pipe.encode(free[0]), 2), low_band(pipe.encode(ref), 2)),
        ),
        Row(
            "factor 2: correlation of the picture's own 8 x 8 thumbnail",
            coarse(ours),
            0.95,
            coarse(free[0]),
        ),
        Row(
            "factor 2: shape right, from the text alone",
            right(ours, "shape"),
            0.7,
            right(ref, "shape"),
        ),
        Row(
            "factor 2: position right, from the thumbnail alone",
            right(ours, "position"),
            0.8,
            right(free[0], "position"),
        ),
        Row(
            "factors 1, 2, 4, 8, 16 against likeness to the thumbnail: -rank correlation",
            -rank_correlation(factors, [coarse(x) for x in swept]),
            0.9,
        ),
        Row(
            "two seeds differ in the fine part, of plain sampling's difference",
            _fine(ours, other) / _fine(*free),
            0.7,
            _fine(noised[near], again) / _fine(*free),
        ),
        Row(
            "the same, of SDEdit's at the strength of equal thumbnail likeness",
            _fine(ours, other) / _fine(noised[near], again),
            1.0,
        ),
    ]


def _likeness(a: Tensor, b: Tensor) -> float:
    """Mean correlation of rows (b ..), all values of a row together."""
    return float(
        np.mean(
            [
                torch.corrcoef(torch.stack([x, y]))[0, 1].item()
                for x, y in zip(a.flatten(1), b.flatten(1))
            ]
        )
    )


def _fine(a: Tensor, b: Tensor) -> float:
    """Root mean square difference of pictures (b 3 H W), apart from their 8 x 8 thumbnails."""
    d = a - b
    return (d - low_band(d, 8)).square().mean().sqrt().item()
