import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import noise
from minidiff.core.schedule import falling, level, nearest
from minidiff.data.toy2d import gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp
from minidiff.samplers.grids import (
    SD1,
    align_your_steps,
    fitted_times,
    log_linear,
)

SCH, SD = schedule.linear(1000), schedule.scaled_linear()


def start(n=64, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def test_the_nearest_time_is_the_one_that_a_search_of_all_of_them_finds():
    for sch in (SD, schedule.flow(), schedule.ve(), schedule.linear(3)):
        for wanted in (1e-9, 0.003, 0.029, 0.5, 1.0, 7.3, 14.615, 1e6):
            ts = range(1, sch.T + 1)
            want = min(ts, key=lambda t: abs(math.log(level(sch, t) / wanted)))
            assert nearest(sch, wanted) == want
    assert all(nearest(SD, level(SD, t)) == t for t in range(1, 1001))


def test_the_published_levels_are_the_times_that_were_published_with_them():
    """Network times of the same table, one less than ours; they were rounded on their own."""
    times = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    ours = align_your_steps(SD, 10)
    assert ours[-1] == 0 and all(abs(a - 1 - b) <= 1 for a, b in zip(ours, times, strict=False))
    assert len(ours) == 11
    # the last level, that of index 1, is where the clean end stands
    assert nearest(SD, SD1[-1]) == 1


@pytest.mark.oracle
def test_the_levels_are_those_of_diffusers():
    utils = pytest.importorskip(
        "diffusers.schedulers.scheduling_utils",
        reason="diffusers is not installed (development extra)",
    )
    theirs = utils.AysSchedules["StableDiffusionSigmas"]
    assert list(SD1[:-1]) == theirs[:-1] and theirs[-1] == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 20, 33, 1000])
def test_other_counts_are_laid_on_straight_lines_of_the_logarithm_over_the_place(n):
    laid = log_linear(SD1, n)
    assert len(laid) == n + 1 and abs(laid[0] - SD1[0]) < 1e-12 and abs(laid[-1] - SD1[-1]) < 1e-12
    logs = torch.tensor(SD1, dtype=torch.float64).log()
    for i, got in enumerate(laid):
        place = 10 * i / n
        near = (1 - (torch.arange(11.0, dtype=torch.float64) - place).abs()).clamp(
            min=0
        )  # a tent on every place
        assert abs(math.log(got) - (near * logs).sum()) < 1e-9
    grid = align_your_steps(SD, n)
    assert SD.checked(grid) == grid and len(grid) == n + 1


def test_on_double_the_steps_every_second_time_is_the_same():
    assert align_your_steps(SD, 20)[::2] == align_your_steps(SD, 10)


def test_levels_that_meet_move_apart():
    assert falling(SD, [1.0, 0.9999, 0.9998]) == [nearest(SD, 1.0) + 2 - i for i in range(3)]
    assert falling(SD, [900.0, 800.0, 700.0]) == [1000, 999, 998]
    assert falling(schedule.linear(3), [9.0, 8.0, 1e-3]) == [3, 2, 1]


@pytest.mark.parametrize(
    "levels", [[], [1.0, 2.0], [1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [math.inf, 1.0], [math.nan]]
)
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels \[.*each smaller than the one before"):
        falling(SD, levels)


def test_steps_out_of_range_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        align_your_steps(SD, 0)
    with pytest.raises(ValueError, match="1001 levels: 'scaled_linear' has no more than 1000"):
        align_your_steps(SD, 1001)


# ---- a grid of our own ---------------------------------------------------------------------------


def loss(sampler, denoise, x, fine, times):
    return (sampler(denoise, SCH, x, times=times) - fine).pow(2).mean().item()


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
def test_a_fitted_grid_is_better_on_starts_it_has_not_seen_than_all_that_have_names(sampler):
    denoise = gmm8(1.0, 0.15).denoise(SCH)
    seen, unseen = start(40), start(100, seed=1000)
    fine, truth = (dpm_solver_pp(denoise, SCH, x, steps=200) for x in (seen, unseen))
    named = [SCH.timesteps(5, spacing=s) for s in (*schedule.SPACINGS, *schedule.LEVELS)]
    named += [align_your_steps(SCH, 5)]
    ours = fitted_times(sampler, denoise, SCH, seen, fine, SCH.timesteps(5, spacing="trailing"))
    assert SCH.checked(ours) == ours and len(ours) == 6 and ours[0] == 1000 and ours[-1] == 0
    errors = [loss(sampler, denoise, unseen, truth, ts) for ts in named]
    assert loss(sampler, denoise, unseen, truth, ours) < 0.9 * min(errors), (errors, ours)


def test_the_descent_ends_where_no_neighbour_is_better():
    """With one inner time, all places can be tried."""
    denoise = gmm8(1.0, 0.15).denoise(SCH)
    x = start(50)
    fine = dpm_solver_pp(denoise, SCH, x, steps=200)
    [_, t, _] = fitted_times(ddim, denoise, SCH, x, fine, [1000, 500, 0])
    errors = {u: loss(ddim, denoise, x, fine, [1000, u, 0]) for u in (t - 1, t, t + 1)}
    assert min(errors, key=errors.__getitem__) == t


def test_a_grid_without_inner_times_stays_as_it_is_and_a_wrong_one_is_refused():
    denoise, x = gmm8().denoise(SCH), start(4)
    assert fitted_times(ddim, denoise, SCH, x, x, [1000, 0]) == [1000, 0]
    with pytest.raises(ValueError, match="each smaller than the one before"):
        fitted_times(ddim, denoise, SCH, x, x, [0, 1000])
