"""Does a thumbnail decide colours and places, and the prompt the rest?"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import rank_correlation
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import (
    Row,
    averaged,
    counted,
    draw,
    gained,
    share,
)
from minidiff.restoration.ilvr import ilvr, low_band

N = 64
FACTORS = (1, 2, 4, 8, 16)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """References of 8 x 8 pixels, in which a shape cannot be read, and a caption that names it."""
    scenes = draw(n, seed)
    prompts = [shapes.short_caption(s) for s in scenes]
    thumbnail = F.avg_pool2d(shapes.render(scenes), 8)
    reference = F.interpolate(thumbnail, size=pipe.image_size, mode="bilinear")

    def run(factor: int, seed: int = seed) -> Tensor:
        return ilvr(pipe, reference, prompts, factor=factor, steps=25, seed=seed)

    def noised(strength: float, seed: int = seed) -> Tensor:
        return sdedit(pipe, reference, prompts, strength=strength, steps=25, seed=seed)

    def coarse(x: Tensor) -> np.ndarray:
        return _likeness(F.avg_pool2d(x, 8), thumbnail)

    def coarse_latent(x: Tensor) -> np.ndarray:
        return _likeness(low_band(pipe.encode(x), 2), low_band(pipe.encode(reference), 2))

    def right(x: Tensor, what: str) -> Tensor:
        return oracle().judge(x, scenes, SHORT)[what]

    swept = {factor: run(factor) for factor in FACTORS}
    ours = swept[2]
    free = pipe.generate(prompts, steps=25, seed=seed)
    strengths = (0.3, 0.5, 0.7)
    rivals = {strength: noised(strength) for strength in strengths}
    likeness = {strength: coarse(x).mean() for strength, x in rivals.items()}
    # SDEdit of equal likeness
    near = min(strengths, key=lambda s: abs(likeness[s] - coarse(ours).mean()))

    other_seed = seed + 1000
    spread = {factor: _fine(x, run(factor, other_seed)) for factor, x in swept.items()}
    rival_spread = _fine(rivals[near], noised(near, other_seed))
    rows = [
        averaged(
            "factor 2: correlation of the coarse latents, encoded again, with the reference's",
            coarse_latent(ours),
            0.98,
            coarse_latent(free).mean(),
            source="identity",
        ),
        averaged(
            "factor 2: correlation of the picture's own 8 x 8 thumbnail",
            coarse(ours),
            0.95,
            coarse(free).mean(),
        ),
        averaged(
            "factor 2: shape right, from the text alone",
            right(ours, "shape"),
            0.7,
            share(right(reference, "shape")),
        ),
        averaged(
            "factor 2: position right, from the thumbnail alone",
            right(ours, "position"),
            0.8,
            share(right(free, "position")),
        ),
        Row(
            "factors 1, 2, 4, 8, 16 against likeness to the thumbnail: -rank correlation",
            -rank_correlation(FACTORS, [coarse(swept[factor]).mean() for factor in FACTORS]),
            0.9,
            source="paper",
        ),
        Row(
            "factors against how far two seeds differ in the fine part: rank correlation",
            rank_correlation(FACTORS, [spread[factor].mean() for factor in FACTORS]),
            0.9,
            source="paper",
            seeds=2,
        ),
        gained(
            f"factor 2: two seeds differ in the fine part, more than SDEdit's (strength {near})",
            spread[2],
            rival_spread,
            seeds=2,
        ),
    ]
    return counted(rows, n)


def _likeness(a: Tensor, b: Tensor) -> np.ndarray:
    """Correlation (b,) of rows (b ..), all values of a row together."""
    pairs = zip(a.flatten(1), b.flatten(1))
    return np.array([torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs])


def _fine(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference (b,) of pictures (b 3 H W), apart from their 8 x 8 thumbnails."""
    d = a - b
    return (d - low_band(d, 8)).square().mean((1, 2, 3)).sqrt()
