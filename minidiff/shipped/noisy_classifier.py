"""Training a classifier of noisy latents, for classifier guidance.

Prafulla Dhariwal, Alex Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021,
arXiv 2105.05233.

A classifier that has seen clean pictures only says nothing of use about the states a sampler passes
through. So train it on those states, and tell it the time:

    loss = sum over the heads of cross-entropy of p(y | x_t, t)
    x_t  = alpha_t z + sigma_t eps,    t uniform in 1..T

Ten heads share a small trunk: number of objects, place, ground, and shape, colour and size of one
object or two, the left or upper one first. A slot without an object is not asked.

Try: a time that is always 1, and look at `accuracy` at t = 600; four times the width.

Weakness: near t = T nothing can be read, and the best answer is the prior, whose gradient is zero;
so guidance begins to act only when the layout is nearly decided.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.core.process import q_sample
from minidiff.core.schedule import Schedule
from minidiff.data.attributes import HEADS, NOTHING, labels
from minidiff.foundations.latent_diffusion import encoded_scenes
from minidiff.models.noisy_classifier import NoisyClassifier
from minidiff.train.fit import fit


def classifier_loss(net: NoisyClassifier, batch: dict[str, Tensor], sch: Schedule) -> Tensor:
    """Scalar loss of {"x0", "eps": b c h w, "t": b, "label": b 10}."""
    t = batch["t"]
    out = net(q_sample(sch, batch["x0"], t, batch["eps"]), t)
    label = batch["label"]
    total = 0.0
    for i, head in enumerate(HEADS):
        total += F.cross_entropy(out[head], label[:, i], ignore_index=NOTHING, reduction="sum")
    return total / len(label)


def classifier_batches(z: Tensor, label: Tensor, size: int, seed: int, T: int):
    """batch(step) for `fit`, of encoded scenes z (n c h w)."""

    def batch(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        rows = torch.from_numpy(rng.integers(len(z), size=size))
        x0 = z[rows].float()
        return {
            "x0": x0,
            "eps": torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)),
            "label": label[rows],
            "t": torch.from_numpy(rng.integers(1, T + 1, size=size)),
        }

    return batch


@torch.no_grad()
def accuracy(
    net: NoisyClassifier, sch: Schedule, z: Tensor, label: Tensor, t: int, seed: int = 0
) -> dict[str, float]:
    """Share of right answers of each head at time t."""
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    out = net(q_sample(sch, z.float(), t, eps), t)
    shares = {}
    for i, head in enumerate(HEADS):
        right = out[head].argmax(1) == label[:, i]
        asked = label[:, i] != NOTHING
        shares[head] = right[asked].float().mean().item()
    return shares


def train_noisy_classifier(
    out: Path,
    pipe,
    *,
    steps: int = 8000,
    batch: int = 64,
    scenes: int = 40_000,
    seed: int = 0,
    **kw,
) -> NoisyClassifier:
    """Train on the latents of `pipe`: two CPU minutes to encode, ten to train; resumable from the
    folder `out`.
    """
    torch.manual_seed(seed)
    net = NoisyClassifier(pipe.shape[0])
    drawn, z = encoded_scenes(pipe.vae, scenes, seed + 1, Path(out) / "latents.safetensors", 0.4)
    answers = labels(drawn)
    test = (z[-512:], answers[-512:])

    def peek(model, step):
        figures = {}
        for t in (50, 400, 700):
            shares = accuracy(model, pipe.schedule, *test, t)
            figures[f"t{t}"] = {head: round(share, 3) for head, share in shares.items()}
        return figures

    data = classifier_batches(z[:-512], answers[:-512], batch, seed, pipe.schedule.T)
    return fit(
        net,
        lambda m, b: classifier_loss(m, b, pipe.schedule),
        data,
        steps=steps,
        out=Path(out) / "classifier",
        **dict(lr=2e-3, muon_lr=4e-3, ema=0.995, decay=0.3, seed=seed, peek=peek, peek_every=1000)
        | kw,
    )
