"""Do two models that share nothing but noise translate into each other?"""

from itertools import pairwise

import torch
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.data.toy2d import Mixture, two_moons
from minidiff.editing.ddib import bridge, ddib
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.oracle import compare, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, together


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """In the plane, exact: two moons to a checkerboard and back. On pictures: one colour's pictures
    to another's.
    """
    error = [cycle(pipe, steps, 200, seed) for steps in (50, 100, 200)]
    its = items("test", min(n, 12), ("recolour",), seed=seed)
    asked = together(its)
    color, shape = read(ddib(pipe, asked.image, asked.source, asked.target, steps=50), its)
    rivals = []
    for strength in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        out = sdedit(pipe, asked.image, asked.target, strength=strength, steps=25, seed=seed)
        rivals.append(read(out, its))
    as_often = [rival for rival in rivals if rival[0] >= color]
    _, rival_shape = as_often[0] if as_often else rivals[-1]  # the least that recolours as often
    return [
        Row(
            "two moons to a board and back, 200 steps: minus the error (RMSE)",
            -error[2],
            -0.05,
            -error[0],
        ),
        Row(
            "it falls with each doubling of the steps: smallest ratio",
            min(a / b for a, b in pairwise(error)),
            1,
        ),
        Row("recolour: colour right", color, 0.7),
        Row("recolour: shape kept", shape, 0.8),
        Row(
            "shape kept: gain over SDEdit at the same share of right colours",
            shape - rival_shape,
            0.001,
            rival_shape,
        ),
    ]


def board(cells: int = 4, dots: int = 4, std: float = 0.12) -> Mixture:
    """The black squares of a board over [-2, 2]^2 as a mixture: dots x dots Gaussians in each
    square.
    """
    places = []
    for row in range(cells):
        for column in range(cells):
            if (row + column) % 2 == 0:
                for i in range(dots):
                    for j in range(dots):
                        x = (column + (i + 0.5) / dots) * 4 / cells - 2
                        y = (row + (j + 0.5) / dots) * 4 / cells - 2
                        places.append((x, y))
    return _round_dots(places, std)


def moons(n: int = 120, std: float = 0.1) -> Mixture:
    """Two moons as a mixture of n Gaussians along them."""
    return _round_dots(two_moons(n, seed=0, std=0.0), std)


def _round_dots(places, std: float) -> Mixture:
    cov = std**2 * torch.eye(2, dtype=torch.float64)
    return Mixture(places, cov.expand(len(places), 2, 2))


def cycle(pipe: Pipe, steps: int, n: int, seed: int) -> float:
    """Root mean squared error of n points that go to the other distribution and back, denoised
    exactly.
    """
    sch = pipe.schedule
    a = moons().denoise(sch)
    b = board().denoise(sch)
    x = moons().sample(n, seed)
    there = bridge(a, b, sch, x, steps=steps)
    back = bridge(b, a, sch, there, steps=steps)
    return (back - x).pow(2).mean().sqrt().item()


def read(edits: Tensor, its: list[Item]) -> tuple[float, float]:
    """Shares of pictures whose colours, and whose shapes, are those of the right answer."""
    verdicts = [compare(r, item.truth) for r, item in zip(oracle().read(edits), its)]
    color = sum(v["color"] for v in verdicts) / len(its)
    shape = sum(v["shape"] for v in verdicts) / len(its)
    return color, shape
