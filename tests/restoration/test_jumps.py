"""The way down and up again: counted by hand, and as the papers' code counts it."""

from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.process import renoise
from minidiff.restoration.jumps import evaluations, jumps


def grid(n):
    return list(range(n, -1, -1))


@pytest.mark.parametrize(
    "steps, length, repeats, count",
    [
        (250, 10, 10, 2410),
        (100, 10, 10, 910),
        (50, 10, 10, 410),
        (50, 10, 3, 130),
        (50, 5, 2, 95),
        (25, 5, 2, 45),
        (30, 5, 2, 55),
    ],
)
def test_the_schedules_of_repaint_cost_what_its_code_costs(steps, length, repeats, count):
    assert evaluations(jumps(grid(steps), length, repeats)) == count


def test_the_papers_way_has_4570_moves_of_one_step():
    way = jumps(grid(250), 10, 10)
    assert sum(abs(t - s) for t, s in pairwise(way)) == 4570
    assert sum(s > t for t, s in pairwise(way)) == 216  # 24 places, 9 times each


def test_a_short_way_by_hand():
    assert jumps(grid(6), 2, 2) == [6, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]


@pytest.mark.parametrize("length, repeats", [(1, 4), (3, 2), (5, 3), (7, 1), (30, 5)])
def test_every_way_is_one(length, repeats):
    way = jumps(grid(25), length, repeats)
    assert way[0] == 25 and way[-1] == 0 and way.count(0) == 1
    assert {s - t for t, s in pairwise(way)} <= {-1, length}  # a step down, or a jump
    assert repeats > 1 or way == grid(25)
    assert length < 25 or way == grid(25)  # too long to turn back


def test_jumps_start_inside_the_window():
    way = jumps(grid(50), 5, 3, window=(0.2, 0.8))
    starts = {t for t, s in pairwise(way) if s > t}
    assert starts == {11, 16, 21, 26, 31, 36} and evaluations(way) == 50 + 2 * 5 * len(starts)
    assert jumps(grid(50), 5, 3, window=(1.0, 1.0)) == grid(50)


def test_a_way_keeps_to_the_times_of_its_grid():
    ts = schedule.scaled_linear().timesteps(20, spacing="trailing")
    way = jumps(ts, 4, 2)
    assert set(way) == set(ts) and evaluations(way) == evaluations(jumps(grid(20), 4, 2))


def test_one_long_jump_is_many_short_ones():
    """Mean and variance after 4 jumps of one step and after one of four, in closed form: noises add
    up.
    """
    sch, x = schedule.cosine(), torch.ones(1, dtype=torch.float64)
    ts, var = [300, 350, 400, 450, 500], 0.0
    mean = x
    for s, t in pairwise(ts):
        # the deviation of one jump
        one = renoise(sch, torch.zeros_like(x), s, t, torch.ones_like(x))
        mean, var = (
            renoise(sch, mean, s, t, 0 * x),
            var * (sch.alpha[t] / sch.alpha[s]) ** 2 + one**2,
        )
    far = renoise(sch, torch.zeros_like(x), 300, 500, torch.ones_like(x))
    assert (mean - renoise(sch, x, 300, 500, 0 * x)).abs() < 1e-12 and (var - far**2).abs() < 1e-12


def test_a_step_undone_keeps_unit_variance():
    """For a model of unit Gaussians every state has variance alpha^2 + sigma^2 = 1; going up must
    keep it.
    """
    sch, g = schedule.cosine(), torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=g)
    for s, t in ((100, 101), (100, 300), (500, 1000)):
        assert renoise(
            sch, x, s, t, torch.randn(200_000, generator=g)
        ).var().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "bad", [dict(length=0), dict(repeats=0), dict(window=(0.8, 0.2)), dict(window=(0.0, 1.5))]
)
def test_bad_schedules_are_refused(bad):
    with pytest.raises(ValueError, match="expected two numbers of 1 or more"):
        jumps(grid(10), **bad)
