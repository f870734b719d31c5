"""The table of samplers: one signature, each handed what it takes."""

import inspect
from dataclasses import replace
from typing import get_args

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.data.toy2d import Mixture
from minidiff.pipe.pipe import Pipe
from minidiff.samplers import SAMPLERS, solve

SCH = schedule.linear(1000)
SHARED = {
    "steps",
    "spacing",
    "start",
    "end",
    "eta",
    "seed",
    "literal",
    "prediction",
    "progress",
}
OWN = {"variance", "clip", "extrapolate"}  # of one sampler, with a default


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_the_four_and_keywords_of_one_language(name):
    asked = list(inspect.signature(SAMPLERS[name]).parameters.values())
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
    with pytest.raises(ValueError, match="sampler='heun' is unknown; choose one of ddim"):
        solve("heun", None, SCH, None, None)
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
        assert one.shape == x.shape and torch.equal(one, two) == (name != "ddpm")
