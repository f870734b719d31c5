"""How the shipped weights are made: one function per
stage, run in order by `python -m minidiff train tiny`.

Each stage trains in its own folder under `out` (resumable at any moment) and returns the finished
network. `budget` multiplies every number of steps: 1 is the recipe of the README's figures for
`tiny`, smaller ones are for the curious. What a chain needs is checked before its first stage, and
a folder that holds a stage made with other settings is refused. (The order is latent diffusion's:
Rombach et al. 2022, arXiv 2112.10752.)
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from minidiff.core.process import PREDICTIONS
from minidiff.data import shapes, unseen
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
from minidiff.io import grid, write_bytes
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE
from minidiff.shipped.autoencoder import (
    autoencoder_loss,
    image_batches,
    standardise,
    staying_loss,
)
from minidiff.shipped.clip import clip_batches, clip_loss, retrieval, word_distances
from minidiff.shipped.words import Taught, told, word_batch, word_loss
from minidiff.train.checkpoint import check_free, check_settings, read_facts
from minidiff.train.fit import LOG, fit, multiplies_bfloat16
from minidiff.train.optim import KINDS
from minidiff.train.processes import process_group
from minidiff.weights.store import (
    PARTS,
    SCHEDULES,
    TINY,
    build,
    described,
    fill,
    keep,
    load_weights,
    ship,
)

LATENT = (4, 16, 16)
STEPS = {
    "vae": 1700,
    "clip": 1200,
    "words": 400,
    "tiny": 6600,
    "tiny-dit": 8000,  # as shipped
    "tiny-pixel": 12_000,  # as shipped, from what 5,000 had made
}
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


def strange_images(n: int, seed: int = 10**6) -> torch.Tensor:
    """The like with nuisances that no caption names, (n, 3, 64, 64)."""
    rng = np.random.default_rng(seed)
    scenes = [shapes.scene(rng, split="test") for _ in range(n)]
    return unseen.render(scenes, [unseen.unseen(rng, [scene]) for scene in scenes])


def check_options(
    *,
    steps: int = 1,
    batch: int = 1,
    seed: int = 0,
    device: str = "cpu",
    optimiser: str = "muon",
    prediction: str | None = None,
    tables: str | None = None,
    start: str | None = None,
) -> None:
    """ValueError in one line for an option that no stage could use, before any of them begins."""
    if steps < 1:
        raise ValueError(f"steps={steps}: training needs at least one step")
    if batch < 1:
        raise ValueError(f"batch={batch}: a batch needs at least one picture")
    if not 0 <= seed < 2**62:
        raise ValueError(f"seed={seed} is outside 0..2**62")
    _check_choice("optimiser", optimiser, KINDS)
    if prediction is not None:
        _check_choice("prediction", prediction, PREDICTIONS)
    if tables is not None:
        _check_choice("tables", tables, SCHEDULES)
    if start not in (None, "shipped") and not Path(start).is_dir():
        raise ValueError(f"start={start!r} is neither 'shipped' nor the folder of a model")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device={device!r} is not available here; cpu always is") from e


def start_weights(start: str, part: str) -> dict[str, torch.Tensor]:
    """The weights a training goes on from: those of a part of the package ("shipped"), or of a
    folder that a training made.
    """
    return load_weights(part, TINY if start == "shipped" else Path(start))


def _check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of: {', '.join(choices)}")


def check_run(folder: Path, **settings) -> None:
    """ValueError if a training runs in the folder, or one made with other settings lies there."""
    check_free(folder)
    check_settings(folder, settings)


def train_vae(
    out: Path,
    *,
    steps: int = STEPS["vae"],
    batch: int = 16,
    seed: int = 0,
    start: str | None = None,
    lr: float = 2e-3,
    muon_lr: float = 5e-3,
    decay: float = 0.3,
    **kw,
) -> VAE:
    """Stage 1: encoder and decoder together, then latents standardised. `start` ("shipped", or the
    folder of a training) goes on from weights whose latents of plain scenes stay what they are,
    with a quarter of the pictures carrying nuisances.
    """
    torch.manual_seed(seed)
    vae = VAE(**SIZES["tiny"]["vae"])
    test = held_out_images(64)
    strange = strange_images(64)

    def peek(net, step):
        copies = net.to_image(net.to_latent(test))
        of_strange = net.to_image(net.to_latent(strange))
        return {
            "psnr": psnr(copies, test).mean().item(),
            "strange": psnr(of_strange, strange).mean().item(),
        }

    loss = autoencoder_loss
    strange_share = 0.0
    if start:
        strange_share = 0.25
        weights = start_weights(start, "vae")
        fill(vae, weights)
        before = fill(VAE(**SIZES["tiny"]["vae"]), weights).requires_grad_(False)

        def loss(net, rows):
            return staying_loss(net, rows, before)

    fit(
        vae,
        loss,
        image_batches(batch, seed, LATENT, strange=strange_share),
        steps=steps,
        out=out / "vae",
        lr=lr,
        muon_lr=muon_lr,
        ema=0.998,
        decay=decay,
        seed=seed,
        settings={"batch": batch, "start": start},
        peek=peek,
        peek_every=200,
        **dict(amp=multiplies_bfloat16()) | kw,
    )
    if start:
        return vae
    return standardise(vae, image_batches(1024, seed + 1, LATENT)(0)["image"])


def train_clip(
    out: Path, *, steps: int = STEPS["clip"], batch: int = 32, seed: int = 0, **kw
) -> CLIP:
    """Stage 2: the text tower (and an image tower to teach it), on renders."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.words(shapes.VOCAB)
    text = CLIPText(**SIZES["tiny"]["text"] | {"causal": True})
    clip = CLIP(text, CLIPImage(**SIZES["tiny"]["image"]))
    test = clip_batches(tokenizer, 256, seed + 1, split="test")(0)

    def peek(net, step):
        distances = word_distances(net.text, tokenizer, shapes.SHAPES)
        nearest = min(distances, key=distances.get)
        told_apart = {"nearest_shapes": "-".join(nearest), "distance": distances[nearest]}
        return retrieval(net, test) | told_apart

    return fit(
        clip,
        clip_loss,
        clip_batches(tokenizer, batch, seed),
        steps=steps,
        out=out / "clip",
        lr=1e-3,
        muon_lr=2e-3,
        weight_decay=0.01,
        ema=0.995,
        seed=seed,
        settings={"batch": batch},
        peek=peek,
        peek_every=250,
        **kw,
    )


def text_tower(clip: CLIP) -> CLIPText:
    """CLIP's text tower with standardised states and without projection."""
    text = CLIPText(**SIZES["tiny"]["text"] | {"project_dim": None, "causal": True})
    weights = clip.text.state_dict()
    text.load_state_dict({k: v for k, v in weights.items() if "text_projection" not in k})
    return standardise_text(text, Tokenizer.words(shapes.VOCAB)).eval().requires_grad_(False)


def train_words(
    out: Path, clip: CLIPText, *, steps: int = STEPS["words"], batch: int = 64, seed: int = 0, **kw
) -> CLIPText:
    """Stage 3: a copy of the tower that reads both
    ways and is told what belongs together; frozen.
    """
    torch.manual_seed(seed)
    tokenizer = Tokenizer.words(shapes.VOCAB)
    text = CLIPText(**SIZES["tiny"]["text"] | {"project_dim": None})
    text.load_state_dict(clip.state_dict())
    fit(
        Taught(text, len(tokenizer)),
        lambda net, b: word_loss(net, b, clip),
        lambda step: word_batch(tokenizer, batch, seed + 5, step),
        steps=steps,
        out=out / "words",
        **dict(optimiser="adamw", lr=1e-3, decay=0.5, ema=0.99, seed=seed) | kw,
        settings={"batch": batch},
        peek=lambda net, step: told(net, word_batch(tokenizer, 256, seed + 6, 0)),
        peek_every=100,
    )
    return text.eval().requires_grad_(False)


def snapshots(net: torch.nn.Module, folder: Path, step: int, batch: int) -> None:
    """Keep the averaged weights by images seen, for the picture of the learning order."""
    weights = {name: v.half().cpu().contiguous() for name, v in net.state_dict().items()}
    write_bytes(to_bytes(weights), folder / f"{step * batch:08d}.safetensors")


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
    optimiser: str = "muon",
    prediction: str | None = None,
    tables: str | None = None,
    start: str | None = None,
    stock: float = 0.3,
    even: float = 0.0,
    decay: float = 0.2,
    **kw,
):
    """Stage 4: the latent denoiser `name` ("tiny" or "tiny-dit"),
    with VAE and text frozen; returns the whole pipe.

    `stock`: the share of two-object scenes among the encoded ones, `pairs`: among those drawn,
    later (see `latent_batches`, also for `even`). `prediction` and `tables` (the name of a
    schedule: "cosine", "flow", ...) replace those of the size. `start`, "shipped" or the folder of
    a training, goes on from its weights (with a fresh optimiser) instead of from nothing.
    Its folder can be loaded from the first checkpoint on.
    """
    check_options(
        steps=steps,
        batch=batch,
        seed=seed,
        device=device,
        optimiser=optimiser,
        prediction=prediction,
        tables=tables,
        start=start,
    )
    folder = out / name
    pipe = build(name, seed=seed)
    pipe.vae = vae.requires_grad_(False).eval()
    pipe.text = text.requires_grad_(False).eval()
    pipe.prediction = prediction or pipe.prediction
    pipe.schedule = SCHEDULES[tables]() if tables else pipe.schedule
    settings = described(pipe) | {
        "batch": batch,
        "scenes": scenes,
        "stock": stock,
        "pairs": pairs,
        "start": start,
        "even": even,
    }
    check_run(folder, steps=steps, seed=seed, **settings)
    pipe = pipe.to(device)
    net = pipe.net.requires_grad_(True)
    if start:
        fill(net, start_weights(start, PARTS[name]["net"]), name)
    if hasattr(net, "pos_embed"):
        net.pos_embed.requires_grad_(False)
    path = out / f"latents_{round(100 * stock)}.safetensors"
    data = encoded_scenes(pipe.vae, scenes, seed + 11, path, stock)
    batches = latent_batches(
        *data,
        pipe.text,
        pipe.tokenizer,
        batch,
        seed + 2,
        pipe.schedule.T,
        pairs=pairs,
        even=even,
    )
    if _writes(pipe):
        keep(pipe, folder, parts=("vae", "text"), steps=steps, seed=seed)

    def peek(net, step):
        snapshots(net, folder / "snapshots", step, batch)
        draw(pipe, LOOK_AT, folder / "samples" / f"{step * batch:08d}.png")
        return {"images": step * batch, "gain": shape_gain(pipe), "binding": binding_gain(pipe)}

    fit(
        net,
        lambda n, b: diffusion_loss(n, b, pipe.schedule, pipe.prediction),
        batches,
        steps=steps,
        out=folder,
        optimiser=optimiser,
        lr=lr,
        muon_lr=muon_lr,
        ema=0.9995,
        decay=decay,
        seed=seed,
        settings=settings,
        peek=peek,
        peek_every=peek_every,
        **dict(amp=device != "cpu" or multiplies_bfloat16()) | kw,
    )
    return finished(pipe, folder, steps=steps, seed=seed)


def _writes(pipe) -> bool:
    """Is this the one process of several that writes?"""
    rank, _ = process_group(pipe.device.type)
    return rank == 0


def finished(pipe, folder: Path, **facts):
    """Freeze the network and keep the pipe in its folder, so that `minidiff.load(folder)` gives it
    back. What was stopped early has its checkpoint there, and is not kept as finished.
    """
    pipe.net.requires_grad_(False)
    training = read_facts(folder)
    stopped = training is not None and training["step"] < training["settings"]["steps"]
    if _writes(pipe) and not stopped:
        keep(pipe, folder, **facts)
    return pipe


def draw(pipe, prompts: tuple[str, ...], path: Path) -> None:
    """A sheet of samples, 20 steps, always the same noise."""
    pictures = pipe.generate(list(prompts), steps=20, seed=0).cpu()
    grid(pictures, prompts, 4, path, side=128)


def train_tiny_pixel(
    out: Path = Path("runs/tiny"),
    *,
    data: str = "shapes",
    root: str = "data",
    steps: int = STEPS["tiny-pixel"],
    batch: int = 16,
    seed: int = 0,
    start: str | None = None,
    decay: float = 0.2,
    **kw,
):
    """Pixel-space, class-conditional 32x32 model. `data`: "shapes", or "cifar" with the archive or
    folder at `root`. `start`, "shipped" or the folder of a training, goes on from its weights.
    """
    if data not in ("shapes", "cifar"):
        raise ValueError(f"data {data!r}: expected 'shapes' or 'cifar'")
    check_options(steps=steps, batch=batch, seed=seed, start=start)
    if start and data != "shapes":
        raise ValueError(f"start={start!r}: those weights are of shapes, not of {data!r}")
    name = "tiny-pixel" if data == "shapes" else f"tiny-pixel-{data}"
    folder = Path(out) / name
    check_run(folder, steps=steps, batch=batch, seed=seed)
    pipe = build("tiny-pixel", seed=seed)
    if start:
        fill(pipe.net, start_weights(start, "pixel"), "tiny-pixel")
    if data == "cifar":
        images, labels, pipe.classes = cifar10(root)
        classes = len(pipe.classes)
        pipe.net = UNet(**SIZES["tiny-pixel"]["unet"] | {"classes": classes})
        batches = picture_batches(images, labels, classes, batch, seed + 2, pipe.schedule.T)
    else:
        batches = shape_batches(batch, seed + 2, pipe.schedule.T)
    shown = pipe.classes[:: max(len(pipe.classes) // 8, 1)][:8]

    def peek(net, step):
        draw(pipe, shown, folder / "samples" / f"{step * batch:08d}.png")
        return {"images": step * batch}

    fit(
        pipe.net.requires_grad_(True),
        lambda n, b: diffusion_loss(n, b, pipe.schedule, pipe.prediction),
        batches,
        steps=steps,
        out=folder,
        lr=2e-3,
        muon_lr=4.5e-3,
        ema=0.9995,
        decay=decay,
        seed=seed,
        settings=described(pipe) | {"batch": batch, "data": data, "start": start},
        peek=peek,
        peek_every=500,
        **dict(amp=multiplies_bfloat16()) | kw,
    )
    return finished(pipe, folder, steps=steps, seed=seed)


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
    """The whole chain from nothing: autoencoder, CLIP, denoiser.

    budget      scales every number of steps
    optimiser   of the denoiser: muon or adamw
    prediction  what it learns to say: eps, x0, v or flow; default: the size's own
    tables      its noise schedule, such as linear or cosine; default: the size's own
    start       "shipped", or the folder of a training: goes on from those weights, mostly on scenes
                with two objects (take another seed: it also orders the data)
    device      of the denoiser's training: cpu, cuda or mps
    """
    steps = _share(STEPS["tiny"], budget)
    chosen = {"optimiser": optimiser, "prediction": prediction, "tables": tables, "start": start}
    check_options(seed=seed, device=device, **chosen)
    check_run(
        Path(out) / "tiny",
        steps=steps,
        seed=seed,
        optimiser=optimiser,
        prediction=prediction or SIZES["tiny"]["prediction"],
        schedule=tables or SIZES["tiny"]["schedule"],
        start=start,
    )
    vae, text = _first_stages(Path(out), budget, seed, start)
    data = dict(scenes=60_000, stock=0.65, pairs=None) if start else {}
    return train_denoiser(
        "tiny", Path(out), vae, text, steps=steps, seed=seed, device=device, **chosen, **data
    )


def train_tiny_dit(
    out: Path = Path("runs/tiny"),
    *,
    budget: float = 1.0,
    seed: int = 0,
    start: str | None = None,
    device: str = "cpu",
):
    """The transformer on the same latents and text; the first
    two stages are made if `out` does not hold them yet.
    """
    steps = _share(STEPS["tiny-dit"], budget)
    check_options(seed=seed, device=device, start=start)
    check_run(Path(out) / "tiny-dit", steps=steps, seed=seed, start=start)
    vae, text = _first_stages(Path(out), budget, seed, start)
    return train_denoiser(
        "tiny-dit",
        Path(out),
        vae,
        text,
        steps=steps,
        seed=seed,
        start=start,
        device=device,
        pairs=None,
    )


def _share(steps: int, budget: float) -> int:
    if not 0 < budget < math.inf:  # not a number is neither
        raise ValueError(f"budget={budget}: a positive factor on the number of steps was expected")
    return max(int(steps * budget), 1)


def _first_stages(out: Path, budget: float, seed: int, start: str | None) -> tuple[VAE, CLIPText]:
    if start:  # a denoiser goes on in the latents and the words it was trained with
        pipe = build("tiny")
        vae = fill(pipe.vae, start_weights(start, "vae"))
        return vae, fill(pipe.text, start_weights(start, "text"))
    steps = {stage: _share(STEPS[stage], budget) for stage in ("vae", "clip", "words")}
    for stage, number in steps.items():
        check_run(out / stage, steps=number, seed=seed)
    vae = train_vae(out, steps=steps["vae"], seed=seed)
    text = text_tower(train_clip(out, steps=steps["clip"], seed=seed))
    return vae, train_words(out, text, steps=steps["words"], seed=seed)


def ship_run(
    name: str, module: torch.nn.Module, run: Path, recipe: str, seed: int = 0, **facts
) -> None:
    """Put a finished training into the package: weights as
    fp16, a thinned log beside them, facts in the manifest.
    """
    rows = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    looks = [row for row in rows if "loss" not in row]
    every = max(len(losses) // 30, 1)
    kept = sorted(losses[::every] + looks + losses[-1:], key=lambda row: row["step"])
    text = "".join(json.dumps(row) + "\n" for row in kept)
    write_bytes(text.encode(), TINY / f"{name}.log.jsonl")
    last = losses[-1]
    measured = {"steps": last["step"], "cpu_minutes": round(last["cpu_seconds"] / 60, 1)}
    ship(name, module, recipe=recipe, seed=seed, **measured | facts)
