"""Does a picture come back exactly, at every scale, and is it any use for editing?"""

import math

import numpy as np
import torch
from torch import Tensor

from minidiff.bench.items import items
from minidiff.bench.scores import grade
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import sample
from minidiff.inversion.ddim import ddim_invert, invert_step
from minidiff.inversion.edict import doubled, edict, edict_invert, edict_sample
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Round trips of one picture; then recolouring and changing the ground, 25 steps, strength .7,
    at most 8 pictures.
    """
    its = items("test", min(n, 4), ("recolour", "background"), seed=seed)
    image, source, target = (
        torch.cat([i.image for i in its]),
        [i.source for i in its],
        [i.target for i in its],
    )
    ours, theirs = [], []
    for steps in (10, 25, 50):
        for scale in (1.0, 3.0, 7.0):
            exact, plain = errors(pipe, image[:1], source[0], steps, scale)
            ours, theirs = [*ours, exact], [*theirs, plain]
    ceiling = pipe.decode(pipe.encode(torch.cat([i.answer for i in its])))
    edits = [
        edict(pipe, image, source, target, strength=0.7, steps=25),
        partial(pipe, image, source, target, 0.7, 25),
    ]
    ours_score, plain_score = (np.mean([r["score"] for r in grade(x, its, ceiling)]) for x in edits)
    digits = lambda e: -math.log10(max(e, 1e-16))  # noqa: E731
    return [
        Row(
            "round trip, worst of 10, 25, 50 steps and guidance 1, 3, 7: correct decimals",
            digits(max(ours)),
            9,
            digits(max(theirs)),
        ),
        Row(
            "DDIM inversion's error is larger, at least: powers of ten",
            min(math.log10(b / max(a, 1e-16)) for a, b in zip(ours, theirs)),
            3,
        ),
        Row(
            "EditScore, recolour and background: gain over DDIM inversion",
            ours_score - plain_score,
            0,
            plain_score,
        ),
    ]


@torch.no_grad()
def errors(pipe: Pipe, image: Tensor, prompt: str, steps: int, scale: float) -> tuple[float, float]:
    """Largest error of the latents after a round trip: by EDICT, and by DDIM inversion with the
    same guidance.
    """
    z, ts, cond = (
        pipe.encode(image),
        pipe.timesteps(steps),
        pipe.embed(prompt),
    )
    denoise, exact = cfg_batched(pipe.eps, pipe.null(), scale), doubled(pipe, scale)
    x, y = edict_invert(exact, pipe.schedule, z.double(), z.double(), ts, cond)
    back = edict_sample(exact, pipe.schedule, x, y, ts, cond)[0]
    plain = sample(
        denoise,
        pipe.schedule,
        ddim_invert(denoise, pipe.schedule, z, cond, steps=steps)[-1],
        ts,
        cond,
    )
    return (back - z).abs().max().item(), (plain - z).abs().max().item()


@torch.no_grad()
def partial(
    pipe: Pipe, image: Tensor, source, target, strength: float, steps: int, scale: float = 3.0
) -> Tensor:
    """DDIM inversion up to `strength` without guidance, and down with the target prompt and
    guidance.
    """
    ts, x, cond = pipe.timesteps(steps, strength), pipe.encode(image), pipe.embed(source)
    for s, t in zip(ts[::-1], ts[::-1][1:]):
        x = invert_step(pipe.eps, pipe.schedule, x, s, t, cond)
    return pipe.decode(
        sample(cfg_batched(pipe.eps, pipe.null(), scale), pipe.schedule, x, ts, pipe.embed(target))
    )
