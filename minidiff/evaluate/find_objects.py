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

A picture of the hard split carries what no word names (`data/unseen.py`), and what it carries is
known. So it is taken off before anything is read, as a reader would who was told of it:

    light               divided out, if it is there
    mark, thing, frame  say nothing: their pixels are filled with the fitted ground, unless
                        something in a colour of the palette has come to lie there
    hues                of the ground: added to the grounds that it is compared with
    stripes, outline    belong to the object: a pixel off the ground is of the colour that most of
                        the pixels around it have, and their colour counts as the object's own
    grain               stays; colours are therefore matched more loosely

An edit that lost such a detail is read as one that kept it: that is for other scores to say.

Weakness: an object of a colour that is not near the palette is no object, and one painted in two
colours is two.
"""

from collections.abc import Sequence
from math import dist

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import unseen
from minidiff.data.shapes import COLORS, SHAPES, coverage
from minidiff.data.unseen import Unseen
from minidiff.evaluate import synthesis as drawn
from minidiff.evaluate.synthesis import (
    GROUND_TOLERANCE,
    PALETTE,
    Ground,
    coverage_map,
    fit_ground,
    inner_pixels,
    ranked_fits,
    to_unit,
)

LEAST = 20  # pixels of an object, eroded; the smallest has about 60
SURE = 1.1  # error of the second-best shape over that of the best
LOOSE = 0.3  # RGB distance at which a pixel with nuisances has a palette colour
AROUND = 7  # pixels whose colours vote
WHOLE = 0.75  # IoU with it: copies of the autoencoder .86 or more, half rings .6


def see(images: Tensor, nuisances: Sequence[Unseen | None] | None = None) -> list[dict]:
    """What is in pictures (b 3 64 64) in [-1, 1]: {"objects": [{shape, color, size, x, y}],
    "position", "background", "texture"} each, like the learned oracle's `read`: of two objects the
    left or upper one comes first. `nuisances`: what each is known to carry.
    """
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64):
        raise ValueError(
            f"pictures of shape {tuple(images.shape)}: expected (b, 3, 64, 64) in [-1, 1]"
        )
    known = [None] * len(images) if nuisances is None else list(nuisances)
    if len(known) != len(images):
        raise ValueError(f"{len(images)} pictures, but {len(known)} nuisances: one each, or None")
    return [_see(x, nuisance) for x, nuisance in zip(to_unit(images), known)]


def _see(x: Tensor, nuisance: Unseen | None) -> dict:
    if nuisance is None:
        ground = fit_ground(x)
        layers = inner_pixels(x, ground.image)
    else:
        x, ground = taken_off(x, nuisance)
        layers = voted_pixels(x, ground.image)
    parts = blobs(layers)
    masks = [mask for _, mask in parts]
    inks = [_ink(x, word, mask) for word, mask in parts]
    if 1 <= len(parts) <= 2:
        middles = [centroid(mask) for mask in masks]
        sides = drawn._region(x, ground.image, inks, middles)
    else:
        sides = [torch.ones(64, 64)] * len(parts)
    objects = []
    for k, (word, _) in enumerate(parts):
        others = masks[:k] + masks[k + 1 :]
        region = sides[k] * without(others)
        cover = coverage_map(x, ground.image, inks[k])
        if nuisance is not None and on_objects(nuisance) is not None:
            cover = torch.maximum(cover, coverage_map(x, ground.image, on_objects(nuisance)))
        objects.append(_describe(x, ground.image, word, cover * region))
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


def taken_off(x: Tensor, nuisance: Unseen) -> tuple[Tensor, Ground]:
    """A picture (3 64 64) in 0..1 without its light and without what lies on its ground, and that
    ground. Whether the light is still there is seen from which reading leaves less unexplained.
    """
    covers = [cover for _, cover in unseen.on_ground(nuisance)]
    if nuisance.frame:
        covers.append(unseen.edge())
    hidden = torch.zeros(64, 64)
    if covers:
        hidden = (torch.stack(covers).amax(0) > 0).float()
        hidden = F.max_pool2d(hidden[None], 3, 1, 1)[0]  # and a pixel around
    readings = []
    for light in (unseen.light(nuisance), torch.ones(64, 64)):
        lit = (x / light).clamp(0, 1)
        ground = fit_ground(lit, 1 - hidden, nuisance.hues[2])
        unexplained = (lit - ground.image).norm(dim=0)[hidden == 0].median().item()
        readings.append((unexplained, lit, ground))
    _, x, ground = min(readings, key=lambda reading: reading[0])
    distance = (x[None] - PALETTE[:, :, None, None]).norm(dim=1).amin(0)  # to the nearest colour
    filled = (hidden > 0) & (distance > drawn.INK)
    return torch.where(filled, ground.image, x), ground


def on_objects(nuisance: Unseen) -> Tensor | None:
    """The colour (3,) of what is drawn on the objects themselves."""
    if nuisance.stripes:
        return torch.tensor(nuisance.stripes[0])
    return torch.tensor(nuisance.outline) if nuisance.outline else None


def voted_pixels(x: Tensor, ground: Tensor) -> Tensor:
    """(8 64 64) of 0 and 1, like `inner_pixels`: the pixels off the ground, one pixel inside, go to
    the palette's colour that most pixels around them have.
    """
    distance = (x[None] - PALETTE[:, :, None, None]).norm(dim=1)  # 8 64 64
    off_ground = (x - ground).norm(dim=0) > GROUND_TOLERANCE
    nearest = distance == distance.amin(0)
    seeds = (nearest & (distance < LOOSE) & off_ground).float()
    votes = F.avg_pool2d(seeds, AROUND, 1, AROUND // 2)
    won = (votes == votes.amax(0)) & (votes > 0) & off_ground
    return -F.max_pool2d(-won.float(), 3, 1, 1)  # erode


def _ink(x: Tensor, word: str, mask: Tensor) -> Tensor:
    """The colour (3,) of an object: the median of those of its pixels that are near its word."""
    pixels = x[:, mask]  # 3 p
    far = (pixels - torch.tensor(COLORS[word])[:, None]).norm(dim=0) > LOOSE
    own = pixels if far.all() else pixels[:, ~far]
    return own.median(dim=1).values


def blobs(layers: Tensor) -> list[tuple[str, Tensor]]:
    """(colour word, mask (64 64)) of each object, of the inner pixels of every colour (8 64 64);
    largest first.
    """
    out = []
    for word, layer in zip(COLORS, layers):
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


def _describe(x: Tensor, ground: Tensor, word: str, cover: Tensor) -> dict:
    best, second, *_ = ranked_fits(x, ground, cover, candidates(cover))
    sure = second.error >= SURE * best.error and best.iou >= WHOLE
    return {
        "shape": best.shape if sure else None,
        "color": word,
        "size": best.size,
        "x": best.x,
        "y": best.y,
    }
