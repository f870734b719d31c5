"""Does an inverted picture come back?"""

import numpy as np

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.inversion.ddim import invert, replay
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Round trips of rendered pictures, decoded, against the autoencoder's own copy."""
    scenes = draw(n, seed)
    image, prompts = shapes.render(scenes), [shapes.short_caption(s) for s in scenes]
    copy, found = pipe.decode(pipe.encode(image)), {}
    for steps, scale, iterations in (
        (10, 1, 0),
        (20, 1, 0),
        (50, 1, 0),
        (100, 1, 0),
        (50, 1, 2),
        (50, 5, 0),
    ):
        x_T = invert(pipe, image, prompts, steps=steps, fixed_point=iterations)[-1]
        found[steps, scale, iterations] = (
            psnr(replay(pipe, x_T, prompts, steps=steps, scale=scale), copy).mean().item()
        )
    rise = [found[s, 1, 0] for s in (10, 20, 50, 100)]
    return [
        Row("round trip of 100 steps, dB to the autoencoder's copy", rise[3], 25, rise[0]),
        Row(
            "it improves with every doubling (10, 20, 50, 100 steps): smallest gain, dB",
            min(np.diff(rise)),
            0,
        ),
        Row(
            "two fixed-point iterations at 50 steps: gain over none, dB",
            found[50, 1, 2] - rise[2],
            0,
            rise[2],
        ),
        Row("replayed with guidance 5 it loses, dB", rise[2] - found[50, 5, 0], 6, found[50, 5, 0]),
    ]
