"""Layout of a picture, meaning of a prompt: does the mixture hold both, and without a ghost?"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.data.shapes import Scene
from minidiff.editing.magicmix import choose, ghosting, magicmix
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, draw, gained, object_region

STEPS = 20


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


def kept_silhouette(x: Tensor, given: list[Scene], wanted: list[Scene]) -> Tensor:
    """IoU (b,) of what has the prompt's colour with the silhouette of the source's object: 0 where
    that colour has not arrived.
    """
    regions = [object_region(p, s.objects[0].color, 0) for p, s in zip(x.cpu(), wanted)]
    seen = torch.stack(regions) > 0.5
    true = shapes.object_masks(given)[:, :1] > 0.5
    both = (seen & true).sum((1, 2, 3))
    either = (seen | true).sum((1, 2, 3))
    return both / either.clamp_min(1)


def arrived(x: Tensor, wanted: list[Scene]) -> Tensor:
    """(b,) bool: is as much of the picture in the prompt's colour as half of its object?"""
    regions = [object_region(p, s.objects[0].color, 0) for p, s in zip(x.cpu(), wanted)]
    area = shapes.object_masks(wanted)[:, :1].sum((1, 2, 3))
    return torch.stack(regions).sum((1, 2, 3)) >= area / 2


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Pictures mixed with a prompt of another thing, of another colour: the source's silhouette is
    to be kept, and the prompt's colour to fill it. Against the prompt alone, and a plain average.
    """
    given, wanted = zip(*concepts(n, seed))
    image = shapes.render(given)
    target = [shapes.short_caption(s) for s in wanted]
    run = dict(steps=STEPS, seed=seed)
    free = magicmix(pipe, image, target, kmax=1.0, nu=1.0, **run)
    _, chosen = choose(pipe, image, target, **run)

    def ghost_free(x: Tensor) -> Tensor:
        return 1 - ghosting(x, image, free)

    colour = arrived(chosen, wanted)
    before = arrived(image, wanted).float().mean()
    rows = [
        averaged(
            "the prompt's colour arrives, setting chosen without a judge", colour, 0.6, before
        ),
        gained(
            "what has that colour keeps the source's silhouette (IoU): gain over the prompt alone",
            kept_silhouette(chosen, given, wanted),
            kept_silhouette(free, given, wanted),
        ),
        averaged(
            "free of ghosts (1 - ghosting)",
            ghost_free(chosen),
            0.7,
            ghost_free(0.5 * image + 0.5 * free).nanmean(),
        ),
    ]
    return counted(rows, n)
