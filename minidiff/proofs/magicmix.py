"""Meaning of a prompt, layout of a picture: does the mixture hold both, and without a ghost?"""

import numpy as np
import torch

from minidiff.data import shapes
from minidiff.data.shapes import Scene
from minidiff.editing.magicmix import choose, ghosting, magicmix
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw


def concepts(n: int, seed: int) -> list[tuple[Scene, Scene]]:
    """(scene, the same with an object of another colour and shape): the prompt names the latter,
    but no place, no size and no texture; those are the picture's to give.
    """
    rng, out = np.random.default_rng(seed), []
    for s in draw(n, seed):
        o = s.objects[0]
        color = rng.choice([c for c in shapes.COLORS if c not in (o.color, s.background)])
        shape = rng.choice([x for x in shapes.SHAPES if x != o.shape])
        out.append((s, shapes.edit(shapes.edit(s, "color", str(color)), "shape", str(shape))))
    return out


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """8 pictures, each mixed with a short prompt of another shape and colour; 20 steps. Success:
    shape, colour and ground as the prompt says, place and size as in the picture.
    """
    pairs, judge = concepts(min(n, 8), seed), oracle()
    image, target = (
        shapes.render([a for a, _ in pairs]),
        [shapes.short_caption(b) for _, b in pairs],
    )
    wanted, run = [b for _, b in pairs], dict(steps=20, seed=seed)

    def success(x):
        r = judge.judge(x, wanted)
        right = torch.stack(
            [r[k] for k in ("shape", "color", "background", "position", "size")]
        ).all(0)
        return right.float().mean().item()

    free = magicmix(pipe, image, target, kmax=1.0, nu=1.0, **run)
    ghost = lambda x: ghosting(x, image, free).nanmean().item()  # noqa: E731
    _, chosen = choose(pipe, image, target, **run)
    sdedits = [magicmix(pipe, image, target, kmin=s, kmax=s, **run) for s in (0.6, 0.7, 0.8)]
    half = 0.5 * image + 0.5 * free
    best = max(map(success, sdedits))
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
