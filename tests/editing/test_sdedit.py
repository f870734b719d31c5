"""SDEdit: identity cases, the mask's promise, and the noise level it starts from."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import minidiff
from minidiff.editing.sdedit import sdedit, strokes
from minidiff.pipe.masks import to_latent_mask
from minidiff.pipe.pipe import Pipe

PROMPT = "a red circle on a blue background"


def test_strength_zero_is_the_autoencoders_copy(pipe, image):
    assert torch.equal(sdedit(pipe, image, PROMPT, strength=0), pipe.decode(pipe.encode(image)))


def test_empty_mask_returns_the_source_untouched(pipe, image):
    out = sdedit(pipe, image, PROMPT, mask=torch.zeros(1, 1, 64, 64), steps=4)
    assert torch.equal(out, image)


def test_pixels_outside_the_mask_are_the_sources(pipe, image):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 10:30] = 1
    out = sdedit(pipe, image, PROMPT, mask=mask, steps=4, strength=0.8)
    assert ((out - image) * (1 - mask)).abs().max() == 0 and (
        (out - image) * mask
    ).abs().max() > 0.1


def test_full_mask_equals_no_mask(pipe, image):
    a = sdedit(pipe, image, PROMPT, steps=4, mask=torch.ones(1, 1, 64, 64))
    assert (a - sdedit(pipe, image, PROMPT, steps=4)).abs().max() < 1e-6


def test_it_starts_at_the_noise_level_of_the_strength(pipe, image, monkeypatch):
    seen = []
    noised = Pipe.noised
    monkeypatch.setattr(
        Pipe, "noised", lambda self, z, t, n: seen.append(t) or noised(self, z, t, n)
    )
    sdedit(pipe, image, PROMPT, strength=0.6, steps=10)
    assert seen == [600]


def test_the_blend_uses_the_time_the_state_is_at(pipe, image, monkeypatch):
    seen = []
    noised = Pipe.noised
    monkeypatch.setattr(
        Pipe, "noised", lambda self, z, t, n: seen.append(t) or noised(self, z, t, n)
    )
    sdedit(pipe, image, PROMPT, strength=0.4, steps=5, mask=torch.ones(1, 1, 64, 64))
    assert seen == [400, 200, 0]  # start, then after the moves 400 -> 200 and 200 -> 0


def test_steps_and_their_end_are_the_models_own(pipe, image, monkeypatch):
    """On Stable Diffusion's grid, ending at 1; that end counts
    as clean, so what is put back there carries no noise.
    """
    seen = []
    noised = Pipe.noised
    monkeypatch.setattr(
        Pipe, "noised", lambda self, z, t, n: seen.append(t) or noised(self, z, t, n)
    )
    sdedit(
        replace(pipe, spacing="leading", end=1),
        image,
        PROMPT,
        strength=0.4,
        steps=5,
        mask=torch.ones(1, 1, 64, 64),
    )
    assert seen == [202, 2, 1]  # 1 is the end of this grid: `noised` returns the picture itself


def test_pictures_of_another_size_are_edited_by_latent_unets(pipe):
    image, mask = torch.rand(1, 3, 48, 80) * 2 - 1, torch.zeros(1, 1, 48, 80)
    mask[..., 40:] = 1
    out = sdedit(pipe, image, PROMPT, steps=2, mask=mask)
    assert out.shape == image.shape and torch.equal(out[..., :40], image[..., :40])


def test_same_seed_same_picture_and_other_seed_another(pipe, image):
    a, b, c = (sdedit(pipe, image, PROMPT, steps=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_latent_mask_covers_every_touched_latent(pipe):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 7, 8] = 1
    m = to_latent_mask(mask, pipe)
    assert m.sum() == 1 and m[0, 0, 1, 2] == 1


def test_strokes_use_few_colours(image):
    from minidiff.data import shapes

    s = shapes.Scene((shapes.Obj("star", "red", "large"),), "center", "blue", "striped")
    painted = strokes(shapes.render(s), colors=3)
    assert painted.flatten(2).unique(dim=2).shape[2] <= 3


def test_pixel_models_edit_too(image):
    out = sdedit(minidiff.build("tiny-pixel"), image[..., ::2, ::2], "red circle", steps=4)
    assert out.shape == (2, 3, 32, 32) and out.isfinite().all()


@pytest.mark.parametrize(
    "bad",
    [
        dict(strength=1.5),
        dict(strength=-0.1),
        dict(steps=0),
        dict(scale=-1.0),
        dict(mask=torch.ones(1, 1, 32, 32)),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        sdedit(pipe, image, PROMPT, **bad)


@pytest.mark.weights
def test_more_strength_means_less_of_the_guide():
    import numpy as np

    from minidiff.data import shapes
    from minidiff.evaluate.metrics import psnr

    scenes = [shapes.scene(np.random.default_rng(i), objects=1) for i in range(4)]
    image, pipe = shapes.render(scenes), minidiff.load("tiny")
    found = [
        psnr(sdedit(pipe, image, PROMPT, strength=s, steps=20), image).mean().item()
        for s in (0.2, 0.5, 0.8, 1.0)
    ]
    assert all(a > b for a, b in pairwise(found)), found
