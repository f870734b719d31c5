"""Training the learned oracle, apart from every generator: own seeds, own renders, all tuples.

    loss = sum over the heads of cross-entropy; heads without a right answer (slot B of one object)
           are left out

A classifier that saw clean renders only would judge the autoencoder's blur, not the attributes: on
round trips it loses a fifth of its accuracy. So renders are blurred, made noisy and tinted by less
than half the distance of two classes, and in a second phase a third of each batch passes through
the VAE, with some latent noise, before it is read.

The scenes also include what edits make: nothing left, one of two objects deleted, two objects alike
in shape or colour. A trained one may be shown pictures that carry what no caption names as well
(`data/unseen.py`): whoever grades edits of those must have seen some. Try changing: `share` 0 in
the second phase, and compare `accuracy` on round trips; `strange`, and compare it on strange
pictures.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes, unseen
from minidiff.data.attributes import HEADS, NOTHING, labels
from minidiff.models.attribute_net import AttributeNet
from minidiff.models.vae import VAE
from minidiff.train.fit import fit
from minidiff.weights.store import fill, load_weights


def oracle_loss(net: AttributeNet, batch: dict[str, Tensor]) -> Tensor:
    """Scalar loss of {"image": b 3 64 64, "label": b 10}."""
    out = net(batch["image"])
    label = batch["label"]
    total = 0.0
    for i, head in enumerate(HEADS):
        total += F.cross_entropy(out[head], label[:, i], ignore_index=NOTHING, reduction="sum")
    return total / len(label)


def drawn(rng: np.random.Generator) -> shapes.Scene:
    """A scene of any split, a quarter of them changed as
    an edit would: objects deleted, or two made alike.
    """
    scene = shapes.scene(rng, pairs=0.4)
    two = len(scene.objects) == 2
    lot = rng.random()
    if lot < 0.04:
        return replace(scene, objects=(), position="center")
    if two and lot < 0.2:
        return shapes.edit(scene, "delete", index=int(rng.integers(2)))
    if two and lot < 0.35:
        what = ("shape", "color")[rng.integers(2)]
        return shapes.edit(scene, what, getattr(scene.objects[1], what))
    return scene


def augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, tint, contrast and noise, drawn per picture
    and each well below the distance of two classes.
    """

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = rng.uniform(low, high, (len(x), channels, 1, 1))
        return torch.from_numpy(drawn).float()

    blurred = _blur(x)
    x = x + draw(-0.3, 1) * (blurred - x)  # below 0 sharpens
    contrast = draw(0.94, 1.04)
    tint = draw(-0.05, 0.05, channels=3)
    x = x * contrast + tint
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    return (x + draw(0, 0.1) * noise).clamp(-1, 1)


def _blur(x: Tensor) -> Tensor:
    """The mean of every pixel and its eight neighbours, weighted 1 2 1 both ways."""
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (row[:, None] * row).expand(3, 1, 3, 3)
    framed = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(framed, kernel, groups=3)


@torch.no_grad()
def round_trip(vae: VAE, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Pictures through the autoencoder, (b 3 h w) in [-1, 1]; `noise` is added to the latents."""
    return vae.to_image(vae.to_latent(x) + noise)


def oracle_batches(
    size: int, seed: int, vae: VAE | None = None, share: float = 1 / 3, strange: float = 0.0
):
    """batch(step) -> {"image", "label"}; a share `strange` of the rows, every other one at one
    half, carries nuisances; with a `vae`, the first `share` of the rows have been through it.
    """

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        scenes = [drawn(rng) for _ in range(size)]
        image = shapes.render(scenes)
        rows = [i for i in range(size) if i * strange % 1 < strange]  # spread over both shares
        if strange:
            odd = [scenes[i] for i in rows]
            image[rows] = unseen.render(odd, [unseen.unseen(rng, [scene]) for scene in odd])
        count = round(share * size) if vae else 0
        if count:
            latent = vae.to_latent(image[:1]).shape[1:]
            noise = torch.from_numpy(rng.standard_normal((count, *latent), dtype=np.float32))
            level = torch.from_numpy(rng.uniform(0, 0.15, (count, 1, 1, 1))).float()
            copies = round_trip(vae, image[:count], level * noise)
            image = torch.cat([copies, image[count:]])
        return {"image": augment(image, rng), "label": labels(scenes)}

    return batch


@torch.no_grad()
def accuracy(net: AttributeNet, images: Tensor, scenes: list[shapes.Scene]) -> dict[str, float]:
    """Share of pictures for which each head, and all of them together ("joint"), are right."""
    label = labels(scenes)
    was_training = net.training
    out = [net.eval()(x) for x in images.split(64)]
    net.train(was_training)
    right = {}
    for i, head in enumerate(HEADS):
        answers = torch.cat([part[head] for part in out]).argmax(1)
        right[head] = (answers == label[:, i]) | (label[:, i] == NOTHING)
    right["joint"] = torch.stack(list(right.values())).all(0)
    return {head: hits.float().mean().item() for head, hits in right.items()}


def train_oracle(
    out: Path,
    vae: VAE | None = None,
    *,
    steps: int = 500,
    tune: int = 150,
    batch: int = 64,
    seed: int = 777,
    start: str | None = None,
    **kw,
) -> AttributeNet:
    """Phase 1 on renders, `steps` long; phase 2, if a finished `vae` is given, `tune` steps with a
    third of each batch through it. Both resume from their folders under `out`. `start="shipped"`
    goes on from the shipped oracle, at half the learning rate, on pictures of which half carry
    nuisances.
    """
    if start not in (None, "shipped"):
        raise ValueError(f"start {start!r}: expected None (from nothing) or 'shipped'")
    torch.manual_seed(seed)
    net = AttributeNet()
    rate = 1.0
    strange = 0.0
    if start:
        strange = 0.5
        fill(net, load_weights("oracle"), "oracle")
        rate = 0.5
    rng = np.random.default_rng(seed + 1)
    test = [shapes.scene(rng, split="test") for _ in range(256)]
    looks = {
        "renders": shapes.render(test),
        "strange": unseen.render(test, [unseen.unseen(rng, [scene]) for scene in test]),
    }

    def peek(images: dict[str, Tensor]):
        return lambda model, step: {
            name: accuracy(model, of_name, test)["joint"] for name, of_name in images.items()
        }

    common = dict(optimiser="muon", seed=seed, peek_every=100) | kw
    fit(
        net,
        oracle_loss,
        oracle_batches(batch, seed, strange=strange),
        steps=steps,
        out=Path(out) / "oracle",
        settings={"start": start},
        **dict(lr=2e-3 * rate, muon_lr=4e-3 * rate, ema=0.995, decay=0.3, peek=peek(looks))
        | common,
    )
    if vae is None:
        return net
    trips = {f"{name}, round trips": round_trip(vae, images) for name, images in looks.items()}
    return fit(
        net,
        oracle_loss,
        oracle_batches(batch, seed + 2, vae, strange=strange),
        steps=tune,
        out=Path(out) / "oracle" / "tune",
        **dict(lr=7e-4, muon_lr=1.5e-3, warmup=20, ema=0.99, decay=0.5, peek=peek(looks | trips))
        | common,
    )
