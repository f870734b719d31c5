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
from minidiff.proofs.prove import Row, draw
from minidiff.samplers.ddim import ddim


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """The exact classifier of a mixture, then the shipped one on the classes of scenes that
    training never saw.
    """
    scenes, judge, scales = draw(n, seed), oracle(), (0.0, 1.0, 6.0, 20.0)
    image, wanted = (
        shapes.render(scenes),
        [
            f"{s.objects[0].color} {s.objects[0].shape} on a {s.background} background"
            for s in scenes
        ],
    )
    run = lambda target, scale: classifier_guidance(pipe, image, target, scale=scale, seed=seed)  # noqa: E731
    right = lambda x, what: judge.judge(x, scenes)[what].float().mean().item()  # noqa: E731
    free, ours = run(wanted, 0.0), run(wanted, 6.0)
    one = [run(shapes.short_caption(scenes[0]), s) for s in scales]  # one class, n seeds
    single = lambda x: judge.judge(x, scenes[:1] * n)["color"].float().mean().item()  # noqa: E731
    spread = [_spread(judge.features(x)) for x in one]
    exact, chance = _toy()
    return [
        Row(
            "mixture of eight, exact classifier, scale 1: share in the component asked for",
            exact,
            0.97,
            chance,
        ),
        *[
            Row(f"scale 6: {what} right", right(ours, what), 0.9, right(free, what))
            for what in ("background", "color", "shape", "count")
        ],
        Row(
            "one class, colour right: scale 6 over scale 0",
            single(one[2]) - single(one[0]),
            0.5,
            single(one[0]),
        ),
        Row(
            "one class: spread of features falls with the scale (0, 1, 6, 20), smallest fall",
            min(a - b for a, b in pairwise(spread)),
            0.0,
            spread[0],
        ),
    ]


def _toy() -> tuple[float, float]:
    """Shares of 500 points that end in component 0, with guidance and without."""
    sch, ring, x = schedule.linear(1000), gmm8(1.0, 0.15), noise((500, 2), dtype=torch.float64)
    net, anything = ring.denoise(sch), Cond(label=torch.full((500,), -1))

    def score(x, t):
        a, s = sch.at(t, x)
        return ring.log_prob(x, a, s, 0) - ring.log_prob(x, a, s)

    def share(scale):
        out = ddim(pull(net, sch, score, scale), sch, x, anything, steps=100)
        return (torch.cdist(out, ring.means).argmin(1) == 0).double().mean().item()

    return share(1.0), share(0.0)


def _spread(f: Tensor) -> float:
    """Mean distance of two different rows (n d)."""
    return torch.pdist(f.double()).mean().item()
