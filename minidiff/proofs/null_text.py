"""Does a guided replay return the picture once its nulls are learned?"""

import torch
from torch import Tensor

from minidiff.bench.items import items
from minidiff.core.cfg import guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.evaluate.metrics import psnr
from minidiff.inversion.ddim import Inverted, invert, replay
from minidiff.inversion.null_text import learn_nulls
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, gained, together

N = 8


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Reconstruction with guidance, the model's own and the paper's 7.5, dB to the autoencoder's
    copy; 25 steps.

    """
    its = items("test", n, ("recolour",), seed=seed)
    asked = together(its)
    states = invert(pipe, asked.image, asked.source, steps=25)
    copy = pipe.decode(states[0])

    def db(pictures: Tensor) -> Tensor:
        return psnr(pictures, copy)

    # negative-prompt: the unguided round trip
    away = db(replay(pipe, states[-1], asked.source, steps=25))
    cond = pipe.embed(asked.source)
    rows = []
    for scale in (pipe.scale, 7.5):
        lost = db(replay(pipe, states[-1], asked.source, steps=25, scale=scale))
        nulls = learn_nulls(pipe, states, asked.source, scale=scale)
        learned = db(guided(pipe, nulls, cond, scale))
        rows += [
            gained(f"guidance {scale:g}: null-text's gain over a guided replay, dB", learned, lost),
            gained(f"guidance {scale:g}: null-text's gain over negative-prompt, dB", learned, away),
        ]
    return rows


@torch.no_grad()
def guided(pipe: Pipe, inverted: Inverted, cond: Cond, scale: float) -> Tensor:
    """Pictures (b 3 H W): the replay of an inversion with its own nulls."""
    x = inverted.states[-1]
    ts = pipe.timesteps(len(inverted.states) - 1)
    for i, (t, s) in enumerate(step_pairs(ts)):
        e_null = pipe.eps(x, t, inverted.nulls[i])
        e_cond = pipe.eps(x, t, cond)
        x = ddim_step(pipe.schedule, x, guide(e_null, e_cond, scale), t, s)
    return pipe.decode(x)
