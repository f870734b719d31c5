"""How the shipped weights are made: one function per stage, run in order by `python -m minidiff
train tiny`.

Each stage trains in its own folder under `out` (resumable at any moment) and returns the finished
network. `budget` multiplies every number of steps: 1 is the recipe of the README's figures for
`tiny`, smaller ones are for the curious. (The order is latent diffusion's: Rombach et al. 2022,
arXiv 2112.10752.)
"""

import json
from pathlib import Path

import numpy as np
import torch

from minidiff.core import schedule
from minidiff.data import shapes
from minidiff.data.cifar import cifar10
from minidiff.evaluate.metrics import psnr
from minidiff.foundations.ddpm import picture_batches, shape_batches
from minidiff.foundations.latent_diffusion import (
    binding_gain,
    diffusion_loss,
    encoded_scenes,
    latent_batches,
    shape_gain,
    standardise_text,
)
from minidiff.io import grid
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.shipped.autoencoder import autoencoder_loss, image_batches, standardise
from minidiff.shipped.clip import clip_batches, clip_loss, retrieval, word_distances
from minidiff.shipped.words import Taught, told, word_batch, word_loss
from minidiff.train.fit import fit, process_group, save_atomic
from minidiff.weights.store import PARTS, TINY, build, fill, keep, load_weights, ship

LATENT = (4, 16, 16)
STEPS = {
    "vae": 1700,
    "clip": 1200,
    "words": 400,
    "tiny": 6600,
    "tiny-dit": 8000,  # as shipped
    "tiny-pixel": 12_000,
}  # what it should need; 5,000 are shipped
LOOK_AT = (
    "a red circle on a blue background",
    "a yellow star on a black background",
    "a green cross on a white background",
    "a blue diamond on a yellow background",
    "a large purple triangle on a striped grey background",
    "a orange ring on a green background",
    "a cyan square left of a red circle on a white background",
    "a yellow star above a purple ring on a black background",
)


def held_out_images(n: int, seed: int = 10**6, size: int = 64, **kw) -> torch.Tensor:
    """Renders of scenes whose attribute tuples no training ever sees, (n, 3, size, size)."""
    rng = np.random.default_rng(seed)
    return shapes.render([shapes.scene(rng, split="test", **kw) for _ in range(n)], size)


def train_vae(out: Path, *, steps: int = STEPS["vae"], batch: int = 16, seed: int = 0, **kw) -> VAE:
    """Stage 1: encoder and decoder together, then latents standardised."""
    torch.manual_seed(seed)
    vae, test = VAE(**SIZES["tiny"]["vae"]), held_out_images(64)
    fit(
        vae,
        autoencoder_loss,
        image_batches(batch, seed, LATENT),
        steps=steps,
        out=out / "vae",
        lr=2e-3,
        muon_lr=5e-3,
        ema=0.995,
        decay=0.3,
        seed=seed,
        peek_every=200,
        **kw,
        peek=lambda net, k: {"psnr": psnr(net.to_image(net.to_latent(test)), test).mean().item()},
    )
    return standardise(vae, image_batches(1024, seed + 1, LATENT)(0)["image"])


def train_clip(
    out: Path, *, steps: int = STEPS["clip"], batch: int = 32, seed: int = 0, **kw
) -> CLIP:
    """Stage 2: the text tower (and an image tower to teach it), on renders."""
    torch.manual_seed(seed)
    tok = Tokenizer.words(shapes.VOCAB)
    clip = CLIP(
        CLIPText(**SIZES["tiny"]["text"] | {"causal": True}), CLIPImage(**SIZES["tiny"]["image"])
    )
    test = clip_batches(tok, 256, seed + 1, split="test")(0)

    def peek(net, step):
        near = min(word_distances(net.text, tok, shapes.SHAPES).items(), key=lambda kv: kv[1])
        return retrieval(net, test) | {"nearest_shapes": "-".join(near[0]), "distance": near[1]}

    return fit(
        clip,
        clip_loss,
        clip_batches(tok, batch, seed),
        steps=steps,
        out=out / "clip",
        lr=1e-3,
        muon_lr=2e-3,
        weight_decay=0.01,
        ema=0.995,
        seed=seed,
        peek=peek,
        peek_every=250,
        **kw,
    )


def snapshots(net: torch.nn.Module, folder: Path, step: int, batch: int) -> None:
    """Keep the averaged weights by images seen, for the picture of the learning order."""
    folder.mkdir(parents=True, exist_ok=True)
    save_atomic(
        {k: v.half() for k, v in net.state_dict().items()}, folder / f"{step * batch:08d}.pt"
    )


def train_denoiser(
    name: str,
    out: Path,
    vae: VAE,
    text: CLIPText,
    *,
    steps: int,
    batch: int = 16,
    seed: int = 0,
    scenes: int = 40_000,
    muon_lr: float = 4.5e-3,
    lr: float = 2e-3,
    peek_every: int = 500,
    pairs: tuple[int, float] | None = (2500, 0.65),
    device: str = "cpu",
    prediction: str | None = None,
    tables: str | None = None,
    start: str | None = None,
    stock: float = 0.3,
    **kw,
):
    """Stage 4: the latent denoiser `name` ("tiny" or "tiny-dit"), with VAE and text frozen; returns
    the whole pipe.

    `stock`: the share of two-object scenes among the encoded ones, `pairs`: among those drawn,
    later (see `latent_batches`). `prediction` and `tables` (a builder of core.schedule: "cosine",
    "flow", ...) replace those of the size. `start="shipped"` goes on from the shipped weights (with
    a fresh optimiser) instead of from nothing.
    """
    if start not in (None, "shipped"):
        raise ValueError(f"start={start!r}: expected 'shipped' or nothing")
    pipe = build(name, seed=seed)
    pipe.vae, pipe.text = vae.requires_grad_(False).eval(), text.requires_grad_(False).eval()
    pipe = pipe.to(device)
    pipe.prediction = prediction or pipe.prediction
    pipe.schedule = getattr(schedule, tables)() if tables else pipe.schedule
    net = pipe.net.requires_grad_(True)
    if start:
        fill(net, load_weights(PARTS[name]["net"]), name)
    if hasattr(net, "pos_embed"):
        net.pos_embed.requires_grad_(False)
    data = encoded_scenes(
        pipe.vae, scenes, seed + 11, out / f"latents_{round(100 * stock)}.pt", stock
    )
    batches = latent_batches(
        *data, pipe.text, pipe.tokenizer, batch, seed + 2, pipe.schedule.T, pairs=pairs
    )

    def peek(net, step):
        snapshots(net, out / name / "snapshots", step, batch)
        draw(pipe, LOOK_AT, out / name / "samples" / f"{step * batch:08d}.png")
        return {"images": step * batch, "gain": shape_gain(pipe), "binding": binding_gain(pipe)}

    fit(
        net,
        lambda n, b: diffusion_loss(n, b, pipe.schedule, pipe.prediction),
        batches,
        steps=steps,
        out=out / name,
        lr=lr,
        muon_lr=muon_lr,
        ema=0.9995,
        decay=0.2,
        seed=seed,
        peek=peek,
        peek_every=peek_every,
        **kw,
    )
    return finished(pipe, out / name, steps=steps, seed=seed)


def finished(pipe, folder: Path, **facts):
    """Freeze the network and keep the pipe in its folder, so that `minidiff.load(folder)` gives it
    back.
    """
    pipe.net.requires_grad_(False)
    if process_group(next(pipe.net.parameters()).device.type)[0] == 0:
        keep(pipe, folder, **facts)
    return pipe


def draw(pipe, prompts: tuple[str, ...], path: Path) -> None:
    """A sheet of samples, 20 steps, always the same noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(pipe.generate(list(prompts), steps=20, seed=0).cpu(), prompts, 4, path, side=128)


def train_tiny_pixel(
    out: Path = Path("runs/tiny"),
    *,
    data: str = "shapes",
    root: str = "data",
    steps: int = STEPS["tiny-pixel"],
    batch: int = 16,
    seed: int = 0,
    **kw,
):
    """Pixel-space, class-conditional 32x32 model. `data`: "shapes", or "cifar" with the archive or
    folder at `root`.
    """
    if data not in ("shapes", "cifar"):
        raise ValueError(f"data {data!r}: expected 'shapes' or 'cifar'")
    pipe = build("tiny-pixel", seed=seed)
    if data == "cifar":
        images, labels, pipe.classes = cifar10(root)
        net = SIZES["tiny-pixel"]["unet"] | {"classes": len(pipe.classes)}
        pipe.net = UNet(**net)
        batches = picture_batches(
            images, labels, len(pipe.classes), batch, seed + 2, pipe.schedule.T
        )
    else:
        batches = shape_batches(batch, seed + 2, pipe.schedule.T)
    name = "tiny-pixel" if data == "shapes" else f"tiny-pixel-{data}"
    shown = pipe.classes[:: max(len(pipe.classes) // 8, 1)][:8]

    def peek(net, step):
        draw(pipe, shown, Path(out) / name / "samples" / f"{step * batch:08d}.png")
        return {"images": step * batch}

    fit(
        pipe.net.requires_grad_(True),
        lambda n, b: diffusion_loss(n, b, pipe.schedule, pipe.prediction),
        batches,
        steps=steps,
        out=Path(out) / name,
        lr=2e-3,
        muon_lr=4.5e-3,
        ema=0.9995,
        decay=0.2,
        seed=seed,
        peek=peek,
        peek_every=500,
        **kw,
    )
    return finished(pipe, Path(out) / name, steps=steps, seed=seed)


def text_tower(clip: CLIP) -> CLIPText:
    """CLIP's text tower with standardised states and without projection."""
    text = CLIPText(**SIZES["tiny"]["text"] | {"project_dim": None, "causal": True})
    text.load_state_dict(
        {k: v for k, v in clip.text.state_dict().items() if "text_projection" not in k}
    )
    return standardise_text(text, Tokenizer.words(shapes.VOCAB)).eval().requires_grad_(False)


def train_words(
    out: Path, clip: CLIPText, *, steps: int = STEPS["words"], batch: int = 64, seed: int = 0, **kw
) -> CLIPText:
    """Stage 3: a copy of the tower that reads both ways and is told what belongs together;
    frozen.
    """
    torch.manual_seed(seed)
    tok, text = (
        Tokenizer.words(shapes.VOCAB),
        CLIPText(**SIZES["tiny"]["text"] | {"project_dim": None}),
    )
    text.load_state_dict(clip.state_dict())
    fit(
        Taught(text, len(tok)),
        lambda net, b: word_loss(net, b, clip),
        lambda step: word_batch(tok, batch, seed + 5, step),
        steps=steps,
        out=out / "words",
        optimiser="adamw",
        lr=1e-3,
        decay=0.5,
        ema=0.99,
        seed=seed,
        peek_every=100,
        **kw,
        peek=lambda net, step: told(net, word_batch(tok, 256, seed + 6, 0)),
    )
    return text.eval().requires_grad_(False)


def train_tiny(
    out: Path = Path("runs/tiny"),
    *,
    budget: float = 1.0,
    seed: int = 0,
    optimiser: str = "muon",
    prediction: str | None = None,
    tables: str | None = None,
    start: str | None = None,
    device: str = "cpu",
):
    """The whole chain from nothing: autoencoder, CLIP, denoiser. `budget` scales every number of
    steps.

    `optimiser` "muon" or "adamw", `prediction` eps, x0, v or flow, `tables` a noise schedule: of
    the denoiser. `start` "shipped" goes on from the shipped weights, mostly on scenes with two
    objects (take another `seed`: it also orders the data).
    """
    vae, text = _first_stages(Path(out), budget, seed, start)
    data = dict(scenes=60_000, stock=0.65, pairs=None) if start else {}
    return train_denoiser(
        "tiny",
        Path(out),
        vae,
        text,
        steps=_share(STEPS["tiny"], budget),
        seed=seed,
        device=device,
        optimiser=optimiser,
        prediction=prediction,
        tables=tables,
        start=start,
        **data,
    )


def train_tiny_dit(
    out: Path = Path("runs/tiny"),
    *,
    budget: float = 1.0,
    seed: int = 0,
    start: str | None = None,
    device: str = "cpu",
):
    """The transformer on the same latents and text; the first two stages are made if `out` does not
    hold them yet.
    """
    vae, text = _first_stages(Path(out), budget, seed, start)
    return train_denoiser(
        "tiny-dit",
        Path(out),
        vae,
        text,
        steps=_share(STEPS["tiny-dit"], budget),
        seed=seed,
        start=start,
        device=device,
        pairs=None,
    )


def _share(steps: int, budget: float) -> int:
    if budget <= 0:
        raise ValueError(f"budget={budget}: a positive factor on the number of steps was expected")
    return max(int(steps * budget), 1)


def _first_stages(out: Path, budget: float, seed: int, start: str | None) -> tuple[VAE, CLIPText]:
    if start:  # a denoiser goes on in the latents and the words it was trained with
        pipe = build("tiny")
        return fill(pipe.vae, load_weights("vae")), fill(pipe.text, load_weights("text"))
    vae = train_vae(out, steps=_share(STEPS["vae"], budget), seed=seed)
    text = text_tower(train_clip(out, steps=_share(STEPS["clip"], budget), seed=seed))
    return vae, train_words(out, text, steps=_share(STEPS["words"], budget), seed=seed)


def ship_run(
    name: str, module: torch.nn.Module, run: Path, recipe: str, seed: int = 0, **facts
) -> None:
    """Put a finished training into the package: weights as fp16, a thinned log beside them, facts
    in the manifest.
    """
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses, peeks = [r for r in rows if "loss" in r], [r for r in rows if "loss" not in r]
    keep = losses[:: max(len(losses) // 30, 1)] + peeks + losses[-1:]
    text = "".join(json.dumps(r) + "\n" for r in sorted(keep, key=lambda r: r["step"]))
    (TINY / f"{name}.log.jsonl").write_text(text)
    ship(
        name,
        module,
        recipe=recipe,
        seed=seed,
        steps=losses[-1]["step"],
        **{"cpu_minutes": round(losses[-1]["cpu_seconds"] / 60, 1)} | facts,
    )
