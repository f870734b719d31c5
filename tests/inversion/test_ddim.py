"""DDIM inversion: closed forms on Gaussian data first, then what holds on any network."""

import math
from itertools import pairwise

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.denoise import sample
from minidiff.data.toy2d import gauss_aniso, gmm8
from minidiff.inversion.ddim import ddim_invert, invert, invert_step, replay

SCH = schedule.scaled_linear()


def round_trip(mix, steps, fixed_point=0):
    x0 = mix.sample(64, seed=1)
    denoise = mix.denoise(SCH)
    states = ddim_invert(denoise, SCH, x0, steps=steps, fixed_point=fixed_point)
    back = sample(denoise, SCH, states[-1], SCH.timesteps(steps, spacing="trailing"))
    return (back - x0).pow(2).mean().sqrt().item()


def test_round_trip_error_falls_as_one_over_the_number_of_steps():
    errors = [round_trip(gauss_aniso(), n) for n in (50, 100, 200)]
    slopes = [math.log2(b / a) for a, b in pairwise(errors)]
    assert all(-1.3 < s < -0.7 for s in slopes), (errors, slopes)


def test_fixed_point_solves_the_implicit_step_on_gaussian_data():
    explicit, iterated = (
        round_trip(gauss_aniso(), 50),
        round_trip(gauss_aniso(), 50, fixed_point=20),
    )
    assert iterated < 1e-4 * explicit, (explicit, iterated)


def test_fixed_point_never_hurts_where_it_does_not_contract():
    assert round_trip(gmm8(), 10, fixed_point=10) <= round_trip(gmm8(), 10)


def test_higher_time_beats_lower_time():
    mix = gauss_aniso()
    x0, denoise, ts = (
        mix.sample(64, seed=1),
        mix.denoise(SCH),
        SCH.timesteps(50, spacing="trailing"),
    )
    low = sample(denoise, SCH, x0, [1, *ts[::-1][1:]])  # eps asked at the lower time of each move
    back = sample(denoise, SCH, low, ts)
    assert round_trip(mix, 50) < 0.7 * (back - x0).pow(2).mean().sqrt().item()


def test_one_step_undoes_one_ddim_step_when_eps_is_constant():
    constant = lambda x, t, c: torch.full_like(x, 0.3)  # noqa: E731
    x = torch.randn(2, 2, dtype=torch.float64)
    up = invert_step(constant, SCH, x, 100, 300, None)
    assert (sample(constant, SCH, up, [300, 100]) - x).abs().max() < 1e-12


def test_the_network_is_never_asked_about_time_zero():
    asked = []
    ddim_invert(
        lambda x, t, c: asked.append(t) or torch.zeros_like(x), SCH, torch.zeros(1, 2), steps=10
    )
    assert min(asked) > 0 and len(asked) == 10


def test_invert_keeps_every_state_and_starts_from_the_encoded_picture():
    pipe = minidiff.build("tiny", seed=0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    states = invert(pipe, image, "a red circle on a blue background", steps=5)
    assert len(states) == 6 and torch.equal(states[0], pipe.encode(image))


@pytest.mark.parametrize("bad", [dict(steps=0), dict(steps=10_000), dict(fixed_point=-1)])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError):
        invert(minidiff.build("tiny"), torch.zeros(1, 3, 64, 64), **bad)


@pytest.mark.weights
def test_round_trip_of_real_latents_improves_with_steps_and_breaks_under_guidance():
    import numpy as np

    from minidiff.data import shapes
    from minidiff.evaluate.metrics import psnr

    pipe = minidiff.load("tiny")
    scenes = [shapes.scene(np.random.default_rng(i), objects=1) for i in range(4)]
    image, prompts = shapes.render(scenes), [shapes.short_caption(s) for s in scenes]
    base = pipe.decode(pipe.encode(image))
    found = {}
    for steps, scale in ((10, 1.0), (40, 1.0), (40, 5.0)):
        x_T = invert(pipe, image, prompts, steps=steps)[-1]
        found[steps, scale] = (
            psnr(replay(pipe, x_T, prompts, steps=steps, scale=scale), base).mean().item()
        )
    assert found[40, 1.0] > found[10, 1.0] and found[40, 1.0] > 25, found
    assert found[40, 5.0] < found[40, 1.0] - 6, found
