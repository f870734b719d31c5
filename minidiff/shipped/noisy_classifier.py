"""Training a classifier of noisy latents, for classifier guidance (card B14).

Prafulla Dhariwal, Alex Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv
2105.05233.

A classifier that has seen clean pictures only says nothing of use about the states a sampler passes
through. So train it on those states, and tell it the time:

    loss = sum over the heads of cross-entropy of p(y | x_t, t),    x_t = alpha_t z + sigma_t eps,
    t uniform in 1..T

Six heads share a trunk of a few thousand weights. Maps are pooled at the end, mean and maximum:
what a thing is does not depend on where it is. Shape, colour and size are asked only of pictures
with one object.

Try: a time that is always 1, and look at `accuracy` at t = 600; ten times the width.

Weakness: near t = T nothing can be read, and the best answer is the prior, whose gradient is zero;
so guidance begins to act only when the layout is nearly decided. And the shipped one is so small
(75 kB) that shapes are told apart late.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.process import q_sample
from minidiff.core.schedule import Schedule
from minidiff.data.shapes import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES, Scene
from minidiff.foundations.latent_diffusion import encoded_scenes
from minidiff.models.blocks import timestep_embedding
from minidiff.train.fit import fit

HEADS = {
    "count": ("one", "two"),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
    "shape": SHAPES,
    "color": tuple(COLORS),
    "size": tuple(SIZES),
}
OF_AN_OBJECT = ("shape", "color", "size")
NOTHING = -100  # label of a head without a right answer (cross_entropy's own)


class NoisyClassifier(nn.Module):
    """Noisy latents (b c h w) at schedule index t (b,) -> {head: logits (b, choices)}."""

    def __init__(
        self,
        channels: int = 4,
        width: tuple[int, int, int] = (24, 32, 48),
        time: int = 16,
        groups: int = 8,
    ):
        super().__init__()
        self.time = time
        a, b, c = width
        sizes = ((channels, a, 1), (a, b, 2), (b, b, 1), (b, c, 2))  # 16 -> 16 -> 8 -> 8 -> 4
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in sizes])
        self.norms = nn.ModuleList([nn.GroupNorm(groups, o) for _, o, _ in sizes])
        self.times = nn.ModuleList([nn.Linear(time, o) for _, o, _ in sizes])
        self.final_layer = nn.Linear(2 * c, sum(map(len, HEADS.values())))

    def features(self, x: Tensor, t: int | Tensor) -> Tensor:
        """What is in x at time t, wherever it is: (b, 2c)."""
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        embedded = timestep_embedding(times, self.time).to(x)
        for conv, norm, time in zip(self.convs, self.norms, self.times):
            when = time(embedded)[:, :, None, None]
            x = F.silu(norm(conv(x)) + when)  # b c h w
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def forward(self, x: Tensor, t: int | Tensor) -> dict[str, Tensor]:
        logits = self.final_layer(self.features(x, t))
        sizes = [len(choices) for choices in HEADS.values()]
        return dict(zip(HEADS, logits.split(sizes, dim=1)))


def labels(scenes: list[Scene]) -> Tensor:
    """Right answers (b, 6), in the order of `HEADS`; NOTHING where a picture of two objects has two
    answers.
    """
    rows = []
    for scene in scenes:
        background = HEADS["background"].index(scene.background)
        texture = HEADS["texture"].index(scene.texture)
        row = [len(scene.objects) - 1, background, texture]
        for head in OF_AN_OBJECT:
            answer = NOTHING
            if len(scene.objects) == 1:
                answer = HEADS[head].index(getattr(scene.objects[0], head))
            row.append(answer)
        rows.append(row)
    return torch.tensor(rows)


def named(text: str) -> dict[str, int]:
    """{head: index}: the classes that a phrase about one object names, such as "a red star on a
    black background".

    ValueError if there are none, or two of one head.
    """
    words = text.lower().split()
    found = {}
    for i, word in enumerate(words):
        ground = word in BACKGROUNDS and words[i + 1 : i + 2] == ["background"]
        heads = ("background",) if ground else ("texture", *OF_AN_OBJECT)
        for head in heads:
            if word not in HEADS[head]:
                continue
            if head in found:
                before = HEADS[head][found[head]]
                raise ValueError(f"{text!r} names {before} and {word}: give one {head} at most")
            found[head] = HEADS[head].index(word)
    if not found:
        choices = [f"{head}: {', '.join(v)}" for head, v in HEADS.items() if head != "count"]
        known = "; ".join(choices)
        raise ValueError(
            f"{text!r} names no class. Colours of the ground are said as 'red background'. "
            f"There are {known}"
        )
    if found.keys() & set(OF_AN_OBJECT):
        found["count"] = 0  # one object
    return found


def classifier_loss(net: NoisyClassifier, batch: dict[str, Tensor], sch: Schedule) -> Tensor:
    """Scalar loss of {"x0", "eps": b c h w, "t": b, "label": b 6}."""
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
    out: Path, pipe, *, steps: int = 3000, batch: int = 64, scenes: int = 8000, seed: int = 0, **kw
) -> NoisyClassifier:
    """Train on the latents of `pipe`: two CPU minutes to encode, two to train; resumable from the
    folder `out`.
    """
    torch.manual_seed(seed)
    net = NoisyClassifier(pipe.shape[0])
    drawn, z = encoded_scenes(pipe.vae, scenes, seed + 1, Path(out) / "latents.safetensors")
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
        **dict(lr=2e-3, muon_lr=4e-3, ema=0.995, decay=0.3, seed=seed, peek=peek, peek_every=500)
        | kw,
    )


@cache
def noisy_classifier() -> NoisyClassifier:
    """The shipped classifier: of the latents that "tiny" and "tiny-dit" share."""
    from minidiff.weights.store import fill, load_weights

    net = fill(NoisyClassifier(), load_weights("classifier"), "classifier")
    return net.eval().requires_grad_(False)
