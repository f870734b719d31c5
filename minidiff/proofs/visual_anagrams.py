"""Is one picture right both ways it is looked at?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.guidance.visual_anagrams import VIEWS, visual_anagrams
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, draw, share

NEGATIVE = {"red": "cyan", "cyan": "red", "yellow": "blue", "green": "pink", "pink": "green"}


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Negatives on pixels; on latents two prompts that each say one half, upright and in the
    mirror.

    The mirror, since half of the toy world's shapes have no right answer upside down: a triangle on
    its tip is none.
    """
    from minidiff.weights.store import load

    scenes = draw(n, seed)
    run = dict(steps=25, seed=seed)

    pixel = load("tiny-pixel")
    pairs = list(NEGATIVE.items())
    colors = [pairs[i % len(pairs)] for i in range(n)]
    forms = [s.objects[0].shape for s in scenes]
    a = [f"{color} {form}" for (color, _), form in zip(colors, forms)]
    b = [f"{negative} {form}" for (_, negative), form in zip(colors, forms)]
    plain = pixel.generate(a, **run)
    both = {  # rows: [view, upright]
        "ours": visual_anagrams(pixel, a, b, view="negative", **run),
        "plain": torch.cat([-plain, plain]),
    }
    named = {k: _named(x[:n], b) & _named(x[n:], a) for k, x in both.items()}
    grounds = {k: _of_this_world(x[:n]) & _of_this_world(x[n:]) for k, x in both.items()}

    sized = [shapes.caption(s, position=False, texture=False) for s in scenes]
    placed = [shapes.caption(s, size=False, texture=False) for s in scenes]
    two = visual_anagrams(pipe, sized, placed, view="mirror", **run)
    plain = pipe.generate(sized, **run)
    halves = _halves(two, scenes)
    halves_plain = share(_halves(torch.cat([plain.flip(3), plain]), scenes))

    image = shapes.render(scenes)
    mirror = VIEWS["mirror"]
    turned = pipe.decode(mirror.do(pipe.encode(image)))
    copy = pipe.decode(pipe.encode(mirror.do(image)))
    rows = [
        averaged(
            "negative, on pixels: both views read right (one object, its colour)",
            named["ours"],
            0.8,
            share(named["plain"]),
        ),
        averaged(
            "negative: in both views the ground is one that the toy world has",
            grounds["ours"],
            0.6,
            share(grounds["plain"]),
        ),
        averaged(
            "mirror, on latents: both prompts right, each says one half", halves, 0.5, halves_plain
        ),
        averaged(
            "on latents: turned latents, decoded, against the turned picture's copy, dB",
            psnr(turned, copy),
            20,
            source="identity",
        ),
    ]
    return counted(rows, n)


def _named(images: Tensor, names: list[str]) -> Tensor:
    """(b,) bool: one object of the colour of the class name (the tiny pixel model's shapes are not
    asked).
    """
    large = F.interpolate(images.cpu(), (64, 64), mode="bilinear")
    right = []
    for read, name in zip(oracle().read(large), names):
        objects = read["objects"]
        right.append(len(objects) == 1 and objects[0]["color"] == name.split()[0])
    return torch.tensor(right)


def _of_this_world(images: Tensor, near: float = 0.25) -> Tensor:
    """(b,) bool: the median colour of the picture is near that of a ground of the toy world, RGB in
    0..1.
    """
    seen = ((images.cpu() + 1) / 2).flatten(2).median(2).values  # b 3
    grounds = torch.tensor(list(shapes.BACKGROUNDS.values()))  # 8 3
    return torch.cdist(seen, grounds).amin(1) < near


def _halves(rows: Tensor, scenes: list[shapes.Scene]) -> Tensor:
    """(b,) bool: upright all that the first prompt says, and through the view all that the second
    says.
    """
    n = len(scenes)
    turned = oracle().judge(rows[:n].cpu(), scenes, (*SHORT, "position"))["joint"]
    upright = oracle().judge(rows[n:].cpu(), scenes, (*SHORT, "size"))["joint"]
    return upright & turned
