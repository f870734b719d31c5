"""Training a text-to-image latent diffusion model (Rombach et al. 2022, 2112.10752).

    x_t = alpha_t x0 + sigma_t eps,    loss = |out(x_t, t, text) - target|^2

on latents encoded once by the frozen autoencoder, with captions drawn anew each time (a third of
them short) and dropped in a tenth of the rows, so that one network also learns the unconditional
noise that guidance needs. Times are drawn as sigmoid(N(.7, 1)): the noisier half decides what is in
the picture. Once it knows that, a share `even` of them may be drawn evenly, for the last few decide
whether its edges are straight. Try: `prediction="eps"`; `even=1`; AdamW.

What tells early whether it learns: `shape_gain`, how much worse the noise is predicted when the
caption names a wrong shape (and `binding_gain`, when it names the right ones in the wrong places).
They move long before any sample looks right.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from minidiff.core.cond import Cond
from minidiff.core.process import q_sample, target
from minidiff.core.schedule import Schedule
from minidiff.data import shapes
from minidiff.io import write_bytes

LATENTS = "latents"  # the one tensor of the file that `encoded_scenes` keeps


def draw_times(
    rng: np.random.Generator,
    n: int,
    T: int,
    mean: float = 0.7,
    std: float = 1.0,
    even: float = 0.0,
) -> Tensor:
    """Schedule indices 1..T (n,), T * sigmoid(N(mean, std)) rounded up; a share `even` of them is
    drawn evenly instead.
    """
    u = 1 / (1 + np.exp(-rng.normal(mean, std, n)))
    if even > 0:
        u = np.where(rng.random(n) < even, rng.random(n), u)
    return torch.from_numpy(np.clip(np.ceil(T * u), 1, T).astype(np.int64))


def diffusion_loss(
    net: nn.Module, batch: dict[str, Tensor], sch: Schedule, prediction: str
) -> Tensor:
    """Mean squared error on the target. batch: x0, eps (b
    c h w), t (b,) in 1..T, and text (b n d) or label (b,).
    """
    x0 = batch["x0"]
    eps = batch["eps"]
    t = batch["t"]
    out = net(
        q_sample(sch, x0, t, eps), t - 1, Cond(text=batch.get("text"), label=batch.get("label"))
    )
    return (out[:, : x0.shape[1]] - target(sch, x0, eps, t, prediction)).pow(2).mean()


@torch.no_grad()
def encoded_scenes(
    vae, n: int, seed: int, path: Path | None = None, pairs: float = 0.3
) -> tuple[list[shapes.Scene], Tensor]:
    """n training scenes, a share `pairs` of them with two objects, and their latents (fp16, n c h
    w); kept at `path`, since encoding takes minutes on a laptop.
    """
    rng = np.random.default_rng(seed)
    scenes = [shapes.scene(rng, split="train", pairs=pairs) for _ in range(n)]
    device = next(vae.parameters()).device

    def encode(some: list[shapes.Scene]) -> Tensor:
        return vae.to_latent(shapes.render(some).to(device)).half().cpu()

    if path is not None and path.exists():
        z = _kept_latents(path)
        first = encode(scenes[:8])
        same = len(z) == n and z[:8].shape == first.shape and (z[:8] - first).abs().max() <= 0.1
        if not same:
            raise ValueError(
                f"{path} holds latents of other scenes or of another autoencoder; delete it to "
                "encode anew"
            )
        return scenes, z
    z = torch.cat([encode(scenes[i : i + 64]) for i in range(0, n, 64)])
    if path is not None:
        write_bytes(to_bytes({LATENTS: z}), path)
    return scenes, z


def _kept_latents(path: Path) -> Tensor:
    try:
        return load_file(path)[LATENTS].clone()
    except (SafetensorError, KeyError) as e:
        raise ValueError(f"{path} holds no latents ({e}); delete it to encode anew") from e


def latent_batches(
    scenes,
    z: Tensor,
    text,
    tokenizer,
    size: int,
    seed: int,
    T: int,
    drop: float = 0.1,
    pairs: tuple[int, float] | None = None,
    even: float = 0.0,
):
    """batch(step) -> x0, text states, t, eps: a function of (seed, step).

    `pairs` (step, share): from that step on, the share of rows with two objects (before: as the
    scenes come). What belongs to what is learned last, once single objects are right. `even`: the
    share of times drawn evenly (see `draw_times`).
    """
    device = next(text.parameters()).device
    two = np.array([len(s.objects) == 2 for s in scenes])
    with_one = np.flatnonzero(~two)
    with_two = np.flatnonzero(two)

    @torch.no_grad()
    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(z), size=size)
        if pairs and step >= pairs[0]:
            wanted = rng.random(size) < pairs[1]
            of_two = with_two[rng.integers(len(with_two), size=size)]
            of_one = with_one[rng.integers(len(with_one), size=size)]
            rows = np.where(wanted, of_two, of_one)
        captions = []
        for row in rows:
            dropped = rng.random() < drop
            captions.append("" if dropped else shapes.random_caption(scenes[row], rng))
        stream = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x0 = z[rows].float()
        states = text(tokenizer(captions).to(device))
        t = draw_times(rng, size, T, even=even)
        eps = torch.randn(x0.shape, generator=stream)
        return {"x0": x0, "text": states, "t": t, "eps": eps}

    return batch


def shape_gain(pipe, n: int = 32, seed: int = 5, caption=shapes.short_caption) -> float:
    """Excess error in % of a pipe's network when the shape word is wrong,
    on held-out scenes with one object. The usual `caption` says nothing of
    the place, so the network must see in the noise where the object is.
    """
    scenes = _held_out_scenes(n, seed, objects=1)
    wrong = []
    for i, scene in enumerate(scenes):
        own = shapes.SHAPES.index(scene.objects[0].shape)
        other = (own + 1 + i % 6) % 7
        wrong.append(shapes.edit(scene, "shape", shapes.SHAPES[other]))
    return _excess_error(pipe, scenes, wrong, seed, caption)


def binding_gain(pipe, n: int = 32, seed: int = 5) -> float:
    """The same when the two shapes of a caption change places:
    zero for a model that reads captions as bags of words.
    """
    scenes = _held_out_scenes(n, seed, objects=2)
    wrong = []
    for scene in scenes:
        first, second = scene.objects
        half = shapes.edit(scene, "shape", second.shape)
        wrong.append(shapes.edit(half, "shape", first.shape, index=1))
    return _excess_error(pipe, scenes, wrong, seed)


def _held_out_scenes(n: int, seed: int, objects: int) -> list[shapes.Scene]:
    rng = np.random.default_rng(seed)
    return [shapes.scene(rng, objects=objects, split="test") for _ in range(n)]


@torch.no_grad()
def _excess_error(
    pipe,
    scenes: list[shapes.Scene],
    wrong: list[shapes.Scene],
    seed: int,
    caption=shapes.short_caption,
) -> float:
    """How many % worse the network does at logSNR
    -1.5 when told the captions of the wrong scenes.
    """
    z = pipe.encode(shapes.render(scenes))
    sch = pipe.schedule
    t = torch.full((len(scenes),), int((sch.log_snr + 1.5).abs().argmin()), device=z.device)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(z)
    losses = []
    for told in (scenes, wrong):
        text = pipe.embed([caption(s) for s in told]).text
        rows = {"x0": z, "t": t, "eps": eps, "text": text}
        losses.append(diffusion_loss(pipe.net, rows, sch, pipe.prediction))
    right, misled = losses
    return 100 * (misled / right - 1).item()


@torch.no_grad()
def standardise_text(text, tokenizer, seed: int = 3, n: int = 512):
    """Fold mean and deviation of the states into the final norm, dimension by dimension: what all
    words share carries no information, and large common parts slow the learning of small
    differences. (CLIP's projection no longer fits.)
    """
    rng = np.random.default_rng(seed)
    captions = [shapes.random_caption(shapes.scene(rng, split="train"), rng) for _ in range(n)]
    ids = tokenizer(captions)
    h = text(ids)[(ids != tokenizer.pad) & (ids != tokenizer.bos)]  # words d
    m = h.mean(0)
    s = h.std(0)
    text.final_layer_norm.weight /= s
    text.final_layer_norm.bias.copy_((text.final_layer_norm.bias - m) / s)
    return text
