"""Blended Latent Diffusion: the blend, the shrinking
mask, and three ways to have the background back.
"""

from itertools import pairwise

import pytest
import torch

import minidiff
from minidiff.editing import blended_latent as module
from minidiff.editing.blended_latent import blended_latent, shrinking, tune_decoder
from minidiff.editing.sdedit import sdedit
from minidiff.pipe.masks import to_latent_mask
from minidiff.pipe.pipe import Pipe

PROMPT = "a green star on a blue background"


def window(b=1):
    m = torch.zeros(b, 1, 64, 64)
    m[..., 18:40, 10:31] = 1
    return m


def test_an_empty_mask_returns_the_picture(pipe, image):
    for background in ("paste", "decoder", "none"):
        assert torch.equal(
            blended_latent(pipe, image, PROMPT, mask=0 * window(), background=background, steps=2),
            image,
        )


def test_a_full_mask_is_drawing_from_the_same_start(pipe, image):
    out = blended_latent(pipe, image, PROMPT, mask=torch.ones(1, 1, 64, 64), steps=4, strength=0.75)
    assert (out - sdedit(pipe, image, PROMPT, strength=0.75, steps=4)).abs().max() < 1e-5


def test_without_growing_it_is_the_plain_blend(pipe, image):
    """On a mask that does not shrink the states are those
    of SDEdit's mask: one equation, written for two papers.
    """
    out = blended_latent(pipe, image, PROMPT, mask=window(), steps=4, strength=0.75, seed=2)
    assert (
        out - sdedit(pipe, image, PROMPT, mask=window(), strength=0.75, steps=4, seed=2)
    ).abs().max() < 1e-5


def test_pasted_pixels_are_the_pictures(pipe, image):
    out = blended_latent(pipe, image, PROMPT, mask=window(2), steps=3, grow=2)
    assert ((out - image) * (1 - window())).abs().max() == 0 and (
        (out - image) * window()
    ).abs().max() > 0.05


def test_the_background_has_the_noise_of_the_time_the_state_is_at(pipe, image, monkeypatch):
    seen = []
    noised = Pipe.noised
    monkeypatch.setattr(
        Pipe, "noised", lambda self, z, t, n: seen.append(t) or noised(self, z, t, n)
    )
    blended_latent(pipe, image, PROMPT, mask=window(), steps=5, strength=0.6)
    assert seen == [600, 400, 200, 0]  # the start, then each s: not t, and clean at last


def test_masks_shrink_to_the_given_one():
    m = torch.zeros(1, 1, 16, 16)
    m[..., 8, 3:12] = 1  # one cell thin
    masks = shrinking(m, 3, 12)
    sizes = [x.sum().item() for x in masks]
    assert len(masks) == 12 and sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 7 * 15 and sizes[-1] == 9  # 3 cells each way
    assert all(torch.equal(x, m) for x in masks[9:])  # the last quarter: as given
    assert all(torch.equal(x, m) for x in shrinking(m, 0, 5))
    for a, b in pairwise(masks):
        assert (b <= a).all()  # never a cell that was not open before


def test_growing_changes_thin_masks_only_inside_them(pipe, image):
    thin = torch.zeros(1, 1, 64, 64)
    thin[..., 30:34, 8:56] = 1
    a, b = (blended_latent(pipe, image, PROMPT, mask=thin, grow=g, steps=8) for g in (0, 3))
    assert ((a - b) * (1 - thin)).abs().max() == 0 and ((a - b) * thin).abs().max() > 1e-3


def test_the_latents_outside_are_the_pictures_when_it_ends(pipe, image, monkeypatch):
    seen = []
    monkeypatch.setattr(
        module, "tune_decoder", lambda pipe, z, image, mask: seen.append(z) or image
    )
    blended_latent(pipe, image, PROMPT, mask=window(), grow=2, background="decoder", steps=4)
    outside = 1 - to_latent_mask(window(), pipe)
    assert ((seen[0] - pipe.encode(image)) * outside).abs().max() == 0


def test_the_tuned_decoder_brings_the_background_nearer_and_is_put_back(pipe, image):
    z, before = pipe.encode(image), {k: v.clone() for k, v in pipe.vae.state_dict().items()}
    plain, tuned = pipe.decode(z), tune_decoder(pipe, z, image, window(), iterations=15)
    error = lambda x: ((x - image) * (1 - window())).square().mean((1, 2, 3))  # noqa: E731
    assert (error(tuned) < 0.7 * error(plain)).all()
    assert all(torch.equal(v, before[k]) for k, v in pipe.vae.state_dict().items())
    assert not any(p.requires_grad for p in pipe.vae.parameters())
    alone = tune_decoder(pipe, z[1:], image[1:], window(), iterations=15)
    assert (alone - tuned[1:]).abs().max() < 1e-3  # a picture's decoder is its own


def test_a_row_does_not_depend_on_the_batch(pipe, image):
    both = blended_latent(pipe, image, [PROMPT, "a red ring"], mask=window(), steps=3, seed=5)
    alone = blended_latent(pipe, image[1:], "a red ring", mask=window(), steps=3, seed=6)
    assert (both[1:] - alone).abs().max() < 1e-4


def test_pixel_models_blend_too_but_have_no_decoder(image):
    pixel, small = minidiff.build("tiny-pixel"), image[..., ::2, ::2]
    run = dict(mask=window()[..., ::2, ::2], steps=2)
    assert blended_latent(pixel, small, "red circle", **run).shape == small.shape
    with pytest.raises(ValueError, match="no decoder to tune"):
        blended_latent(pixel, small, "red circle", background="decoder", **run)


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(strength=1.5), "strength=1.5"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1.0"),
        (dict(grow=-1), "grow=-1"),
        (dict(background="blur"), "background='blur'"),
        (dict(mask=torch.ones(1, 1, 32, 32)), r"mask is \(1, 1, 32, 32\)"),
        (dict(mask=window() * 0.5), "only 0 .keep."),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        blended_latent(pipe, image, PROMPT, **{"mask": window(), "steps": 2} | bad)
