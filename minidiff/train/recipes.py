"""How the shipped weights are made: one function per stage, run in order by `python -m minidiff train tiny`.

Each stage trains in its own folder under `out` (resumable at any moment) and returns the finished network. `budget`
multiplies every number of steps: 1 is the recipe that reaches the figures of the README, smaller ones are for the curious.
"""
from pathlib import Path

import numpy as np
import torch

from minidiff.data import shapes
from minidiff.models.sizes import SIZES
from minidiff.models.vae import VAE
from minidiff.train.autoencoder import autoencoder_loss, image_batches, psnr, standardise
from minidiff.train.fit import fit

LATENT = (4, 16, 16)


def held_out_images(n: int, seed: int = 10 ** 6, size: int = 64, **kw) -> torch.Tensor:
    """Renders of scenes whose attribute tuples no training ever sees, (n, 3, size, size)."""
    rng = np.random.default_rng(seed)
    return shapes.render([shapes.scene(rng, split="test", **kw) for _ in range(n)], size)


def train_vae(out: Path, *, steps: int = 1700, batch: int = 16, seed: int = 0, **kw) -> VAE:
    """Stage 1: encoder and decoder together, then latents standardised."""
    torch.manual_seed(seed)
    vae, test = VAE(**SIZES["tiny"]["vae"]), held_out_images(64)
    fit(vae, autoencoder_loss, image_batches(batch, seed, LATENT), steps=steps, out=out / "vae", lr=2e-3, muon_lr=5e-3,
        ema=.995, decay=.3, seed=seed, peek=lambda net, k: {"psnr": psnr(net.to_image(net.to_latent(test)), test).mean().item()},
        peek_every=200, **kw)
    return standardise(vae, image_batches(1024, seed + 1, LATENT)(0)["image"])
