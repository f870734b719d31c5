import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import noise
from minidiff.core.process import eps_to_x0
from minidiff.data.toy2d import Mixture, energy_distance, gmm8
from minidiff.samplers.ddim import ddim
from minidiff.samplers.ddpm import ddpm

SCH = schedule.linear(1000)
RING = gmm8(1.0, 0.15)


def cloud(n, seed=0):
    # one picture of n points: one random stream for all
    return noise((1, n, 2), seed, dtype=torch.float64)


def mode_std(x):
    return (x - RING.means[torch.cdist(x, RING.means).argmin(-1)]).std().item()


@pytest.mark.parametrize("steps", [20, 50])
def test_small_variance_samples_too_narrow_and_large_too_wide(steps):
    small, large = (
        ddpm(RING.denoise(SCH), SCH, cloud(6000), steps=steps, variance=v)[0]
        for v in ("small", "large")
    )
    # the truth is .150; measured: .143/.130, .161/.162
    assert mode_std(small) < 0.146 and mode_std(large) > 0.155


def test_at_1000_steps_small_is_still_biased_low_and_large_is_not():
    n, mean, std = 4000, 0.5, 0.15
    eps = Mixture([[mean, mean]], [[[std**2, 0.0], [0.0, std**2]]]).denoise(SCH)
    small, large = (ddpm(eps, SCH, cloud(n), steps=1000, variance=v)[0] for v in ("small", "large"))
    se = std / math.sqrt(2 * n)
    for x in (small, large):
        assert abs(x.mean() - mean) < 3 * se and abs(x.std() / std - 1) < 0.04
    # measured: .146, .150
    assert abs(small.std() - 0.146) < 0.002 and abs(large.std() - std) < 2 * se / math.sqrt(2)
    assert 1.015 < large.std() / small.std() < 1.04  # both saw the same noise, so this is sharper


def test_ddpm_reaches_the_floor_of_the_energy_distance():
    truth = RING.sample(3000, seed=5)
    few, many = (
        energy_distance(ddpm(RING.denoise(SCH), SCH, cloud(3000), steps=n)[0], truth)
        for n in (5, 100)
    )
    assert many < 1.5e-3 < 1e-2 < few


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_small_variance_is_ddim_with_eta_1(spacing):
    x = noise((16, 2), dtype=torch.float64)
    kw = dict(steps=20, spacing=spacing, seed=0)
    assert (
        ddpm(RING.denoise(SCH), SCH, x, **kw) - ddim(RING.denoise(SCH), SCH, x, eta=1.0, **kw)
    ).abs().max() <= 1e-12


def test_the_last_step_adds_no_noise():
    x = noise((4, 2), dtype=torch.float64)
    eps = RING.denoise(SCH)
    one = [
        ddpm(eps, SCH, x, steps=1, variance=v, seed=s) for v in ("small", "large") for s in (0, 1)
    ]
    x0 = eps_to_x0(SCH, x, eps(x, 1000), 1000)
    assert all((y - x0).abs().max() <= 1e-9 for y in one)  # x0 is divided by alpha_T = .006


def test_clip_bounds_every_guess_of_x0():
    x = noise((64, 2), dtype=torch.float64)
    assert ddpm(RING.denoise(SCH), SCH, x, steps=10, clip=0.5).abs().max() <= 0.5
    free, loose = (ddpm(RING.denoise(SCH), SCH, x, steps=10, clip=c) for c in (None, 100.0))
    assert torch.equal(free, loose) and free.abs().max() > 0.5


def test_large_variance_on_linspace_leaves_the_noise_of_the_step_before_last():
    """Why the default spacing is trailing: the last move of linspace is 1 -> 0, too short to clean
    up.
    """
    even, short = (
        mode_std(
            ddpm(RING.denoise(SCH), SCH, cloud(3000), steps=20, variance="large", spacing=s)[0]
        )
        for s in ("trailing", "linspace")
    )
    assert short > 1.2 * even


def test_seed_and_row_decide_the_noise():
    x = noise((5, 2), 7, dtype=torch.float64)
    batch = ddpm(RING.denoise(SCH), SCH, x, steps=10, seed=7)
    assert torch.equal(batch, ddpm(RING.denoise(SCH), SCH, x, steps=10, seed=7))
    assert (
        batch[3:4] - ddpm(RING.denoise(SCH), SCH, x[3:4], steps=10, seed=10)
    ).abs().max() <= 1e-12
    assert (batch - ddpm(RING.denoise(SCH), SCH, x, steps=10, seed=8)).abs().max() > 0.05


def test_ve_tables_sample_the_same_mixture():
    sch = schedule.ve(200, 0.01, 10)
    x = ddpm(RING.denoise(sch), sch, sch.sigma[-1] * cloud(2000), steps=100)[0]
    assert energy_distance(x, RING.sample(2000, seed=5)) < 3e-3


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(variance="learned"), "'learned' is unknown; choose small or large"),
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
    ],
)
def test_bad_options_are_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        ddpm(RING.denoise(SCH), SCH, cloud(2), **kw)
