"""The plane: training is repeatable, densities are exact, bad points are refused."""

import math

import pytest
import torch

from minidiff.data.toy2d import gauss_aniso, gmm8
from minidiff.foundations import FOUNDATIONS
from minidiff.foundations.flow_matching import loss, network, normal_log_prob
from minidiff.foundations.plane import PlaneNet, ask, flow_log_prob, learn, standard


def test_the_same_seed_learns_the_same():
    points = gmm8().sample(500, 0)
    first, seconds = learn(network, loss, points, steps=3, seed=1)
    second, _ = learn(network, loss, points, steps=3, seed=1)
    other, _ = learn(network, loss, points, steps=3, seed=2)
    x = standard(4, 0)
    assert seconds > 0 and torch.allclose(ask(first, x, 0.3), ask(second, x, 0.3))
    assert not torch.allclose(ask(first, x, 0.3), ask(other, x, 0.3))


def test_learning_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    learn(network, loss, gmm8().sample(100, 0), steps=1)
    assert torch.equal(torch.rand(1), expected)


def test_the_network_knows_the_time():
    net, x = PlaneNet(), standard(3, 0)
    assert ask(net, x, 0.2).shape == (3, 2) and ask(net, x, 0.2).dtype == x.dtype
    assert not torch.allclose(ask(net, x, 0.2), ask(net, x, 0.8))


@pytest.mark.parametrize("data", [gauss_aniso(), gmm8(0.8, 0.4)], ids=["gauss", "gmm8"])
def test_densities_of_an_exact_flow_are_exact(data):
    """The velocity of straight lines follows from the exact score; the error of Heun's method falls
    with the square of the step.
    """

    def velocity(z, u):
        alpha, sigma = 1 - u, u
        eps = -sigma * data.score(z, alpha, sigma)
        x0 = (z - sigma * eps) / max(alpha, 1e-9)
        return eps - x0

    def end(z):  # noise and a little of the data
        return data.log_prob(z, 1 - last, last)

    last = 0.99
    x = data.sample(50, 3)
    errors = []
    for steps in (40, 80):
        times = torch.linspace(0.0, last, steps + 1).tolist()
        found = flow_log_prob(velocity, end, x, times)
        errors.append((found - data.log_prob(x)).abs().mean().item())
    assert errors[1] < 0.02 and 1.7 < math.log2(errors[0] / errors[1]) < 2.4


def test_the_normal_density():
    at_zero = normal_log_prob(torch.zeros(1, 2, dtype=torch.float64))
    assert abs(at_zero.item() + math.log(2 * math.pi)) < 1e-12


@pytest.mark.parametrize(
    "points, says",
    [
        (torch.zeros(10, 2), "all 10 points are the same"),
        (torch.zeros(1, 2), "two points or more"),
        (torch.zeros(10), "table"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "NaN or infinity"),
    ],
)
def test_points_that_teach_nothing_are_refused(points, says):
    with pytest.raises(ValueError, match=says):
        learn(network, loss, points, steps=1)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        learn(network, loss, gmm8().sample(10, 0), steps=0)


@pytest.mark.parametrize("name", FOUNDATIONS)
def test_every_paper_learns_draws_and_has_a_score(name, monkeypatch):
    paper = FOUNDATIONS[name].module
    if hasattr(paper, "PAIRS"):
        monkeypatch.setattr(paper, "PAIRS", 128)
    net, seconds = FOUNDATIONS[name].teach(gmm8().sample(64, 0), steps=2, seed=0)
    learned = paper.learned(net)
    assert seconds > 0
    drawn = learned.sample(5, 3, 0)
    assert drawn.shape == (5, 2) and drawn.isfinite().all()
    again = learned.sample(5, 3, 0)
    assert torch.allclose(drawn, again)
    assert not torch.allclose(drawn, learned.sample(5, 3, 1))
    ratios = []
    for u in (0.1, 0.5, 0.9):
        alpha, sigma = learned.levels(u)
        if learned.score:
            score = learned.score(drawn, u)
            assert score.shape == (5, 2) and score.isfinite().all()
        ratios.append(sigma / max(alpha, 1e-9))
    assert ratios[0] < ratios[1] < ratios[2]  # noise grows with the time
    assert learned.evaluations(3) >= 3
    if learned.log_prob:
        assert learned.log_prob(drawn).shape == (5,)
