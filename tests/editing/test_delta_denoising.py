"""Delta Denoising Score: the exact gradient, where it vanishes, and what its absence does."""

from dataclasses import replace

import pytest
import torch

from minidiff.core.cond import Cond
from minidiff.core.process import q_sample
from minidiff.editing.delta_denoising import delta_denoising, score_gradient

SOURCE, TARGET = "a red circle on a blue background", "a green circle on a blue background"


def window():
    m = torch.zeros(1, 1, 64, 64)
    m[..., 16:40, 8:32] = 1
    return m


def gaussian(pipe, std=0.5):
    """A denoiser that is exact: pictures of condition c are
    N(c, std^2), one mean per row in `cond.extra["mean"]`.
    """

    def denoise(x_t, t, cond):
        a, s = pipe.schedule.at(t, x_t)
        return s * (x_t - a * cond.extra["mean"]) / (a * a * std**2 + s * s)

    return denoise


def mean(v, b=2):
    return Cond(extra={"mean": torch.full((b, 4, 16, 16), v)})


def test_equal_prompts_return_the_autoencoders_copy(pipe, image):
    out = delta_denoising(pipe, image, SOURCE, SOURCE, iterations=3)
    assert torch.equal(out, pipe.decode(pipe.encode(image)))
    assert not torch.equal(
        delta_denoising(pipe, image, SOURCE, SOURCE, kind="sds", iterations=3), out
    )


def test_at_the_start_the_direction_is_exact_and_free_of_noise(pipe):
    """On Gaussians the two opinions differ by a constant times
    the means' difference, whatever the noise and picture.
    """
    z = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([300, 700])
    for seed in (0, 1):
        n = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
        g = score_gradient(gaussian(pipe), pipe, z, z, mean(1.0), mean(0.0), t, n)
        a, s = pipe.schedule.at(t, z)
        exact = -a * s * (s * a / (a * a * 0.25 + s * s)) * torch.ones_like(z)
        assert (g - exact).abs().max() < 1e-5
        noisy = score_gradient(gaussian(pipe), pipe, z, z, mean(1.0), None, t, n)
        assert noisy.std() > 10 * (g - exact).std() + 0.01  # plain distillation keeps the noise


def test_the_walk_moves_the_picture_by_the_difference_of_the_means(pipe, monkeypatch):
    """DDS carries z0 to z0 + (target mean - source mean),
    details and all; SDS shrinks the details: it blurs.
    """
    z0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.5
    exact, ends = gaussian(pipe), {}
    for name, source in (("dds", mean(0.0)), ("sds", None)):
        z, g = z0.clone(), torch.Generator().manual_seed(0)
        for _ in range(400):
            t = torch.randint(20, 980, (2,), generator=g)
            z = z - 0.3 * score_gradient(
                exact, pipe, z, z0, mean(1.0), source, t, torch.randn(z.shape, generator=g)
            )
        ends[name] = z
    assert (ends["dds"] - (z0 + 1)).abs().max() < 0.02
    assert (ends["sds"] - 1).std() < 0.6 * z0.std() and abs(ends["sds"].mean() - 1) < 0.05


def test_both_opinions_see_one_noise_and_one_time(pipe, image):
    seen = []

    def spy(x_t, t, cond):
        seen.append((x_t, t))
        return torch.zeros_like(x_t)

    z, t = pipe.encode(image), torch.tensor([200, 800])
    n = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    score_gradient(spy, pipe, z + 1, z, pipe.embed([TARGET] * 2), pipe.embed([SOURCE] * 2), t, n)
    x, times = seen[0]  # rows: [edit, source]
    assert torch.equal(times, torch.tensor([200, 800, 200, 800]))
    assert torch.equal(
        x, torch.cat([q_sample(pipe.schedule, z + 1, t, n), q_sample(pipe.schedule, z, t, n)])
    )


def test_no_iteration_is_the_copy_and_a_mask_keeps_what_is_outside(pipe, image):
    assert torch.equal(
        delta_denoising(pipe, image, SOURCE, TARGET, iterations=0), pipe.decode(pipe.encode(image))
    )
    out = delta_denoising(pipe, image, SOURCE, TARGET, iterations=3, rate=3.0, mask=window())
    assert ((out - image) * (1 - window())).abs().max() == 0 and (
        (out - image) * window()
    ).abs().max() > 0.01
    assert torch.equal(
        delta_denoising(pipe, image, SOURCE, TARGET, iterations=2, mask=0 * window()), image
    )


def test_times_stay_where_they_were_asked_to(pipe, image):
    seen = []

    class Spy(torch.nn.Module):
        in_channels = 4

        def __init__(self):
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, cond):
            seen.append(t + 1)
            return torch.zeros_like(x)

    delta_denoising(
        replace(pipe, net=Spy()), image, SOURCE, TARGET, iterations=40, times=(0.2, 0.4)
    )
    ts = torch.cat(seen)
    assert ts.min() >= 200 and ts.max() <= 400 and ts.float().std() > 20


def test_a_row_does_not_depend_on_the_batch(pipe, image):
    both = delta_denoising(pipe, image, SOURCE, [TARGET, "a star"], iterations=3, rate=3.0, seed=3)
    alone = delta_denoising(pipe, image[1:], SOURCE, "a star", iterations=3, rate=3.0, seed=4)
    assert (both[1:] - alone).abs().max() < 1e-4


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(kind="ddpm"), "kind='ddpm'"),
        (dict(iterations=-1), "iterations=-1"),
        (dict(rate=0.0), "rate=0.0"),
        (dict(times=(0.0, 0.5)), "times="),
        (dict(times=(0.6, 0.5)), "times="),
        (dict(scale=-1.0), "scale=-1.0"),
        (dict(mask=torch.ones(1, 1, 32, 32)), r"mask is \(1, 1, 32, 32\)"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        delta_denoising(pipe, image, SOURCE, TARGET, **{"iterations": 1} | bad)
