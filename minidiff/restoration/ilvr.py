"""ILVR: iterative latent variable refinement, conditioning by the low frequencies of a picture.

ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models, Jooyoung Choi, Sungwon Kim,
Yonghyun Jeong, Youngjune Gwon, Sungroh Yoon, 2021, arXiv 2108.02938.

Colours and layout are in the coarse part of a picture, what it shows is in the fine part. So let
the model draw freely, and after every move exchange the coarse part of its state for that of a
reference noised to the same time. No training and no gradient; the coarse part can be a thumbnail,
strokes, or a picture of something else.

    x_s <- x'_s - phi(x'_s) + phi(y_s)
    x'_s    one ancestral move from x_t
    y_s     alpha_s y + sigma_s n, the reference at the same time
    phi     mean over N x N blocks, put back block by block: a projection, so phi(x_s) = phi(y_s)
            holds exactly

Try: `factor` 1 (the reference itself) to 16 (its mean colour); `stop` .3, so that the last steps
may heal the edges of the blocks; a prompt that contradicts the reference's shape but not its
colours; `tiny-pixel`, where coarse is literal.

Weakness: what is held is held everywhere, right or wrong: the reference's background cannot be
changed, and contours that cross a block are fought over in every step. `stop` ends that early. On
latents "coarse" means coarse latents, which is only roughly the coarse picture. The published code
noises the reference to t although the state is at s already, one level too much, and its bicubic
filter is no projection; here both sides of the exchange are at s, and blocks are exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, noises, step_pairs
from minidiff.core.process import ddim_step
from minidiff.pipe.checks import check_share, door
from minidiff.pipe.pipe import Pipe


def low_band(x: Tensor, factor: int) -> Tensor:
    """phi: the mean of every factor x factor block of x (b c h w), at the size of x."""
    return F.interpolate(F.avg_pool2d(x, factor), scale_factor=factor, mode="nearest")


def refine(x: Tensor, y: Tensor, factor: int) -> Tensor:
    """x with the low band of y, both (b c h w) and at the same time."""
    return x - low_band(x, factor) + low_band(y, factor)


@door
@torch.no_grad()
def ilvr(
    pipe: Pipe,
    image: Tensor,
    prompt: str,
    *,
    factor: int = 2,
    stop: float = 0.0,
    strength: float = 1.0,
    eta: float = 1.0,
    steps: int = 50,
    scale: float = 3.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W) of `prompt` whose coarse part is
    that of the references `image` (b 3 H W) in [-1, 1].

    factor    N, side of the blocks whose mean is held, in latents: 1 returns the reference, the
              latent's side its mean
    stop      share of the schedule, at its clean end, that runs free: 0 holds to the last, 1 is
              plain sampling
    strength  share of the steps that is run; 1 starts from noise as in the paper, less from the
              reference noised that far
    eta       1 draws fresh noise at every move as in the paper, 0 none (DDIM)
    scale     guidance by the prompt; 1 is none

    Row i uses seed + i. ValueError: a factor that does not divide the latents, stop, strength or
    eta outside 0..1, steps.
    """
    ts = pipe.timesteps(steps, strength)
    y = pipe.encode(image)  # b c h w
    if not (isinstance(factor, int) and factor >= 1 and all(n % factor == 0 for n in y.shape[2:])):
        raise ValueError(
            f"factor={factor}: blocks must tile the latents of {y.shape[2]} x {y.shape[3]}; try 2, "
            "4 or 8"
        )
    check_share("stop", stop)
    check_share("eta", eta)
    sch = pipe.schedule
    cond = pipe.embed(prompt)
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    n = noise(y.shape, seed, y.device, y.dtype)
    x = pipe.start_std * n if strength == 1 else pipe.noised(y, ts[0], n)
    fresh = noises(y, seed)
    for t, s in step_pairs(ts, progress):
        x = ddim_step(sch, x, denoise(x, t, cond), t, s, eta, next(fresh))
        if t > stop * sch.T:
            # the exchange, with fresh noise at every step
            x = refine(x, pipe.noised(y, s, next(fresh)), factor)
    return pipe.decode(x)
