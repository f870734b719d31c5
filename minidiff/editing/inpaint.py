"""Inpainting: redraw the inside of a mask, with a model that was taught to, or with any other.

High-Resolution Image Synthesis with Latent Diffusion Models, Robin Rombach, Andreas Blattmann,
Dominik Lorenz, Patrick Esser, Bjorn Ommer, 2021, arXiv 2112.10752; the nine-channel weights are
Stable Diffusion's "inpainting" ones.

A text-to-image model cannot see what surrounds a hole, only blend with it: after every step the
outside is replaced by the picture, noised to the same time. The inpainting model sees it. Its first
convolution takes nine channels, and it knows mask and surroundings at every step, so what it draws
continues them.

    eps = net([z_t, m, E(x (1 - m))], t)                in this order: 4 channels of state, 1 of
                                                        mask, 4 of the picture with a hole
    z_s = m z_s + (1 - m) (alpha_s E(x) + sigma_s n)    after every step, for a model of 4
                                                        channels instead

Which of the two happens is read off the network. Try: the same hole with both; strength .8, which
keeps traces of what was there (1 starts from pure noise); a mask far larger than the object.

Weakness: the model sees the mask at the size of latents, sampled at every eighth pixel as in its
training: a stroke thinner than that may be invisible to it. The blend takes the largest value
instead, so that every pixel of the mask is covered. The autoencoder changes what surrounds the
hole, a little; so the picture's own pixels are put back at the end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, step_pairs
from minidiff.core.process import ddim_step
from minidiff.pipe.checks import door
from minidiff.pipe.masks import check_mask, paste, to_latent_mask
from minidiff.pipe.pipe import Pipe


@door
@torch.no_grad()
def inpaint(
    pipe: Pipe,
    image: Tensor,
    prompt: str,
    *,
    mask: Tensor,
    strength: float = 1.0,
    steps: int = 50,
    scale: float | None = None,
    negative: str = "",
    seed: int = 0,
    decode: bool = True,
    progress: bool = False,
) -> Tensor:
    """Redraw pictures `image` (b 3 H W) in [-1, 1] inside
    `mask`; returns (b 3 H W), outside the mask the same pixels.

    mask      (1 or b, 1, H, W), 1 where to draw
    strength  share of the model's steps that is run; 1 starts from noise and forgets what the hole
              held
    scale     guidance; default: the model's own

    `decode=False` returns the latents (b c h w). ValueError: a strength outside 0..1, sizes that do
    not fit, a network with neither c nor 2 c + 1 input channels.
    """
    ts = pipe.timesteps(steps, strength)
    c = pipe.shape[0]
    mask = check_mask(mask, image)
    if pipe.net.in_channels not in (c, 2 * c + 1):
        raise ValueError(
            f"{pipe.name or 'this network'} takes {pipe.net.in_channels} channels; to inpaint, {c} "
            f"or {2 * c + 1} are needed ({c} of state, 1 of mask, {c} of the picture)"
        )
    z = pipe.encode(image)  # b c h w
    sees = pipe.net.in_channels > c
    seen = surroundings(pipe, image, mask) if sees else None  # b 1+c h w
    m = None if sees else to_latent_mask(mask, pipe)
    cond, null = (pipe.embed(p).expand(len(z)).replace(image=seen) for p in (prompt, negative))
    denoise = cfg_batched(pipe.eps, null, scale)
    n = noise(z.shape, seed, z.device, z.dtype)
    if len(ts) > 1:  # 0 steps: nothing is drawn
        x = pipe.start_std * n if strength == 1 else pipe.noised(z, ts[0], n)
        for t, s in step_pairs(ts, progress):
            x = ddim_step(pipe.schedule, x, denoise(x, t, cond), t, s)
            if m is not None:
                x = m * x + (1 - m) * pipe.noised(z, s, n)  # where x is now
        z = x
    if not decode:
        return z
    return paste(pipe.decode(z), image, mask)


def surroundings(pipe: Pipe, image: Tensor, mask: Tensor) -> Tensor:
    """What an inpainting network sees beside the state: the
    mask, then the picture with a grey hole (b 1+c h w).
    """
    hole = pipe.encode(image * (1 - mask))
    # every f-th pixel, as trained
    m = F.interpolate(mask.to(hole), hole.shape[-2:], mode="nearest")
    return torch.cat([m.expand(len(hole), -1, -1, -1), hole], dim=1)
