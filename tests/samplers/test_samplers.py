"""The table of samplers: one signature, each handed what it takes."""

import inspect
import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.denoise import noises
from minidiff.data.toy2d import Mixture, gmm8
from minidiff.pipe.pipe import Pipe
from minidiff.samplers import SAMPLERS, solve
from minidiff.samplers.ddim import ddim

SCH = schedule.linear(1000)
SHARED = {
    "steps",
    "spacing",
    "start",
    "end",
    "times",
    "eta",
    "seed",
    "literal",
    "prediction",
    "progress",
}
OWN = {  # of one sampler, with a default
    "variance",
    "clip",
    "extrapolate",
    "order",
    "variant",
    "corrector",
    "s_churn",
    "s_tmin",
    "s_tmax",
    "s_noise",
    "intervals",
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_the_four_and_keywords_of_one_language(name):
    asked = list(inspect.signature(SAMPLERS[name].run).parameters.values())
    assert [p.name for p in asked[:4]] == ["denoise", "sch", "x", "cond"]
    assert {p.name for p in asked[4:]} <= SHARED | OWN
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in asked[4:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_gaussian_it_is_told_of(name):
    data = Mixture([[1.0, -0.5]], [[[0.09, 0.0], [0.0, 0.09]]])
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = solve(name, data.denoise(SCH), SCH, x, None, steps=50, spacing="leading", seed=1)
    assert (out.mean(0) - torch.tensor([1.0, -0.5])).abs().max() < 0.05
    assert (out.std(0) - 0.3).abs().max() < 0.06


def test_an_unknown_sampler_and_an_eta_without_effect_are_refused():
    with pytest.raises(ValueError, match="sampler='rk4' is unknown; choose one of ddim"):
        solve("rk4", None, SCH, None, None)
    with pytest.raises(ValueError, match=r"eta=0\.5 with sampler='plms': only ddim"):
        solve("plms", None, SCH, None, None, eta=0.5)


def test_the_command_line_offers_all_of_them():
    asked = inspect.signature(Pipe.generate, eval_str=True).parameters["sampler"]
    assert set(get_args(asked.annotation)) == set(SAMPLERS)


def test_a_pipe_samples_with_each_and_only_the_random_ones_depend_on_the_seed_of_the_way():
    pipe = replace(minidiff.build("tiny-pixel", seed=0), spacing="leading")
    x = pipe.start(1, 3)
    for name in SAMPLERS:
        one, two = (
            pipe.solve(pipe.eps, x, pipe.null(), steps=3, sampler=name, seed=s) for s in (1, 2)
        )
        assert one.shape == x.shape and torch.equal(one, two) == (
            name not in ("ddpm", "euler-a", "dpm++sde", "restart")
        )


def test_a_start_or_an_answer_that_is_not_a_number_is_refused():
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="the state to start from holds NaN"):
        solve("ddim", None, SCH, x * math.nan, None)
    with pytest.raises(ValueError, match="sampler='dpm\\+\\+' ended in NaN"):
        solve("dpm++", lambda x, t, cond: x * math.nan, SCH, x, None, steps=4)


def test_eulers_two_names_are_ddim():
    data = gmm8()
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, eta in (("euler", 0.0), ("euler-a", 1.0)):
        ours = solve(name, data.denoise(SCH), SCH, x, None, steps=7, seed=3, literal=True, end=1)
        assert torch.equal(ours, ddim(data.denoise(SCH), SCH, x, steps=7, eta=eta, seed=3))


def test_eulers_two_names_are_karras_arithmetic_in_sigma():
    """x / alpha lives on tables with alpha = 1, where the step is x + (sigma' - sigma) eps, or the
    same to a smaller sigma and noise up to the wanted one.
    """
    data, sigma = gmm8(), SCH.sigma / SCH.alpha
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, eta in (("euler", 0.0), ("euler-a", 1.0)):
        fresh, y = noises(x, 3), x / SCH.at(1000)[0]
        for t, s in pairwise(SCH.timesteps(9, spacing="karras")):
            here, there = sigma[t].item(), sigma[s].item()
            up = eta * there * math.sqrt(max(here**2 - there**2, 0)) / here
            down = math.sqrt(there**2 - up**2)
            eps = data.denoise(SCH)(y * SCH.at(t)[0], t)
            y = y + (down - here) * eps
            if eta:
                y = y + up * next(fresh)
        ours = solve(name, data.denoise(SCH), SCH, x, None, steps=9, seed=3, spacing="karras")
        assert (ours - y).abs().max() < 1e-10
