import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.data.toy2d import gmm8
from minidiff.guidance.experts import experts

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)


def says(number):
    return lambda x, t, cond: torch.full_like(x, number)


def test_the_expert_of_a_time_is_asked_and_no_other():
    three = experts([(500, 1000, says(3.0)), (0, 100, says(1.0)), (100, 500, says(2.0))], 1000)
    x = torch.zeros(2, 3)
    for t, who in ((1, 1), (100, 1), (101, 2), (500, 2), (501, 3), (1000, 3)):
        assert (three(x, t, None) == who).all()


def test_experts_that_are_one_network_change_nothing():
    eps, x = DATA.denoise(SCH), noise((6, 2), 0, dtype=torch.float64)
    both = experts([(0, 300, eps), (300, 1000, eps)], 1000)
    cond = Cond(label=torch.arange(6))
    for t in (10, 300, 900):
        assert torch.equal(both(x, t, cond), eps(x, t, cond))
    t = torch.tensor([1, 900, 300, 301, 1000, 50])
    assert (both(x, t, cond) - eps(x, t, cond)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "stretches",
    [
        [],
        [(0, 400), (500, 1000)],
        [(0, 600), (500, 1000)],
        [(1, 1000)],
        [(0, 999)],
        [(0, 0), (0, 1000)],
    ],
)
def test_gaps_and_overlaps_are_refused(stretches):
    with pytest.raises(ValueError, match="without a gap or an overlap"):
        experts([(low, high, says(0.0)) for low, high in stretches], 1000)


@pytest.mark.parametrize("t", [0, 1001, torch.tensor([5, 1001])])
def test_nobody_is_asked_about_times_that_have_no_expert(t):
    one = experts([(0, 1000, says(0.0))], 1000)
    with pytest.raises(ValueError, match=r"outside 1\.\.1000"):
        one(torch.zeros(2, 3), t, None)
