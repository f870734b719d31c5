import pytest
import torch

import minidiff
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise, sample
from minidiff.guidance.regions import Region, profile, regional, row_of_windows, seam, window


@pytest.fixture(scope="module")
def tiny():
    return minidiff.build("tiny", seed=0)


def two(tiny):
    return tiny.embed("a red circle"), tiny.embed("a blue star")


def test_one_region_is_plain_sampling_to_the_bit(tiny):
    side = tiny.shape[1]
    cond, _ = two(tiny)
    for weights in ("gauss", "quartic", "even"):
        region = Region(0, 0, side, side, cond)
        x, ts = tiny.start(2), tiny.timesteps(3)
        got = sample(
            regional(tiny.eps, [region], (side, side), weights=weights), tiny.schedule, x, ts
        )
        assert torch.equal(got, sample(tiny.eps, tiny.schedule, x, ts, cond.expand(2)))


def test_two_full_regions_with_one_prompt_are_that_prompt(tiny):
    side = tiny.shape[1]
    cond, _ = two(tiny)
    region = Region(0, 0, side, side, cond)
    x = tiny.start(1)
    got = regional(tiny.eps, [region, region], (side, side))(x, 500, None)
    assert (got - tiny.eps(x, 500, cond)).abs().max() < 1e-5


def test_regions_side_by_side_are_separate_runs_with_the_same_noise(tiny):
    side = tiny.shape[1]
    a, b = two(tiny)
    left, right = row_of_windows([a, b], side, 2 * side)
    x = noise((1, tiny.shape[0], side, 2 * side), 3)
    ts = tiny.timesteps(3)
    got = sample(regional(tiny.eps, [left, right], (side, 2 * side)), tiny.schedule, x, ts)
    for part, cond in ((slice(0, side), a), (slice(side, None), b)):
        alone = sample(tiny.eps, tiny.schedule, x[..., part].contiguous(), ts, cond)
        assert (got[..., part] - alone).abs().max() < 1e-4


def test_the_overlap_is_the_weighted_mean_and_weights_have_no_scale(tiny):
    """Answers that are constants: 1 in one window, 0 in the other."""
    ones, zeros = Cond(label=torch.tensor([1])), Cond(label=torch.tensor([0]))

    def says(x, t, cond):
        return torch.ones_like(x) * cond.label.view(-1, 1, 1, 1)

    regions = [Region(0, 0, 4, 8, ones), Region(0, 4, 4, 8, zeros)]
    for kind in ("gauss", "quartic", "even"):
        got = regional(says, regions, (4, 12), weights=kind)(torch.zeros(1, 1, 4, 12), 5, None)
        w = window(regions[0], kind)
        want = w[:, 4:] / (w[:, 4:] + w[:, :4])
        assert (got[0, 0, :, 4:8] - want).abs().max() < 1e-6
        assert torch.equal(got[0, 0, :, :4], torch.ones(4, 4)) and not got[..., 8:].any()
    assert (profile(16, "gauss") - profile(16, "gauss").flip(0)).abs().max() < 1e-6


def test_multidiffusion_is_the_same_line_with_even_weights(tiny):
    """Averaging the moved states of the windows instead of their noises."""
    from minidiff.core.process import ddim_step

    side = tiny.shape[1]
    a, b = two(tiny)
    regions = row_of_windows([a, b], side, side + side // 2)
    size = (side, side + side // 2)
    x = noise((1, tiny.shape[0], *size), 3)
    eps = regional(tiny.eps, regions, size, weights="even")(x, 500, None)
    ours = ddim_step(tiny.schedule, x, eps, 500, 400)
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for r in regions:
        rows, columns = r.place
        seen = x[..., rows, columns]
        said = tiny.eps(seen, 500, r.cond)
        total[..., rows, columns] += ddim_step(tiny.schedule, seen, said, 500, 400)
        count[..., rows, columns] += 1
    assert (ours - total / count).abs().max() < 1e-5


def test_a_seam_is_seen():
    flat = torch.zeros(1, 3, 8, 16) + 0.01 * torch.randn(1, 3, 8, 16)
    cut = flat.clone()
    cut[..., 8:] += 1
    assert seam(cut, [8]) > 10 > seam(flat, [8])


@pytest.mark.parametrize(
    "regions, says",
    [
        ([(0, 0, 4, 4)], "leave 16 of 32"),
        ([(0, 0, 4, 9)], "leaves the canvas"),
        ([(0, 0, 0, 8)], "is empty or"),
        ([(-1, 0, 4, 8)], "leaves the canvas"),
    ],
)
def test_holes_and_empty_regions_are_refused(regions, says):
    with pytest.raises(ValueError, match=says):
        regional(lambda *a: None, [Region(*r, Cond()) for r in regions], (4, 8))


def test_other_mistakes_are_refused(tiny):
    a, b = two(tiny)
    with pytest.raises(ValueError, match="weights='round'"):
        regional(tiny.eps, [Region(0, 0, 4, 4, a)], (4, 4), weights="round")
    with pytest.raises(ValueError, match="they must cover it"):
        row_of_windows([a, b], 4, 9)
    guided = regional(tiny.eps, [Region(0, 0, 4, 4, a)], (4, 4))
    with pytest.raises(ValueError, match=r"a canvas of \(8, 8\)"):
        guided(torch.zeros(1, 4, 8, 8), 5, None)
