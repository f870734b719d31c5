"""O1 as the bench uses it: which objects a picture shows, and what they are, told nothing.

`synthesis.read` is told how many objects to look for. An edit may leave one too many or none, so
here they are found: what the fitted ground does not explain, has a colour of the palette and is
more than an edge is an object,

    object = connected pixels of one palette colour, off the ground, eroded by one pixel,
             at least 20 of them left

and each is then drawn again in the likeliest shapes, every size, place and angle, as `synthesis`
does; the drawing nearest to the picture says what it is. A shape whose runner-up fits almost as
well (error below 1.1 of the best) is "unsure", and counts as wrong; so does a fragment, which
shares less than three quarters of its silhouette with the nearest whole shape.

Weakness: an object of a colour that is not near the palette is no object, and one painted in two
colours is two.
"""

from math import dist

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data.shapes import COLORS, SHAPES, coverage
from minidiff.evaluate import synthesis as drawn
from minidiff.evaluate.synthesis import (
    coverage_map,
    fit_ground,
    inner_pixels,
    ranked_fits,
    to_unit,
)

LEAST = 20  # pixels of an object, eroded; the smallest has about 60
SURE = 1.1  # error of the second-best shape over that of the best
WHOLE = 0.75  # IoU with it: copies of the autoencoder .86 or more, half rings .6


def see(images: Tensor) -> list[dict]:
    """What is in pictures (b 3 64 64) in [-1, 1]: {"objects": [{shape, color, size, x, y}],
    "position", "background", "texture"} each, like the learned oracle's `read`: of two objects the
    left or upper one comes first.
    """
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64):
        raise ValueError(
            f"pictures of shape {tuple(images.shape)}: expected (b, 3, 64, 64) in [-1, 1]"
        )
    return [_see(x) for x in to_unit(images)]


def _see(x: Tensor) -> dict:
    ground = fit_ground(x)
    parts = blobs(x, ground.image)
    masks = [mask for _, mask in parts]
    inks = [x[:, mask].median(dim=1).values for mask in masks]
    if 1 <= len(parts) <= 2:
        middles = [centroid(mask) for mask in masks]
        sides = drawn._region(x, ground.image, inks, middles)
    else:
        sides = [torch.ones(64, 64)] * len(parts)
    objects = []
    for k, (word, _) in enumerate(parts):
        others = masks[:k] + masks[k + 1 :]
        region = sides[k] * without(others)
        objects.append(_describe(x, ground.image, word, inks[k], region))
    if len(objects) == 2:  # the left or upper one first
        a, b = objects
        dx = abs(a["x"] - b["x"])
        dy = abs(a["y"] - b["y"])
        across = dx >= dy
        objects.sort(key=lambda o: o["x"] if across else o["y"])
    return {
        "objects": objects,
        "position": drawn._position(objects) if len(objects) < 3 else None,
        "background": ground.background,
        "texture": ground.texture,
    }


def blobs(x: Tensor, ground: Tensor) -> list[tuple[str, Tensor]]:
    """(colour word, mask (64 64) of its inner pixels) of each object of a picture (3 64 64) in
    0..1, largest first.
    """
    out = []
    for word, layer in zip(COLORS, inner_pixels(x, ground)):
        if layer.sum() >= LEAST:
            out += [(word, part) for part in components(layer)]
    return sorted(out, key=lambda part: -part[1].sum().item())


def components(layer: Tensor, near: float = 20.0) -> list[Tensor]:
    """Connected parts (8 neighbours) of a 0/1 mask (64 64), as bool masks of `LEAST` pixels or
    more. Parts whose middles are less than `near` pixels apart are one: two objects are at least 28
    apart, the pieces of a broken ring are not.
    """
    label = torch.arange(1.0, 4097).view(64, 64) * layer
    while True:  # the largest number floods its part
        grown = F.max_pool2d(label[None], 3, 1, 1)[0] * layer
        if torch.equal(grown, label):
            break
        label = grown
    parts: list[Tensor] = []
    for number in label.unique()[label.unique() > 0]:
        part = label == number
        middle = centroid(part)
        twins = [i for i, other in enumerate(parts) if dist(centroid(other), middle) < near]
        if twins:
            parts[twins[0]] = parts[twins[0]] | part
        else:
            parts.append(part)
    return [part for part in parts if part.sum() >= LEAST]


def centroid(m: Tensor) -> tuple[float, float]:
    """(x, y) of the middle of a mask."""
    ys, xs = m.nonzero().float().unbind(1)
    return xs.mean().item(), ys.mean().item()


def without(masks: list[Tensor]) -> Tensor:
    """(64 64): 0 on the inner pixels of these objects and two around, whose colours mean nothing to
    another one; else 1.
    """
    if not masks:
        return torch.ones(64, 64)
    taken = torch.stack(masks).any(0).float()
    return 1 - F.max_pool2d(taken[None], 5, 1, 2)[0]


def candidates(cover: Tensor, n: int = 3) -> list[str]:
    """The n shapes that fit a coverage map (64 64) best at first sight, at nine radii and angles
    each.
    """
    x, y, mass = drawn._solid(cover)
    radii = torch.tensor([0.9, 1.0, 1.1])
    angles = torch.tensor([-0.12, 0.0, 0.12])
    radius, angle = torch.cartesian_prod(radii, angles).unbind(1)  # 9
    error = {}
    for shape in SHAPES:
        area, below = drawn._moments(shape)
        r = (mass / area).sqrt().clamp(6, 19)
        middle = y - below * r
        masks = coverage(shape, x.expand(9), middle.expand(9), r * radius, angle)  # 9 64 64
        errors = ((masks - cover) ** 2).sum((1, 2))
        error[shape] = errors.min().item()
    return sorted(error, key=error.get)[:n]


def _describe(x: Tensor, ground: Tensor, word: str, ink: Tensor, region: Tensor) -> dict:
    cover = coverage_map(x, ground, ink) * region
    best, second, *_ = ranked_fits(x, ground, cover, candidates(cover))
    sure = second.error >= SURE * best.error and best.iou >= WHOLE
    return {
        "shape": best.shape if sure else None,
        "color": word,
        "size": best.size,
        "x": best.x,
        "y": best.y,
    }
