"""RePaint: the picture stays where it is known, the rest is DDPM's, and a jump costs nothing but
what follows it.
"""

from dataclasses import replace

import pytest
import torch

import minidiff
import minidiff.restoration.repaint as module
from minidiff.core.denoise import noise, noises
from minidiff.core.process import q_sample
from minidiff.pipe.masks import to_latent_mask
from minidiff.proofs.repaint import half_holes, seam
from minidiff.restoration.repaint import repaint
from minidiff.samplers.ddpm import ddpm


@pytest.fixture(scope="module")
def latent():
    return minidiff.build("tiny", seed=0)


@pytest.fixture(scope="module")
def pixel():
    return minidiff.build("tiny-pixel", seed=0)


def pictures(b=2, side=64, seed=0):
    return torch.rand(b, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def window(b=1, side=64):
    m = torch.zeros(b, 1, side, side)
    m[..., 18:40, 10:31] = 1
    return m


class Spied:
    """A pipe's `eps` that keeps (t, state) of every call."""

    def __init__(self, pipe):
        self.calls, self.plain = [], pipe.eps

    def __call__(self, x, t, cond):
        self.calls.append((t, x))
        return self.plain(x, t, cond)


def spied(pipe, monkeypatch):
    pipe = replace(pipe)
    monkeypatch.setattr(pipe, "eps", spy := Spied(pipe), raising=False)
    return pipe, spy.calls


def test_pixels_outside_the_mask_are_the_pictures(latent):
    x = pictures()
    out = repaint(latent, x, "a red circle on a blue background", mask=window(), steps=4, length=2)
    assert (
        torch.equal(out * (1 - window()), x * (1 - window()))
        and ((out - x) * window()).abs().max() > 0.1
    )
    assert torch.equal(repaint(latent, x, mask=0 * window()), x)


def test_what_the_hole_held_does_not_count(pixel):
    x, m = pictures(2, 32), window(1, 64)[..., ::2, ::2]
    a, b = (
        repaint(pixel, v, mask=m, steps=3, length=1, seed=2) for v in (x, torch.where(m > 0, -x, x))
    )
    assert ((a - b) * m).abs().max() == 0 and ((a - b) * (1 - m)).abs().max() == 0


def test_a_full_mask_without_jumps_is_ddpm(latent):
    out = repaint(latent, pictures(), mask=torch.ones(1, 1, 64, 64), steps=4, repeats=1, seed=3)
    z = ddpm(latent.eps, latent.schedule, noise((2, 4, 16, 16), 3), latent.null(), steps=4, seed=3)
    assert (out - latent.decode(z)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "steps, length, repeats, calls", [(6, 2, 2, 10), (5, 5, 3, 5), (4, 1, 3, 10), (25, 5, 2, 45)]
)
def test_every_step_down_is_one_evaluation_and_a_jump_none(
    latent, monkeypatch, steps, length, repeats, calls
):
    pipe, seen = spied(latent, monkeypatch)
    repaint(pipe, pictures(1), mask=window(), steps=steps, length=length, repeats=repeats)
    assert len(seen) == calls


def test_the_known_part_is_noised_to_the_time_of_the_state(latent, monkeypatch):
    """What the network sees outside the hole is alpha_t z + sigma_t n at the very t it is told,
    jumps or not.
    """
    pipe, seen = spied(latent, monkeypatch)
    x, m = pictures(1), window()
    repaint(pipe, x, mask=m, steps=6, length=2, repeats=1, seed=5)
    z, ns, outside = (
        latent.encode(x),
        noises(torch.zeros(1, 4, 16, 16), 5 + 2**31),
        1 - to_latent_mask(m, latent),
    )
    for t, state in seen[1:]:
        assert ((state - q_sample(latent.schedule, z, t, next(ns))) * outside).abs().max() < 1e-5
    pipe, seen = spied(latent, monkeypatch)
    repaint(pipe, x, mask=m, steps=20, length=5, repeats=3, seed=5)
    for t, state in seen[1:]:  # after jumps: by its variance
        a, s = latent.schedule.at(t)
        rest = ((state - a * z) / s)[outside.expand_as(z) > 0]
        assert 0.75 < rest.std() < 1.25


def test_jumps_redraw_the_hole(latent):
    x, m = pictures(1), window()
    a, b, c = (repaint(latent, x, mask=m, steps=6, length=2, repeats=r, seed=1) for r in (1, 2, 2))
    assert ((a - b) * m).abs().max() > 0.05 and torch.equal(b, c)


def test_a_row_depends_on_its_own_seed_prompt_and_mask(latent):
    x, m = pictures(3), torch.cat([window(), window().flip(-1), window()])
    names = ["a red circle on a blue background", "a blue star on a white background", ""]
    both = repaint(latent, x, names, mask=m, steps=4, length=2, scale=3.0, seed=4)
    alone = repaint(latent, x[1:2], names[1], mask=m[1:2], steps=4, length=2, scale=3.0, seed=5)
    assert (both[1:2] - alone).abs().max() < 1e-3


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(steps=0), "steps=0"),
        (dict(repeats=0), "repeats=0"),
        (dict(length=0), "length=0"),
        (dict(scale=-1.0), "scale=-1"),
        (dict(window=(0.9, 0.1)), "window="),
        (dict(prompt="a red elephant"), "elephant"),
        (dict(mask=torch.ones(1, 1, 32, 32)), "mask is"),
        (dict(mask=0.5 * window()), "expected only 0"),
        (dict(image=pictures(1, 40), mask=torch.ones(1, 1, 32, 40)), "mask is"),
    ],
)
def test_bad_arguments_are_refused(latent, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        repaint(latent, **{"image": pictures(1), "mask": window(), "steps": 2} | bad)


def test_seam_energy_knows_a_shift_at_the_border_from_one_inside():
    x, m = pictures(1), window()
    assert seam(x, x, m) == 0
    assert seam(x + 0.3 * m, x, m) == pytest.approx(0.09, rel=1e-5)  # every crossing pair is .3 off
    inner = torch.zeros_like(m)
    inner[..., 22:30, 15:25] = 1
    assert seam(x + inner, x, m) == 0


def test_half_holes_cover_half_of_the_object():
    from minidiff.data import shapes
    from minidiff.proofs.claims import draw

    scenes = draw(12, 0)
    inside = shapes.object_masks(scenes)[:, :1]
    share = (inside * half_holes(scenes)).sum((1, 2, 3)) / inside.sum((1, 2, 3))
    assert (
        share.min() > 0.3 and share.max() < 0.7 and half_holes(scenes, 32).shape == (12, 1, 32, 32)
    )


def test_the_noise_around_the_hole_is_not_the_noise_in_it(pixel, monkeypatch):
    """Two independent streams: else what is known would tell what is drawn."""
    drawn = []
    plain = module.noises

    def watched(like, seed):
        for n in plain(like, seed):
            drawn.append(n)
            yield n

    monkeypatch.setattr(module, "noises", watched)
    repaint(pixel, pictures(1, 32), mask=window(1, 32), steps=3, repeats=1)
    assert len(drawn) == 6
    rows = torch.stack(drawn).flatten(1)
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 0.1
