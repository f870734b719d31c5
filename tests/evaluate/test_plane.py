"""Papers on one measure: the measure itself, on answers that are known."""

import math

import pytest
import torch

from minidiff.data.toy2d import gmm8
from minidiff.evaluate.plane import (
    RATIOS,
    STD,
    measure,
    null_energy,
    outliers,
    score_error,
    time_of,
    timeline,
    told,
)
from minidiff.foundations import FOUNDATIONS
from minidiff.foundations.plane import Learned

DATA = gmm8(std=STD)


def straight(u):
    return 1 - u, u


def knows(factor=1.0, levels=straight):
    """What has learned the exact score times a factor."""

    def score(x, u):
        return factor * DATA.score(x, *levels(u))

    return Learned(levels, sample=None, score=score)


@pytest.mark.parametrize("levels", [straight, lambda u: (1.0, 80 * u)], ids=["line", "exploding"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ratio_is_found_on_every_process(levels, ratio):
    alpha, sigma = levels(time_of(knows(levels=levels), ratio))
    assert sigma / alpha == pytest.approx(ratio, rel=1e-9)


def test_the_exact_score_has_no_error_and_half_of_it_a_quarter_of_none():
    assert score_error(knows(), DATA, seed=0) < 1e-20
    nothing, half = (score_error(knows(f), DATA, seed=0) for f in (0.0, 0.5))
    assert half == pytest.approx(nothing / 4)
    # of noise (2 in all) only what can be told from the data is in the score
    assert 0.3 < nothing < 2
    assert told(half, knows(), DATA, seed=0) == pytest.approx(0.75)


def test_the_mixture_s_own_points_beyond_three_deviations():
    share = outliers(DATA.sample(40_000, 0), DATA)
    assert abs(share - math.exp(-4.5)) < 4 * math.sqrt(math.exp(-4.5) / 40_000)
    assert outliers(torch.zeros(5, 2, dtype=torch.float64), DATA) == 1


def test_two_fresh_sets_are_near():
    assert all(abs(e) < 5e-3 for e in null_energy([0]))


def test_more_training_learns_more():
    few, more = (measure(FOUNDATIONS["flow-matching"], seed=0, train=n, steps=5) for n in (5, 300))
    assert more.score_error < few.score_error / 2
    assert more.evaluations == 5 and more.nats_short < few.nats_short


def test_the_timeline_runs_forward():
    years = [f.year for f in timeline()]
    assert years == sorted(years) and len(years) == len(FOUNDATIONS)
