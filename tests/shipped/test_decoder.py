"""Teaching the decoder the latents that it is given: what it is shown, and what stays."""

import numpy as np
import pytest
import torch

import minidiff
from minidiff.core.process import q_sample
from minidiff.data import shapes
from minidiff.shipped.decoder import decoder_batches, redrawn, train_decoder


@pytest.fixture
def pipe():
    return minidiff.build("tiny", seed=1)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [shapes.scene(rng, split="train") for _ in range(4)]


def test_a_perfect_denoiser_brings_the_latents_back(pipe, scenes, monkeypatch):
    z = pipe.encode(shapes.render(scenes))

    def knows_the_picture(self, x_t, t, cond):
        alpha, sigma = self.schedule.at(t, x_t)
        return (x_t - alpha * z) / sigma

    monkeypatch.setattr(type(pipe), "eps", knows_the_picture)
    assert (redrawn(pipe, scenes, seed=3) - z).abs().max() < 1e-4


def test_a_denoiser_that_sees_nothing_leaves_the_noise_of_an_early_time(pipe, scenes, monkeypatch):
    monkeypatch.setattr(type(pipe), "eps", lambda self, x_t, t, cond: torch.zeros_like(x_t))
    z = pipe.encode(shapes.render(scenes))
    off = (redrawn(pipe, scenes, seed=3) - z).std()
    most = q_sample(pipe.schedule, z, 300, torch.randn(z.shape)) / pipe.schedule.alpha[300] - z
    assert 0 < off < 1.2 * most.std()


def test_half_of_a_batch_is_encoded_now_and_half_comes_from_the_pool(pipe, scenes):
    pool = torch.arange(4.0)[:, None, None, None].expand(4, *pipe.shape)
    batch = decoder_batches(pipe.vae, scenes, pool, size=6, seed=0, strange=1 / 6)(5)
    assert batch["image"].shape == (6, 3, 64, 64)
    copies = pipe.vae.to_latent(batch["image"][:3])
    assert (batch["latent"][:3] - copies).abs().max() < 1e-4
    rows = batch["latent"][3:, 0, 0, 0].long().tolist()
    shown = shapes.render([scenes[row] for row in rows])
    assert (batch["image"][3:] - shown).abs().max() < 1e-6
    again = decoder_batches(pipe.vae, scenes, pool, size=6, seed=0, strange=1 / 6)(5)
    assert torch.equal(again["image"], batch["image"])


def test_the_encoder_stays_and_the_decoder_learns(pipe, tmp_path):
    images = shapes.render([shapes.scene(np.random.default_rng(9)) for _ in range(2)])
    before = {name: value.clone() for name, value in pipe.vae.state_dict().items()}
    z = pipe.encode(images)
    vae = train_decoder(tmp_path, pipe, steps=2, batch=4, scenes=4, progress=False)
    assert torch.equal(vae.to_latent(images), z)
    moved = {k for k, v in vae.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(("decoder.", "post_quant_conv.")) for k in moved)
