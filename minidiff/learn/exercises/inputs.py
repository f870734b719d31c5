"""What answers are tried on: schedules, random tensors, and states on their way."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minidiff.core import schedule
from minidiff.core.schedule import Schedule

LINEAR = schedule.linear()
FLOW = schedule.flow()
ONE = torch.ones(1, 1, 2, 2)
SHIFT = [0]  # added to every seed below; `shifted` changes it


@contextmanager
def shifted(shift: int):
    """While the block lasts, other random tensors are drawn from the same seeds."""
    SHIFT[0] = shift
    try:
        yield
    finally:
        SHIFT[0] = 0


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(SHIFT[0] + seed)


def draws(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Gaussian tensors of these shapes, one after the other from one seed."""
    g = generator(seed)
    return tuple(torch.randn(shape, generator=g) for shape in shapes)


def draw(seed: int, *shape: int) -> Tensor:
    """A single one."""
    return draws(seed, shape)[0]


def states(seed: int) -> Iterator[tuple[Schedule, Tensor, Tensor, int, int]]:
    """(schedule, a picture, noise, t, s < t), small first."""
    g = generator(seed)
    sizes = ((LINEAR, (1, 1, 2, 2)), (LINEAR, (2, 3, 8, 8)), (FLOW, (3, 4, 5, 9)))
    for sch, shape in sizes:
        s, t = sorted(torch.randint(1, sch.T, (2,), generator=g).tolist())
        x = torch.randn(shape, generator=g)
        eps = torch.randn(shape, generator=g)
        if t == s:
            t += 1
        yield sch, x, eps, t, s


def levels(sch: Schedule, t: int, s: int) -> tuple[float, float, float, float]:
    """alpha and sigma at t, then at s."""
    alpha = sch.alpha.tolist()
    sigma = sch.sigma.tolist()
    return alpha[t], sigma[t], alpha[s], sigma[s]
