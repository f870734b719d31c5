"""Does one shift of the bottleneck mean the same in pictures it was not made from?"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.asyrp import asyrp, learned_shift
from minidiff.evaluate.oracle import ATTRIBUTES, oracle
from minidiff.models.attribute_net import HEADS
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw, rank_correlation

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
KNOBS = dict(until=0.1, steps=15)
TAUGHT = dict(until=0.1, steps=8, rounds=10)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """A shift from plain grounds to striped, and one from white to black, learned on 6 scenes; n
    others are edited.
    """
    known, scenes, judge = _old(draw(6, seed + 1)), _old(draw(n, seed)), oracle()
    image, truth = shapes.render(scenes), [shapes.edit(s, "texture", "striped") for s in scenes]
    texts = lambda side: [shapes.caption(s, size=False, position=False) for s in side]  # noqa: E731
    goals = (
        [shapes.edit(s, *to) for s in known]
        for to in (("texture", "striped"), ("background", "black"))
    )
    striped, dark = (
        learned_shift(pipe, shapes.render(known), texts(known), texts(g), **TAUGHT) for g in goals
    )
    edit = lambda **kw: asyrp(pipe, image, "", "edited", **KNOBS | {"delta": striped} | kw).cpu()  # noqa: E731

    runs = [edit(strength=k) for k in STRENGTHS]
    chance = [_striped(x).mean().item() for x in runs]
    right = judge.judge(runs[2], truth)
    kept = np.mean([right[a].float().mean() for a in ATTRIBUTES if a != "texture"])
    both = judge.judge(
        edit(delta=lambda h, t: dark(h, t) + striped(h, t)),
        [shapes.edit(s, "background", "black") for s in truth],
    )
    moved, lost = ((x - runs[0]).abs().mean().item() for x in (runs[2], edit(symmetric=True)))
    return [
        Row(
            "strength 0, .5, 1, 1.5 against the stripes' probability: rank correlation",
            rank_correlation(STRENGTHS, chance),
            0.9,
        ),
        Row(
            "one shift, scenes it never saw: the stripes are read",
            right["texture"].float().mean().item(),
            0.6,
            judge.judge(runs[0], truth)["texture"].float().mean().item(),
        ),
        Row("at the same strength: other attributes kept", kept, 0.85),
        Row(
            "two shifts added, stripes and black: both read",
            (both["background"] & both["texture"]).float().mean().item(),
            0.4,
        ),
        Row(
            "the symmetric control: share of the change in pixels that is gone",
            1 - lost / moved,
            2 / 3,
        ),
    ]


def _old(scenes: list[shapes.Scene]) -> list[shapes.Scene]:
    return [shapes.edit(shapes.edit(s, "background", "white"), "texture", "plain") for s in scenes]


@torch.no_grad()
def _striped(images: Tensor) -> Tensor:
    """(b,) the probability that the oracle gives to stripes."""
    return oracle().net(images)["texture"].softmax(1)[:, HEADS["texture"].index("striped")]
