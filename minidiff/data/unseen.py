"""What no caption names and no training of a denoiser shows: the nuisances of the hard split.

A render of the toy world was drawn by a model's own kind: its noise remembers all of it. A
photograph is not. `Unseen` is what is laid over a scene so that it looks drawn by somebody else:
light that falls off to one side, an outline, a mark on the object and one on the ground, a third
thing in a colour without a name, a frame, grain. It is the same before and after an edit, so the
counterfactual stays exact:

    rng = np.random.default_rng(0)
    before = shapes.scene(rng);  after = shapes.edit(before, "color", "green")
    nuisance = unseen(rng, [before, after])
    source = render(before, nuisance);  truth = render(after, nuisance)  # (1 3 64 64) in [-1, 1]

A mark on an object moves and turns with it; all else stays where it is, clear of the objects of
every scene that was named. Oracles and autoencoder are taught this family; denoisers are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.data.shapes import SIZE, Scene

Color = tuple[float, float, float]
# off the palettes of objects and grounds: brown, olive, teal, navy, maroon, sand
INKS: tuple[Color, ...] = (
    (0.45, 0.27, 0.10),
    (0.42, 0.44, 0.08),
    (0.05, 0.38, 0.38),
    (0.08, 0.10, 0.35),
    (0.40, 0.05, 0.16),
    (0.76, 0.66, 0.46),
)
LIGHT = 0.22  # share by which light may rise and fall towards the edges
GRAIN = 0.02  # standard deviation, of a picture in 0..1
HUE = 0.06  # how far a colour may lie off its word's, RGB
OUTLINE = 1.6  # pixels
MARK = 5.0  # radius of the mark on the ground, pixels
THING = (4.5, 6.5)  # radius of the third thing, pixels
CLEAR = 3.0  # pixels that stay free around it and around the mark


@dataclass(frozen=True)
class Unseen:
    """One picture's nuisances. Colours are RGB in 0..1, places pixels, angles radians; a `None` is
    not drawn.

    light    (direction, strength)
    hues     what is added to the colour of object A, object B and the ground
    outline  colour of a line around every object
    stripes  (colour, angle, phase) of bars on every object, in the object's own frame
    mark     (colour, x, y) of hatching on the ground
    thing    (colour, x, y, radius, number of corners) of a third thing
    frame    colour of a frame two pixels wide
    grain    (seed, standard deviation)
    """

    light: tuple[float, float] = (0.0, 0.0)
    hues: tuple[Color, Color, Color] = ((0.0, 0.0, 0.0),) * 3
    outline: Color | None = None
    stripes: tuple[Color, float, float] | None = None
    mark: tuple[Color, float, float] | None = None
    thing: tuple[Color, float, float, float, int] | None = None
    frame: Color | None = None
    grain: tuple[int, float] = (0, 0.0)


def unseen(rng: np.random.Generator, scenes: Sequence[Scene], level: float = 1.0) -> Unseen:
    """Draw nuisances that fit all these scenes (an item's source and every true answer). `level`
    0..1 scales light, hues and grain. A mark or a third thing for which no place is free is left
    out.
    """
    taken = shapes.object_masks(list(scenes)).amax((0, 1))  # 64 64
    lot = rng.random(5)
    hues = rng.uniform(-HUE * level, HUE * level, (3, 3)).tolist()
    inks = [INKS[i] for i in rng.permutation(len(INKS))]
    thing = None
    if lot[0] < 0.8:
        radius = float(rng.uniform(*THING))
        spot = _free_spot(rng, taken, radius)
        if spot is not None:
            thing = (inks[0], *spot, radius, int(rng.integers(5, 8)))
            taken = torch.maximum(taken, _disc(*spot, radius))
    mark = None
    if lot[1] < 0.8:
        spot = _free_spot(rng, taken, MARK)
        mark = (inks[1], *spot) if spot is not None else None
    angle, phase = rng.uniform(0, pi), rng.uniform(0, 8)
    return Unseen(
        light=(float(rng.uniform(0, 2 * pi)), float(level * rng.uniform(0.3, 1) * LIGHT)),
        hues=tuple(tuple(hue) for hue in hues),
        outline=inks[2] if lot[2] < 0.5 else None,
        stripes=(inks[3], float(angle), float(phase)) if lot[3] < 0.5 else None,
        mark=mark,
        thing=thing,
        frame=inks[4] if lot[4] < 0.5 else None,
        grain=(int(rng.integers(2**31)), float(level * rng.uniform(0.3, 1) * GRAIN)),
    )


def _disc(x: float, y: float, radius: float) -> Tensor:
    """(64 64): 1 within `radius` of a place."""
    axis = torch.arange(SIZE, dtype=torch.float32)
    return (torch.hypot(axis[None, :] - x, axis[:, None] - y) <= radius).float()


def _free_spot(
    rng: np.random.Generator, taken: Tensor, radius: float
) -> tuple[float, float] | None:
    """A pixel (x, y) around which nothing is taken within radius + CLEAR, frame included; or
    None.
    """
    reach = int(radius + CLEAR)
    blocked = torch.nn.functional.max_pool2d(taken[None, None], 2 * reach + 1, 1, reach)[0, 0]
    edge = reach + 1
    inner = blocked[edge : SIZE - edge, edge : SIZE - edge]
    rows, columns = torch.where(inner < 0.01)
    if len(rows) == 0:
        return None
    k = int(rng.integers(len(rows)))
    return float(columns[k]) + edge, float(rows[k]) + edge


# ---- pictures ------------------------------------------------------------------------------------


def render(scenes: Scene | Sequence[Scene], nuisances: Unseen | Sequence[Unseen]) -> Tensor:
    """Draw scenes with their nuisances: (b, 3, 64, 64) in [-1, 1]."""
    scenes = [scenes] if isinstance(scenes, Scene) else scenes
    nuisances = [nuisances] if isinstance(nuisances, Unseen) else nuisances
    if len(scenes) != len(nuisances):
        raise ValueError(f"{len(scenes)} scenes, but {len(nuisances)} nuisances: one each")
    hued = [_with_hues(scene, nuisance) for scene, nuisance in zip(scenes, nuisances)]
    images = (shapes.render(hued) + 1) / 2
    drawn = [_lay_over(x, s, n) for x, s, n in zip(images, scenes, nuisances)]
    return torch.stack(drawn).clamp(0, 1) * 2 - 1


def _with_hues(scene: Scene, nuisance: Unseen) -> Scene:
    """The scene with its colours off by the nuisance's hues."""
    *objects, ground = nuisance.hues
    moved = [replace(o, tint=_sum(o.tint, hue)) for o, hue in zip(scene.objects, objects)]
    return replace(scene, objects=tuple(moved), tint=_sum(scene.tint, ground))


def _sum(a: Color, b: Color) -> Color:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _lay_over(x: Tensor, scene: Scene, nuisance: Unseen) -> Tensor:
    """One picture (3 64 64) in 0..1 with everything but the hues."""
    axis = torch.arange(SIZE, dtype=torch.float32)
    if nuisance.mark:
        color, mx, my = nuisance.mark
        lines = ((axis[None, :] + axis[:, None]) % 4 < 1.5).float()
        x = _paint(x, color, _disc(mx, my, MARK) * lines)
    if nuisance.thing:
        color, tx, ty, radius, corners = nuisance.thing
        x = _paint(x, color, _polygon(tx, ty, radius, corners))
    for o, (ox, oy) in zip(scene.objects, shapes.centers(scene)):
        where = torch.tensor([[ox], [oy], [shapes.SIZES[o.size]], [o.angle]])
        depth = -shapes.distance(o.shape, *where)[0]  # 64 64, pixels inside the outline
        if nuisance.stripes:
            color, angle, phase = nuisance.stripes
            turn = angle + o.angle
            along = (axis[None, :] - ox) * cos(turn) + (axis[:, None] - oy) * sin(turn)
            bars = (1.5 - (torch.remainder(along + phase, 8.0) - 4.0).abs()).clamp(0, 1)
            x = _paint(x, color, bars * (depth - 1.5).clamp(0, 1))
        if nuisance.outline:
            line = (0.5 + OUTLINE / 2 - (depth - OUTLINE / 2).abs()).clamp(0, 1)
            x = _paint(x, nuisance.outline, line)
    if nuisance.frame:
        edge = torch.ones(SIZE, SIZE)
        edge[2:-2, 2:-2] = 0
        x = _paint(x, nuisance.frame, edge)
    direction, strength = nuisance.light
    across = torch.linspace(-1, 1, SIZE)
    x = x * (1 + strength * (cos(direction) * across[None, :] + sin(direction) * across[:, None]))
    seed, deviation = nuisance.grain
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x + deviation * noise


def _paint(x: Tensor, color: Color, cover: Tensor) -> Tensor:
    """A colour laid over a picture (3 64 64) where `cover` (64 64) is 1."""
    return x + cover * (torch.tensor(color)[:, None, None] - x)


def _polygon(x: float, y: float, radius: float, corners: int) -> Tensor:
    """Anti-aliased regular polygon, (64 64) in [0, 1]."""
    axis = torch.arange(SIZE, dtype=torch.float32)
    dx = axis[None, :] - x
    dy = axis[:, None] - y
    sector = 2 * pi / corners
    angle = torch.remainder(torch.atan2(dy, dx), sector) - sector / 2
    depth = radius * cos(sector / 2) - torch.hypot(dx, dy) * torch.cos(angle)
    return (0.5 + depth).clamp(0, 1)
