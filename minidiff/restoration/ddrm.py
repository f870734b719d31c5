"""DDRM: denoising diffusion restoration models.

Bahjat Kawar, Michael Elad, Stefano Ermon, Jiaming Song, 2022, arXiv 2201.11793.

In the singular vectors of A, the measurement y = A x + sigma_y n is a list of numbers. The i-th of
them says ybar_i = x_i + (sigma_y / s_i) n_i: coefficient i of the picture, with some noise. A
diffusion state also holds a noisy x_i. So the diffusion runs in these coordinates. At every noise
level each of them mixes the network's guess with its own measurement:

    nothing measured  x_s = alpha_s x0 + sigma_s (sqrt(1 - eta^2) eps + eta n)
    y noisier         x_s = alpha_s x0 + sigma_s (sqrt(1 - eta^2) (ybar - x0) s_i / sigma_y + eta n)
    y cleaner         x_s = alpha_s ((1 - eta_b) x0 + eta_b ybar) + r n

with r^2 = sigma_s^2 - (eta_b alpha_s sigma_y / s_i)^2. In each line the noise adds up to sigma_s,
so the network sees the states it was trained on. In the middle one y's own error serves as the
predicted noise. (The paper divides states by alpha; here they keep the scale of this project.)

Try: 20 steps against 100: nearly equal, which is the method's claim; eta_b .5 trusts y by half;
sigma_y .2 on task blur, where weak frequencies wait until the state is cleaner than y and strong
ones do not.

Weakness: it needs the decomposition of A, not only A^+. It is exact for masks, averages and blurs
(`operators.py`), and for no A on the pixels behind an autoencoder: a latent model takes holes only.
No jumps: what is invented never reaches y.
"""

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, noises, step_pairs
from minidiff.core.process import eps_to_x0
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe
from minidiff.restoration.operators import LinearOp, Task, finish, measure


@torch.no_grad()
def ddrm_sample(
    pipe: Pipe,
    y: Tensor,
    operator: LinearOp,
    prompt: str = "",
    *,
    sigma_y: float = 0.0,
    eta: float = 0.85,
    eta_b: float = 1.0,
    steps: int = 20,
    scale: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures or latents x (b c H W) drawn under the
    measurement y = A x + sigma_y n; `operator` is A.

    sigma_y  standard deviation of the noise in y, pictures being in [-1, 1]
    eta      share of the noise that is drawn anew at every step, 0 to 1
    eta_b    trust in y where it is cleaner than the state: 1 takes it as it is

    ValueError: eta or eta_b outside 0..1, a negative sigma_y, steps out of range.
    """
    if not (0 <= eta <= 1 and 0 <= eta_b <= 1) or not sigma_y >= 0:
        raise ValueError(
            f"eta={eta}, eta_b={eta_b}, sigma_y={sigma_y}: expected shares 0..1 and a deviation of "
            "0 or more"
        )
    ts = pipe.timesteps(steps)
    y = y.to(pipe.device, pipe.dtype)
    sch = pipe.schedule
    n = noise(operator.pinv(y).shape, seed, y.device, y.dtype)  # b c H W
    s_, inverse = operator.singular(n)
    ybar = inverse * operator.Ut(y)  # y in V's coordinates
    a, sigma = sch.at(ts[0])
    theirs = a * sigma_y * inverse  # ybar's noise in the state
    known = (s_ > 0) & (theirs <= sigma)
    start = a * ybar + _left(sigma, theirs) * operator.Vt(n)
    x = operator.V(torch.where(known, start, sigma * operator.Vt(n)))
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(prompt)
    zs = noises(x, seed)
    for t, s in step_pairs(ts, progress):
        eps = denoise(x, t, cond)
        x0 = eps_to_x0(sch, x, eps, t)
        x0 = x0 if pipe.vae else x0.clamp(-1, 1)
        a, sigma = sch.at(s if s > pipe.end else 0)  # where x goes; the end is clean
        x = operator.V(_mix(operator, ybar, x0, eps, next(zs), a, sigma, sigma_y, eta, eta_b))
    return x


def _mix(operator, ybar, x0, eps, n, a, sigma, sigma_y, eta, eta_b) -> Tensor:
    """The next state in V's coordinates: one of the three lines above for each."""
    s_, inverse = operator.singular(x0)
    x0, eps, n = (operator.Vt(v) for v in (x0, eps, n))
    theirs = a * sigma_y * inverse
    keep = (1 - eta**2) ** 0.5
    unseen = a * x0 + sigma * (keep * eps + eta * n)
    noisy = a * x0 + sigma * (keep * a * (ybar - x0) / theirs.clamp_min(1e-20) + eta * n)
    clean = a * ((1 - eta_b) * x0 + eta_b * ybar) + _left(sigma, eta_b * theirs) * n
    return torch.where(s_ == 0, unseen, torch.where(theirs > sigma, noisy, clean))  # equal: clean


def _left(sigma: float, theirs: Tensor) -> Tensor:
    """What is to be drawn so that the noise adds up to sigma."""
    return (sigma**2 - theirs**2).clamp_min(0) ** 0.5


@door
def ddrm(
    pipe: Pipe,
    image: Tensor,
    prompt: str = "",
    *,
    task: Task,
    mask: Tensor | None = None,
    degraded: bool = False,
    sigma_y: float = 0.0,
    eta: float = 0.85,
    eta_b: float = 1.0,
    steps: int = 20,
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
    eta_b     trust in y where it is cleaner than the state: 1 takes it as it is
    scale     guidance towards the prompt; 1 is none
    """
    operator, y = measure(pipe, image, task, mask, degraded, sigma_y, seed)
    x = ddrm_sample(
        pipe,
        y,
        operator,
        prompt,
        sigma_y=sigma_y,
        eta=eta,
        eta_b=eta_b,
        steps=steps,
        scale=scale,
        seed=seed,
        progress=progress,
    )
    return finish(pipe, x, image.to(x), operator, y, mask)
