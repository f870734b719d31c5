"""O1, the oracle that learns nothing: analysis by synthesis.

To read a picture, draw it. The background is the (colour, texture, phase) whose ideal render fits
best; what it does not explain is the objects. Each object's colour is the palette's nearest, and
its shape, size and place are those of the ideal mask that fits best, searched coarse to fine over
place, radius and angle:

    shape, size = argmin over s, r, x, y, angle of
                  sum_pixels (coverage - mask(s, r, x, y, angle))^2
    coverage    = <pixel - ground, colour - ground> / |colour - ground|^2, cut to [0, 1]
                  1 is object, 0 is ground

`silhouette_iou` uses the same search to measure what a forced choice cannot see: how far the
outline of a picture that shows the right shape is from that shape. Wavy edges, concave triangles
and half-filled rings lower it.

Weakness: needs two objects of different colours (alike ones are told apart by the places the scene
states) and flat colours; a strong brightness error ends the palette matching before the network
oracle notices. Try changing: a larger range of angles, and see squares pass for diamonds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.data.shapes import (
    BACKGROUNDS,
    COLORS,
    PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
)

PALETTE = torch.tensor(list(COLORS.values()))  # 8 3, RGB in 0..1
GROUNDS = torch.tensor(list(BACKGROUNDS.values()))  # 8 3
STEPS = torch.tensor([shapes.step(background) for background in BACKGROUNDS])
# of the phases, pixels
PERIODS = {"plain": (1, 1), "striped": (10, 1), "checkered": (16, 16), "dotted": (12, 12)}
INK = 0.22  # a pixel this near in RGB distance has a palette colour
EXTENT = 1.3  # the farthest corner of any shape from its place, in radii (a triangle's: 1.28)
GROUND_TOLERANCE = 0.13  # and this near it belongs to the fitted background


# ---- background ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """A fitted background: its words and its picture (3 64 64) in 0..1."""

    background: str
    texture: str
    image: Tensor


def _tone(texture: str, phases: list[tuple[float, float]]) -> Tensor:
    """Second-tone coverage (n, 64, 64) of one texture, read off empty renders."""
    empty = [Scene((), "center", "white", texture, phase) for phase in phases]
    red = (shapes.render(empty)[:, 0] + 1) / 2
    return (BACKGROUNDS["white"][0] - red) / 0.15


@cache
def _tones() -> tuple[Tensor, tuple[tuple[str, tuple[float, float]], ...]]:
    """Every texture at every whole-pixel phase: coverages (n, 64, 64), and what each is."""
    tones = []
    keys = []
    for texture, (width, height) in PERIODS.items():
        phases = [(float(i), float(j)) for i in range(width) for j in range(height)]
        tones.append(_tone(texture, phases))
        keys += [(texture, phase) for phase in phases]
    return torch.cat(tones), tuple(keys)


def fit_ground(
    x: Tensor, looked_at: Tensor | None = None, hue: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Ground:
    """Background of a picture (3 64 64) in 0..1: colour by counting pixels, then texture and phase
    by least squares. `looked_at` (64 64): 0 where the picture shows no ground for certain; `hue`:
    what is known to be added to the colours of the grounds.
    """
    shown = torch.ones(64, 64) if looked_at is None else looked_at
    grounds = GROUNDS + torch.tensor(hue)

    def near(color: Tensor) -> Tensor:
        return (x - color[:, None, None]).norm(dim=0)  # h w

    explained = []  # by each colour, in either tone
    for color, step in zip(grounds, STEPS):
        miss = torch.minimum(near(color), near(color + step))
        explained.append((miss < GROUND_TOLERANCE) & (shown > 0))
    k = int(torch.stack([pixels.sum() for pixels in explained]).argmax())
    step = STEPS[k]
    seen = explained[k].float()

    tones, keys = _tones()
    best = int(_misfit(x, seen, tones, step).argmin())
    texture, (px, py) = keys[best]
    finer = [(0.0, 0.0)]
    if texture != "plain":
        quarters = [i / 4 for i in range(-3, 4)]
        finer = [(px + dx, py + dy) for dx in quarters for dy in quarters]
    tones = _tone(texture, finer)
    tone = tones[int(_misfit(x, seen, tones, step).argmin())]

    pattern = step * tone
    color = ((x - pattern) * seen).sum((1, 2)) / seen.sum().clamp_min(1)  # 3
    return Ground(tuple(BACKGROUNDS)[k], texture, color[:, None, None] + pattern)


def _misfit(x: Tensor, seen: Tensor, tones: Tensor, step: Tensor) -> Tensor:
    """Squared error over the seen pixels of ground + step * tone, the ground's colour fitted, for
    each tone: (n,).
    """
    w = (seen / seen.sum().clamp_min(1)).flatten()  # p
    y = x.flatten(1)  # 3 p
    t = tones.flatten(1)  # n p
    mean_y = y @ w
    mean_t = t @ w
    cross = t @ (w * y.sum(0)) - mean_t * mean_y.sum()  # n
    return -2 * step * cross + 3 * step**2 * ((t * t) @ w - mean_t**2)  # + a constant


# ---- objects -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """The best-fitting ideal render of one shape: `error` the squared misfit in pixels, `iou` of
    the two silhouettes, `hole` how far the inside of a ring is from the background (RGB distance; 0
    for other shapes).
    """

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    error: float
    iou: float
    hole: float = 0.0

    @property
    def size(self) -> str:
        return min(SIZES, key=lambda s: abs(SIZES[s] - self.radius))


@cache
def _moments(shape: str) -> tuple[float, float]:
    """(area / radius^2, how far the centroid lies below the centre / radius) of a shape."""
    x, y, radius, angle = torch.tensor([[31.5], [31.5], [15.0], [0.0]])
    mask = shapes.coverage(shape, x, y, radius, angle)[0]
    area = mask.sum()
    below = (mask * (torch.arange(64.0)[:, None] - 31.5)).sum() / area
    return area.item() / 225, below.item() / 15


def _solid(cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centroid (x, y) and area of what is more than half covered, specks far from the rest left
    out.
    """
    solid = (cover > 0.5).float()
    x = torch.arange(64.0)
    y = x[:, None]
    if solid.any():
        ys, xs = solid.nonzero().unbind(1)
        distance2 = (x - xs.median()) ** 2 + (y - ys.median()) ** 2
        solid = solid * (distance2 < 24**2)
    mass = solid.sum()
    if mass < 1:  # nothing there: start anywhere
        return torch.tensor(31.5), torch.tensor(31.5), torch.tensor(1.0)
    return (solid * x).sum() / mass, (solid * y).sum() / mass, mass


def window_of(tries: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a picture beyond which none of these shapes (n 4: x, y, radius, angle)
    covers anything.
    """
    x, y, radius, _ = tries.unbind(1)
    half = EXTENT * radius + 1

    def span(middle: Tensor) -> slice:
        first = int((middle - half).min().floor().clamp(0, 63))
        last = int((middle + half).max().ceil().clamp(0, 63))
        return slice(first, last + 1)

    return span(y), span(x)


def fit_shape(cover: Tensor, shape: str, *, reach: float = 4.0) -> tuple[Tensor, float, float]:
    """Best fit of one shape to a coverage map (64 64): ((x, y, radius, angle), its squared error in
    pixels, the IoU of the two silhouettes, the best among fits of the last round).

    The search starts from centroid and area of the map's solid part; x and y are searched within
    `reach` pixels, the radius within a third, the angle within .2 rad, in seven rounds of ever
    smaller steps.
    """
    x, y, mass = _solid(cover)
    area, below = _moments(shape)
    r = (mass / area).sqrt().clamp(6, 19)
    start = torch.stack([x, y - below * r, r, r * 0])
    low = start - torch.tensor([reach, reach, 0.34 * r.item(), 0.2])
    high = 2 * start - low
    best = start
    widths = torch.tensor([reach, reach, 0.3 * r.item(), 0.15])
    for k in range(7):
        counts = (5, 5, 5, 3) if k == 0 else (3, 3, 3, 3)
        axes = [torch.linspace(-w, w, n) for n, w in zip(counts, widths.tolist())]
        around = best + torch.cartesian_prod(*axes)  # n 4
        tries = around.clamp(low, high)
        window = window_of(tries)
        depth = -shapes.distance(shape, *tries.unbind(1), window=window)
        masks = (0.5 + depth).clamp_(0, 1)  # n h w
        beyond = cover.clone()  # where nothing is drawn
        beyond[window] = 0
        errors = ((masks - cover[window]) ** 2).sum((1, 2)) + (beyond**2).sum()
        i = int(errors.argmin())
        best = tries[i]
        widths = widths * (torch.tensor([0.3, 0.3, 0.3, 0.6]) if k == 0 else 0.6)
    seen = cover > 0.5  # whole pixels: fits that differ by fractions of one are all looked at
    drawn = masks > 0.5
    overlap = (seen[window] & drawn).sum((1, 2))
    union = (drawn.sum((1, 2)) + seen.sum() - overlap).clamp_min(1)
    return best, errors[i].item(), (overlap / union).max().item()


def coverage_map(x: Tensor, ground: Tensor, color: Tensor) -> Tensor:
    """How much of each pixel (3 64 64 in 0..1) is the object's colour (3,) rather than the
    ground's: (64 64) in 0..1.
    """
    d = color[:, None, None] - ground
    along = ((x - ground) * d).sum(0)
    length = (d**2).sum(0).clamp_min(1e-3)
    return (along / length).clamp(0, 1)


def _region(
    x: Tensor, ground: Tensor, colors: list[Tensor], places: list[tuple[float, float]]
) -> list[Tensor]:
    """One 0/1 mask per object: the half plane on its side of the middle between the two objects'
    places.
    """
    if len(colors) == 1:
        return [torch.ones(64, 64)]
    alike = (colors[0] - colors[1]).norm() < 0.25
    off_ground = (x - ground).norm(dim=0) > GROUND_TOLERANCE
    middles = []
    for color, place in zip(colors, places):
        solid = ((x - color[:, None, None]).norm(dim=0) < INK) & off_ground
        ys, xs = solid.nonzero().unbind(1)
        if alike or len(xs) < 20:
            middles.append(torch.tensor(place))
        else:
            middles.append(torch.stack([xs.median(), ys.median()]).float())
    (ax, ay), (bx, by) = middles
    axis = torch.arange(64.0)
    across = (axis[None, :] - (ax + bx) / 2) * (bx - ax)
    down = (axis[:, None] - (ay + by) / 2) * (by - ay)
    side = across + down
    return [(side < 0).float(), (side >= 0).float()]


def _measure(x: Tensor, ground: Tensor, cover: Tensor, shape: str) -> Fit:
    best, error, iou = fit_shape(cover, shape)
    hole = _hole(x, ground, best) if shape == "ring" else 0.0
    return Fit(shape, *best.tolist(), error, iou, hole)


def _hole(x: Tensor, ground: Tensor, ring: Tensor) -> float:
    """How far the inside of a ring (x, y, radius, angle) is from the ground, RGB distance."""
    cx, cy, radius, angle = ring
    inner = torch.stack([cx, cy, 0.48 * radius - 1, angle])  # the inner edge lies at .48
    inside = shapes.coverage("circle", *inner[:, None])[0] > 0.99
    return (x - ground).norm(dim=0)[inside].mean().item() if inside.any() else 0.0


# ---- reading and measuring -----------------------------------------------------------------------


def _check(images: Tensor, scenes: Sequence[Scene]) -> Tensor:
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64) or len(images) != len(scenes):
        raise ValueError(
            f"{tuple(images.shape)} pictures for {len(scenes)} scenes: expected "
            "(b, 3, 64, 64) in [-1, 1], one scene each"
        )
    return to_unit(images)


def to_unit(images: Tensor) -> Tensor:
    """Pictures in [-1, 1], on any device, as the oracle draws them: float32 in 0..1 on the CPU."""
    images = images.detach().float().cpu()
    return (images.clamp(-1, 1) + 1) / 2


def silhouettes(images: Tensor, scenes: Sequence[Scene]) -> list[list[Fit]]:
    """The stated shapes fitted to pictures (b 3 64 64): one `Fit` per object, in the scene's order.

    Only the shapes, colours and rough places of the scenes are used; background and nuisances are
    fitted anew.
    """
    return [_silhouettes(x, s) for x, s in zip(_check(images, scenes), scenes)]


def _silhouettes(x: Tensor, s: Scene) -> list[Fit]:
    if not s.objects:
        return []
    ground = fit_ground(x).image
    colors = [torch.tensor(COLORS[o.color]) for o in s.objects]
    regions = _region(x, ground, colors, shapes.centers(s))
    fits = []
    for color, region, o in zip(colors, regions, s.objects):
        cover = coverage_map(x, ground, color) * region
        fits.append(_measure(x, ground, cover, o.shape))
    return fits


def silhouette_iou(images: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Intersection over union of each picture's silhouette with the nearest ideal one of the stated
    shape, (b,) in 0..1: the mean over the objects; nan for scenes without any.
    """
    means = []
    for fits in silhouettes(images, scenes):
        total = sum(fit.iou for fit in fits)
        means.append(total / len(fits) if fits else float("nan"))
    return torch.tensor(means)


def _inks(x: Tensor, ground: Tensor, n: int) -> list[Tensor]:
    """The n palette colours that fill most of what the ground does not explain, as they are in the
    picture.
    """
    solid = inner_pixels(x, ground)  # 8 64 64
    largest = solid.sum((1, 2)).argsort(descending=True)[:n].tolist()
    inks = []
    for k in largest:
        pixels = x[:, solid[k] > 0]  # 3 p
        inks.append(pixels.median(dim=1).values if solid[k].any() else PALETTE[k])
    return inks


def inner_pixels(x: Tensor, ground: Tensor) -> Tensor:
    """(8 64 64) of 0 and 1: where a picture (3 64 64) in 0..1 shows each colour of the palette, off
    the ground and one pixel inside, for the colours of edges are mixed.
    """
    distance = (x[None] - PALETTE[:, :, None, None]).norm(dim=1)  # 8 64 64
    nearest = distance == distance.min(0).values
    off_ground = (x - ground).norm(dim=0) > GROUND_TOLERANCE
    solid = nearest & (distance < INK) & off_ground
    return -F.max_pool2d(-solid.float(), 3, 1, 1)  # erode


def read(images: Tensor, scenes: Sequence[Scene]) -> list[dict]:
    """Attributes of pictures (b 3 64 64). The scenes tell how many objects to look for (a picture
    with one colour where two were stated reads the second as it finds it) and their order; nothing
    else is taken from them.

    Each: {"objects": [{shape, color, size, x, y, margin}], "position", "background", "texture"};
    `margin` is the second best shape's error over the best one's: below 1.1 is unsure.
    """
    return [_read(x, s) for x, s in zip(_check(images, scenes), scenes)]


def _read(x: Tensor, s: Scene) -> dict:
    ground = fit_ground(x)
    stated = [o.color for o in s.objects]
    if len(stated) == 2 and stated[0] == stated[1]:
        inks = _inks(x, ground.image, 1) * 2
    else:
        inks = _inks(x, ground.image, len(stated))
    words = [_color_word(ink) for ink in inks]
    if len(inks) == 2 and stated == words[::-1]:
        inks = inks[::-1]
        words = words[::-1]
    regions = _region(x, ground.image, inks, shapes.centers(s)) if inks else []
    objects = []
    for ink, word, region in zip(inks, words, regions):
        cover = coverage_map(x, ground.image, ink) * region
        best, second, *_ = ranked_fits(x, ground.image, cover, SHAPES)
        margin = second.error / max(best.error, 1e-6)
        objects.append(
            {
                "shape": best.shape,
                "color": word,
                "size": best.size,
                "x": best.x,
                "y": best.y,
                "margin": margin,
            }
        )
    return {
        "objects": objects,
        "position": _position(objects),
        "background": ground.background,
        "texture": ground.texture,
    }


def _color_word(ink: Tensor) -> str:
    """The palette's nearest to a colour (3,)."""
    nearest = (PALETTE - ink).norm(dim=1).argmin()
    return tuple(COLORS)[int(nearest)]


def ranked_fits(x: Tensor, ground: Tensor, cover: Tensor, names: Sequence[str]) -> list[Fit]:
    """These shapes fitted to a coverage map, the best first."""
    fits = [_measure(x, ground, cover, name) for name in names]
    return sorted(fits, key=lambda fit: fit.error)


def _position(objects: list[dict]) -> str | None:
    if not objects:
        return None
    x = objects[0]["x"]
    y = objects[0]["y"]
    if len(objects) == 2:
        dx = x - objects[1]["x"]
        dy = y - objects[1]["y"]

        def agreement(name: str) -> float:
            px, py = PAIRS[name]
            return px * dx + py * dy

        return max(PAIRS, key=agreement)

    def squared_distance(name: str) -> float:
        px, py = POSITIONS[name]
        return (x - 31.5 - px) ** 2 + (y - 31.5 - py) ** 2

    return min(POSITIONS, key=squared_distance)
