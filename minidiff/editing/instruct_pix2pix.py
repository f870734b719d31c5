"""InstructPix2Pix: edit a picture by telling what to do, not what it shows.

InstructPix2Pix: Learning to Follow Image Editing Instructions, Tim Brooks, Aleksander Holynski,
Alexei A. Efros, 2022, arXiv 2211.09800. The inference side: the network and its weights are given.

A text-to-image model learns from pairs (picture, instruction, edited picture). Its first
convolution takes four channels more, the latents of the picture to edit. Both conditions are
dropped in training now and then, so sampling can be told separately how closely to keep the picture
and how firmly to follow the words.

    eps = e(0, 0) + image_scale (e(I, 0) - e(0, 0)) + scale (e(I, T) - e(I, 0))
          I picture, T text: the paper's guidance for two conditions

Try: image_scale from 1 to 2 at scale 7.5 (too low: another picture; too high: no edit); an
instruction against a description of the result.

Weakness: three evaluations a step, one call here. "No picture" is a latent of zeros, not an encoded
black or grey one. And the released network reads the picture's latents unscaled, the state scaled
as ever: `E(I)` below is not what `pipe.encode` returns. Its own demonstration adds noise on the way
(Euler ancestral); the samplers here do not.
"""

import torch
from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noise
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe


@door
@torch.no_grad()
def instruct_pix2pix(
    pipe: Pipe,
    image: Tensor,
    instruction: str,
    *,
    scale: float = 7.5,
    image_scale: float = 1.5,
    steps: int = 50,
    sampler: str = "ddim",
    negative: str = "",
    seed: int = 0,
    decode: bool = True,
    progress: bool = False,
) -> Tensor:
    """Pictures `image` (b 3 H W) in [-1, 1], changed as `instruction` says; returns (b 3 H W).

    scale        how firmly the instruction is followed (the paper's s_T; 1 to 15)
    image_scale  how closely the picture is kept (s_I; 1 to 2.5)
    sampler      as in `Pipe.solve`: ddim, plms or dpm++

    `decode=False` returns the latents (b c h w). ValueError: a size that does not fit, a network
    that takes no picture.
    """
    c = pipe.shape[0]
    if pipe.vae is None or pipe.net.in_channels != 2 * c:
        raise ValueError(
            f"{pipe.name or 'this network'} takes {pipe.net.in_channels} channels; one that edits "
            f"by instruction takes {2 * c} ({c} of state, {c} of the picture)"
        )
    z = pipe.encode(image) / pipe.vae.scale  # b c h w, unscaled
    cond, null = (pipe.embed(p).expand(len(z)).replace(image=z) for p in (instruction, negative))
    guided = two_scales(pipe.eps, null, scale, image_scale)
    x = pipe.start_std * noise(z.shape, seed, z.device, z.dtype)
    x = pipe.solve(guided, x, cond, steps=steps, sampler=sampler, seed=seed, progress=progress)
    return pipe.decode(x) if decode else x


def two_scales(denoise: Denoise, null: Cond, scale: float, image_scale: float) -> Denoise:
    """Guide by words and picture apart, in one call on three
    times the rows; `null` has the picture, not the words.
    """

    def guided(x_t, t, cond):
        b = len(x_t)
        nothing = null.replace(image=torch.zeros_like(null.image))
        # rows: [both, picture, nothing]
        rows = Cond.cat([c.expand(b) for c in (cond, null, nothing)])
        t = torch.cat([t] * 3) if isinstance(t, Tensor) else t
        both, picture, neither = denoise(torch.cat([x_t] * 3), t, rows).chunk(3)
        # away from nothing towards the picture, and from there towards the words
        return neither + image_scale * (picture - neither) + scale * (both - picture)

    return guided
