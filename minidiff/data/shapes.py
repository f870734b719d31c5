"""The toy world: procedural scenes whose true edited picture can be rendered.

A `Scene` is one or two flat, coloured shapes on a textured background. Everything a picture shows,
nuisances included (jitter, rotation, tint, texture phase), is a field of the scene, so for every
edit the exact counterfactual is `render(edit(scene, what, value))` and the exact mask of what may
change is `edit_mask(scene, edited)`.

    rng = np.random.default_rng(0)
    s = scene(rng); image = render(s)              # (1, 3, 64, 64) in [-1, 1]
    caption(s)  # "a small red circle on the left on a striped blue background"
    truth = render(edit(s, "color", "green"))

One tenth of all (shape, colour, background) tuples is never used in training (`held_out`), so that
an accuracy on them measures composition, not memory. Try changing: a new shape is one signed
distance function and one word.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross")
COLORS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.95, 0.86, 0.14),
    "green": (0.13, 0.62, 0.22),
    "cyan": (0.12, 0.76, 0.80),
    "blue": (0.12, 0.26, 0.86),
    "purple": (0.50, 0.16, 0.68),
    "pink": (0.95, 0.45, 0.72),
}
SIZES = {"small": 9.0, "medium": 12.0, "large": 15.5}  # radius in pixels of 64
POSITIONS = {
    "center": (0, 0),
    "left": (-13, 0),
    "right": (13, 0),
    "top": (0, -13),
    "bottom": (0, 13),
}
# where A sits, B opposite
PAIRS = {"left": (-16, 0), "right": (16, 0), "above": (0, -16), "below": (0, 16)}
BACKGROUNDS = {
    "red": (0.97, 0.74, 0.72),
    "yellow": (0.98, 0.95, 0.70),
    "green": (0.74, 0.92, 0.74),
    "blue": (0.72, 0.84, 0.98),
    "purple": (0.86, 0.76, 0.96),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.56, 0.56, 0.56),
    "black": (0.10, 0.10, 0.10),
}
TEXTURES = ("plain", "striped", "checkered", "dotted")
PHRASES = {
    "center": "in the center",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
VOCAB = sorted(
    {
        *SHAPES,
        *COLORS,
        *SIZES,
        *POSITIONS,
        *PAIRS,
        *BACKGROUNDS,
        *TEXTURES,
        "background",
        *"a on in at the of".split(),
    }
)
SIZE = 64


@dataclass(frozen=True)
class Obj:
    """One shape. `dx, dy` in pixels and `angle` in radians are nuisances; `tint` is added to the
    colour (RGB, 0..1).
    """

    shape: str
    color: str
    size: str
    dx: float = 0.0
    dy: float = 0.0
    angle: float = 0.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """`position` is a key of POSITIONS for one object, of PAIRS (where the first of the two sits)
    for two.
    """

    objects: tuple[Obj, ...]
    position: str
    background: str
    texture: str = "plain"
    phase: tuple[float, float] = (0.0, 0.0)  # pixels by which the texture is shifted
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        pair = len(self.objects) == 2
        checks = [
            ("number of objects", len(self.objects), (0, 1, 2)),
            ("background", self.background, BACKGROUNDS),
            ("position", self.position, PAIRS if pair else POSITIONS),
            ("texture", self.texture, TEXTURES),
        ]
        for o in self.objects:
            checks += [
                ("shape", o.shape, SHAPES),
                ("color", o.color, COLORS),
                ("size", o.size, SIZES),
            ]
        for what, got, allowed in checks:
            if got not in allowed:
                raise ValueError(
                    f"{what} {got!r} is not in this world; choose one of "
                    f"{', '.join(map(str, allowed))}"
                )


# ---- sampling ------------------------------------------------------------------------------------


def held_out(s: Scene) -> bool:
    """True if any (shape, colour, background) tuple of the scene belongs to the tenth that training
    never sees.
    """
    tuples = [f"{o.shape} {o.color} {s.background}" for o in s.objects]
    return any(zlib.crc32(text.encode()) % 10 == 0 for text in tuples)


def scene(
    rng: np.random.Generator, *, objects: int | None = None, split: str = "all", pairs: float = 0.3
) -> Scene:
    """Draw a scene. `objects` 1 or 2 (default: 2 with probability `pairs`); `split` is "train"
    (tuples seen), "test" (held out) or "all". No object has the colour word of its background; two
    objects differ in colour and shape.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split {split!r}: expected 'train', 'test' or 'all'")
    while True:
        n = objects or (2 if rng.random() < pairs else 1)
        s = _any_scene(rng, n)
        if split == "all" or (split == "test") == held_out(s):
            return s


def _any_scene(rng: np.random.Generator, n: int) -> Scene:
    """A scene of n objects, seen or held out. It takes the same 27 numbers whatever it shows."""
    u = rng.random(12).tolist()
    g = rng.uniform(-1, 1, 15).tolist()
    background = _pick(BACKGROUNDS, u[0])
    colors = [c for c in COLORS if c != background]
    shape = _pick(SHAPES, u[1])
    color = _pick(colors, u[2])
    other_shape = _pick([s for s in SHAPES if s != shape], u[3])
    other_color = _pick([c for c in colors if c != color], u[4])
    looks = [(shape, color), (other_shape, other_color)]
    jitter = 2.0 if n == 1 else 1.0
    objects = []
    for k in range(n):
        shape, color = looks[k]
        dx, dy, turn, *tint = g[6 * k : 6 * k + 6]
        objects.append(
            Obj(
                shape,
                color,
                size=_pick(SIZES, u[5 + k]),
                dx=jitter * dx,
                dy=jitter * dy,
                angle=0.15 * turn,
                tint=tuple(0.04 * x for x in tint),
            )
        )
    return Scene(
        objects=tuple(objects),
        position=_pick(POSITIONS if n == 1 else PAIRS, u[7]),
        background=background,
        texture=_pick(TEXTURES, u[8]),
        phase=(24 * u[9], 24 * u[10]),
        tint=tuple(0.02 * x for x in g[12:]),
    )


def _pick(names: Iterable[str], u: float) -> str:
    """The word that lies at the share u (0..1) of the list."""
    words = list(names)
    return words[int(u * len(words))]


# ---- language ------------------------------------------------------------------------------------


def caption(s: Scene, *, size: bool = True, position: bool = True, texture: bool = True) -> str:
    """The scene in words. Switch groups off for shorter captions: what a caption leaves out, an
    edit can preserve.
    """
    pattern = f"{s.texture} " if texture else ""
    ground = f"{pattern}{s.background} background"
    nouns = [f"a {o.size + ' ' if size else ''}{o.color} {o.shape}" for o in s.objects]
    if not nouns:
        return f"a {ground}"
    if len(nouns) == 2:  # the relation always stays: without it the words are a bag
        relation = f"{s.position} of" if s.position in ("left", "right") else s.position
        return f"{nouns[0]} {relation} {nouns[1]} on a {ground}"
    place = f" {PHRASES[s.position]}" if position else ""
    return f"{nouns[0]}{place} on a {ground}"


def short_caption(s: Scene) -> str:
    """Colour, shape and background only (and the relation of two objects)."""
    return caption(s, size=False, position=False, texture=False)


def random_caption(s: Scene, rng: np.random.Generator) -> str:
    """A training caption: short in a third of the cases, else each optional group dropped on its
    own (p .25, .25, .15).
    """
    if rng.random() < 1 / 3:
        return short_caption(s)
    u = rng.random(3)
    return caption(s, size=u[0] > 0.25, position=u[1] > 0.25, texture=u[2] > 0.15)


# ---- edits ---------------------------------------------------------------------------------------


def edit(s: Scene, what: str, value=None, *, index: int = 0) -> Scene:
    """The counterfactual scene: one thing changed, every nuisance kept.

    `what`: "shape", "color", "size" (of object `index`), "position" (of one object or the relation
    of two), "background", "texture", "add" (`value` an Obj; gives "object above value"), "delete"
    (object `index`).
    """
    objs = list(s.objects)
    if what in ("shape", "color", "size", "delete") and not 0 <= index < len(objs):
        raise ValueError(f"object index {index}, but the scene has {len(objs)} object(s)")
    if what in ("shape", "color", "size"):
        objs[index] = replace(objs[index], **{what: value})
        return replace(s, objects=tuple(objs))
    if what in ("position", "background", "texture"):
        return replace(s, **{what: value})
    if what == "add":
        if len(objs) > 1:
            raise ValueError("a scene holds at most two objects; delete one first")
        return replace(s, objects=(*objs, value), position="above" if objs else "center")
    if what == "delete":
        if len(objs) == 1:
            return replace(s, objects=())
        # the other one stays in place: where the first is said to be, or opposite
        first = {"left": "left", "right": "right", "above": "top", "below": "bottom"}
        second = {"left": "right", "right": "left", "above": "bottom", "below": "top"}
        return _pinned(s, 1 - index, (second if index == 0 else first)[s.position])
    raise ValueError(
        f"cannot edit {what!r}; choose shape, color, size, position, background, texture, "
        "add or delete"
    )


def _pinned(s: Scene, index: int, position: str) -> Scene:
    """Keep object `index` alone, at exactly the pixels where it is (a single object's places are
    nearer the centre).
    """
    x, y = centers(s)[index]
    px, py = POSITIONS[position]
    kept = replace(s.objects[index], dx=x - 31.5 - px, dy=y - 31.5 - py)
    return replace(s, objects=(kept,), position=position)


def edit_mask(a: Scene, b: Scene, grow: int = 1) -> Tensor:
    """(1, 1, 64, 64) in {0, 1}: 1 where the two renders differ by more than 2/255, grown by `grow`
    px.
    """
    return mask_between(render(a), render(b), grow)


def mask_between(a: Tensor, b: Tensor, grow: int = 1) -> Tensor:
    """(b, 1, h, w) in {0, 1}: where two pictures in [-1, 1] differ by more than 2/255, grown."""
    difference = (a - b).abs().amax(1, keepdim=True)
    mask = (difference > 4 / 255).float()  # [-1, 1] spans 2
    return F.max_pool2d(mask, 2 * grow + 1, 1, grow)


# ---- pictures ------------------------------------------------------------------------------------


def _star(x, y, r):
    """Five points: fold the plane into one tenth; what is left is the side of one edge."""
    inner = 0.42 * r
    tenth = pi / 5
    angle = torch.remainder(torch.atan2(x, -y), 2 * tenth)
    angle = torch.minimum(angle, 2 * tenth - angle)
    rho = torch.hypot(x, y)
    ex = inner * cos(tenth) - r  # edge: outer tip -> notch
    ey = inner * sin(tenth)
    across = (rho * torch.cos(angle) - r) * ey - rho * torch.sin(angle) * ex
    return across / torch.hypot(ex, ey)


def _triangle(x, y, r):
    return torch.maximum(y, (3**0.5 * x.abs() - y) / 2) - r / 2


# signed distance in pixels from centred coordinates; r is the nominal radius (b 1 1), negative
# inside
_DISTANCE = {
    "circle": lambda x, y, r: torch.hypot(x, y) - r,
    "square": lambda x, y, r: torch.maximum(x.abs(), y.abs()) - 0.86 * r,
    "triangle": lambda x, y, r: _triangle(x, y - 0.15 * r, 1.2 * r),
    "diamond": lambda x, y, r: (
        (x.abs() / 0.72 + y.abs() / 1.15 - r) / (1 / 0.72**2 + 1 / 1.15**2) ** 0.5
    ),
    "star": lambda x, y, r: _star(x, y - 0.05 * r, 1.2 * r),
    "ring": lambda x, y, r: (torch.hypot(x, y) - 0.74 * r).abs() - 0.26 * r,
    "cross": lambda x, y, r: torch.minimum(
        torch.maximum(x.abs() - 0.34 * r, y.abs() - r),
        torch.maximum(x.abs() - r, y.abs() - 0.34 * r),
    ),
}


def centers(s: Scene) -> list[tuple[float, float]]:
    """(x, y) of each object in pixels, picture centre at 31.5."""
    if len(s.objects) == 2:
        x, y = PAIRS[s.position]
        places = [(x, y), (-x, -y)]
    else:
        places = [POSITIONS[s.position]]
    return [(31.5 + x + o.dx, 31.5 + y + o.dy) for (x, y), o in zip(places, s.objects)]


def grid(size: int = SIZE) -> Tensor:
    """(size,): where the middles of the pixels of a picture lie, in pixels of 64."""
    return (torch.arange(size, dtype=torch.float32) + 0.5) * (SIZE / size) - 0.5


def soft(depth: Tensor) -> Tensor:
    """Coverage in [0, 1] of pixels (... size size) that lie `depth` pixels of 64 inside an edge:
    the edge is as wide as one pixel of the picture.
    """
    return (0.5 + depth * (depth.shape[-1] / SIZE)).clamp_(0, 1)


def distance(
    shape: str,
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    angle: Tensor,
    size: int = SIZE,
    window: tuple[slice, slice] = (slice(None), slice(None)),
) -> Tensor:
    """Signed distance to the outline of one shape at free places, radii and angles, each (n,): (n,
    size, size), negative inside. Lengths are pixels of 64, whatever the size. `window`: only these
    rows and columns of it.
    """
    x = x[:, None, None]  # n 1 1
    y = y[:, None, None]
    radius = radius[:, None, None]
    angle = angle[:, None, None]
    axis = grid(size)
    rows, columns = window
    dx = axis[None, None, columns] - x  # n 1 w
    dy = axis[None, rows, None] - y  # n h 1
    co = angle.cos()
    si = angle.sin()
    return _DISTANCE[shape](co * dx + si * dy, co * dy - si * dx, radius)


def coverage(
    shape: str, x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, size: int = SIZE
) -> Tensor:
    """Anti-aliased masks of one shape at free places, radii and angles, each (n,): (n, size, size)
    in [0, 1].
    """
    return soft(-distance(shape, x, y, radius, angle, size))


def object_masks(scenes: Scene | Sequence[Scene], slots: int = 2, size: int = SIZE) -> Tensor:
    """Anti-aliased coverage of each object, (b, slots, size, size) in [0, 1]; the last object lies
    on top of the first.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else scenes
    out = torch.zeros(len(scenes), slots, size, size)
    for shape in SHAPES:
        rows = []  # of `out`
        columns = []
        drawn = []  # x, y, radius, angle
        for b, s in enumerate(scenes):
            for k, (o, (x, y)) in enumerate(zip(s.objects, centers(s))):
                if o.shape == shape:
                    rows.append(b)
                    columns.append(k)
                    drawn.append((x, y, SIZES[o.size], o.angle))
        if drawn:
            out[rows, columns] = coverage(shape, *torch.tensor(drawn).unbind(1), size)
    return out


def _wave(axis: Tensor, phase: Tensor, period: float) -> Tensor:
    """Signed distance along an axis to the edges of a square wave, (b, n): positive inside the
    bars.
    """
    inside = torch.remainder(axis + phase[:, None], period)  # 0..period
    return period / 4 - (inside - period / 2).abs()


def _texture(scenes: Sequence[Scene], size: int) -> Tensor:
    """Second-tone coverage of the background texture, (b, 1, size, size) in [0, 1], edges
    anti-aliased.
    """
    axis = grid(size)
    px, py = torch.tensor([s.phase for s in scenes]).unbind(1)
    bar = _wave(axis, px, 10.0)[:, None, :].expand(-1, size, -1)  # b h w

    bx = _wave(axis, px, 16.0)[:, None, :]
    by = _wave(axis, py, 16.0)[:, :, None]
    check = torch.minimum(bx.abs(), by.abs()) * torch.sign(bx) * torch.sign(by)

    dx = torch.remainder(axis + px[:, None], 12.0) - 6
    dy = torch.remainder(axis + py[:, None], 12.0) - 6
    dot = 3.5 - torch.hypot(dx[:, None, :], dy[:, :, None])

    kind = torch.tensor([TEXTURES.index(s.texture) for s in scenes])
    has = F.one_hot(kind, len(TEXTURES)).float()[:, :, None, None]  # b texture 1 1
    cover = 0
    for k, depth in enumerate((bar, check, dot), start=1):  # 0 is plain
        cover = cover + has[:, k] * soft(depth)
    return cover[:, None]


def render(scenes: Scene | Sequence[Scene], size: int = SIZE) -> Tensor:
    """Draw scenes: (b, 3, size, size) in [-1, 1]. `size` 64 or a multiple of it, drawn with edges
    one pixel wide; or 32 or 16, the area average of 64.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else scenes
    if size in (32, 16):
        return F.avg_pool2d(render(scenes), SIZE // size)
    if size < SIZE or size % SIZE:
        raise ValueError(f"size {size}: the toy world renders 16, 32 or a multiple of 64 pixels")
    color = torch.tensor([BACKGROUNDS[s.background] for s in scenes])
    ground = color + torch.tensor([s.tint for s in scenes])  # b 3
    tone = torch.tensor([step(s.background) for s in scenes])
    image = ground[:, :, None, None] + tone[:, None, None, None] * _texture(scenes, size)
    masks = object_masks(scenes, size=size)
    for k in range(2):
        color = torch.tensor([_color(s, k) for s in scenes])  # b 3
        mask = masks[:, k : k + 1]
        image = image + mask * (color[:, :, None, None] - image)
    return image.clamp(0, 1) * 2 - 1


def step(background: str) -> float:
    """What is added to every channel of a ground for its second tone."""
    return 0.13 if background == "black" else -0.15


def _color(s: Scene, k: int) -> list[float]:
    """RGB in 0..1 of object k, tint included; of no object black, which nothing shows."""
    if k >= len(s.objects):
        return [0.0, 0.0, 0.0]
    o = s.objects[k]
    return [channel + tint for channel, tint in zip(COLORS[o.color], o.tint)]
