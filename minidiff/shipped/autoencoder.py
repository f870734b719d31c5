"""Training the tiny KL autoencoder (Kingma & Welling 2013, arXiv 1312.6114; Rombach et al. 2022,
2112.10752).

    loss = |x - y| + (x - y)^2 + .5 |grad x - grad y| + beta KL,     y = decode(z), z ~ q(z|x)

The gradient term pays for sharp edges, which L2 alone blurs; beta is small (1e-3), so latents stay
informative and only loosely Gaussian. `standardise` then folds each channel's mean and deviation
into the two 1x1 convolutions around the latent: the same autoencoder, whose latents have mean 0 and
variance 1 (offset-free), as the noise they will be mixed with. Try changing: drop the gradient
term; beta 1e-6 (Stable Diffusion's) or 1e-1.
"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.models.vae import VAE


def autoencoder_loss(vae: VAE, batch: dict[str, Tensor], beta: float = 1e-3) -> Tensor:
    """Scalar loss of one batch {"image": b 3 h w in [-1, 1], "noise": b c h/f w/f}."""
    x = batch["image"]
    q = vae.encode(x)
    e = vae.decode(q.sample(batch["noise"])) - x
    grad = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
    return e.abs().mean() + (e**2).mean() + 0.5 * grad + beta * q.kl()


def image_batches(size: int, seed: int, latent: tuple[int, int, int], split: str = "train"):
    """batch(step) -> fresh renders and the posterior noise, a function of (seed, step) only."""

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        g = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return {
            "image": shapes.render([shapes.scene(rng, split=split) for _ in range(size)]),
            "noise": torch.randn(size, *latent, generator=g),
        }

    return batch


@torch.no_grad()
def standardise(vae: VAE, images: Tensor) -> VAE:
    """Fold the latents' per-channel mean m and deviation s into quant_conv and post_quant_conv;
    sets scale = 1.

    z' = (z - m) / s on the way in, z = s z' + m on the way out: reconstructions are unchanged.
    """
    z = torch.cat([vae.encode(x).mean for x in images.split(64)])  # b c h w
    m, s = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
    w, b = vae.quant_conv.weight, vae.quant_conv.bias
    w[: len(m)] /= s[:, None, None, None]
    b[: len(m)] = (b[: len(m)] - m) / s
    b[len(m) :] -= 2 * s.log()  # logvar of z'
    post = vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ m
    post.weight *= s[None, :, None, None]
    vae.scale = 1.0
    return vae
