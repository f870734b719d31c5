"""What the tests of equations share. Each computes an equation of a page by hand, in another way than the code: loops,
densities on a grid, closed forms, differences in place of gradients; float64, small random numbers.

A page marks an equation by `<!-- formula NAME -->`, beside its pass mark, on the line above it; `test_NAME` in this folder
computes it, and `test_marks.py` sees that none of the two is without the other.
"""
import torch

from minidiff.core import schedule
from minidiff.core.cond import Cond

TABLES = (schedule.linear(), schedule.cosine(), schedule.flow(), schedule.ve())
MOVES = ((1000, 700), (700, 699), (400, 1), (20, 10))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(v):
    return torch.tensor([[v]], dtype=torch.float64)


def near(got, want, tolerance=1e-9):
    got, want = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (got, want))
    assert got.shape == want.shape or not got.ndim
    gap = ((got - want).abs() / want.abs().clamp_min(1)).max().item()
    assert gap <= tolerance, f"off by {gap:.3g}"


def tables(sch, *times):
    return [v for t in times for v in (sch.alpha[t].item(), sch.sigma[t].item())]


def by_rows(x_t, t, cond):
    """A network that is no special case: curved in x, different in every t and row of the condition."""
    k = cond.extra["k"].view(-1, *[1] * (x_t.ndim - 1)) if cond is not None and cond.extra else 0.
    return torch.sin(x_t * 1.3 + k) * .5 + x_t.roll(1, -1) * .2 + torch.as_tensor(t).double().sin() * .1


def words(*k):
    return Cond(extra={"k": torch.tensor(k, dtype=torch.float64)})
