"""Is one picture right both ways it is looked at?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.guidance.visual_anagrams import VIEWS, visual_anagrams
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw

NEGATIVE = {"red": "cyan", "cyan": "red", "yellow": "blue", "green": "pink", "pink": "green"}


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Negatives on pixels; on latents two prompts that each say one half, upright and in the
    mirror.

    The mirror, since half of the toy world's shapes have no right answer upside down: a triangle on
    its tip is none.
    """
    from minidiff.weights.store import load

    pixel, scenes = load("tiny-pixel"), draw(n, seed)
    shape, color = [s.objects[0].shape for s in scenes], list(NEGATIVE)
    a, b = (
        [f"{c} {s}" for c, s in zip(cs, shape)]
        for cs in ([color[i % 5] for i in range(n)], [NEGATIVE[color[i % 5]] for i in range(n)])
    )
    two, plain = (
        visual_anagrams(pixel, a, b, view="negative", steps=25, seed=seed),
        pixel.generate(a, steps=25, seed=seed),
    )
    both = [two, torch.cat([-plain, plain])]  # rows: [view, upright]
    negative = [(_named(x[:n], b) & _named(x[n:], a)).float().mean().item() for x in both]
    grounds = [(_of_this_world(x[:n]) & _of_this_world(x[n:])).float().mean().item() for x in both]

    small = [shapes.caption(s, position=False, texture=False) for s in scenes]  # says the size
    placed = [shapes.caption(s, size=False, texture=False) for s in scenes]  # says the place
    two, plain = (
        visual_anagrams(pipe, small, placed, view="mirror", steps=25, seed=seed),
        pipe.generate(small, steps=25, seed=seed),
    )
    half = [
        _halves(x, scenes).float().mean().item() for x in (two, torch.cat([plain.flip(3), plain]))
    ]

    image, v = shapes.render(scenes), VIEWS["mirror"]
    turned, copy = pipe.decode(v.do(pipe.encode(image))), pipe.decode(pipe.encode(v.do(image)))
    apart = psnr(turned, copy).mean().item()
    return [
        Row(
            "negative, on pixels: both views read right (one object, its colour)",
            negative[0],
            0.8,
            negative[1],
        ),
        Row(
            "negative: in both views the ground is one that the toy world has",
            grounds[0],
            0.6,
            grounds[1],
        ),
        Row("mirror, on latents: both prompts right, each says one half", half[0], 0.5, half[1]),
        Row(
            "on latents: turned latents, decoded, against the turned picture's copy, dB", apart, 20
        ),
    ]


def _named(images: Tensor, names: list[str]) -> Tensor:
    """(b,) bool: one object of the colour of the class name (the tiny pixel model's shapes are not
    asked).
    """
    found = oracle().read(F.interpolate(images.cpu(), (64, 64), mode="bilinear"))
    return torch.tensor(
        [
            len(r["objects"]) == 1 and r["objects"][0]["color"] == q.split()[0]
            for r, q in zip(found, names)
        ]
    )


def _of_this_world(images: Tensor, near: float = 0.25) -> Tensor:
    """(b,) bool: the median colour of the picture is near that of a ground of the toy world, RGB in
    0..1.
    """
    seen = ((images.cpu() + 1) / 2).flatten(2).median(2).values  # b 3
    return torch.cdist(seen, torch.tensor(list(shapes.BACKGROUNDS.values()))).amin(1) < near


def _halves(rows: Tensor, scenes: list[shapes.Scene]) -> Tensor:
    """(b,) bool: upright all that the first prompt says, and through the view all that the second
    says.
    """
    judge, n = oracle(), len(scenes)
    upright, turned = (
        judge.judge(x.cpu(), scenes, (*SHORT, word))["joint"]
        for x, word in ((rows[n:], "size"), (rows[:n], "position"))
    )
    return upright & turned
