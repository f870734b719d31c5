"""Training the learned oracle, apart from every generator: own seeds, own renders, all tuples.

    loss = sum over the heads of cross-entropy; heads without a right answer (slot B of one object)
           are left out

A classifier that saw clean renders only would judge the autoencoder's blur, not the attributes: on
round trips it loses a fifth of its accuracy. So renders are blurred, made noisy and tinted by less
than half the distance of two classes, and in a second phase a third of each batch passes through
the VAE, with some latent noise, before it is read.

The scenes also include what edits make: nothing left, one of two objects deleted, two objects alike
in shape or colour. Try changing: `share` 0 in the second phase, and compare `accuracy` on round
trips.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.models.attribute_net import HEADS, NOTHING, AttributeNet, labels
from minidiff.models.vae import VAE
from minidiff.train.fit import fit


def oracle_loss(net: AttributeNet, batch: dict[str, Tensor]) -> Tensor:
    """Scalar loss of {"image": b 3 64 64, "label": b 10}."""
    out, label = net(batch["image"]), batch["label"]
    return sum(
        F.cross_entropy(out[h], label[:, i], ignore_index=NOTHING, reduction="sum")
        for i, h in enumerate(HEADS)
    ) / len(label)


def drawn(rng: np.random.Generator) -> shapes.Scene:
    """A scene of any split, a quarter of them changed as an edit would: objects deleted, or two
    made alike.
    """
    s, u = shapes.scene(rng, pairs=0.4), rng.random()
    if u < 0.04:
        return replace(s, objects=(), position="center")
    if len(s.objects) == 2 and u < 0.2:
        return shapes.edit(s, "delete", index=int(rng.integers(2)))
    if len(s.objects) == 2 and u < 0.35:
        what = ("shape", "color")[rng.integers(2)]
        return shapes.edit(s, what, getattr(s.objects[1], what))
    return s


def augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, tint, contrast and noise, drawn per picture and each well below the distance of two
    classes.
    """
    draw = lambda lo, hi, *shape: torch.from_numpy(rng.uniform(lo, hi, (len(x), *shape))).float()  # noqa: E731
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = F.conv2d(
        F.pad(x, (1, 1, 1, 1), mode="replicate"),
        (kernel[:, None] * kernel).expand(3, 1, 3, 3),
        groups=3,
    )
    x = x + draw(-0.3, 1, 1, 1, 1) * (blurred - x)  # below 0 sharpens
    x = x * draw(0.94, 1.04, 1, 1, 1) + draw(-0.05, 0.05, 3, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    return (x + draw(0, 0.1, 1, 1, 1) * noise).clamp(-1, 1)


@torch.no_grad()
def round_trip(vae: VAE, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Pictures through the autoencoder, (b 3 h w) in [-1, 1]; `noise` is added to the latents."""
    return vae.to_image(vae.to_latent(x) + noise)


def oracle_batches(size: int, seed: int, vae: VAE | None = None, share: float = 1 / 3):
    """batch(step) -> {"image", "label"}; with a `vae`, the first `share` of the rows have been
    through it.
    """

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        scenes = [drawn(rng) for _ in range(size)]
        image, n = shapes.render(scenes), round(share * size) if vae else 0
        if n:
            z = torch.from_numpy(
                rng.standard_normal((n, *vae.to_latent(image[:1]).shape[1:]), dtype=np.float32)
            )
            level = torch.from_numpy(rng.uniform(0, 0.15, (n, 1, 1, 1))).float()
            image = torch.cat([round_trip(vae, image[:n], level * z), image[n:]])
        return {"image": augment(image, rng), "label": labels(scenes)}

    return batch


@torch.no_grad()
def accuracy(net: AttributeNet, images: Tensor, scenes: list[shapes.Scene]) -> dict[str, float]:
    """Share of pictures for which each head, and all of them together ("joint"), are right."""
    label, was = labels(scenes), net.training
    out = [net.eval()(x) for x in images.split(64)]
    net.train(was)
    hit = {
        h: (torch.cat([o[h] for o in out]).argmax(1) == label[:, i]) | (label[:, i] == NOTHING)
        for i, h in enumerate(HEADS)
    }
    return {
        h: v.float().mean().item()
        for h, v in (hit | {"joint": torch.stack([*hit.values()]).all(0)}).items()
    }


def train_oracle(
    out: Path,
    vae: VAE | None = None,
    *,
    steps: int = 500,
    tune: int = 150,
    batch: int = 64,
    seed: int = 777,
    **kw,
) -> AttributeNet:
    """Phase 1 on renders, `steps` long; phase 2, if a finished `vae` is given, `tune` steps with a
    third of each batch through it. Both resume from their folders under `out`.
    """
    torch.manual_seed(seed)
    net, rng = AttributeNet(), np.random.default_rng(seed + 1)
    test = [shapes.scene(rng, split="test") for _ in range(256)]
    clean = shapes.render(test)

    def peek(name, images):
        return lambda model, step: {name: accuracy(model, images, test)["joint"]}

    common = dict(optimiser="muon", seed=seed, peek_every=100) | kw
    fit(
        net,
        oracle_loss,
        oracle_batches(batch, seed),
        steps=steps,
        out=Path(out) / "oracle",
        **dict(lr=2e-3, muon_lr=4e-3, ema=0.995, decay=0.3, peek=peek("renders", clean)) | common,
    )
    if vae is None:
        return net
    trips = round_trip(vae, clean)
    return fit(
        net,
        oracle_loss,
        oracle_batches(batch, seed + 2, vae),
        steps=tune,
        out=Path(out) / "oracle" / "tune",
        **dict(
            lr=7e-4, muon_lr=1.5e-3, warmup=20, ema=0.99, decay=0.5, peek=peek("round_trips", trips)
        )
        | common,
    )
