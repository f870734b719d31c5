"""DDIM: the same network, fifty steps instead of a thousand, and no dice.

Denoising Diffusion Implicit Models, Jiaming Song, Chenlin Meng, Stefano Ermon, 2020,
arXiv 2010.02502.

A trained denoiser only knows the marginals q(x_t | x0), and many processes share them. DDIM picks
the one without noise: guess x0, then put back exactly the noise that was just removed, at the
smaller level s.

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - sig^2) eps_hat + sig z    eq. 12, `ddim_step`

Try: steps 5, 10, 20, 50 at one seed (the picture settles early); eta from 0 to 1 (noise repairs
errors at many steps and costs quality at few); `spacing="trailing"` against "leading" at 5 steps.

Weakness: it is Euler's method in sigma / alpha, so the error only halves when the steps double, and
it inherits the schedule's end: with "leading" spacing it starts below T and treats pure noise as
slightly less than that. The step is one pure function on any (alpha, sigma) tables, so flow and VE
models run through it unchanged, higher-order samplers can be checked against it, and the spacing is
the caller's.

`literal` is for comparison with public code. There every move is T // steps long, whatever the
grid: under "linspace", whose times lie (T - 1) / (steps - 1) apart, each state stops short of the
time at which the network is asked next. It is noisier than it is told to be less noisy: still order
1, with a larger error. Under "leading" nothing changes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noises, step_pairs
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule


@torch.no_grad()
def ddim(
    denoise: Denoise,
    sch: Schedule,
    x: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    spacing: str = "linspace",
    start: int | None = None,
    end: int = 0,
    times: Sequence[int] | None = None,
    literal: bool = False,
    progress: bool = False,
) -> Tensor:
    """Denoise x (b ..), a state at time `start` (default T), to a clean x0 of the same shape.

    At T a state is sigma_T times unit noise; `steps`, `spacing`, `end` and `times` as in
    `Schedule.timesteps`; eta 0 (deterministic) to 1 (ancestral), its noise from `seed`; `literal`:
    every move of a grid that is not one's own is start // steps long. Raises ValueError for steps,
    start, end, spacing, times or eta out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside 0..1; 0 draws no noise on the way, 1 is ancestral")
    fresh = noises(x, seed)
    ts = sch.timesteps(steps, start, spacing, end, times)
    stride = (start or sch.T) // max(steps, 1)
    for t, s in step_pairs(ts, progress):
        s = max(t - stride, end) if literal and times is None else s
        z = next(fresh) if eta else None
        x = ddim_step(sch, x, denoise(x, t, cond), t, s, eta, z)
    return x
