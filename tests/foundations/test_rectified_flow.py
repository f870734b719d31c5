"""Reflow: pairs of a flow's own making, and paths that become straight."""

import pytest
import torch

from minidiff.data.toy2d import gmm8
from minidiff.foundations import flow_matching, rectified_flow
from minidiff.foundations.flow_matching import euler
from minidiff.foundations.plane import PlaneNet, ask, learn, standard
from minidiff.foundations.rectified_flow import learned, loss, own_pairs, straightness


class Constant(torch.nn.Module):
    """A flow that carries every point by the same way."""

    def forward(self, z, u):
        return torch.ones_like(z) * torch.tensor([1.0, -2.0])


class Turning(torch.nn.Module):
    """A flow whose speed falls as time goes on: v = 2 u."""

    def forward(self, z, u):
        return (2 * u)[:, None].expand_as(z)


def test_a_pair_is_a_noise_point_and_where_it_goes():
    pairs = own_pairs(Constant(), 6, seed=3, steps=7)
    x0, eps = pairs.chunk(2, dim=1)
    assert torch.equal(eps, standard(6, 3))
    assert torch.allclose(x0, eps - torch.tensor([1.0, -2.0]).double(), atol=1e-6)


def test_straight_paths_have_no_loss_and_straightness_zero():
    pairs = own_pairs(Constant(), 100, seed=0).float()
    assert loss(Constant(), pairs, torch.Generator().manual_seed(0)) < 1e-10
    assert straightness(Constant(), 10, seed=0) < 1e-10


def test_straightness_is_the_mean_square_of_what_differs_from_the_whole_way():
    """v = 2 u goes 1 in all, in each coordinate: E (2 u - 1)^2 = 1/3, twice."""
    assert abs(straightness(Turning(), 10, seed=0, steps=400) - 2 / 3) < 0.01


def test_one_round_straightens_and_one_step_then_suffices():
    points = gmm8(1.0, 0.2).sample(4000, 0)
    before, _ = learn(flow_matching.network, flow_matching.loss, points, steps=300, seed=0)
    pairs = own_pairs(before, 4000, 1, steps=20)
    after, _ = learn(rectified_flow.network, loss, pairs, steps=300, seed=0)
    assert straightness(after, 500, 2, 20) < straightness(before, 500, 2, 20) / 5
    z = standard(500, 4)

    def apart(net):
        one, many = (euler(lambda x, u: ask(net, x, u), z, steps) for steps in (1, 50))
        return (one - many).square().sum(1).mean()

    assert apart(after) < apart(before) / 5


def test_the_cost_of_transport_does_not_rise():
    points = gmm8(1.0, 0.2).sample(4000, 0)
    net, _ = learn(flow_matching.network, flow_matching.loss, points, steps=300, seed=0)
    x0, eps = own_pairs(net, 2000, 1, steps=50).chunk(2, dim=1)
    independent = (points[:2000] - standard(2000, 9)).square().sum(1).mean()
    assert (eps - x0).square().sum(1).mean() < independent


def test_it_has_no_score():
    assert learned(PlaneNet()).score is None


def test_rounds_follow_each_other(monkeypatch):
    monkeypatch.setattr(rectified_flow, "PAIRS", 64)
    net, seconds = rectified_flow.teach(gmm8().sample(64, 0), steps=2, rounds=2)
    assert seconds > 0 and learned(net).sample(3, 1, 0).shape == (3, 2)


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        rectified_flow.teach(torch.full((4, 2), float("nan")), steps=1)
