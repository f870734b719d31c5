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
from minidiff.evaluate.synthesis import GROUND_TOLERANCE, INK, PALETTE, coverage_map, fit_ground

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
    return [_see((x.detach().float().cpu().clamp(-1, 1) + 1) / 2) for x in images]


def _see(x: Tensor) -> dict:
    ground = fit_ground(x)
    found = blobs(x, ground.image)
    inks = [x[:, m].median(dim=1).values for _, m in found]
    places = [centroid(m) for _, m in found]
    sides = (
        drawn._region(x, ground.image, inks, places)
        if len(found) <= 2 and found
        else [torch.ones(64, 64)] * len(found)
    )
    objects = [
        _describe(x, ground.image, word, ink, side * others(found, k))
        for k, ((word, _), ink, side) in enumerate(zip(found, inks, sides))
    ]
    if len(objects) == 2:  # the left or upper one first
        a, b = objects
        across = abs(a["x"] - b["x"]) >= abs(a["y"] - b["y"])
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
    d = (x[None] - PALETTE[:, :, None, None]).norm(dim=1)  # 8 64 64
    solid = (d == d.min(0).values) & (d < INK) & ((x - ground).norm(dim=0) > GROUND_TOLERANCE)
    solid = -F.max_pool2d(-solid.float(), 3, 1, 1)  # erode: mixed colours of edges go
    out = [
        (word, m)
        for word, layer in zip(COLORS, solid)
        if layer.sum() >= LEAST
        for m in components(layer)
    ]
    return sorted(out, key=lambda o: -o[1].sum().item())


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
    parts = []
    for k in label.unique()[label.unique() > 0]:
        m = label == k
        twin = next((i for i, p in enumerate(parts) if dist(centroid(p), centroid(m)) < near), None)
        if twin is None:
            parts.append(m)
        else:
            parts[twin] = parts[twin] | m
    return [m for m in parts if m.sum() >= LEAST]


def centroid(m: Tensor) -> tuple[float, float]:
    """(x, y) of the middle of a mask."""
    ys, xs = m.nonzero().float().unbind(1)
    return xs.mean().item(), ys.mean().item()


def others(found: list[tuple[str, Tensor]], k: int) -> Tensor:
    """(64 64): 0 on the inner pixels of the other objects, whose colours mean nothing to object
    k.
    """
    rest = [m for i, (_, m) in enumerate(found) if i != k]
    return (
        1 - F.max_pool2d(torch.stack(rest).any(0).float()[None], 5, 1, 2)[0]
        if rest
        else torch.ones(64, 64)
    )


def candidates(cover: Tensor, n: int = 3) -> list[str]:
    """The n shapes that fit a coverage map (64 64) best at first sight, at nine radii and angles
    each.
    """
    x, y, mass = drawn._solid(cover)
    first = {}
    for shape in SHAPES:
        area, below = drawn._moments(shape)
        r = (mass / area).sqrt().clamp(6, 19)
        radius, angle = torch.cartesian_prod(
            torch.tensor([0.9, 1.0, 1.1]), torch.tensor([-0.12, 0.0, 0.12])
        ).unbind(1)
        # 9 64 64
        masks = coverage(shape, x.expand(9), (y - below * r).expand(9), r * radius, angle)
        first[shape] = ((masks - cover) ** 2).sum((1, 2)).min().item()
    return sorted(first, key=first.get)[:n]


def _describe(x: Tensor, ground: Tensor, word: str, ink: Tensor, region: Tensor) -> dict:
    cover = coverage_map(x, ground, ink) * region
    fits = sorted(
        (drawn._measure(x, ground, cover, k) for k in candidates(cover)), key=lambda f: f.error
    )
    sure = fits[1].error >= SURE * fits[0].error and fits[0].iou >= WHOLE
    return {
        "shape": fits[0].shape if sure else None,
        "color": word,
        "size": fits[0].size,
        "x": fits[0].x,
        "y": fits[0].y,
    }
