"""Hybrid images: one picture that shows one thing from afar and another from nearby.

Daniel Geng, Inbum Park, Andrew Owens, "Factorized Diffusion: Perceptual Illusions by Noise
Decomposition", 2024, arXiv 2404.11615. The hybrid image itself: Aude Oliva, Antonio Torralba,
Philippe Schyns, "Hybrid images", SIGGRAPH 2006.

Cut every picture into parts that add up to it: coarse and fine, grey and colour, left and right.
Ask the network once for each prompt, keep of each answer the part that is that prompt's, and add:

    eps = f(eps(x_t, a)) + eps(x_t, b) - f(eps(x_t, b)),        f linear

The step from x_t to x_s is a sum of x_t and eps with numbers for factors. So f of the next state is
made of f(x_t) and f(eps(x_t, a)) alone: each part walks the path of its own prompt, and all that
ties them together is that the network sees the whole.

Try: `part="blur"` with `cut` from 1/32 to 1/8; "a large yellow circle ..." seen from afar with "a
small star ..."; "left" for two prompts side by side; "grey" on "tiny-pixel".

Weakness: the cut is exact where the network works. On latents a coarse part is only nearly that of
the picture, and a grey part is nothing at all, so it is refused. And where the parts do not fit, as
with two objects in two places, both are drawn: nothing tells the two prompts to agree.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe

PARTS = ("blur", "grey", "left")


def hybrid_noise(eps_a: Tensor, eps_b: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
    """One noise (b c h w) of two: the part of the first, and of the second all but that part.

    `part` is linear, and so the two parts of equal answers add up to the answer.
    """
    return part(eps_a) + eps_b - part(eps_b)


# ---- parts ---------------------------------------------------------------------------------------


def low_pass(x: Tensor, sigma: float) -> Tensor:
    """x (b c h w) blurred by a Gaussian of `sigma` pixels; the edge is mirrored."""
    reach = min(round(3 * sigma), min(x.shape[2:]) - 1)
    places = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weight = torch.exp(-(places**2) / (2 * sigma**2))
    weight = weight / weight.sum()
    c = x.shape[1]
    rows = weight.view(1, 1, 1, -1).expand(c, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), rows, groups=c)
    columns = weight.view(1, 1, -1, 1).expand(c, 1, -1, 1)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), columns, groups=c)


def greyness(x: Tensor) -> Tensor:
    """The mean of the colours in each of them."""
    return x.mean(1, keepdim=True).expand_as(x)


def left_half(x: Tensor) -> Tensor:
    """x with nothing in its right half."""
    kept = torch.zeros_like(x)
    half = x.shape[3] // 2
    kept[..., :half] = x[..., :half]
    return kept


def chosen(pipe: Pipe, part: str, cut: float) -> Callable[[Tensor], Tensor]:
    """The part of that name as a function; ValueError if it is unknown or has no meaning for this
    model.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} is unknown; choose one of: {', '.join(PARTS)}")
    if part == "grey" and pipe.vae is not None:
        raise ValueError(
            f"{pipe.name or 'this model'} works on latents, whose channels are no colours; take a "
            "pixel model (tiny-pixel), or part blur or left"
        )
    if not 0 < cut <= 0.5:
        raise ValueError(f"cut={cut}: expected more than 0 and at most 0.5 of the picture's side")
    sigma = cut * pipe.shape[-1]
    return {"blur": lambda x: low_pass(x, sigma), "grey": greyness, "left": left_half}[part]


# ---- the picture ---------------------------------------------------------------------------------


@door
@torch.no_grad()
def hybrid_images(
    pipe: Pipe,
    prompt: str,
    other: str,
    *,
    part: Literal["blur", "grey", "left"] = "blur",
    cut: float = 0.0625,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (b 3 H W), one for each pair of prompts.

    prompt  what the part shows: the picture from afar, in grey, or on the left
    other   what the rest shows: from nearby, in its colours, or on the right
    part    where the two are cut apart
    cut     of "blur": the width of the blur as a share of the side
    scale   guidance of both answers; default: the model's own

    Picture i depends on seed + i alone. Four evaluations a step with guidance. ValueError: "grey"
    on latents; differing numbers of prompts; a `cut` outside 0..0.5; no steps.
    """
    f = chosen(pipe, part, cut)
    a = pipe.embed(prompt)
    b = pipe.embed(other)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} prompt(s) for the part, {len(b)} for the rest: give pairs")
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    x = pipe.start(len(a), seed)
    for t, s in step_pairs(pipe.timesteps(steps), progress):
        eps = hybrid_noise(denoise(x, t, a), denoise(x, t, b), f)
        x = ddim_step(pipe.schedule, x, eps, t, s)
    return pipe.decode(x)
