"""What no caption names and no training of a denoiser shows: the nuisances of the hard split.

A render of the toy world was drawn by a model's own kind: its noise remembers all of it. A
photograph is not. `Unseen` is what is laid over a scene so that it looks drawn by somebody else:
light that falls off to one side, stripes on the objects or an outline around them, a mark on the
ground, a third thing in a colour without a name, a frame, grain. It is the same before and after an
edit, so the counterfactual stays exact:

    rng = np.random.default_rng(0)
    before = shapes.scene(rng);  after = shapes.edit(before, "color", "green")
    nuisance = unseen(rng, [before, after])
    source = render(before, nuisance);  truth = render(after, nuisance)  # (1 3 64 64) in [-1, 1]

What is on an object moves and turns with it; all else stays where it is, clear of the objects of
every scene that was named. Every word of a caption stays true: hues stay within their colour's
name, and stripes and outline are never on one object, which would hide what it is. Light only takes
away, so that it can be divided out again. Oracles and autoencoder are taught this family; denoisers
are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, dist, pi, sin

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
LIGHT = 0.3  # share of the light that may be lost in the darkest corner
GRAIN = 0.02  # standard deviation, of a picture in 0..1
HUE = 0.06  # how far an object's colour may lie off its word's, RGB
GROUND_HUE = 0.03  # grounds are nearer to each other
OUTLINE = 1.6  # pixels
EVERY = 8.0  # pixels from stripe to stripe
FRAME = 2.0  # pixels
MARK = 5.0  # radius of the mark on the ground, pixels
THING = (4.5, 6.5)  # radius of the third thing, pixels
SHOWS = 0.2  # RGB distance of an ink from the ground
CLEAR = 3.0  # pixels that stay free around it and around the mark


@dataclass(frozen=True)
class Unseen:
    """One picture's nuisances. Colours are RGB in 0..1, places pixels, angles radians; a `None` is
    not drawn.

    light    (direction in which it is lost, share lost in the farthest corner)
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
    0..1 scales light, hues and grain; marks are not scaled. A mark or a third thing for which no
    place is free is left out.
    """
    taken = shapes.object_masks(list(scenes)).amax((0, 1))  # 64 64
    lot = rng.random(4)
    reach = level * np.array([[HUE], [HUE], [GROUND_HUE]])
    hues = (reach * rng.uniform(-1, 1, (3, 3))).tolist()
    inks = [INKS[i] for i in rng.permutation(len(INKS)) if _shows(INKS[i], scenes)]
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
    angle = float(rng.uniform(0, pi))
    phase = float(rng.uniform(0, EVERY))
    return Unseen(
        light=(float(rng.uniform(0, 2 * pi)), float(level * rng.uniform(0.3, 1) * LIGHT)),
        hues=tuple(tuple(hue) for hue in hues),
        outline=inks[2] if lot[2] < 0.4 else None,
        stripes=(inks[2], angle, phase) if lot[2] > 0.6 else None,
        mark=mark,
        thing=thing,
        frame=inks[3] if lot[3] < 0.5 else None,
        grain=(int(rng.integers(2**31)), float(level * rng.uniform(0.3, 1) * GRAIN)),
    )


def _shows(ink: Color, scenes: Sequence[Scene]) -> bool:
    """Does an ink differ from both tones of every ground?"""
    for s in scenes:
        for step in (0.0, shapes.step(s.background)):
            tone = [channel + step for channel in shapes.BACKGROUNDS[s.background]]
            if dist(ink, tone) < SHOWS:
                return False
    return True


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


def render(
    scenes: Scene | Sequence[Scene], nuisances: Unseen | Sequence[Unseen], size: int = SIZE
) -> Tensor:
    """Draw scenes with their nuisances: (b, 3, size, size) in [-1, 1], `size` 64 or a multiple."""
    scenes = [scenes] if isinstance(scenes, Scene) else scenes
    nuisances = [nuisances] if isinstance(nuisances, Unseen) else nuisances
    if len(scenes) != len(nuisances):
        raise ValueError(f"{len(scenes)} scenes, but {len(nuisances)} nuisances: one each")
    hued = [_with_hues(scene, nuisance) for scene, nuisance in zip(scenes, nuisances)]
    images = (shapes.render(hued, size) + 1) / 2
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
    """One picture (3 h w) in 0..1 with everything but the hues."""
    size = x.shape[-1]
    for color, cover in on_ground(nuisance, size):
        x = _paint(x, color, cover)
    masks = shapes.object_masks(scene, size=size)[0]  # 2 h w
    for k, (o, (ox, oy)) in enumerate(zip(scene.objects, shapes.centers(scene))):
        on_top = masks[k + 1 :].sum(0)  # of another object
        where = torch.tensor([[ox], [oy], [shapes.SIZES[o.size]], [o.angle]])
        depth = -shapes.distance(o.shape, *where, size)[0]  # h w, pixels inside the silhouette
        if nuisance.stripes:
            color, angle, phase = nuisance.stripes
            turn = angle + o.angle
            axis = shapes.grid(size)
            along = (axis[None, :] - ox) * cos(turn) + (axis[:, None] - oy) * sin(turn)
            bars = shapes.soft(1 - (torch.remainder(along + phase, EVERY) - EVERY / 2).abs())
            x = _paint(x, color, bars * shapes.soft(depth - 2) * (1 - on_top))
        if nuisance.outline:
            line = shapes.soft(OUTLINE / 2 - (depth - OUTLINE / 2).abs())
            x = _paint(x, nuisance.outline, line * (1 - on_top))
    if nuisance.frame:
        x = _paint(x, nuisance.frame, edge(size))
    seed, deviation = nuisance.grain
    noise = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    coarse = noise.repeat_interleave(size // SIZE, 1).repeat_interleave(size // SIZE, 2)
    return x * light(nuisance, size) + deviation * coarse


def on_ground(nuisance: Unseen, size: int = SIZE) -> list[tuple[Color, Tensor]]:
    """(colour, cover (size size) in [0, 1]) of the mark and of the third thing, if there."""
    axis = shapes.grid(size)
    out = []
    if nuisance.mark:
        color, x, y = nuisance.mark
        disc = shapes.soft(MARK + 0.5 - torch.hypot(axis[None, :] - x, axis[:, None] - y))
        across = torch.remainder(axis[None, :] + axis[:, None] + 1.5, 4.0) - 2
        out.append((color, disc * shapes.soft(1 - across.abs())))
    if nuisance.thing:
        color, *where = nuisance.thing
        out.append((color, _polygon(*where, size)))
    return out


def light(nuisance: Unseen, size: int = SIZE) -> Tensor:
    """What every colour is multiplied by, (size size) in 0..1: 1 in the brightest corner."""
    direction, strength = nuisance.light
    axis = (shapes.grid(size) - 31.5) / (SIZE / 2)  # -1..1
    along = cos(direction) * axis[None, :] + sin(direction) * axis[:, None]
    farthest = abs(cos(direction)) + abs(sin(direction))
    return 1 - strength * (1 + along / farthest) / 2


def edge(size: int = SIZE) -> Tensor:
    """(size size): 1 within FRAME of the border."""
    axis = shapes.grid(size)
    inner = (axis > FRAME - 0.5) & (axis < SIZE - FRAME - 0.5)
    return 1 - (inner[None, :] & inner[:, None]).float()


def _paint(x: Tensor, color: Color, cover: Tensor) -> Tensor:
    """A colour laid over a picture (3 h w) where `cover` (h w) is 1."""
    return x + cover * (torch.tensor(color)[:, None, None] - x)


def _polygon(x: float, y: float, radius: float, corners: int, size: int) -> Tensor:
    """Anti-aliased regular polygon, (size size) in [0, 1]."""
    axis = shapes.grid(size)
    dx = axis[None, :] - x
    dy = axis[:, None] - y
    sector = 2 * pi / corners
    angle = torch.remainder(torch.atan2(dy, dx), sector) - sector / 2
    return shapes.soft(radius * cos(sector / 2) - torch.hypot(dx, dy) * torch.cos(angle))
