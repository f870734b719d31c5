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
    TEXTURES,
    Scene,
)

PALETTE = torch.tensor(list(COLORS.values()))  # 8 3, RGB in 0..1
GROUNDS = torch.tensor(list(BACKGROUNDS.values()))  # 8 3
# second tone minus first, as in `render`
STEPS = torch.tensor([0.13 if g == "black" else -0.15 for g in BACKGROUNDS])
# of the phases, pixels
PERIODS = {"plain": (1, 1), "striped": (10, 1), "checkered": (16, 16), "dotted": (12, 12)}
INK = 0.22  # a pixel this near in RGB distance has a palette colour
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
    empty = [Scene((), "center", "white", texture, p) for p in phases]
    return (BACKGROUNDS["white"][0] - (shapes.render(empty)[:, 0] + 1) / 2) / 0.15


@cache
def _tones() -> tuple[Tensor, tuple[tuple[str, tuple[float, float]], ...]]:
    """Every texture at every whole-pixel phase: coverages (n, 64, 64), and what each is."""
    keys = [
        (t, (float(i), float(j)))
        for t, (w, h) in PERIODS.items()
        for i in range(w)
        for j in range(h)
    ]
    return torch.cat([_tone(t, [p for s, p in keys if s == t]) for t in TEXTURES]), tuple(keys)


def fit_ground(x: Tensor) -> Ground:
    """Background of a picture (3 64 64) in 0..1: colour by counting pixels, then texture and phase
    by least squares.
    """
    near = lambda g: (x - g[:, None, None]).norm(dim=0)  # noqa: E731
    tones = [torch.minimum(near(g), near(g + step)) for g, step in zip(GROUNDS, STEPS)]
    k = int(torch.stack([(d < GROUND_TOLERANCE).sum() for d in tones]).argmax())
    seen = (tones[k] < GROUND_TOLERANCE).float()
    candidates, keys = _tones()
    best = int(_misfit(x, seen, candidates, STEPS[k]).argmin())
    texture, (px, py) = keys[best]
    finer = (
        [(px + i / 4, py + j / 4) for i in range(-3, 4) for j in range(-3, 4)]
        if texture != "plain"
        else [(0.0, 0.0)]
    )
    tone = _tone(texture, finer)
    tone = tone[int(_misfit(x, seen, tone, STEPS[k]).argmin())]
    base = ((x - STEPS[k] * tone) * seen).sum((1, 2)) / seen.sum().clamp_min(1)  # 3
    return Ground(tuple(BACKGROUNDS)[k], texture, base[:, None, None] + STEPS[k] * tone)


def _misfit(x: Tensor, seen: Tensor, tones: Tensor, step: Tensor) -> Tensor:
    """Squared error over the seen pixels of ground + step * tone, the ground's colour fitted, for
    each tone: (n,).
    """
    w = (seen / seen.sum().clamp_min(1)).flatten()  # p
    y, t = x.flatten(1), tones.flatten(1)  # 3 p, n p
    mean_y, mean_t = y @ w, t @ w
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
    m = shapes.coverage(shape, *torch.tensor([[31.5], [31.5], [15.0], [0.0]]))[0]
    y = torch.arange(64.0)[:, None] - 31.5
    return m.sum().item() / 225, ((m * y).sum() / m.sum()).item() / 15


def _solid(cover: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centroid (x, y) and area of what is more than half covered, specks far from the rest left
    out.
    """
    solid, axis = (cover > 0.5).float(), torch.arange(64.0)
    if solid.any():
        ys, xs = solid.nonzero().unbind(1)
        solid = solid * ((axis - xs.median()) ** 2 + (axis[:, None] - ys.median()) ** 2 < 24**2)
    mass = solid.sum()
    if mass < 1:  # nothing there: start anywhere
        return torch.tensor(31.5), torch.tensor(31.5), torch.tensor(1.0)
    return (solid * axis).sum() / mass, (solid * axis[:, None]).sum() / mass, mass


def _steps(n: int, width: float) -> Tensor:
    return torch.linspace(-width, width, n)


def fit_shape(cover: Tensor, shape: str, *, reach: float = 4.0) -> tuple[Tensor, float, Tensor]:
    """Best fit of one shape to a coverage map (64 64): ((x, y, radius, angle), its squared error in
    pixels, and the masks (n 64 64) of the last round, which differ by fractions of a pixel).

    The search starts from centroid and area of the map's solid part; x and y are searched within
    `reach` pixels, the radius within a third, the angle within .2 rad, in seven rounds of ever
    smaller steps.
    """
    (x, y, mass), (area, below) = _solid(cover), _moments(shape)
    r = (mass / area).sqrt().clamp(6, 19)
    middle = torch.stack([x, y - below * r, r, r * 0])
    low = middle - torch.tensor([reach, reach, 0.34 * r.item(), 0.2])
    high, best = 2 * middle - low, middle
    widths = torch.tensor([reach, reach, 0.3 * r.item(), 0.15])
    for k in range(7):
        n = (5, 5, 5, 3) if k == 0 else (3, 3, 3, 3)
        grid = torch.cartesian_prod(*[_steps(c, w) for c, w in zip(n, widths.tolist())])  # n 4
        p = (best + grid).clamp(low, high)
        masks = shapes.coverage(shape, *p.unbind(1))  # n 64 64
        errors = ((masks - cover) ** 2).sum((1, 2))
        i = int(errors.argmin())
        best, widths = p[i], widths * (torch.tensor([0.3, 0.3, 0.3, 0.6]) if k == 0 else 0.6)
    return best, errors[i].item(), masks


def coverage_map(x: Tensor, ground: Tensor, color: Tensor) -> Tensor:
    """How much of each pixel (3 64 64 in 0..1) is the object's colour (3,) rather than the
    ground's: (64 64) in 0..1.
    """
    d = color[:, None, None] - ground
    return (((x - ground) * d).sum(0) / (d**2).sum(0).clamp_min(1e-3)).clamp(0, 1)


def _region(
    x: Tensor, ground: Tensor, colors: list[Tensor], places: list[tuple[float, float]]
) -> list[Tensor]:
    """One 0/1 mask per object: the half plane on its side of the middle between the two objects'
    places.
    """
    if len(colors) == 1:
        return [torch.ones(64, 64)]
    axis, at = torch.arange(64.0), []
    alike = (colors[0] - colors[1]).norm() < 0.25
    for c, place in zip(colors, places):
        solid = ((x - c[:, None, None]).norm(dim=0) < INK) & (
            (x - ground).norm(dim=0) > GROUND_TOLERANCE
        )
        ys, xs = solid.nonzero().unbind(1)
        at.append(
            torch.tensor(place)
            if alike or len(xs) < 20
            else torch.stack([xs.median(), ys.median()]).float()
        )
    (ax, ay), (bx, by) = at
    side = (axis[None, :] - (ax + bx) / 2) * (bx - ax) + (axis[:, None] - (ay + by) / 2) * (by - ay)
    return [(side < 0).float(), (side >= 0).float()]


def _measure(x: Tensor, ground: Tensor, cover: Tensor, shape: str) -> Fit:
    p, error, masks = fit_shape(cover, shape)
    a, b = cover > 0.5, masks > 0.5  # whole pixels: the best of the last round
    iou = ((a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)).max().item()
    hole = 0.0
    if shape == "ring":  # the inner edge lies at .48 of the radius
        inside = (
            shapes.coverage("circle", *torch.stack([p[0], p[1], 0.48 * p[2] - 1, p[3]])[:, None])[0]
            > 0.99
        )
        hole = (x - ground).norm(dim=0)[inside].mean().item() if inside.any() else 0.0
    return Fit(shape, *p.tolist(), error, iou, hole)


# ---- reading and measuring -----------------------------------------------------------------------


def _check(images: Tensor, scenes: Sequence[Scene]) -> Tensor:
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64) or len(images) != len(scenes):
        raise ValueError(
            f"{tuple(images.shape)} pictures for {len(scenes)} scenes: expected (b, 3, 64, 64) in "
            "[-1, 1], "
            f"one scene each"
        )
    return (images.detach().float().cpu().clamp(-1, 1) + 1) / 2


def silhouettes(images: Tensor, scenes: Sequence[Scene]) -> list[list[Fit]]:
    """The stated shapes fitted to pictures (b 3 64 64): one `Fit` per object, in the scene's order.

    Only the shapes, colours and rough places of the scenes are used; background and nuisances are
    fitted anew.
    """
    out = []
    for x, s in zip(_check(images, scenes), scenes):
        ground = fit_ground(x).image
        colors = [torch.tensor(COLORS[o.color]) for o in s.objects]
        regions = _region(x, ground, colors, shapes.centers(s)) if s.objects else []
        out.append(
            [
                _measure(x, ground, coverage_map(x, ground, c) * m, o.shape)
                for c, m, o in zip(colors, regions, s.objects)
            ]
        )
    return out


def silhouette_iou(images: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Intersection over union of each picture's silhouette with the nearest ideal one of the stated
    shape, (b,) in 0..1: the mean over the objects; nan for scenes without any.
    """
    return torch.tensor(
        [
            sum(f.iou for f in fits) / len(fits) if fits else float("nan")
            for fits in silhouettes(images, scenes)
        ]
    )


def _inks(x: Tensor, ground: Tensor, n: int) -> list[Tensor]:
    """The n palette colours that fill most of what the ground does not explain, as they are in the
    picture.
    """
    d = (x[None] - PALETTE[:, :, None, None]).norm(dim=1)  # 8 64 64
    solid = (d == d.min(0).values) & (d < INK) & ((x - ground).norm(dim=0) > GROUND_TOLERANCE)
    solid = -F.max_pool2d(-solid.float(), 3, 1, 1)  # erode: mixed colours of edges go
    order = solid.sum((1, 2)).argsort(descending=True)[:n].tolist()
    return [
        x[:, solid[k] > 0].median(dim=1).values if solid[k].any() else PALETTE[k] for k in order
    ]


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
    same = len(s.objects) == 2 and s.objects[0].color == s.objects[1].color
    inks = _inks(x, ground.image, 1 if same else len(s.objects)) * (2 if same else 1)
    words = [tuple(COLORS)[int((PALETTE - c).norm(dim=1).argmin())] for c in inks]
    if len(inks) == 2 and [o.color for o in s.objects] == words[::-1]:
        inks, words = inks[::-1], words[::-1]
    found = []
    for c, word, m in zip(
        inks, words, _region(x, ground.image, inks, shapes.centers(s)) if inks else []
    ):
        fits = sorted(
            (_measure(x, ground.image, coverage_map(x, ground.image, c) * m, k) for k in SHAPES),
            key=lambda f: f.error,
        )
        found.append(
            {
                "shape": fits[0].shape,
                "color": word,
                "size": fits[0].size,
                "x": fits[0].x,
                "y": fits[0].y,
                "margin": fits[1].error / max(fits[0].error, 1e-6),
            }
        )
    return {
        "objects": found,
        "position": _position(found),
        "background": ground.background,
        "texture": ground.texture,
    }


def _position(found: list[dict]) -> str | None:
    if not found:
        return None
    x, y = found[0]["x"], found[0]["y"]
    if len(found) == 2:
        dx, dy = x - found[1]["x"], y - found[1]["y"]
        return min(PAIRS, key=lambda k: -PAIRS[k][0] * dx - PAIRS[k][1] * dy)
    return min(
        POSITIONS,
        key=lambda k: (x - 31.5 - POSITIONS[k][0]) ** 2 + (y - 31.5 - POSITIONS[k][1]) ** 2,
    )
