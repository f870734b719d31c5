"""Does a classifier lead a model that was told nothing?"""

from itertools import pairwise

import torch
from torch import Tensor

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.data import shapes
from minidiff.data.toy2d import gmm8
from minidiff.evaluate.oracle import oracle
from minidiff.guidance.classifier_guidance import classifier_guidance, pull
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, counted, draw, gained
from minidiff.samplers.ddim import ddim

POINTS = 500  # in the plane


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """The exact classifier of a mixture, then the shipped one on the classes of scenes that
    training never saw.
    """
    scenes = draw(n, seed)
    image = shapes.render(scenes)
    classes = [
        f"{s.objects[0].color} {s.objects[0].shape} on a {s.background} background" for s in scenes
    ]
    judge = oracle()

    def run(target, scale: float) -> Tensor:
        return classifier_guidance(pipe, image, target, scale=scale, seed=seed)

    free = judge.judge(run(classes, 0.0), scenes)
    ours = judge.judge(run(classes, 6.0), scenes)
    one_class = shapes.short_caption(scenes[0])
    one = {scale: run(one_class, scale) for scale in (0.0, 1.0, 6.0, 20.0)}  # n seeds
    color = {k: judge.judge(x, scenes[:1] * n)["color"] for k, x in one.items()}
    spread = [_spread(judge.features(x)) for x in one.values()]
    exact, chance = _toy()
    rows = [
        Row(
            "mixture of eight, exact classifier, scale 1: share in the component asked for",
            exact,
            0.97,
            chance,
            source="identity",
            n=POINTS,
        ),
        *[
            gained(f"scale 6: {what} right, gain over scale 0", ours[what], free[what])
            for what in ("background", "color", "shape", "count")
        ],
        gained(
            "one class, colour right: scale 6 over scale 0",
            color[6.0],
            color[0.0],
            0.5,
            source="aim",
        ),
        Row(
            "one class: spread of features falls with the scale (0, 1, 6, 20), smallest fall",
            min(a - b for a, b in pairwise(spread)),
            0.0,
            spread[0],
            source="paper",
        ),
    ]
    return counted(rows, n)


def _toy() -> tuple[float, float]:
    """Shares of POINTS points that end in component 0, with guidance and without."""
    sch = schedule.linear(1000)
    ring = gmm8(1.0, 0.15)
    net = ring.denoise(sch)
    x = noise((POINTS, 2), dtype=torch.float64)
    anything = Cond(label=torch.full((POINTS,), -1))

    def score(x: Tensor, t) -> Tensor:
        a, s = sch.at(t, x)
        return ring.log_prob(x, a, s, 0) - ring.log_prob(x, a, s)

    def in_component_0(scale: float) -> float:
        out = ddim(pull(net, sch, score, scale), sch, x, anything, steps=100)
        nearest = torch.cdist(out, ring.means).argmin(1)
        return (nearest == 0).double().mean().item()

    return in_component_0(1.0), in_component_0(0.0)


def _spread(f: Tensor) -> float:
    """Mean distance of two different rows (n d)."""
    return torch.pdist(f.double()).mean().item()
