"""Does one shift of the bottleneck mean the same in pictures it was not made from?"""

import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.data.attributes import HEADS
from minidiff.editing.asyrp import asyrp, learned_shift
from minidiff.evaluate.metrics import rank_correlation
from minidiff.evaluate.oracle import ATTRIBUTES, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, draw, share

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
KNOBS = dict(until=0.1, steps=15)
TAUGHT = dict(until=0.1, steps=8, rounds=10)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """A shift from plain grounds to striped, and one from white to black, learned on 6 scenes; n
    others are edited.
    """
    known = _plain_white(draw(6, seed + 1))
    striped = _learned(pipe, known, "texture", "striped")
    dark = _learned(pipe, known, "background", "black")
    scenes = _plain_white(draw(n, seed))
    truth = [shapes.edit(s, "texture", "striped") for s in scenes]
    both_truth = [shapes.edit(s, "background", "black") for s in truth]
    image = shapes.render(scenes)
    judge = oracle()

    def edited(delta=striped, **knobs) -> Tensor:
        return asyrp(pipe, image, "", "edited", delta=delta, **KNOBS, **knobs).cpu()

    def sum_of_shifts(h: Tensor, t) -> Tensor:
        return dark(h, t) + striped(h, t)

    runs = [edited(strength=k) for k in STRENGTHS]
    unmoved = runs[0]
    chance = [_striped(x).mean().item() for x in runs]
    right = judge.judge(runs[2], truth)
    others = [right[a].float() for a in ATTRIBUTES if a != "texture"]
    kept = torch.stack(others).mean(0)
    both = judge.judge(edited(delta=sum_of_shifts), both_truth)
    moved = (runs[2] - unmoved).abs().mean().item()
    left = (edited(symmetric=True) - unmoved).abs().mean().item()
    rows = [
        Row(
            "strength 0, .5, 1, 1.5 against the stripes' probability: rank correlation",
            rank_correlation(STRENGTHS, chance),
            0.9,
            source="paper",
        ),
        averaged(
            "one shift, scenes it never saw: the stripes are read",
            right["texture"],
            0.6,
            share(judge.judge(unmoved, truth)["texture"]),
        ),
        averaged("at the same strength: other attributes kept", kept, 0.85),
        averaged(
            "two shifts added, stripes and black: both read",
            both["background"] & both["texture"],
            0.4,
        ),
        Row(
            "the symmetric control: share of the change in pixels that is gone",
            1 - left / moved,
            2 / 3,
            source="paper",
        ),
    ]
    return counted(rows, n)


def _plain_white(scenes: list[shapes.Scene]) -> list[shapes.Scene]:
    return [shapes.edit(shapes.edit(s, "background", "white"), "texture", "plain") for s in scenes]


def _learned(pipe: Pipe, scenes: list[shapes.Scene], what: str, value: str):
    """The shift from the captions of scenes to those with one thing changed."""
    before = [shapes.caption(s, size=False, position=False) for s in scenes]
    goals = [shapes.edit(s, what, value) for s in scenes]
    after = [shapes.caption(s, size=False, position=False) for s in goals]
    return learned_shift(pipe, shapes.render(scenes), before, after, **TAUGHT)


@torch.no_grad()
def _striped(images: Tensor) -> Tensor:
    """(b,) the probability that the oracle gives to stripes."""
    chances = oracle().net(images)["texture"].softmax(1)
    return chances[:, HEADS["texture"].index("striped")]
