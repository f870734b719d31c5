"""What answers are tried on: schedules, random tensors, and states on their way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minidiff.core import schedule
from minidiff.core.schedule import Schedule
from minidiff.learn.exercise import Mutant

LINEAR = schedule.linear()
FLOW = schedule.flow()
ONE = torch.ones(1, 1, 2, 2)
# what the tasks say of schedules and times
ANY_SCHEDULE = (
    " Schedules of all kinds are asked: $\\alpha^2 + \\sigma^2 = 1$ must not be assumed, so take "
    "$\\sigma$ from the schedule."
)
A_TIME_EACH = (
    " A time is an int, or a LongTensor (b,) with one for each row: `sch.at(t, x)` gives two "
    "Python floats for the one (no `.sqrt()`, but `** 0.5`), tensors (b, 1, 1, 1) for the other."
)
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


# ---- a time for each row -------------------------------------------------------------------------


def batches(seed: int) -> Iterator[tuple[Schedule, Tensor, Tensor, Tensor, Tensor]]:
    """(schedule, pictures, noise, t, s < t) with LongTensors of times, another for each row."""
    g = torch.Generator().manual_seed(seed + 50)
    for sch, shape in ((LINEAR, (2, 3, 4, 5)), (FLOW, (3, 2, 5, 4))):
        x = torch.randn(shape, generator=g)
        eps = torch.randn(shape, generator=g)
        s = torch.randint(1, sch.T // 2, (len(x),), generator=g)
        t = torch.randint(sch.T // 2 + 1, sch.T, (len(x),), generator=g)
        yield sch, x, eps, t, s


def by_rows(fn: Callable) -> Callable:
    """`fn`, written for ints, for LongTensors of times as well: one row after the other."""

    def each(*args):
        times = [value for value in args if _is_times(value)]
        if not times:
            return fn(*args)
        rows = []
        for i in range(len(times[0])):
            rows.append(fn(*[_row(value, i) for value in args]))
        return _joined(rows)

    return each


def _is_times(value) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def _row(value, i: int):
    if _is_times(value):
        return value[i].item()
    return value[i : i + 1] if isinstance(value, Tensor) else value


def _joined(rows: list):
    if isinstance(rows[0], tuple):
        return tuple(_joined(list(parts)) for parts in zip(*rows))
    if isinstance(rows[0], Tensor):
        return torch.cat(rows)
    return torch.tensor(rows).view(-1, 1, 1, 1)


# ---- a mistake that many exercises share ---------------------------------------------------------


def preserving_assumed(fn: Callable) -> Mutant:
    """The formulas of the DDPM papers, which hold where alpha^2 + sigma^2 = 1: what `fn`, the right
    function, gives on a schedule with that sigma.
    """

    def wrong(*args):
        return fn(*[_preserving(v) if isinstance(v, Schedule) else v for v in args])

    return Mutant(
        "alpha^2 + sigma^2 = 1 is assumed",
        wrong,
        "The papers on DDPM and DDIM write everything in alpha_bar, with 1 - alpha_bar for the "
        "variance of the noise. That holds for their schedules and not for flow matching, where "
        "alpha + sigma = 1. Take sigma from the schedule.",
    )


def guess_clipped(wrong: Callable) -> Mutant:
    """The guess of x0 is cut at -1 and 1 in `wrong`."""
    return Mutant(
        "the guess of x0 is clipped",
        wrong,
        "Samplers of pixels often cut the guess at -1 and 1. Latents and points know no such "
        "range, and the formula has no cut: where one is wanted it stands in the sampler, for all "
        "to see.",
    )


def _preserving(sch: Schedule) -> Schedule:
    return Schedule(sch.alpha, (1 - sch.alpha**2).clamp(min=0).sqrt(), sch.name)
