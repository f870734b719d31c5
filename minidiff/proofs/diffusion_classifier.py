"""Does a model that draws from words also read, and is shared noise what makes it cheap?"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from minidiff.analysis.diffusion_classifier import diffusion_classifier
from minidiff.data import shapes
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, draw, gained

N = 96
TIMES = (300, 500, 700)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Shapes of seven and colours of eight, from one noise a picture, at three times."""
    scenes = draw(n, seed)
    rows = []
    for what, names, changed in (
        ("shape", list(shapes.SHAPES), _with_shape),
        ("colour", list(shapes.COLORS), _with_color),
    ):
        shared = found(pipe, scenes, names, changed, True, seed)
        own = found(pipe, scenes, names, changed, False, seed)
        rows.append(
            averaged(
                f"the right {what} of {len(names)}, one noise at t = {TIMES[-1]}",
                shared[-1],
                0.9,
                1 / len(names),
            )
        )
        rows.append(
            gained(
                f"{what}s found with shared noise more than with own, mean of three times",
                shared.mean(0),
                own.mean(0),
            )
        )
    return rows


def found(
    pipe: Pipe,
    scenes: Sequence[shapes.Scene],
    names: Sequence[str],
    changed: Callable[[shapes.Scene, str], shapes.Scene],
    shared: bool,
    seed: int,
) -> np.ndarray:
    """(times, scenes) of 0 and 1: whether the scene itself was chosen among those that differ from
    it in one word.
    """
    said = [[shapes.caption(changed(s, name)) for name in names] for s in scenes]
    itself = torch.tensor([own.index(shapes.caption(s)) for own, s in zip(said, scenes)])
    image = shapes.render(scenes)
    rows = []
    for t in TIMES:
        choice = diffusion_classifier(pipe, image, said, times=(t,), shared=shared, seed=seed)
        rows.append((choice.best == itself).double().numpy())
    return np.stack(rows)


def _with_shape(s: shapes.Scene, name: str) -> shapes.Scene:
    return replace(s, objects=(replace(s.objects[0], shape=name),))


def _with_color(s: shapes.Scene, name: str) -> shapes.Scene:
    return replace(s, objects=(replace(s.objects[0], color=name),))
