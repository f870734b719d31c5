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
from minidiff.proofs.prove import Row


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """In the plane, exact: two moons to a checkerboard and back. On pictures: one colour's pictures
    to another's.
    """
    error = [cycle(pipe, steps, 200, seed) for steps in (50, 100, 200)]
    its = items("test", min(n, 12), ("recolour",), seed=seed)
    image, source, target = (
        torch.cat([i.image for i in its]),
        [i.source for i in its],
        [i.target for i in its],
    )
    color, shape = read(ddib(pipe, image, source, target, steps=50), its)
    rival = [
        read(sdedit(pipe, image, target, strength=s, steps=25, seed=seed), its)
        for s in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    ]
    # the least that recolours as often
    equal = next((r for r in rival if r[0] >= color), rival[-1])
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
            shape - equal[1],
            0.001,
            equal[1],
        ),
    ]


def board(cells: int = 4, dots: int = 4, std: float = 0.12) -> Mixture:
    """The black squares of a board over [-2, 2]^2 as a mixture: dots x dots Gaussians in each
    square.
    """
    centres = [(c, r) for r in range(cells) for c in range(cells) if (r + c) % 2 == 0]
    grid = [
        ((c + (i + 0.5) / dots) * 4 / cells - 2, (r + (j + 0.5) / dots) * 4 / cells - 2)
        for c, r in centres
        for i in range(dots)
        for j in range(dots)
    ]
    return Mixture(grid, (std**2 * torch.eye(2, dtype=torch.float64)).expand(len(grid), 2, 2))


def moons(n: int = 120, std: float = 0.1) -> Mixture:
    """Two moons as a mixture of n Gaussians along them."""
    return Mixture(
        two_moons(n, seed=0, std=0.0), (std**2 * torch.eye(2, dtype=torch.float64)).expand(n, 2, 2)
    )


def cycle(pipe: Pipe, steps: int, n: int, seed: int) -> float:
    """Root mean squared error of n points that go to the other distribution and back, denoised
    exactly.
    """
    a, b, x = (
        moons().denoise(pipe.schedule),
        board().denoise(pipe.schedule),
        moons().sample(n, seed),
    )
    there = bridge(a, b, pipe.schedule, x, steps=steps)
    return (bridge(b, a, pipe.schedule, there, steps=steps) - x).pow(2).mean().sqrt().item()


def read(edits: Tensor, its: list[Item]) -> tuple[float, float]:
    """Shares of pictures whose colours, and whose shapes, are those of the right answer."""
    found = [compare(r, i.truth) for r, i in zip(oracle().read(edits), its)]
    return sum(f["color"] for f in found) / len(its), sum(f["shape"] for f in found) / len(its)
