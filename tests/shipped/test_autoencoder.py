"""Training the autoencoder: its loss, its batches, latents of mean 0 and variance 1 without a
changed reconstruction.
"""

import math

import pytest
import torch

from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.models.vae import VAE
from minidiff.shipped.autoencoder import (
    autoencoder_loss,
    image_batches,
    standardise,
    staying_loss,
)
from minidiff.train.fit import fit


def make(seed=0):
    torch.manual_seed(seed)
    return VAE(channels=(8, 16), layers=1, groups=4, patch=2, scale=0.18215)


def pictures(n=8, seed=0):
    return image_batches(n, seed, (4, 16, 16))(0)["image"]


@torch.no_grad()
def test_standardised_latents_have_mean_zero_and_variance_one_on_the_pictures_given():
    vae, x = make(), pictures(70)  # more than one chunk of 64
    vae.quant_conv.bias.normal_(std=3.0)
    standardise(vae, x)
    z = vae.to_latent(x)
    assert (
        vae.scale == 1
        and z.mean((0, 2, 3)).abs().max() < 1e-4
        and (z.std((0, 2, 3)) - 1).abs().max() < 1e-3
    )


@torch.no_grad()
def test_standardising_leaves_reconstructions_and_the_posterior_noise_unchanged():
    """The deviation of the posterior shrinks with its mean: the same noise gives the same
    picture.
    """
    vae, x = make(), pictures()
    noise = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    q = vae.encode(x)
    plain, noisy = vae.decode(q.mean), vae.decode(q.sample(noise))
    standardise(vae, x)
    after = vae.encode(x)
    assert (after.mean - q.mean).abs().max() > 0.1  # something did change
    assert (vae.decode(after.mean) - plain).abs().max() <= 1e-4
    assert (vae.decode(after.sample(noise)) - noisy).abs().max() <= 1e-4


@torch.no_grad()
def test_standardising_twice_is_standardising_once():
    vae, x = make(), pictures()
    z = standardise(vae, x).to_latent(x)
    assert (standardise(vae, x).to_latent(x) - z).abs().max() < 1e-4


def test_the_loss_falls_over_twenty_steps():
    vae, batch = make(), image_batches(4, 0, (4, 16, 16))
    test = image_batches(8, 1, (4, 16, 16), split="test")(0)
    with torch.no_grad():
        first = autoencoder_loss(vae, test).item()
    fit(
        vae,
        autoencoder_loss,
        batch,
        steps=20,
        lr=4e-3,
        muon_lr=1e-2,
        warmup=1,
        ema=0.0,
        progress=False,
    )
    with torch.no_grad():
        assert autoencoder_loss(vae, test).item() < 0.7 * first


class Painter(torch.nn.Module):
    """An autoencoder that returns one picture, with a posterior of its own."""

    def __init__(self, picture, q):
        super().__init__()
        self.picture, self.q = picture, q

    def encode(self, x):
        return self.q

    def decode(self, z):
        return self.picture


def test_the_loss_of_a_known_error_is_its_closed_form():
    from minidiff.models.vae import Gaussian

    x = pictures(2)
    zero = torch.zeros(2, 4, 16, 16)
    q = Gaussian(zero + 2.0, zero)  # KL = 2 nats per value
    batch = {"image": x, "noise": zero}
    assert abs(autoencoder_loss(Painter(x, q), batch, beta=0.1).item() - 0.2) < 1e-6
    # a constant error has no gradient term
    flat = autoencoder_loss(Painter(x + 0.3, q), batch, beta=0.0).item()
    assert abs(flat - (0.3 + 0.09)) < 1e-5
    stripes = 0.3 * (-1.0) ** torch.arange(64).expand(
        64, 64
    )  # neighbours differ by .6 along x only
    assert (
        abs(
            autoencoder_loss(Painter(x + stripes, q), batch, beta=0.0).item()
            - (0.3 + 0.09 + 0.5 * 0.6)
        )
        < 1e-5
    )


def test_batches_are_a_function_of_seed_and_step():
    a, b = (image_batches(3, 5, (4, 16, 16)) for _ in range(2))
    other = image_batches(3, 6, (4, 16, 16))
    assert all(torch.equal(v, b(2)[k]) for k, v in a(2).items())
    for k in ("image", "noise"):
        assert not torch.equal(a(2)[k], a(3)[k]) and not torch.equal(a(2)[k], other(2)[k])
    assert a(0)["image"].shape == (3, 3, 64, 64) and a(0)["noise"].shape == (3, 4, 16, 16)


def test_training_pictures_leave_the_held_out_tenth_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(
        shapes, "render", lambda scenes: seen.extend(scenes) or torch.zeros(len(scenes), 3, 64, 64)
    )
    image_batches(40, 0, (4, 16, 16), strange=0)(0)
    assert len(seen) == 40 and not any(map(shapes.held_out, seen))
    image_batches(40, 0, (4, 16, 16), split="test", strange=0)(0)
    assert len(seen) == 80 and all(map(shapes.held_out, seen[40:]))


@pytest.mark.parametrize("gap, want", [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_constant_error(gap, want):
    a = torch.zeros(3, 3, 4, 4)
    assert (psnr(a, a + gap) - want).abs().max() < 1e-3


def test_psnr_is_per_picture_and_finite_for_equal_ones():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([a[0], a[1] + 0.2])
    found = psnr(a, b)
    assert (
        found.shape == (2,)
        and math.isfinite(found[0])
        and found[0] > 100
        and abs(found[1] - 20) < 1e-3
    )


# ---- training it further -------------------------------------------------------------------------


def test_staying_costs_nothing_until_the_latents_of_plain_pictures_move():
    vae = make()
    before = make().requires_grad_(False)
    rows = image_batches(8, 0, (4, 16, 16), strange=0.5)(0)
    assert rows["plain"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    plain = autoencoder_loss(vae, rows)
    assert torch.allclose(staying_loss(vae, rows, before), plain)
    with torch.no_grad():
        vae.quant_conv.bias[:4] += 0.5  # every latent moves by a half
    moved = staying_loss(vae, rows, before, lam=2.0) - autoencoder_loss(vae, rows)
    assert math.isclose(moved.item(), 2.0 * 0.5**2, rel_tol=1e-3)


def test_a_share_of_the_pictures_shows_what_no_caption_names():
    strange = image_batches(8, 0, (4, 16, 16), strange=0.25)(3)["image"]
    plain = image_batches(8, 0, (4, 16, 16), strange=0)(3)["image"]
    changed = (strange - plain).abs().amax((1, 2, 3)) > 0.1
    assert changed.tolist() == [True, True, *[False] * 6]
