"""RePaint: inpainting using denoising diffusion probabilistic models.

Andreas Lugmayr, Martin Danelljan, Andres Romero, Fisher Yu, Radu Timofte, Luc Van Gool, 2022,
arXiv 2201.09865.

A model of whole pictures can fill a hole. At every step the known part of the picture, noised to
the same level, is put around what is being drawn. But what is drawn was denoised before it saw its
new surroundings, and the seam shows it. So the method adds the noise of some steps again and comes
down once more, now with the surroundings in the state. It does so many times.

    x_s  =  m (a step of DDPM from x_t)  +  (1 - m) (alpha_s x0 + sigma_s n)
            the paper's eq. 8, but with m = 1 in the hole, and with the known part noised to s,
            where the state is (the paper noises it to t)
    x_t  =  (alpha_t / alpha_s) x_s  +  the noise that is missing at t
            a jump back up, `length` steps

Try: `repeats` 1 (no jumps), 2, 5; `length` 1 against 5 at the same number of evaluations; `window`
(.2, .8).

Weakness: the paper's way down has 250 steps, and every stretch of 10 is walked 10 times: 2,410
evaluations a picture. A jump counts by how far it goes in noise, not in steps, so on 25 steps we
jump 5, five times as far, and walk twice: 45 evaluations. That mends the seam; it does not replace
all that many walks decide. Telling the model what the picture shows does: with `prompt` 45
evaluations complete more objects than 410 without (measured on the page of this file). Steps are
DDPM's: coming down without fresh noise, a jump would only walk the same way twice. (Correcting the
network's guess of the clean picture outside the hole, as DDNM does, changes nothing here: the
outside is replaced after the step.)
"""

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, noises, step_pairs
from minidiff.core.process import eps_to_x0, posterior, renoise
from minidiff.pipe.checks import door
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe
from minidiff.restoration.jumps import jumps


@door
@torch.no_grad()
def repaint(
    pipe: Pipe,
    image: Tensor,
    prompt: str = "",
    *,
    mask: Tensor,
    length: int = 5,
    repeats: int = 2,
    window: tuple[float, float] = (0.0, 1.0),
    steps: int = 25,
    scale: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Fill the hole of pictures `image` (b 3 H W) in [-1,
    1]; returns (b 3 H W), outside the mask the same pixels.

    mask      (1 or b, 1, H, W), 1 where to draw
    prompt    what the whole picture shows; default: the empty condition, the model completes what
              it sees
    length    steps of a jump back up
    repeats   how often every stretch of that length is walked; 1 never jumps. Paper: 250 steps,
              length 10, repeats 10
    window    share of the steps in which jumps start, 0 the clean end and 1 the noisy one
    scale     guidance towards the prompt; 1 is none

    ValueError: a mask that does not fit, steps, length, repeats or window out of range.
    """
    mask = check_mask(mask, image)
    way = jumps(pipe.timesteps(steps), length, repeats, window)
    sch = pipe.schedule
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    cond = pipe.embed(prompt)
    if not mask.any():
        return image
    z = pipe.encode(image)  # b c h w
    m = to_latent_mask(mask, pipe)
    x = pipe.start_std * noise(z.shape, seed, z.device, z.dtype)
    zs = noises(x, seed)
    outside = noises(x, seed + 2**31)
    for t, s in step_pairs(way, progress):
        if s > t:  # back up: the paper's resampling
            x = renoise(sch, x, t, s, next(zs))
            continue
        x0 = eps_to_x0(sch, x, denoise(x, t, cond), t)
        x0 = x0 if pipe.vae else x0.clamp(-1, 1)
        s = s if s > way[-1] else 0  # where x goes; the end is clean
        mean, var = posterior(sch, x, x0, t, s)  # DDPM eq. 7
        x = mean + var**0.5 * next(zs)
        x = m * x + (1 - m) * pipe.noised(z, s, next(outside))  # eq. 8
    return paste(pipe.decode(x), image, mask)
