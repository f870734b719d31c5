"""Upwards and back, on exact mixtures first, then on any network."""

import math
from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import Counted, sample
from minidiff.data.toy2d import gauss_aniso, gmm8
from minidiff.inversion.ddim import ddim_invert
from minidiff.inversion.rf_solver import invert, replay, rf_walk

SCH = schedule.scaled_linear()


def round_trip(mix, steps, rule, sch=SCH):
    x0 = mix.sample(64, seed=1)
    eps = Counted(mix.denoise(sch))
    ts = sch.timesteps(steps, spacing="trailing")
    noisy = rf_walk(eps, sch, x0, ts[::-1], rule=rule)[-1]
    back = rf_walk(eps, sch, noisy, ts, rule=rule)[-1]
    return (back - x0).pow(2).mean().sqrt().item(), eps.nfe // 64


def by_ddim(mix, steps, fixed_point=0):
    x0 = mix.sample(64, seed=1)
    eps = Counted(mix.denoise(SCH))
    states = ddim_invert(eps, SCH, x0, steps=steps, fixed_point=fixed_point)
    back = sample(eps, SCH, states[-1], SCH.timesteps(steps, spacing="trailing"))
    return (back - x0).pow(2).mean().sqrt().item(), eps.nfe // 64


@pytest.mark.parametrize("rule", ["midpoint", "fireflow"])
@pytest.mark.parametrize("build, order", [(schedule.flow, 1.8), (schedule.scaled_linear, 1.3)])
def test_the_error_of_a_round_trip_is_of_order_2_in_tau(rule, build, order):
    """On flow tables, where times even in t are even in tau. On VP tables tau ~ sqrt(t) next to
    clean: the first step up is 1 / sqrt(steps) long, and its error, of order 3, makes 1.5.
    """
    errors = [round_trip(gauss_aniso(), n, rule, build(20_000))[0] for n in (10, 20, 40)]
    assert all(math.log2(a / b) > order for a, b in pairwise(errors)), errors


def test_at_equal_evaluations_both_return_nearer_than_ddim_and_its_fixed_point():
    mix = gauss_aniso()
    ddim, evaluations = by_ddim(mix, 50)
    fixed, more = by_ddim(mix, 25, fixed_point=2)
    assert evaluations == more == 100
    for rule, steps in (("midpoint", 25), ("fireflow", 49)):
        ours, asked = round_trip(mix, steps, rule)
        assert asked == 100 and ours < fixed and ours < ddim / 10


def test_the_clean_end_is_asked_about_as_index_1_and_states_stand_at_their_times():
    eps, seen = gmm8().denoise(SCH), []
    x0 = gmm8().sample(8)
    rising = [0, 300, 1000]
    states = rf_walk(lambda x, t, c: seen.append(t) or eps(x, t, c), SCH, x0, rising)
    assert len(states) == 3 and torch.equal(states[0], x0) and seen[0] == 1 and min(seen) == 1
    again = rf_walk(eps, SCH, states[1], [300, 1000], rule="midpoint")
    assert torch.equal(again[0], states[1])


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule='rk4' is unknown; choose one of midpoint, fireflow"):
        rf_walk(gmm8().denoise(SCH), SCH, gmm8().sample(2), [0, 1000], rule="rk4")


def test_a_picture_comes_back_and_more_steps_bring_it_nearer(pipe, image):
    copy = pipe.decode(pipe.encode(image))
    for rule in ("midpoint", "fireflow"):
        gaps = []
        for steps in (4, 16):
            states = invert(pipe, image, "a red circle", rule=rule, steps=steps)
            assert len(states) == steps + 1
            back = replay(pipe, states[-1], ["a red circle"] * 2, rule=rule, steps=steps)
            gaps.append((back - copy).abs().max().item())
        assert gaps[1] < gaps[0] / 2, (rule, gaps)
