"""CFG-Zero*: the multiple is a least-squares one, and standing still is standing still."""

import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import ddim_step, q_sample, to_eps
from minidiff.data.toy2d import gmm8
from minidiff.guidance.cfg_zero import cfg_zero, guide_zero
from minidiff.guidance.projected import dot

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)
ANY = Cond(label=torch.tensor([-1]))
TABLES = {"vp": schedule.linear(1000), "flow": schedule.flow(1000), "ve": schedule.ve(1000)}


def points(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def mode(k, n=16):
    return Cond(label=torch.full((n,), k))


def test_scale_1_is_the_conditional_answer_to_the_bit():
    eps = DATA.denoise(SCH)
    x = q_sample(SCH, points().clamp(-1, 1) / 2, 30, points(seed=5))
    assert torch.equal(cfg_zero(eps, ANY, SCH, 1.0)(x, 30, mode(2)), eps(x, 30, mode(2)))


def test_the_multiple_is_the_least_squares_one_and_drops_out_at_scale_1():
    null, cond = noise((3, 4, 5), 1, dtype=torch.float64), noise((3, 4, 5), 2, dtype=torch.float64)
    s = dot(cond, null) / dot(null, null)
    assert dot(cond - s * null, null).abs().max() < 1e-9  # the normal equation
    assert (guide_zero(null, cond, 1.0) - cond).abs().max() < 1e-12
    assert (guide_zero(2 * null, cond, 3.0) - guide_zero(null, cond, 3.0)).abs().max() < 1e-9


@pytest.mark.parametrize("name", TABLES)
def test_standing_still_leaves_the_straightened_state_where_it_is(name):
    sch = TABLES[name]
    eps = DATA.denoise(sch)
    guided = cfg_zero(eps, ANY, sch, 3.0, still=700)
    x = points()
    y = ddim_step(sch, x, guided(x, 900, mode(1)), 900, 800)
    (a, s), (b, r) = sch.at(900), sch.at(800)
    assert (x / (a + s) - y / (b + r)).abs().max() < 1e-9
    moved = ddim_step(sch, x, guided(x, 600, mode(1)), 600, 500)
    (a, s), (b, r) = sch.at(600), sch.at(500)
    assert (x / (a + s) - moved / (b + r)).abs().max() > 1e-4


@pytest.mark.parametrize("name", TABLES)
def test_a_velocity_of_the_right_length_is_guided_as_ever(name):
    """Where v_null is the part of v_cond along it, s* = 1: classifier-free guidance."""
    sch = TABLES[name]
    x, v_null, across = points(), points(seed=20), points(seed=40)
    v_cond = v_null + across - dot(across, v_null) / dot(v_null, v_null) * v_null

    def eps(x, t, cond):
        null = cond.label[0] == -1
        return to_eps(sch, x, v_null if null else v_cond, t, "flow")

    plain = cfg(eps, ANY, 4.0)(x, 500, mode(1))
    assert (cfg_zero(eps, ANY, sch, 4.0)(x, 500, mode(1)) - plain).abs().max() < 1e-9


def test_rows_at_times_of_their_own_stand_still_or_move():
    guided = cfg_zero(DATA.denoise(SCH), ANY, SCH, 3.0, still=700)
    x = points(4)
    ts = torch.tensor([900, 700, 500, 701])
    together = guided(x, ts, mode(1, 4))
    for i, t in enumerate(ts.tolist()):
        assert (together[i] - guided(x[i : i + 1], t, mode(1, 1))[0]).abs().max() < 1e-12


@pytest.mark.parametrize("still", [0, 1001])
def test_a_time_outside_the_tables_is_refused(still):
    with pytest.raises(ValueError, match=f"still={still}"):
        cfg_zero(DATA.denoise(SCH), ANY, SCH, 2.0, still=still)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "3"])
def test_a_scale_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="number"):
        cfg_zero(DATA.denoise(SCH), ANY, SCH, bad)
