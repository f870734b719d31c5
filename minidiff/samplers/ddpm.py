"""DDPM: ancestral sampling, the original way down.

Denoising Diffusion Probabilistic Models, Jonathan Ho, Ajay Jain, Pieter Abbeel, 2020,
arXiv 2006.11239. Strided ("respaced") chains: Improved DDPM, Alex Nichol, Prafulla Dhariwal, 2021,
arXiv 2102.09672.

Given both x_t and x0, the previous state is a known Gaussian. The network supplies a guess of x0,
and the state is drawn from that Gaussian with the guess put in; a chain of n steps uses the same
formula with the strides' own betas.

    x_s = mean(x_t, x0_hat) + sqrt(var) z    eq. 7, `posterior`; no z at the last step

Try: 10, 50 and all T steps with either variance; `clip=1` on a pixel model at 10 steps (never on
latents, which do not live in [-1, 1]).

Weakness: the true variance lies between two extremes, "small" (right if the data were one point)
and "large" (right if they were unit noise), and at few steps both are wrong: small samples come out
too narrow, large ones too wide, and many steps are the only cure. Both are offered, and both biases
are measured in the test of this file.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noises, step_pairs
from minidiff.core.process import transition
from minidiff.core.schedule import Schedule


def ddpm_step(
    sch: Schedule, x_t: Tensor, x0: Tensor, t: int, s: int, noise: Tensor | None, variance: str
) -> Tensor:
    """One draw of the next state, from t to s < t, with the guess x0 of the clean picture: the
    posterior's mean plus noise; at s = 0, the last step, the mean alone.

    variance "small": the posterior's own; "large": beta of the stride.
    """
    (a_s, sig_s), (_, sig_t) = sch.at(s), sch.at(t)
    a, var = transition(sch, s, t, x_t)
    rest = sig_s**2 / sig_t**2
    # `posterior` of core/process.py with numbers alone, in fewer passes over the picture
    mean = torch.add(a * rest * x_t, x0, alpha=a_s * var / sig_t**2)  # DDPM eq. 7
    if s == 0:
        return mean
    if noise is None:
        raise ValueError(f"the step from {t} to {s} draws: give it noise; only one to 0 has none")
    if variance == "small":
        var = var * rest
    return torch.add(mean, noise, alpha=var**0.5)


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 50,
    variance: str = "small",
    clip: float | None = None,
    seed: int = 0,
    spacing: str = "trailing",
    start: int | None = None,
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    variance "small" or "large"; clip=c clamps every guess of x0 to [-c, c]; noise from `seed`. Even
    strides by default: the short last step of "linspace" could not take away what "large" adds just
    before it. Raises ValueError for an unknown variance or spacing, or steps, start or times out of
    range.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance={variance!r} is unknown; choose small or large")
    fresh = noises(x, seed)
    for t, s in step_pairs(sch.timesteps(steps, start, spacing, times=times), progress):
        alpha, sigma = sch.at(t)
        x0 = torch.sub(x, denoise(x, t, cond), alpha=sigma) / alpha  # as `eps_to_x0`
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        z = next(fresh) if s > 0 else None
        x = ddpm_step(sch, x, x0, t, s, z, variance)
    return x
