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
from minidiff.proofs.prove import Row


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Reconstruction with guidance, dB to the autoencoder's copy; 25 steps, at most 4 pictures, for
    learning is slow.
    """
    its, rows = items("test", min(n, 4), ("recolour",), seed=seed), []
    image, source = torch.cat([i.image for i in its]), [i.source for i in its]
    states = invert(pipe, image, source, steps=25)
    copy, plain = pipe.decode(states[0]), replay(pipe, states[-1], source, steps=25)
    away = psnr(plain, copy).mean().item()  # negative-prompt: the unguided round trip
    for scale in (3.0, 7.5):
        lost = psnr(replay(pipe, states[-1], source, steps=25, scale=scale), copy).mean().item()
        learned = psnr(
            guided(pipe, learn_nulls(pipe, states, source, scale=scale), pipe.embed(source), scale),
            copy,
        ).mean()
        rows += [
            Row(
                f"guidance {scale:g}: null-text's gain over a guided replay, dB",
                learned.item() - lost,
                6,
                lost,
            ),
            Row(
                f"guidance {scale:g}: null-text's gain over negative-prompt, dB",
                learned.item() - away,
                0,
                away,
            ),
        ]
    return rows


@torch.no_grad()
def guided(pipe: Pipe, inverted: Inverted, cond: Cond, scale: float) -> Tensor:
    """Pictures (b 3 H W): the replay of an inversion with its own nulls."""
    steps, x = len(inverted.states) - 1, inverted.states[-1]
    for i, (t, s) in enumerate(step_pairs(pipe.timesteps(steps))):
        e_null = pipe.eps(x, t, inverted.nulls[i])
        x = ddim_step(pipe.schedule, x, guide(e_null, pipe.eps(x, t, cond), scale), t, s)
    return pipe.decode(x)
