"""Edit-friendly noise: exact replay, and the closed form of how its maps differ from sampling
noise.
"""

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg_batched
from minidiff.core.process import posterior, x0_to_eps
from minidiff.inversion.edit_friendly import edit_friendly, noise_maps, replay_maps, scattered

A, B = "a red circle on a blue background", "a green circle on a blue background"
SCH = schedule.scaled_linear()


@pytest.fixture(scope="module")
def known():
    """A picture of 200,000 numbers, a denoiser that knows it, and the maps it gives."""
    x0, ts = (
        torch.full((1, 200_000), 0.7, dtype=torch.float64),
        SCH.timesteps(10, spacing="trailing"),
    )
    xs = scattered(SCH, x0, ts, seed=3)
    return ts, xs, noise_maps(lambda x, t, c: x0_to_eps(SCH, x, x0, t), SCH, xs, ts)


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
def test_the_same_prompt_returns_the_picture_exactly(pipe, image, scale):
    out = edit_friendly(pipe, image, A, A, source_scale=scale, scale=scale, steps=6, strength=1.0)
    assert (out - pipe.decode(pipe.encode(image))).abs().max() < 1e-9


def test_the_noise_is_read_off_under_the_guidance_of_the_source(pipe, image):
    """Written out: maps at `source_scale`, the replay at `scale`."""
    ts, sch = pipe.timesteps(4), pipe.schedule
    read, drawn = (cfg_batched(pipe.eps, pipe.null(), scale) for scale in (1.5, 5.0))
    xs = scattered(sch, pipe.encode(image), ts, 2)
    maps = noise_maps(read, sch, xs, ts, pipe.embed(A))
    want = pipe.decode(replay_maps(drawn, sch, xs[0], maps, ts, pipe.embed(B)))
    how = dict(strength=1.0, steps=4, seed=2)
    got = edit_friendly(pipe, image, A, B, source_scale=1.5, scale=5.0, **how)
    same = edit_friendly(pipe, image, A, B, source_scale=5.0, scale=5.0, **how)
    assert (got - want).abs().max() < 1e-9 and (same - want).abs().max() > 1e-3


def test_every_state_is_visited_again(pipe, image):
    ts, z, cond = pipe.timesteps(4), pipe.encode(image), pipe.embed(A)
    xs = scattered(pipe.schedule, z, ts, 5)
    maps = noise_maps(pipe.eps, pipe.schedule, xs, ts, cond)
    for i in range(1, 5):
        x = replay_maps(pipe.eps, pipe.schedule, xs[0], maps[:i], ts, cond)
        assert (x - xs[i]).abs().max() < 1e-9


def test_the_noises_of_the_states_are_independent_of_each_other(known):
    ts, xs, _ = known
    n = torch.cat([(x - SCH.at(t)[0] * 0.7) / SCH.at(t)[1] for x, t in zip(xs[:-1], ts)])
    assert (torch.cov(n) - torch.eye(len(n))).abs().max() < 0.02


def test_maps_are_larger_than_sampling_noise_by_a_known_factor(known):
    """Var r = sigma_s^2 + k^2 where ancestral sampling has sigma_s^2 - k^2, k = (alpha_t / alpha_s)
    sigma_s^2 / sigma_t.
    """
    ts, xs, maps = known
    for x, r, t, s in zip(xs, maps[:-1], ts, ts[1:]):
        k, sig = SCH.at(t)[0] / SCH.at(s)[0] * SCH.at(s)[1] ** 2 / SCH.at(t)[1], SCH.at(s)[1]
        assert abs(r.var().item() / (sig**2 + k**2) - 1) < 0.02
        assert abs(float(posterior(SCH, x, x, t, s)[1]) - (sig**2 - k**2)) < 1e-9


def test_each_map_takes_back_part_of_the_one_before(known):
    _, _, maps = known
    rho = torch.corrcoef(torch.cat(maps[:-1]))
    assert (rho.diagonal(1) < -0.05).all() and rho.triu(2).abs().max() < 0.02


def test_the_last_map_is_what_the_model_cannot_draw(pipe, image):
    """Published code sets it to zero (its deviation is): the replay then returns the model's guess,
    not the picture.
    """
    ts, z, cond = pipe.timesteps(4), pipe.encode(image), pipe.embed(A)
    xs = scattered(pipe.schedule, z, ts)
    maps = noise_maps(pipe.eps, pipe.schedule, xs, ts, cond)
    assert maps[-1].abs().max() > 1e-3
    lost = replay_maps(pipe.eps, pipe.schedule, xs[0], [*maps[:-1], 0 * z], ts, cond)
    assert (lost - z + maps[-1]).abs().max() < 1e-9


def test_strength_zero_is_the_copy_and_another_prompt_an_edit(pipe, image):
    copy = pipe.decode(pipe.encode(image))
    assert torch.equal(edit_friendly(pipe, image, A, B, strength=0.0, steps=4), copy)
    assert (edit_friendly(pipe, image, A, B, steps=4) - copy).abs().max() > 1e-3


def test_another_seed_is_another_edit_and_the_same_seed_the_same(pipe, image):
    a, b, c = (edit_friendly(pipe, image, A, B, steps=3, seed=k) for k in (1, 1, 2))
    assert torch.equal(a, b) and (a - c).abs().max() > 1e-3


def test_pictures_of_a_batch_do_not_depend_on_each_other(pipe, image):
    both = edit_friendly(pipe, image, [A, B], [B, A], steps=4, seed=7)
    assert (both[1:] - edit_friendly(pipe, image[1:], B, A, steps=4, seed=8)).abs().max() < 1e-9


@pytest.mark.parametrize(
    "bad", [dict(strength=1.2), dict(steps=0), dict(scale=-1.0), dict(source_scale=-1.0)]
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        edit_friendly(pipe, image, A, B, **dict(steps=2) | bad)
