"""Do two models that share nothing but noise translate into each other?"""

from itertools import pairwise

import torch
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.data.toy2d import Mixture, two_moons
from minidiff.editing.ddib import bridge, ddib
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import compare, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, gained, together

N = 64
POINTS = 200  # in the plane


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """In the plane, exact: two moons to a checkerboard and back. On pictures: one colour's pictures
    to another's, and back, against SDEdit there and back at the least strength that recolours as
    often.
    """
    error = [cycle(pipe, steps, POINTS, seed) for steps in (50, 100, 200)]
    its = items("test", n, ("recolour",), seed=seed)
    asked = together(its)
    there = ddib(pipe, asked.image, asked.source, asked.target, steps=50)
    back = ddib(pipe, there, asked.target, asked.source, steps=50)
    color, shape = read(there, its)

    def noised(image: Tensor, prompts: list[str], strength: float) -> Tensor:
        return sdedit(pipe, image, prompts, strength=strength, steps=25, seed=seed)

    for strength in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        rival = noised(asked.image, asked.target, strength)
        if read(rival, its)[0].float().mean() >= color.float().mean():
            break
    rival_back = noised(rival, asked.source, strength)
    rival_shape = read(rival, its)[1]
    copy = pipe.decode(pipe.encode(asked.image))
    rows = [
        Row(
            "two moons to a board and back, 200 steps: minus the error (RMSE)",
            -error[2],
            -0.05,
            -error[0],
            source="identity",
            n=POINTS,
        ),
        Row(
            "it falls with each doubling of the steps: smallest ratio",
            min(a / b for a, b in pairwise(error)),
            1,
            source="identity",
            n=POINTS,
        ),
        averaged("recolour: colour right", color, 0.7),
        averaged("recolour: shape kept", shape, 0.8, rival_shape.float().mean()),
        gained(
            f"there and back, dB to the copy: gain over SDEdit's (strength {strength})",
            psnr(back, copy),
            psnr(rival_back, copy),
        ),
    ]
    return counted(rows, n)


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


def read(edits: Tensor, its: list[Item]) -> tuple[Tensor, Tensor]:
    """(b,) bools: whose colours, and whose shapes, are those of the right answer."""
    verdicts = [compare(r, item.truth) for r, item in zip(oracle().read(edits), its)]
    color = torch.tensor([v["color"] for v in verdicts])
    shape = torch.tensor([v["shape"] for v in verdicts])
    return color, shape
