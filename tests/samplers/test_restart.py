import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, noise, noises
from minidiff.core.process import renoise
from minidiff.core.schedule import level, nearest
from minidiff.data.toy2d import Mixture, energy_distance, gauss_aniso, gmm8
from minidiff.samplers.heun import heun
from minidiff.samplers.restart import Interval, descent, restart, restarted

FINE, SCH = schedule.linear(20_000), schedule.linear(1000)


def start(n=64, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


@pytest.mark.parametrize("build", [schedule.linear, schedule.flow, schedule.ve])
def test_an_error_of_the_mean_shrinks_by_the_known_factor_at_every_restart(build):
    """Two clouds with the same noise, one of them shifted: noise leaves their distance, in units of
    alpha, and the way down of a Gaussian shrinks it.
    """
    sch, c, shift = build(20_000), 0.6, 0.5
    eps = Mixture([[1.0, -1.0]], [[[c**2, 0.0], [0.0, c**2]]]).denoise(sch)
    ts = descent(sch, list(range(sch.T, -1, -1)), Interval(0.3, 1.5, steps=60))
    low, high = (level(sch, t) for t in (ts[-1], ts[0]))
    assert abs(low - 0.3) < 0.01 and abs(high - 1.5) < 0.01
    factor = math.sqrt((c**2 + low**2) / (c**2 + high**2))
    alpha = sch.at(ts[-1])[0]
    x = alpha * start(4)
    y = x + alpha * shift
    for k in range(1, 4):
        x, y = (restarted(eps, sch, state, ts, start(4, seed=k), None) for state in (x, y))
        assert ((y - x) / alpha - shift * factor**k).abs().max() < 5e-3 * factor**k


def test_without_restarts_it_is_heuns_method_and_evaluations_are_counted():
    eps, x = Counted(gmm8().denoise(SCH)), start(3)
    got = restart(eps, SCH, x, steps=12, intervals=())
    assert torch.equal(got, heun(gmm8().denoise(SCH), SCH, x, steps=12)) and eps.nfe == 3 * 23
    none = Interval(0.1, 2.0, steps=4, times=0)
    assert torch.equal(got, restart(eps, SCH, x, steps=12, intervals=[none]))
    eps.nfe = 0
    restart(eps, SCH, x, steps=12, intervals=[Interval(0.1, 2.0, steps=4, times=3)])
    assert eps.nfe == 3 * (23 + 3 * 2 * 4)


def test_a_restart_by_hand():
    """Up by fresh noise to exactly the level of a time, down again, then on."""
    eps, x = gmm8().denoise(SCH), start()
    ts = [1000, 700, 400, 200, 0]
    interval = Interval(level(SCH, 203), level(SCH, 602), steps=1, times=1)
    y = heun(eps, SCH, x, times=ts[:4])
    alpha, sigma = SCH.at(200)
    up_alpha, up_sigma = SCH.at(602)
    z = next(noises(x, 0))
    y = up_alpha * (y / alpha + math.sqrt((up_sigma / up_alpha) ** 2 - (sigma / alpha) ** 2) * z)
    y = heun(eps, SCH, heun(eps, SCH, y, times=[602, 200]), times=[200, 0])
    got = restart(eps, SCH, x, times=ts, intervals=[interval])
    assert (got - y).abs().max() < 1e-12


def test_two_intervals_at_one_time_are_both_walked_in_their_order():
    eps, seen = gmm8().denoise(SCH), []
    ts = [1000, 500, 0]
    low = level(SCH, 500)
    both = [Interval(low, level(SCH, t), steps=1, times=1) for t in (800, 600)]
    restart(lambda x, t, c: seen.append(t) or eps(x, t, c), SCH, start(2), times=ts, intervals=both)
    assert seen == [1000, 500, 800, 500, 600, 500, 500]


def test_the_law_of_the_samples_is_kept_where_the_network_is_right():
    data = gmm8(1.0, 0.15)
    x = noise((1, 2000, 2), 0, dtype=torch.float64)
    kw = dict(steps=20, intervals=[Interval(0.1, 2.0, steps=10, times=3)])
    got = restart(data.denoise(SCH), SCH, x, **kw)[0]
    # two samples of the law itself differ by 7e-4 at 4000 points
    assert energy_distance(got, data.sample(2000, seed=5)) < 3e-3


def wrong_above(data, sch, bound, shift):
    """A network that is right below a level, and above it knows another picture of the world."""
    right = data.denoise(sch)
    wrong = Mixture(data.means + shift, data.covs).denoise(sch)
    return lambda x, t, c=None: (wrong if level(sch, t) > bound else right)(x, t, c)


def test_errors_from_above_the_interval_are_forgotten_and_those_inside_it_are_not():
    data = gauss_aniso()
    x = noise((1, 1000, 2), 0, dtype=torch.float64)
    truth = data.sample(1000, seed=5)
    kw = dict(steps=18, intervals=[Interval(0.2, 1.9, steps=8, times=3)])
    above, inside = (wrong_above(data, SCH, bound, 2.0) for bound in (2.0, 0.2))
    plain = energy_distance(heun(above, SCH, x, steps=18)[0], truth)
    assert energy_distance(restart(above, SCH, x, **kw)[0], truth) < plain / 10
    # inside, every way down is pulled to the same wrong place
    plain = energy_distance(heun(inside, SCH, x, steps=18)[0], truth)
    assert energy_distance(restart(inside, SCH, x, **kw)[0], truth) > plain / 2


def test_a_network_that_knows_the_picture_gives_it():
    x0 = start(seed=50)

    def knows(x, t, cond):
        a, s = SCH.at(t)
        return (x - a * x0) / s

    for steps in (2, 3, 7, 18):
        assert (restart(knows, SCH, start(), steps=steps) - x0).abs().max() < 1e-8


def test_a_row_is_the_same_alone_and_in_a_batch():
    eps, x = gmm8().denoise(SCH), start(6)
    batch = restart(eps, SCH, x, seed=7)
    assert (batch[2:3] - restart(eps, SCH, x[2:3], seed=9)).abs().max() <= 1e-12
    assert (batch - restart(eps, SCH, x, seed=8)).abs().max() > 1e-3


def test_the_way_down_begins_and_ends_at_the_nearest_times():
    grid = SCH.timesteps(18, spacing="karras")
    down = descent(SCH, grid, Interval(0.1, 2.0, steps=10))
    assert down[0] == nearest(SCH, 2.0) and len(down) == 11 and SCH.checked(down) == down
    assert abs(level(SCH, down[-1]) - 0.1) == min(abs(level(SCH, t) - 0.1) for t in grid if t)
    assert renoise(SCH, start(), down[-1], down[0], start()).isfinite().all()


@pytest.mark.parametrize(
    "interval, complaint",
    [
        (Interval(2.0, 0.1), "expected 0 < low < high"),
        (Interval(0.0, 0.1), "expected 0 < low < high"),
        (Interval(steps=0), "1 step or more"),
        (Interval(times=-1), "0 times or more"),
        (Interval(0.1, 2.0, steps=999), "fewer than its steps"),
        (Interval(math.nan, 2.0), "expected 0 < low < high"),
    ],
)
def test_intervals_that_are_none_are_refused(interval, complaint):
    with pytest.raises(ValueError, match=complaint):
        restart(gmm8().denoise(SCH), SCH, start(2), intervals=[interval])


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
        (dict(start=1001), "start=1001"),
        (dict(spacing="even"), "'even' is unknown"),
        (dict(steps=1), "one step leaves no time to restart from"),
        (dict(times=[10, 20]), "each smaller than the one before"),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        restart(gmm8().denoise(SCH), SCH, start(2), **kw)
