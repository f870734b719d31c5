"""Visual anagrams: one picture that shows two things, depending on how it is held.

Daniel Geng, Inbum Park, Andrew Owens, "Visual Anagrams: Generating Multi-View Optical Illusions
with Diffusion Models", 2023, arXiv 2311.17919.

Ask the network twice at every step: about the state as it is, with one prompt, and about the state
turned round, with the other. Turn the second answer back, take the mean, step as always.

    eps = (eps(x_t, a) + V^-1 eps(V x_t, b)) / 2

V may be any turn of the space of pictures that keeps lengths: then V n is unit Gaussian whenever n
is, and V x_t is a noisy picture of the right noise level, V x_t = alpha_t V x0 + sigma_t V n.
Turns, flips, the negative (-x) and every rearrangement of pixels qualify; a blur or a change of
contrast does not. To average two scores is to draw from the normalised sqrt(p(x | a) p(V x | b)):
pictures that both prompts find likely, if there are any.

Try: every view of `VIEWS`, on "tiny-pixel" with the classes "yellow circle" and "blue circle" and
view="negative"; two prompts that each say one half ("a red star on the left ...", "a small red star
..."); two that contradict each other; `alternate`, one prompt per step, which costs half.

Weakness: on latents a turn is not exact. The autoencoder's filters have no symmetry, so the turned
latent is only nearly the latent of the turned picture (the paper uses a pixel model for that
reason), and the negative does not exist there at all: it is refused. `latent_error` measures how
far off a view is for the model at hand. And nothing warns of prompts that no picture satisfies: the
mean of two answers is then a compromise that shows neither.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.pipe.checks import door
from minidiff.pipe.pipe import Pipe


@dataclass(frozen=True)
class View:
    """`do` to a batch (b c h w) and its inverse `undo`; `pixels`: has no meaning on latents."""

    do: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor]
    pixels: bool = False


def turn(quarters: int) -> View:
    """Rotation by so many quarters, counted against the clock."""
    return View(lambda x: x.rot90(quarters, (2, 3)), lambda x: x.rot90(-quarters, (2, 3)))


def flip(axis: int) -> View:
    return View(lambda x: x.flip(axis), lambda x: x.flip(axis))


def jigsaw(cells: int, seed: int = 0) -> View:
    """The picture cut into cells x cells squares that change places. `cells` = side: a
    rearrangement of single pixels.
    """
    order = torch.randperm(cells**2, generator=torch.Generator().manual_seed(seed))

    def move(x: Tensor, order: Tensor) -> Tensor:
        if x.shape[2] % cells or x.shape[3] % cells:
            raise ValueError(
                f"a picture or latent of {x.shape[2]} x {x.shape[3]} cannot be cut into {cells} x "
                f"{cells}"
            )
        # b c n ph pw
        squares = (
            x.unflatten(3, (cells, -1)).unflatten(2, (cells, -1)).transpose(3, 4).flatten(2, 3)
        )
        squares = squares[:, :, order.to(x.device)].unflatten(2, (cells, cells))
        return squares.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # b c h w

    return View(lambda x: move(x, order), lambda x: move(x, order.argsort()))


VIEWS = {
    "rotate180": turn(2),
    "counterclockwise": turn(1),
    "clockwise": turn(3),
    "mirror": flip(3),
    "flip": flip(2),
    "negative": View(torch.neg, torch.neg, pixels=True),
    "jigsaw": jigsaw(2),
    "pixels": jigsaw(32),
}


def chosen(pipe: Pipe, view: str) -> View:
    """The view of that name; ValueError if it is unknown or has no meaning for this model."""
    if view not in VIEWS:
        raise ValueError(f"view {view!r} is unknown; choose one of: {', '.join(VIEWS)}")
    if VIEWS[view].pixels and pipe.vae is not None:
        raise ValueError(
            f"{pipe.name or 'this model'} works on latents, and the {view} of a latent is not the "
            f"latent of the {view}; take a pixel model (tiny-pixel) or one of: "
            f"{', '.join(n for n, v in VIEWS.items() if not v.pixels)}"
        )
    return VIEWS[view]


@door
@torch.no_grad()
def visual_anagrams(
    pipe: Pipe,
    prompt: str,
    other: str,
    *,
    view: Literal[
        "rotate180",
        "counterclockwise",
        "clockwise",
        "mirror",
        "flip",
        "negative",
        "jigsaw",
        "pixels",
    ] = "rotate180",
    alternate: bool = False,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures (2b 3 H W), rows [as the view shows them, upright], for b pairs of prompts.

    prompt     what the picture shows upright; a class name for tiny-pixel
    other      what it shows through the view
    view       how it is looked at the second time
    alternate  one of the two prompts per step instead of the mean of both: half the cost, less
               steady
    scale      guidance of both answers; default: the model's own

    Row i of the upright half depends on seed + i alone. ValueError: a view that is unknown or, like
    "negative", needs a pixel model; differing numbers of prompts; no steps.
    """
    v = chosen(pipe, view)
    a = pipe.embed(prompt)
    b = pipe.embed(other)
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} prompt(s) for the picture upright, {len(b)} for the other view: give pairs"
        )
    denoise = cfg_batched(pipe.eps, pipe.null(), scale)
    x = pipe.start(len(a), seed)
    v.do(x)  # a jigsaw that does not fit says so now
    for i, (t, s) in enumerate(step_pairs(pipe.timesteps(steps), progress)):
        sides = []
        if not alternate or i % 2 == 0:
            sides.append(denoise(x, t, a))
        if not alternate or i % 2 == 1:
            sides.append(v.undo(denoise(v.do(x), t, b)))  # turn the answer back, not the state
        x = ddim_step(pipe.schedule, x, torch.stack(sides).mean(0), t, s)
    image = pipe.decode(x)
    return torch.cat([v.do(image), image])


@torch.no_grad()
def latent_error(pipe: Pipe, image: Tensor, view: str) -> float:
    """How far the model's latents are from turning with pictures (b 3 H W): 0 is exact.

    The distance between turned latents and the latents of turned pictures, relative to the latents'
    spread.
    """
    v = chosen(pipe, view)
    z = pipe.encode(image)
    return ((v.do(z) - pipe.encode(v.do(image))).square().mean().sqrt() / z.std()).item()
