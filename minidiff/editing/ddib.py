"""DDIB: dual diffusion implicit bridges for image-to-image translation.

Xuan Su, Jiaming Song, Chenlin Meng, Stefano Ermon, 2022, arXiv 2203.08382.

Two models that were trained apart, or two conditions of one, agree on nothing but the noise they
end in. So carry a picture up with the one and down with the other: noise is the language both
speak. No pairs are needed, and the two owners exchange nothing but noise.

    x_T  = ODE(x_0; eps_source, 0 -> T)
    x_0' = ODE(x_T; eps_target, T -> 0)    both by DDIM moves

Back again with the roles exchanged returns the picture, but for the steps' size: each leg is a
deterministic equation.

Try: the cycle red -> blue -> red with 25, 100 and 400 steps; `fixed_point=2`; scale 2 on the way
down.

Weakness: only the noise crosses, so what survives is what the two models agree on there: place and
size usually, outlines not always. And a leg with guidance is no longer the model's own equation:
allowed on the way down, where one pays for a surer target with a cycle that does not close; on the
way up it warns.
"""

import warnings

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, sample
from minidiff.core.schedule import Schedule
from minidiff.inversion.ddim import ddim_invert
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe


@torch.no_grad()
def bridge(
    source: Denoise,
    target: Denoise,
    sch: Schedule,
    x: Tensor,
    source_cond: Cond | None = None,
    target_cond: Cond | None = None,
    *,
    steps: int = 100,
    fixed_point: int = 0,
    spacing: str = "trailing",
    end: int = 0,
    progress: bool = False,
) -> Tensor:
    """Clean states (b ..) of the source model -> of the target
    model, over their common noise: one schedule for both.
    """
    ts = sch.timesteps(steps, spacing=spacing, end=end)
    # up to noise with the source model
    states = ddim_invert(
        source,
        sch,
        x,
        source_cond,
        steps=steps,
        fixed_point=fixed_point,
        spacing=spacing,
        end=end,
        progress=progress,
    )
    noise = states[-1]
    # and down again with the target model
    return sample(target, sch, noise, ts, target_cond, progress=progress)


@door
def ddib(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    fixed_point: int = 0,
    source_scale: float = 1.0,
    steps: int = 100,
    scale: float = 1.0,
    progress: bool = False,
) -> Tensor:
    """Translate pictures `image` (b 3 H W) of what `source`
    says into pictures of what `target` says; returns (b 3 H W).

    fixed_point   iterations of the implicit equation on the way up, 0 to 3
    source_scale  guidance on the way up: 1, or the noise found is none
    scale         guidance on the way down

    Identical prompts give the DDIM round trip. ValueError: steps outside 1..T, a negative scale or
    fixed_point.
    """
    if fixed_point < 0:
        raise ValueError(f"fixed_point={fixed_point}: give 0 (explicit) or a few iterations")
    if source_scale > 1:
        warnings.warn(
            f"source_scale={source_scale}: with guidance the way up is not the inverse of any "
            "sampler, its error grows with the scale and the noise it ends in is not Gaussian; 1 "
            "is meant here",
            stacklevel=2,
        )
    source_eps, target_eps = (cfg_batched(pipe.eps, pipe.null(), w) for w in (source_scale, scale))
    z = bridge(
        source_eps,
        target_eps,
        pipe.schedule,
        pipe.encode(image),
        pipe.embed(source),
        pipe.embed(target),
        steps=steps,
        fixed_point=fixed_point,
        spacing=pipe.spacing,
        end=pipe.end,
        progress=progress,
    )
    return pipe.decode(z)
