"""Teaching the decoder the latents that it is given.

An autoencoder learns to decode what its encoder makes. A sampler hands it something else: latents
whose edges are a little off, because no denoiser sees through the last of the noise. Drawn again
from t = 100 of 1000, true latents come back with a silhouette that fits the true one by .960 (IoU)
where the autoencoder's own copy has .975. Most of what a generated picture loses is lost there.

So the decoder alone is trained on. Half of a batch are latents of pictures, a part of them with
what no caption names. Half are latents of pictures after the way that a sample comes:

    z_t = alpha_t z + sigma_t eps,   z' = DDIM from t to 0,   loss = error(decode(z'), picture)

at times early enough for the outline to be settled. The encoder is frozen, so latents stay what
they are and every denoiser fits as before. (Choosing the decoder for the samples is the idea of
the consistency decoder that OpenAI published with DALL-E 3; this one stays a plain network.)

Try: only latents of pictures, or times up to T, where the object itself moves and edges blur.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minidiff.core.process import q_sample
from minidiff.data import shapes, unseen
from minidiff.models.vae import VAE
from minidiff.samplers.ddim import ddim_step
from minidiff.shipped.autoencoder import picture_error
from minidiff.train.fit import fit, multiplies_bfloat16

LATEST = 0.3  # share of T from which true latents are drawn again at most
STEPS = 6  # of DDIM


@torch.no_grad()
def redrawn(pipe, scenes: list[shapes.Scene], seed: int, latest: float = LATEST) -> Tensor:
    """Latents of the scenes' pictures (b c h w), noised to times up to `latest` T, one for each
    batch of 32, and brought back to 0 by DDIM with their captions.
    """
    rng = np.random.default_rng(seed)
    stream = torch.Generator().manual_seed(seed)
    parts = []
    for first in range(0, len(scenes), 32):
        some = scenes[first : first + 32]
        z = pipe.encode(shapes.render(some))
        captions = [shapes.random_caption(scene, rng) for scene in some]
        cond = pipe.embed(captions)
        t0 = int(rng.integers(STEPS, latest * pipe.schedule.T + 1))
        times = np.linspace(t0, 0, STEPS + 1).round().astype(int).tolist()
        x = q_sample(pipe.schedule, z, t0, torch.randn(z.shape, generator=stream))
        for t, s in pairwise(times):
            x = ddim_step(pipe.schedule, x, pipe.eps(x, t, cond), t, s)
        parts.append(x)
    return torch.cat(parts)


def decoder_batches(
    vae: VAE, scenes: list[shapes.Scene], latents: Tensor, size: int, seed: int, strange: float
):
    """batch(step) -> "latent" and "image", first of pictures encoded now (a share `strange` of the
    batch carries nuisances), then of as many taken from `latents`, those of the scenes.
    """
    fresh = size // 2
    many = round(strange * size)

    @torch.no_grad()
    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        new = [shapes.scene(rng, split="train") for _ in range(fresh)]
        image = shapes.render(new)
        if many:
            nuisances = [unseen.unseen(rng, [scene]) for scene in new[:many]]
            image[:many] = unseen.render(new[:many], nuisances)
        rows = rng.integers(len(scenes), size=size - fresh)
        taken = shapes.render([scenes[row] for row in rows])
        latent = torch.cat([vae.to_latent(image), latents[rows]])
        return {"latent": latent, "image": torch.cat([image, taken])}

    return batch


def decoder_loss(vae: VAE, batch: dict[str, Tensor]) -> Tensor:
    """The error of what is decoded."""
    return picture_error(vae.decode(batch["latent"] / vae.scale), batch["image"])


def train_decoder(
    out: Path,
    pipe,
    *,
    steps: int = 3000,
    batch: int = 16,
    scenes: int = 4000,
    seed: int = 6,
    strange: float = 0.25,
    **kw,
) -> VAE:
    """Train the decoder of the pipe's autoencoder on, in place; the encoder is frozen."""
    vae = pipe.vae.requires_grad_(False)
    rng = np.random.default_rng(seed)
    chosen = [shapes.scene(rng, split="train") for _ in range(scenes)]
    latents = redrawn(pipe, chosen, seed + 1)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    return fit(
        vae,
        decoder_loss,
        decoder_batches(vae, chosen, latents, batch, seed + 2, strange),
        steps=steps,
        out=Path(out) / "decoder",
        **dict(
            lr=1e-3,
            muon_lr=2e-3,
            ema=0.998,
            decay=0.7,
            seed=seed,
            settings={"batch": batch, "scenes": scenes, "strange": strange},
            amp=multiplies_bfloat16(),
        )
        | kw,
    )
