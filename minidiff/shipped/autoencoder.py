"""Training the tiny KL autoencoder (Kingma & Welling
2013, arXiv 1312.6114; Rombach et al. 2022, 2112.10752).

    loss = |x - y| + (x - y)^2 + .5 |grad x - grad y| + beta KL,     y = decode(z), z ~ q(z|x)

The gradient term pays for sharp edges, which L2 alone blurs; beta is small (1e-3), so latents stay
informative and only loosely Gaussian. Some pictures carry what no caption names (`data/unseen.py`):
an autoencoder that has never seen grain or an outline cannot hand them to an editor.

`standardise` then folds each channel's mean and deviation into the two 1x1 convolutions around the
latent: the same autoencoder, whose latents have mean 0 and variance 1 (offset-free), as the noise
they will be mixed with. A trained autoencoder may be trained further while the latents of plain
scenes stay where they are, so that a denoiser of the old latents fits the new ones:

    loss + lam |mean(x) - mean_before(x)|^2

Try changing: drop the gradient term; beta 1e-6 (Stable Diffusion's) or 1e-1.
"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes, unseen
from minidiff.models.vae import VAE


def autoencoder_loss(vae: VAE, batch: dict[str, Tensor], beta: float = 1e-3) -> Tensor:
    """Scalar loss of one batch {"image": b 3 h w in [-1, 1], "noise": b c h/f w/f}."""
    image = batch["image"]
    latents = vae.encode(image)
    copy = vae.decode(latents.sample(batch["noise"]))
    error = copy - image
    along_rows = error.diff(dim=-1).abs().mean()
    along_columns = error.diff(dim=-2).abs().mean()
    edges = along_rows + along_columns
    return error.abs().mean() + (error**2).mean() + 0.5 * edges + beta * latents.kl()


def staying_loss(
    vae: VAE, batch: dict[str, Tensor], before: VAE, beta: float = 1e-3, lam: float = 0.3
) -> Tensor:
    """The same, and the latents of plain pictures (the rows where "plain" is 1) stay near those of
    the autoencoder as it was, the frozen `before`, whose latents have variance 1.
    """
    image = batch["image"]
    plain = batch["plain"][:, None, None, None]  # b 1 1 1
    with torch.no_grad():
        old = before.encode(image).mean
    moved = (plain * (vae.encode(image).mean - old) ** 2).mean() / plain.mean()
    return autoencoder_loss(vae, batch, beta) + lam * moved


def image_batches(
    size: int,
    seed: int,
    latent: tuple[int, int, int],
    split: str = "train",
    strange: float = 0.0,
):
    """batch(step) -> fresh renders "image", the posterior "noise" and which rows are "plain" (b,),
    a function of (seed, step) only. A share `strange` of the pictures carries nuisances.
    """

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        stream = torch.Generator().manual_seed(int(rng.integers(2**62)))
        scenes = [shapes.scene(rng, split=split) for _ in range(size)]
        noise = torch.randn(size, *latent, generator=stream)
        image = shapes.render(scenes)
        many = round(strange * size)
        nuisances = [unseen.unseen(rng, [scene]) for scene in scenes[:many]]
        if many:
            image[:many] = unseen.render(scenes[:many], nuisances)
        plain = (torch.arange(size) >= many).float()
        return {"image": image, "noise": noise, "plain": plain}

    return batch


@torch.no_grad()
def standardise(vae: VAE, images: Tensor) -> VAE:
    """Fold the latents' per-channel mean m and deviation
    s into quant_conv and post_quant_conv; sets scale = 1.

    z' = (z - m) / s on the way in, z = s z' + m on the way out: reconstructions are unchanged.
    """
    latents = torch.cat([vae.encode(x).mean for x in images.split(64)])  # b c h w
    mean = latents.mean(dim=(0, 2, 3))
    deviation = latents.std(dim=(0, 2, 3))
    channels = len(mean)
    before = vae.quant_conv  # its first channels give the mean, the others the log variance
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] -= mean
    before.bias[:channels] /= deviation
    before.bias[channels:] -= 2 * deviation.log()
    after = vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation[None, :, None, None]
    vae.scale = 1.0
    return vae
