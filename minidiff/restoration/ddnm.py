"""DDNM: zero-shot image restoration using the denoising diffusion null-space model.

Yinhuai Wang, Jiwen Yu, Jian Zhang, 2022, arXiv 2212.00490.

A measurement y = A x (a small picture, a grey one, one with a hole) fixes a part of the picture and
says nothing about the rest, the null space of A. So sample as usual, but correct every guess of the
clean picture in the first part, where the answer is known, and leave the second to the model. No
training, one model for every A.

    x0  <-  x0 - lam A^+ (A x0 - y)    lam = 1: then A x0 = y
    x_s  =  alpha_s x0 + sqrt(1 - eta^2) sigma_s eps + V d V^T n    d = eta sigma_s

DDNM+ is for y with noise of size sigma_y. Through A^+ that noise gets into the state, larger where
A is weak (singular value s small). It takes the place of fresh noise, coefficient by coefficient.
Where there is more of it than fresh noise is due, the correction is weakened until it fits: the
paper's eq. 17, with lam and d as its eq. 19 chooses them, in a form that is exact at sigma_y = 0:

    lam = min(1, eta sigma_s / (alpha_s sigma_y / s))
    d^2 = (eta sigma_s)^2 - (lam alpha_s sigma_y / s)^2

Time travel: now and then go back `length` steps and come down again (`repeats`), so that both parts
fit each other.

Try: task sr4 with repeats 1 and 3; sigma_y .2 in the measurement and 0 for the method, to see the
noise restored as if it were detail; eta 0, where the model never recovers from its first guess.

Weakness: A and A^+ must be a true pair, and known; A acts on what the model draws, so on latents
only holes are linear. The guess is clipped to [-1, 1] BEFORE the correction: cutting afterwards
loses y. So the result may leave [-1, 1] a little.
"""

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, noises, step_pairs
from minidiff.core.process import eps_to_x0, renoise
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe
from minidiff.restoration.jumps import jumps
from minidiff.restoration.operators import LinearOp, Task, finish, measure


@torch.no_grad()
def ddnm_sample(
    pipe: Pipe,
    y: Tensor,
    operator: LinearOp,
    prompt: str = "",
    *,
    sigma_y: float = 0.0,
    eta: float = 0.85,
    length: int = 5,
    repeats: int = 3,
    steps: int = 25,
    scale: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures or latents x (b c H W) with A x = y, as the model would draw them; `operator` is A.

    sigma_y  standard deviation of the noise in y, pictures being in [-1, 1]; 0 believes y to the
             last digit
    eta      share of the noise that is drawn anew at every step, 0 to 1
    length   steps of a jump back up (time travel)
    repeats  how often every stretch of that length is walked: 1 never jumps

    ValueError: eta outside 0..1, a negative sigma_y, steps, length or repeats out of range.
    """
    if not 0 <= eta <= 1 or not sigma_y >= 0:
        raise ValueError(
            f"eta={eta}, sigma_y={sigma_y}: expected a share 0..1, and a standard deviation of 0 "
            "or more"
        )
    way = jumps(pipe.timesteps(steps), length, repeats)
    y = y.to(pipe.device, pipe.dtype)
    x = pipe.start_std * noise(operator.pinv(y).shape, seed, y.device, y.dtype)  # b c H W
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(prompt)
    zs = noises(x, seed)
    for t, s in step_pairs(way, progress):
        if s > t:  # time travel
            x = renoise(pipe.schedule, x, t, s, next(zs))
            continue
        eps = denoise(x, t, cond)
        x0 = eps_to_x0(pipe.schedule, x, eps, t)  # eq. 12
        x0 = x0 if pipe.vae else x0.clamp(-1, 1)  # before the correction
        a, sigma = pipe.schedule.at(s if s > way[-1] else 0)  # where x goes; the end is clean
        lam, d = trust(operator, sigma_y, a, eta * sigma, x)
        # eq. 17
        x0 = x0 - operator.V(lam * operator.singular(x)[1] * operator.Ut(operator.A(x0) - y))
        x = a * x0 + (1 - eta**2) ** 0.5 * sigma * eps + operator.V(d * operator.Vt(next(zs)))
    return x


def trust(
    operator: LinearOp, sigma_y: float, a: float, fresh: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """(lam, d): how far each coefficient of y is followed,
    and what is left to draw of the `fresh` noise due.
    """
    theirs = a * sigma_y * operator.singular(like)[1]  # y's noise in the state
    lam = torch.where(theirs > fresh, fresh / theirs.clamp_min(1e-20), 1.0)  # eq. 19
    return lam, (fresh**2 - (lam * theirs) ** 2).clamp_min(0) ** 0.5


@door
def ddnm(
    pipe: Pipe,
    image: Tensor,
    prompt: str = "",
    *,
    task: Task,
    mask: Tensor | None = None,
    degraded: bool = False,
    sigma_y: float = 0.0,
    eta: float = 0.85,
    length: int = 5,
    repeats: int = 3,
    steps: int = 25,
    scale: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Degrade pictures (b 3 H W) by a task and restore them; rows [measured, restored] (2b 3 H W).

    task      inpaint, sr2, sr4, grey or blur; on latents inpaint alone
    mask      for inpaint: 1 where the picture is missing
    degraded  the picture is already degraded (at the model's size: blocks for sr, grey for grey),
              do not do it again
    prompt    what it shows, a class name for tiny-pixel; default: the empty condition
    sigma_y   noise that is added to what is measured, and told to the method: .1 is visible
    eta       share of the noise that is drawn anew at every step, 0 to 1
    length    steps of a jump back up (time travel)
    repeats   how often every stretch of that length is walked: 1 never jumps
    scale     guidance towards the prompt; 1 is none
    """
    operator, y = measure(pipe, image, task, mask, degraded, sigma_y, seed)
    x = ddnm_sample(
        pipe,
        y,
        operator,
        prompt,
        sigma_y=sigma_y,
        eta=eta,
        length=length,
        repeats=repeats,
        steps=steps,
        scale=scale,
        seed=seed,
        progress=progress,
    )
    return finish(pipe, x, image.to(x), operator, y, mask)
