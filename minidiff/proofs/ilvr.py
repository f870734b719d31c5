"""Does a thumbnail decide colours and places, and the prompt the rest?"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, draw, rank_correlation, share
from minidiff.restoration.ilvr import ilvr, low_band


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

    def coarse(x: Tensor) -> float:
        return _likeness(F.avg_pool2d(x, 8), thumbnail)

    def coarse_latent(x: Tensor) -> float:
        return _likeness(low_band(pipe.encode(x), 2), low_band(pipe.encode(reference), 2))

    def right(x: Tensor, what: str) -> float:
        return share(oracle().judge(x, scenes, SHORT)[what])

    factors = (1, 2, 4, 8, 16)
    swept = {factor: run(factor) for factor in factors}
    ours = swept[2]
    free = pipe.generate(prompts, steps=25, seed=seed)
    strengths = (0.3, 0.5, 0.7)
    rivals = {strength: noised(strength) for strength in strengths}
    # SDEdit of equal likeness
    near = min(strengths, key=lambda s: abs(coarse(rivals[s]) - coarse(ours)))

    other_seed = seed + 1000
    spread = _fine(ours, run(2, other_seed))
    free_spread = _fine(free, pipe.generate(prompts, steps=25, seed=other_seed))
    rival_spread = _fine(rivals[near], noised(near, other_seed))
    return [
        Row(
            "factor 2: correlation of the coarse latents, encoded again, with the reference's",
            coarse_latent(ours),
            0.98,
            coarse_latent(free),
        ),
        Row(
            "factor 2: correlation of the picture's own 8 x 8 thumbnail",
            coarse(ours),
            0.95,
            coarse(free),
        ),
        Row(
            "factor 2: shape right, from the text alone",
            right(ours, "shape"),
            0.7,
            right(reference, "shape"),
        ),
        Row(
            "factor 2: position right, from the thumbnail alone",
            right(ours, "position"),
            0.8,
            right(free, "position"),
        ),
        Row(
            "factors 1, 2, 4, 8, 16 against likeness to the thumbnail: -rank correlation",
            -rank_correlation(factors, [coarse(swept[factor]) for factor in factors]),
            0.9,
        ),
        Row(
            "two seeds differ in the fine part, of plain sampling's difference",
            spread / free_spread,
            0.7,
            rival_spread / free_spread,
        ),
        Row(
            "the same, of SDEdit's at the strength of equal thumbnail likeness",
            spread / rival_spread,
            1.0,
        ),
    ]


def _likeness(a: Tensor, b: Tensor) -> float:
    """Mean correlation of rows (b ..), all values of a row together."""
    pairs = zip(a.flatten(1), b.flatten(1))
    return float(np.mean([torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs]))


def _fine(a: Tensor, b: Tensor) -> float:
    """Root mean square difference of pictures (b 3 H W), apart from their 8 x 8 thumbnails."""
    d = a - b
    return (d - low_band(d, 8)).square().mean().sqrt().item()
