"""How the shipped weights are made: one function per stage, run in order by `python -m minidiff train tiny`.

Each stage trains in its own folder under `out` (resumable at any moment) and returns the finished network. `budget`
multiplies every number of steps: 1 is the recipe that reaches the figures of the README, smaller ones are for the curious.
"""
from pathlib import Path

import numpy as np
import torch

from minidiff.data import shapes
from minidiff.data.cifar import cifar10
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.train.autoencoder import autoencoder_loss, image_batches, psnr, standardise
from minidiff.train.clip import clip_batches, clip_loss, retrieval, word_distances
from minidiff.train.ddpm import picture_batches, shape_batches
from minidiff.train.fit import fit, save_atomic
from minidiff.train.latent_diffusion import diffusion_loss, encoded_scenes, latent_batches, shape_gain
from minidiff.weights.store import build

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
        ema=.995, decay=.3, seed=seed, peek_every=200, **kw,
        peek=lambda net, k: {"psnr": psnr(net.to_image(net.to_latent(test)), test).mean().item()})
    return standardise(vae, image_batches(1024, seed + 1, LATENT)(0)["image"])


def train_clip(out: Path, *, steps: int = 1200, batch: int = 32, seed: int = 0, **kw) -> CLIP:
    """Stage 2: the text tower (and an image tower to teach it), on renders."""
    torch.manual_seed(seed)
    tok = Tokenizer.words(shapes.VOCAB)
    clip = CLIP(CLIPText(**SIZES["tiny"]["text"]), CLIPImage(**SIZES["tiny"]["image"]))
    test = clip_batches(tok, 256, seed + 1, split="test")(0)

    def peek(net, step):
        near = min(word_distances(net.text, tok, shapes.SHAPES).items(), key=lambda kv: kv[1])
        return retrieval(net, test) | {"nearest_shapes": "-".join(near[0]), "distance": near[1]}
    return fit(clip, clip_loss, clip_batches(tok, batch, seed), steps=steps, out=out / "clip", lr=1e-3, muon_lr=2e-3,
               weight_decay=.01, ema=.995, seed=seed, peek=peek, peek_every=250, **kw)


def snapshots(net: torch.nn.Module, folder: Path, step: int, batch: int) -> None:
    """Keep the averaged weights by images seen, for the picture of the learning order."""
    folder.mkdir(parents=True, exist_ok=True)
    save_atomic({k: v.half() for k, v in net.state_dict().items()}, folder / f"{step * batch:08d}.pt")


def train_denoiser(name: str, out: Path, vae: VAE, text: CLIPText, *, steps: int, batch: int = 16, seed: int = 0,
                   scenes: int = 40_000, muon_lr: float = 4.5e-3, lr: float = 2e-3, peek_every: int = 500, **kw):
    """Stage 3: the latent denoiser `name` ("tiny" or "tiny-dit"), with VAE and text frozen; returns the whole pipe."""
    pipe = build(name, seed=seed)
    pipe.vae, pipe.text = vae.requires_grad_(False).eval(), text.requires_grad_(False).eval()
    net, tok = pipe.net.requires_grad_(True), pipe.tokenizer
    if hasattr(net, "pos_embed"):
        net.pos_embed.requires_grad_(False)
    data = encoded_scenes(vae, scenes, seed + 11, out / "latents.pt")
    batches = latent_batches(*data, text, tok, batch, seed + 2, pipe.schedule.T)

    def peek(net, step):
        snapshots(net, out / name / "snapshots", step, batch)
        return {"images": step * batch, "gain": shape_gain(net, pipe.schedule, pipe.prediction, vae, text, tok)}
    fit(net, lambda n, b: diffusion_loss(n, b, pipe.schedule, pipe.prediction), batches, steps=steps, out=out / name,
        lr=lr, muon_lr=muon_lr, ema=.9995, decay=.2, seed=seed, peek=peek, peek_every=peek_every, **kw)
    net.requires_grad_(False)
    return pipe


def train_tiny_pixel(out: Path = Path("runs/tiny"), *, data: str = "shapes", root: str = "data", steps: int = 9000,
                     batch: int = 16, seed: int = 0, **kw):
    """Pixel-space, class-conditional 32x32 model. `data`: "shapes", or "cifar" with the archive or its folder at `root`."""
    if data not in ("shapes", "cifar"):
        raise ValueError(f"data {data!r}: expected 'shapes' or 'cifar'")
    pipe = build("tiny-pixel", seed=seed)
    if data == "cifar":
        images, labels, pipe.classes = cifar10(root)
        net = SIZES["tiny-pixel"]["unet"] | {"classes": len(pipe.classes)}
        pipe.net = UNet(**net)
        batches = picture_batches(images, labels, len(pipe.classes), batch, seed + 2, pipe.schedule.T)
    else:
        batches = shape_batches(batch, seed + 2, pipe.schedule.T)
    name = "tiny-pixel" if data == "shapes" else f"tiny-pixel-{data}"
    fit(pipe.net.requires_grad_(True), lambda n, b: diffusion_loss(n, b, pipe.schedule, pipe.prediction), batches,
        steps=steps, out=Path(out) / name, lr=2e-3, muon_lr=4.5e-3, ema=.9995, decay=.2, seed=seed, **kw)
    pipe.net.requires_grad_(False)
    return pipe
