"""Does a picture come back exactly, at every scale, and is it any use for editing?"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from minidiff.bench.items import items
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import sample
from minidiff.inversion.ddim import ddim_invert, invert_step
from minidiff.inversion.edict import doubled, edict, edict_invert, edict_sample
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, counted, gained, item_scores, together

N = 24  # of each of two kinds


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Round trips of one picture; then recolouring and changing the ground, n pictures of each, 25
    steps, strength .7.

    """
    its = items("test", n, ("recolour", "background"), seed=seed)
    asked = together(its)
    ours = []
    theirs = []
    for steps in (10, 25, 50):
        for scale in (1.0, 3.0, 7.0):
            exact, plain = errors(pipe, asked.image[:1], asked.source[0], steps, scale)
            ours.append(exact)
            theirs.append(plain)
    times_larger = [b / max(a, 1e-16) for a, b in zip(ours, theirs)]

    def score(edits: Tensor) -> np.ndarray:
        return item_scores(edits, its, ceiling)["score"]

    ceiling = pipe.decode(pipe.encode(asked.answer))
    words = (asked.source, asked.target)
    ours_score = score(edict(pipe, asked.image, *words, strength=0.7, steps=25))
    plain_score = score(partial(pipe, asked.image, *words, strength=0.7, steps=25))
    rows = [
        Row(
            "round trip, worst of 10, 25, 50 steps and guidance 1, 3, 7: correct decimals",
            decimals(max(ours)),
            9,
            decimals(max(theirs)),
            source="identity",
            n=1,
        ),
        Row(
            "DDIM inversion's error is larger, at least: powers of ten",
            math.log10(min(times_larger)),
            3,
            n=1,
        ),
        gained("EditScore: gain over DDIM inversion", ours_score, plain_score),
    ]
    return counted(rows, len(its))


def decimals(error: float) -> float:
    """How many decimals an error leaves right, at most 16."""
    return -math.log10(max(error, 1e-16))


@torch.no_grad()
def errors(pipe: Pipe, image: Tensor, prompt: str, steps: int, scale: float) -> tuple[float, float]:
    """Largest error of the latents after a round trip: by EDICT, and by DDIM inversion with the
    same guidance.
    """
    sch = pipe.schedule
    ts = pipe.timesteps(steps)
    z = pipe.encode(image)
    cond = pipe.embed(prompt)

    exact = doubled(pipe, scale)
    x, y = edict_invert(exact, sch, z.double(), z.double(), ts, cond)
    back = edict_sample(exact, sch, x, y, ts, cond)[0]

    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    noise = ddim_invert(denoise, sch, z, cond, steps=steps)[-1]
    plain = sample(denoise, sch, noise, ts, cond)
    return (back - z).abs().max().item(), (plain - z).abs().max().item()


@torch.no_grad()
def partial(pipe: Pipe, image: Tensor, source, target, strength: float, steps: int) -> Tensor:
    """DDIM inversion up to `strength` without guidance, and down with the target prompt and
    the model's own guidance.
    """
    ts = pipe.timesteps(steps, strength)
    x = pipe.encode(image)
    cond = pipe.embed(source)
    for s, t in pairwise(ts[::-1]):
        x = invert_step(pipe.eps, pipe.schedule, x, s, t, cond)
    guided = cfg_batched(pipe.eps, pipe.null(), pipe.scale)
    return pipe.decode(sample(guided, pipe.schedule, x, ts, pipe.embed(target)))
