"""Meaning of a prompt, layout of a picture: does the mixture hold both, and without a ghost?"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.data.shapes import Scene
from minidiff.editing.magicmix import choose, ghosting, magicmix
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, draw, share


def concepts(n: int, seed: int) -> list[tuple[Scene, Scene]]:
    """(scene, the same with an object of another colour and shape): the prompt names the latter,
    but no place, no size and no texture; those are the picture's to give.
    """
    rng = np.random.default_rng(seed)
    out = []
    for s in draw(n, seed):
        o = s.objects[0]
        color = rng.choice([c for c in shapes.COLORS if c not in (o.color, s.background)])
        shape = rng.choice([x for x in shapes.SHAPES if x != o.shape])
        recoloured = shapes.edit(s, "color", str(color))
        out.append((s, shapes.edit(recoloured, "shape", str(shape))))
    return out


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """8 pictures, each mixed with a short prompt of another shape and colour; 20 steps. Success:
    shape, colour and ground as the prompt says, place and size as in the picture.
    """
    given, wanted = zip(*concepts(min(n, 8), seed))
    image = shapes.render(given)
    target = [shapes.short_caption(s) for s in wanted]
    run = dict(steps=20, seed=seed)

    def success(x: Tensor) -> float:
        right = oracle().judge(x, wanted)
        asked = ("shape", "color", "background", "position", "size")
        return share(torch.stack([right[what] for what in asked]).all(0))

    free = magicmix(pipe, image, target, kmax=1.0, nu=1.0, **run)

    def ghost(x: Tensor) -> float:
        return ghosting(x, image, free).nanmean().item()

    _, chosen = choose(pipe, image, target, **run)
    sdedits = [magicmix(pipe, image, target, kmin=s, kmax=s, **run) for s in (0.6, 0.7, 0.8)]
    best = max(success(x) for x in sdedits)
    half = 0.5 * image + 0.5 * free
    return [
        Row(
            "the prompt's meaning in the picture's layout, setting chosen without a judge",
            success(chosen),
            0.6,
            success(free),
        ),
        Row("the same: gain over the best of three SDEdits", success(chosen) - best, 0.0, best),
        Row(
            "free of ghosts (1 - ghosting), the chosen setting",
            1 - ghost(chosen),
            0.7,
            1 - ghost(half),
        ),
    ]
