"""Denoising Diffusion Probabilistic Models, in pixels and with classes.

Jonathan Ho, Ajay Jain, Pieter Abbeel, 2020, arXiv 2006.11239.

    L_simple = E |eps - eps_theta(alpha_t x0 + sigma_t eps, t)|^2    eq. 14, here on any target

Here it trains `tiny-pixel`: 32x32 pictures, one class label each ("red circle", or CIFAR-10's),
dropped in a tenth of the rows. The loss itself is `latent_diffusion.diffusion_loss`; a picture is a
latent with three channels. In the plane it is the paper's own: linear tables of a thousand steps, a
network that predicts noise, the chain of `samplers.ddpm`.

Try: `schedule="linear"`, prediction "eps", or CIFAR-10. Weakness: every step costs a full-size
network; that is why latents came.
"""

import numpy as np
import torch
from torch import Tensor, nn

from minidiff.core.schedule import linear
from minidiff.data import shapes
from minidiff.foundations.latent_diffusion import diffusion_loss, draw_times
from minidiff.foundations.plane import Learned, PlaneNet, ask, standard
from minidiff.samplers.ddpm import ddpm

# ---- pictures ------------------------------------------------------------------------------------


def _batch(
    rng: np.random.Generator, x0: Tensor, label: Tensor, classes: int, T: int, drop: float
) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(int(rng.integers(2**62)))
    dropped = torch.from_numpy(rng.random(len(x0)) < drop)
    label = torch.where(dropped, classes, label)  # one more than the last: no class
    t = draw_times(rng, len(x0), T, mean=0.2)
    eps = torch.randn(x0.shape, generator=stream)
    return {"x0": x0, "label": label, "t": t, "eps": eps}


def class_of(s: shapes.Scene) -> int:
    """Index of a one-object scene's "colour shape" class."""
    thing = s.objects[0]
    color = list(shapes.COLORS).index(thing.color)
    return shapes.SHAPES.index(thing.shape) * len(shapes.COLORS) + color


def shape_batches(size: int, seed: int, T: int, drop: float = 0.1):
    """batch(step): fresh 32x32 renders of one-object training scenes with their class."""

    classes = len(shapes.SHAPES) * len(shapes.COLORS)

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        scenes = [shapes.scene(rng, objects=1, split="train") for _ in range(size)]
        label = torch.tensor([class_of(s) for s in scenes])
        return _batch(rng, shapes.render(scenes, 32), label, classes, T, drop)

    return batch


def picture_batches(
    images: Tensor, labels: Tensor, classes: int, size: int, seed: int, T: int, drop: float = 0.1
):
    """batch(step): random rows of a data set (uint8 n 3 32
    32, labels n), flipped left to right half of the time.
    """

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        rows = torch.from_numpy(rng.integers(len(images), size=size))
        x = images[rows].float() / 127.5 - 1
        flipped = torch.from_numpy(rng.random(size) < 0.5)
        x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        return _batch(rng, x, labels[rows].long(), classes, T, drop)

    return batch


# ---- the plane -----------------------------------------------------------------------------------

SCHEDULE = linear()


def network() -> nn.Module:
    """Says noise."""
    return PlaneNet()


def loss(net: nn.Module, x0: Tensor, g: torch.Generator) -> Tensor:
    """L_simple, summed over coordinates."""
    T = SCHEDULE.T
    t = torch.randint(1, T + 1, (len(x0),), generator=g)
    eps = torch.randn(x0.shape, generator=g)
    rows = {"x0": x0, "eps": eps, "t": t}
    mean = diffusion_loss(lambda x, time, _: net(x, (time + 1) / T), rows, SCHEDULE, "eps")
    return x0.shape[1] * mean


def learned(net: nn.Module) -> Learned:
    """The chain of the paper, with the smaller variance, on as many of its times as there are
    steps.
    """
    T = SCHEDULE.T

    def index(u: float) -> int:
        return min(max(round(u * T), 1), T)

    def eps(x: Tensor, t: int, cond=None) -> Tensor:
        return ask(net, x, t / T)

    def levels(u: float) -> tuple[float, float]:
        return SCHEDULE.at(index(u))

    def score(x: Tensor, u: float) -> Tensor:
        _, sigma = levels(u)
        return -eps(x, index(u)) / sigma

    @torch.no_grad()
    def sample(n: int, steps: int, seed: int) -> Tensor:
        return ddpm(eps, SCHEDULE, standard(n, seed), steps=steps, seed=seed)

    return Learned(levels, sample, score)
