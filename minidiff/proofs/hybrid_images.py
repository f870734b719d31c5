"""Does each part of one picture show what its own prompt says?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import oracle
from minidiff.guidance.hybrid_images import hybrid_images
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, draw, share


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Colours from afar and shapes from nearby; two halves; and greys, on pixels."""
    from minidiff.weights.store import load

    run = dict(steps=25, seed=seed)
    scenes = draw(n, seed)
    coarse = [s.objects[0] for s in scenes]
    grounds = [s.background for s in scenes]
    fine = [(_other_shape(o.shape), _other_color(o.color, s)) for o, s in zip(coarse, scenes)]

    afar = [f"a {o.color} {o.shape} on a {g} background" for o, g in zip(coarse, grounds)]
    nearby = [f"a {c} {f} on a {g} background" for (f, c), g in zip(fine, grounds)]
    both = hybrid_images(pipe, afar, nearby, **run)
    wanted = [(o.color, form) for o, (form, _) in zip(coarse, fine)]
    hybrid = _reads(both, wanted)
    plain = share(_reads(pipe.generate(nearby, **run), wanted))

    left = [
        f"a {o.color} {o.shape} on the left on a {g} background" for o, g in zip(coarse, grounds)
    ]
    right = [f"a {c} {f} on the right on a {g} background" for (f, c), g in zip(fine, grounds)]
    halves = hybrid_images(pipe, left, right, part="left", **run)
    pairs = [[(o.color, o.shape), (c, f)] for o, (f, c) in zip(coarse, fine)]
    named = [
        f"a {o.color} {o.shape} left of a {c} {f} on a {g} background"
        for o, (f, c), g in zip(coarse, fine, grounds)
    ]
    one_prompt = share(_reads_two(pipe.generate(named, **run), pairs))

    same = hybrid_images(pipe, afar, afar, **run)
    alone = pipe.generate(afar, **run)

    pixel = load("tiny-pixel")
    greys = [f"{o.color} {o.shape}" for o in coarse]
    colours = [f"{c} {f}" for f, c in fine]
    tinted = hybrid_images(pixel, greys, colours, part="grey", **run)
    hues = _first_color(tinted, [c for _, c in fine])
    rows = [
        averaged(
            "blur, on latents: read are the colour of the one and the shape of the other",
            hybrid,
            0.5,
            plain,
        ),
        averaged(
            "left, on latents: both objects right, each on its side",
            _reads_two(halves, pairs),
            0.5,
            one_prompt,
        ),
        averaged(
            "one prompt for both parts: the picture of plain sampling, dB",
            psnr(same, alone),
            40,
            source="identity",
        ),
        averaged(
            "grey, on pixels: read is the colour that was asked of the colours",
            hues,
            0.5,
            share(_first_color(pixel.generate(greys, **run), [c for _, c in fine])),
        ),
    ]
    return counted(rows, n)


def _other_shape(shape: str) -> str:
    """The next in the list, so that the two prompts never agree."""
    names = shapes.SHAPES
    return names[(names.index(shape) + 1) % len(names)]


def _other_color(color: str, scene: shapes.Scene) -> str:
    """Four further in the list of colours, or five where that is the ground's."""
    names = list(shapes.COLORS)
    at = names.index(color)
    near = names[(at + 4) % len(names)]
    return near if near != scene.background else names[(at + 5) % len(names)]


def _objects(images: Tensor) -> list[list[dict]]:
    large = F.interpolate(images.float().cpu(), (64, 64), mode="bilinear").clamp(-1, 1)
    return [read["objects"] for read in oracle().read(large)]


def _named(objects: list[dict]) -> list[tuple[str, str]]:
    return [(o["color"], o["shape"]) for o in objects]


def _reads(images: Tensor, wanted: list[tuple[str, str]]) -> Tensor:
    """(b,) bool: one object, of that colour and shape."""
    return torch.tensor([_named(o) == [w] for o, w in zip(_objects(images), wanted)])


def _reads_two(images: Tensor, wanted: list[list[tuple[str, str]]]) -> Tensor:
    """(b,) bool: two objects, the left or upper one first."""
    return torch.tensor([_named(o) == w for o, w in zip(_objects(images), wanted)])


def _first_color(images: Tensor, wanted: list[str]) -> Tensor:
    """(b,) bool: one object, of that colour (the tiny pixel model's shapes are not asked)."""
    read = _objects(images)
    return torch.tensor([[o["color"] for o in some] == [w] for some, w in zip(read, wanted)])
