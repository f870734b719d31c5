import math
from pathlib import Path

import numpy as np
import pytest
import torch

from minidiff.evaluate import metrics
from minidiff.evaluate.metrics import (
    bootstrap_ci,
    eight_bit,
    frechet,
    frechet_gaussians,
    masked_psnr,
)


def picture(seed=0, b=1):
    return torch.rand(b, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def spd(d, seed):
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / d


def test_there_is_one_psnr():
    package = Path(metrics.__file__).parents[1]
    homes = [f.name for f in package.rglob("*.py") if "def psnr(" in f.read_text()]
    assert homes == ["metrics.py"]


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_masked_psnr_of_a_constant_error_does_not_depend_on_the_area_kept(kept):
    x, keep = eight_bit(picture()).float() * 2 - 1, torch.zeros(1, 1, 16, 16)
    keep.view(-1)[: int(kept * 256)] = 1
    error = 20 / 255  # 20 grey levels
    y = x + 2 * error * torch.where(x > 0, -1.0, 1.0)
    assert masked_psnr(x, y, keep).item() == pytest.approx(-20 * math.log10(error), abs=1e-3)


def test_masked_psnr_sees_only_what_is_kept():
    x, keep = picture(), torch.ones(1, 1, 16, 16)
    keep[..., :8] = 0
    y = x.clone()
    y[..., :8] += 0.5
    assert masked_psnr(x, y, keep).item() == 50 and masked_psnr(x, y, 1 - keep).item() < 20


def test_masked_psnr_with_everything_kept_is_psnr():
    x, y = picture(0, 3), picture(1, 3)
    # 8-bit rounding
    assert (masked_psnr(x, y, torch.ones(1, 1, 16, 16)) - metrics.psnr(x, y)).abs().max() < 0.02


def test_masked_psnr_rounds_to_8_bits_first():
    x = torch.zeros(1, 3, 4, 4) + 1 / 255  # exactly a grey level
    one = torch.ones(1, 1, 4, 4)
    assert masked_psnr(x, x + 0.9 / 255, one).item() == 50  # less than half a level off
    assert masked_psnr(x, x + 1.1 / 255, one).item() == pytest.approx(
        20 * math.log10(255), abs=1e-6
    )
    assert (
        masked_psnr(x + 1, torch.full_like(x, 5.0), one).item() > 40
    )  # clamped: a file holds no 5


def test_masked_psnr_is_nan_where_nothing_is_kept_and_refuses_odd_masks():
    assert masked_psnr(picture(), picture(1), torch.zeros(1, 1, 16, 16)).isnan().all()
    with pytest.raises(ValueError, match="mask"):
        masked_psnr(picture(), picture(), torch.ones(1, 3, 16, 16))


def test_frechet_of_diagonal_gaussians_is_the_sum_of_squared_differences():
    m1, m2, s1, s2 = (torch.rand(5, generator=torch.Generator().manual_seed(i)) for i in range(4))
    d = frechet_gaussians(m1, torch.diag(s1**2), m2, torch.diag(s2**2))
    assert d == pytest.approx((((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()).item(), rel=1e-6)


def test_frechet_of_an_optimal_linear_map_is_what_that_map_moves():
    """For SPD A the map x -> A x is the optimal transport of N(0, C) to N(0, A C A): it moves tr((A
    - 1) C (A - 1)).
    """
    c, a = spd(6, 0), spd(6, 1) + 0.1 * torch.eye(6)
    move, zero = (a - torch.eye(6)) @ c @ (a - torch.eye(6)), torch.zeros(6)
    assert frechet_gaussians(zero, c, zero, a @ c @ a) == pytest.approx(
        move.trace().item(), rel=1e-9
    )
    assert frechet_gaussians(zero, a @ c @ a, zero, c) == pytest.approx(
        move.trace().item(), rel=1e-9
    )


def test_frechet_of_samples_approaches_that_of_their_gaussians():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50_000, 4, generator=g), 2 * torch.randn(50_000, 4, generator=g) + 1
    assert frechet(x, y) == pytest.approx(4 * 1 + 4 * 1, rel=0.03)


def test_frechet_of_a_set_with_itself_is_zero_even_when_its_covariance_is_singular():
    # fewer rows than features
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(0)) * 100
    assert 0 <= frechet(x, x) < 1e-6 * x.pow(2).mean().item()
    assert frechet(x, x + 3) == pytest.approx(20 * 9, rel=1e-3)
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        frechet(x, x[:, :3])


def test_bootstrap_interval_of_bools_is_that_of_a_binomial():
    mean, low, high = bootstrap_ci([True] * 80 + [False] * 20)
    assert mean == pytest.approx(0.8) and low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)


def test_bootstrap_interval_holds_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    found = [bootstrap_ci(rng.normal(1, 2, 60), draws=400, seed=i) for i in range(300)]
    assert 0.9 < np.mean([low <= 1 <= high for _, low, high in found]) < 0.985


def test_repeating_every_value_narrows_the_interval_only_without_clusters():
    x, ids = np.random.default_rng(0).normal(size=40), np.arange(40)
    width = lambda *a, **k: np.subtract(*bootstrap_ci(*a, **k)[:0:-1])  # noqa: E731
    assert width(np.tile(x, 9)) < 0.4 * width(x)
    assert width(np.tile(x, 9), clusters=np.tile(ids, 9)) == pytest.approx(width(x), rel=0.1)


def test_bootstrap_leaves_nans_out():
    assert bootstrap_ci([1.0, float("nan"), 3.0])[0] == 2
    assert all(math.isnan(v) for v in bootstrap_ci([float("nan")])) and all(
        math.isnan(v) for v in bootstrap_ci([])
    )
