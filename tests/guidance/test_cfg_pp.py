"""CFG++: a step by hand, the scale it amounts to, and what the number of steps does to it."""

import math
from itertools import pairwise

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg, guide
from minidiff.core.cond import Cond
from minidiff.core.denoise import Counted, noise, sample
from minidiff.core.process import ddim_step, eps_to_x0
from minidiff.data.toy2d import Mixture, gmm8
from minidiff.guidance.cfg_pp import cfg_pp, same_scale

SCH = schedule.linear(1000)
DATA = gmm8(1.0, 0.15)
ANY = Cond(label=torch.tensor([-1]))
TABLES = {"vp": schedule.linear(1000), "flow": schedule.flow(1000), "ve": schedule.ve(1000)}


def points(n=16, seed=0):
    return noise((n, 2), seed, dtype=torch.float64)


def mode(k, n=16):
    return Cond(label=torch.full((n,), k))


TWO = Mixture([[-1.0], [0.8]], [[[0.0625]], [[0.09]]], [0.4, 0.6])


def drawn_mean(how, steps):
    x = noise((1000, 1), 0, dtype=torch.float64)
    right = Cond(label=torch.ones(1000, dtype=torch.long))
    eps = TWO.denoise(SCH)
    if how == "cfg++":
        return cfg_pp(eps, ANY, SCH, x, right, lam=0.3, steps=steps).mean().item()
    ts = SCH.timesteps(steps)
    return sample(cfg(eps, ANY, 3.0), SCH, x, ts, right).mean().item()


def test_cfg_pp_means_more_in_more_steps_and_guidance_does_not():
    twenty, hundred = drawn_mean("cfg++", 20), drawn_mean("cfg++", 100)
    assert hundred - twenty > 0.2
    assert abs(drawn_mean("cfg", 100) - drawn_mean("cfg", 20)) < 0.05


def test_cfg_pp_without_pull_draws_without_the_condition():
    eps, x = DATA.denoise(SCH), points()
    ts = SCH.timesteps(20)
    got = cfg_pp(eps, ANY, SCH, x, mode(2), lam=0.0, steps=20)
    assert (got - sample(eps, SCH, x, ts, ANY.expand(16))).abs().max() < 1e-9


def test_one_step_of_cfg_pp_by_hand():
    eps, x = DATA.denoise(SCH), points()
    null, cond = eps(x, 600, ANY.expand(16)), eps(x, 600, mode(2))
    x0 = eps_to_x0(SCH, x, guide(null, cond, 0.4), 600)
    a, s = SCH.at(300)
    got = cfg_pp(eps, ANY, SCH, x, mode(2), lam=0.4, times=(600, 300))
    assert (got - (a * x0 + s * null)).abs().max() < 1e-12


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("t, s", [(900, 600), (600, 300), (300, 0)])
def test_it_is_ddim_with_guidance_at_a_scale_that_follows_the_step(name, t, s):
    sch = TABLES[name]
    eps, x = DATA.denoise(sch), points()
    got = cfg_pp(eps, ANY, sch, x, mode(2), lam=0.4, times=(t, s))
    guided = cfg(eps, ANY, same_scale(sch, 0.4, t, s))(x, t, mode(2))
    assert (got - ddim_step(sch, x, guided, t, s)).abs().max() < 1e-9


def test_on_a_grid_even_in_lambda_it_is_guidance_at_one_scale():
    """The scale is lam / (1 - e^-h): one number for all steps but the last, to clean."""
    ts = schedule.linear(20_000).timesteps(21, spacing="lambda")
    sch = schedule.linear(20_000)
    scales = [same_scale(sch, 0.3, t, s) for t, s in pairwise(ts)]
    h = (sch.lam(ts[-2]) - sch.lam(ts[0])) / 20
    for scale in scales[:-1]:
        assert abs(scale / (0.3 / (1 - math.exp(-h))) - 1) < 0.03
    assert scales[-1] == 0.3


def test_two_evaluations_a_step():
    eps = Counted(DATA.denoise(SCH))
    cfg_pp(eps, ANY, SCH, points(), mode(0), steps=7)
    assert eps.nfe == 16 * 2 * 7


def test_a_row_alone_is_the_row_in_a_batch():
    eps, x = DATA.denoise(SCH), points()
    alone = cfg_pp(eps, ANY, SCH, x[3:4], mode(2, 1), steps=5)
    assert (alone - cfg_pp(eps, ANY, SCH, x, mode(2), steps=5)[3:4]).abs().max() < 1e-12


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, "most"])
def test_a_lam_that_is_no_share_is_refused(bad):
    with pytest.raises(ValueError, match="lam="):
        cfg_pp(DATA.denoise(SCH), ANY, SCH, points(), mode(0), lam=bad)
