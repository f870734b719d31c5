"""A classifier of noisy latents: what is in x_t, asked at every time t, for classifier guidance.

Prafulla Dhariwal, Alex Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv
2105.05233. Six heads share a trunk of a few thousand weights. Maps are pooled at the end, mean and
maximum: what a thing is does not depend on where it is. shipped/noisy_classifier.py trains it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.data.shapes import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES, Scene
from minidiff.models.blocks import timestep_embedding

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
    """Right answers (b, 6), in the order of `HEADS`;
    NOTHING where a picture of two objects has two answers.
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
    """{head: index}: the classes that a phrase about one
    object names, such as "a red star on a black background".

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
            f"{text!r} names no class. Colours of the ground are said as 'red background'. There "
            f"are {known}"
        )
    if found.keys() & set(OF_AN_OBJECT):
        found["count"] = 0  # one object
    return found
