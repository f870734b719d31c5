"""Minibatch optimal transport: the pairing is the best one, and both halves stay what they were."""

from itertools import permutations

import numpy as np
import pytest
import torch

from minidiff.data.toy2d import gmm8
from minidiff.foundations import minibatch_ot
from minidiff.foundations.minibatch_ot import assignment, paired
from minidiff.foundations.plane import standard


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_no_other_pairing_is_cheaper(n):
    rng = np.random.default_rng(n)
    for _ in range(10):
        cost = rng.normal(size=(n, n))
        columns = assignment(cost)
        assert sorted(columns) == list(range(n))
        every = [cost[np.arange(n), list(order)].sum() for order in permutations(range(n))]
        assert abs(cost[np.arange(n), columns].sum() - min(every)) < 1e-12


def test_on_a_line_the_best_pairing_keeps_the_order():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    columns = assignment((a[:, None] - b[None]) ** 2)
    assert np.array_equal(np.argsort(a), np.argsort(b[columns]))


def test_equal_costs_are_no_trouble():
    assert sorted(assignment(np.ones((8, 8)))) == list(range(8))


def test_both_halves_stay_and_each_group_for_itself():
    x0, eps = standard(10, 0), standard(10, 100)
    data, noises = paired(x0, eps, group=4).chunk(2, dim=1)
    assert torch.equal(data, x0)
    for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
        assert sorted(noises[part].tolist()) == sorted(eps[part].tolist())


def test_larger_groups_move_points_less():
    x0, eps = gmm8().sample(256, 0), standard(256, 1000)

    def cost(group):
        data, noises = paired(x0, eps, group).chunk(2, dim=1)
        return (data - noises).square().sum(1).mean().item()

    assert cost(1) > cost(8) > cost(64) > cost(256)


def test_it_learns_from_its_pairs(monkeypatch):
    monkeypatch.setattr(minibatch_ot, "PAIRS", 128)
    net, seconds = minibatch_ot.teach(gmm8().sample(64, 0), steps=2)
    assert seconds > 0 and minibatch_ot.learned(net).sample(3, 1, 0).shape == (3, 2)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: assignment(np.ones((2, 3))), "square table"),
        (lambda: assignment(np.full((2, 2), np.nan)), "finite"),
        (lambda: paired(standard(4, 0), standard(5, 0)), "do not pair"),
        (lambda: paired(standard(4, 0), standard(4, 0), 0), "group=0"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
