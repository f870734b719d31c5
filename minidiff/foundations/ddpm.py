"""Denoising Diffusion Probabilistic Models, in pixels and with classes.

Jonathan Ho, Ajay Jain, Pieter Abbeel, 2020, arXiv 2006.11239.

    L_simple = E |eps - eps_theta(alpha_t x0 + sigma_t eps, t)|^2    eq. 14, here on any target

Trains `tiny-pixel`: 32x32 pictures, one class label each ("red circle", or CIFAR-10's), dropped in
a tenth of the rows. The loss itself is `latent_diffusion.diffusion_loss`; a picture is a latent
with three channels. Try: `schedule="linear"`, prediction "eps", or CIFAR-10. Weakness: every step
costs a full-size network; that is why latents came.
"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.foundations.latent_diffusion import draw_times


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
