"""FlowEdit: from picture to picture along the difference of two velocities, without inversion.

Vladimir Kulikov, Matan Kleiner, Inbar Huberman-Spiegelglas, Tomer Michaeli, "FlowEdit:
Inversion-Free Text-Based Editing Using Pre-Trained Flow Models", 2024, arXiv 2412.08629.

Inverting a picture and sampling it again with other words is a path from picture to picture that
leads through noise. The same path can be walked directly. At every noise level the model is asked
twice which way is the data, once about the noised picture and once about the noised edit; the edit
moves by the difference. Noise is only drawn to ask the question, and never becomes a state.

    z_src = (1 - tau) z0 + tau n                      n ~ N(0, I), fresh at every step
    z_tar = z + z_src - z0                            the edit, noised by the same n
    z    <- z + (tau_s - tau_t) (v(z_tar, target) - v(z_src, source))

The paper is written for flow models. Any (alpha, sigma) table is one in other units: divide a state
by k = alpha + sigma, and it lies on the straight line at tau = sigma / k, where its velocity is
v = eps - x0. So a model that predicts v or eps is asked at k z, and nothing has to be trained.

Try: equal prompts and scales, which return the autoencoder's copy; `strength` from .5 to 1;
`fresh=False`, one noise for the whole walk; noise added to z instead of z0, a common slip, which is
SDEdit again.

Weakness: four evaluations a step, and two guidance scales to choose. What the source's words leave
out is kept only as far as both answers agree about it. Delta denoising (delta_denoising.py) takes
the same difference at random times with a fixed rate; here times fall, so the coarse is settled
before the fine.
"""

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noise, noises, step_pairs
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import Schedule, flow_time
from minidiff.pipe.checks import check_scale, door
from minidiff.pipe.pipe import Pipe


def velocity(denoise: Denoise, sch: Schedule, z: Tensor, t: int, cond: Cond) -> Tensor:
    """d z / d tau = eps - x0 at z (b c h w), a state of the straight line, as the model sees it."""
    k, _ = flow_time(sch, t)
    x_t = k * z
    eps = denoise(x_t, t, cond)
    return eps - eps_to_x0(sch, x_t, eps, t)


@door
@torch.no_grad()
def flowedit(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    strength: float = 0.9,
    source_scale: float = 1.5,
    fresh: bool = True,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Walk pictures `image` (b 3 H W) from what `source` says to what `target` says; returns (b 3 H
    W).

    strength      share of the steps that is walked: 0 returns the autoencoder's copy; more changes
                  more of the layout
    source_scale  guidance of the source's velocity
    fresh         a new noise at every step; else one for all
    scale         guidance of the target's velocity (default: the model's own)

    Equal prompts and scales give the autoencoder's copy, to rounding. ValueError: strength outside
    0..1, a negative scale, sizes or numbers of prompts that do not fit.
    """
    check_scale(source_scale)
    sch = pipe.schedule
    toward_source = cfg_batched(pipe.eps, pipe.null(), source_scale)
    toward_target = cfg_batched(pipe.eps, pipe.null(), scale)
    old = pipe.embed(source)
    new = pipe.embed(target)
    z0 = pipe.encode(image)  # b c h w
    z = z0
    n = noise(z0.shape, seed, z0.device, z0.dtype)
    draws = noises(z0, seed)
    for t, s in step_pairs(pipe.timesteps(steps, strength), progress):
        _, tau_t = flow_time(sch, t)
        tau_s = flow_time(sch, s)[1] if s > pipe.end else 0.0
        if fresh:
            n = next(draws)
        z_src = (1 - tau_t) * z0 + tau_t * n
        z_tar = z + z_src - z0
        v_src = velocity(toward_source, sch, z_src, t, old)
        v_tar = velocity(toward_target, sch, z_tar, t, new)
        z = z + (tau_s - tau_t) * (v_tar - v_src)
    return pipe.decode(z)
