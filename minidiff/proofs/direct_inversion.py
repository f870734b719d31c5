"""Is learning needed? Every way to edit a given picture with guidance, side by side."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.editing.real_pictures import edit_each
from minidiff.evaluate.metrics import psnr
from minidiff.inversion.ddim import Inverted, invert
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.inversion.null_text import learn_nulls
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, mean_scores, together
from minidiff.proofs.null_text import guided

STEPS = 25
ATTENTION = dict(cross=0.5, self_=1.0)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring of given pictures by prompt-to-prompt at guidance 3 and 7.5; 25 steps, at most 4
    pictures.
    """
    its = items("test", min(n, 4), ("recolour",), seed=seed)
    measured = {scale: measure(pipe, its, scale) for scale in (3.0, 7.5)}
    for scale, methods in measured.items():
        print(
            f"  guidance {scale:g}: dB to the picture (source row; edit row, same prompt), "
            "EditScore, evaluations"
        )
        for name, m in methods.items():
            print(
                f"    {name:18} {m['source']:6.2f} {m['same']:6.2f} {m['score']:6.2f} "
                f"{m['evaluations']:6.0f}"
            )
    rows = []
    for scale, methods in measured.items():
        learned = methods["null-text"]["source"]
        for name in ("direct", "negative-prompt"):
            rows.append(
                Row(
                    f"guidance {scale:g}: reconstruction of {name} against null-text's, dB",
                    methods[name]["source"] - learned,
                    -0.5,
                    methods["ddim"]["source"] - learned,
                )
            )

    def score_gain(name: str) -> float:
        gains = [m[name]["score"] - m["null-text"]["score"] for m in measured.values()]
        return np.mean(gains)

    soft = measured[3.0]
    return [
        *rows,
        Row(
            "EditScore of direct against null-text's, both scales",
            score_gain("direct"),
            -0.02,
        ),
        Row(
            "EditScore of the closed form against null-text's, both scales",
            score_gain("closed form"),
            -0.02,
        ),
        Row(
            "null-text's evaluations for one of direct's",
            soft["null-text"]["evaluations"] / soft["direct"]["evaluations"],
            8,
        ),
    ]


def measure(pipe: Pipe, its: list[Item], scale: float) -> dict[str, dict[str, float]]:
    """Each method: dB to the picture in the source row and in the edit row of identical prompts,
    EditScore, evaluations.
    """
    asked = together(its)
    ceiling = pipe.decode(pipe.encode(asked.answer))
    cond = pipe.embed(asked.source)
    counting, count = counted(pipe)

    def db(x: Tensor) -> float:
        return psnr(x, asked.image).mean().item()

    def edited(pipe: Pipe, inverted: Inverted, target: list[str]) -> Tensor:
        knobs = dict(steps=STEPS, scale=scale, **ATTENTION)
        return edit_each(pipe, inverted, asked.source, target, **knobs)

    states = invert(counting, asked.image, asked.source, steps=STEPS)
    inverting = count.restart()
    learned = learn_nulls(counting, states, asked.source, scale=scale)
    learning = count.restart()
    inversions = {
        "ddim": Inverted(states, [pipe.null(len(its))] * STEPS),
        "null-text": learned,
        "negative-prompt": Inverted(states, [cond] * STEPS),
        "direct": Inverted(states, share=0.0),
        "half the share": Inverted(states, share=0.5),
        "closed form": Inverted(states, share=1.0),
    }
    out = {}
    for name, inverted in inversions.items():
        edits = edited(counting, inverted, asked.target)
        used = inverting + count.restart()
        if name == "null-text":
            used += learning
        if inverted.share is None:  # both rows of identical prompts are the guided replay
            source = db(guided(pipe, inverted, cond, scale))
            same = source
        else:
            source = db(pipe.decode(states[0]))
            same = db(edited(pipe, inverted, asked.source))
        out[name] = dict(
            source=source,
            same=same,
            score=mean_scores(edits, its, ceiling)["score"],
            evaluations=used / len(its),
        )

    knobs = dict(steps=STEPS, scale=scale, source_scale=scale)
    edits = edit_friendly(counting, asked.image, asked.source, asked.target, **knobs)
    used = count.restart()
    same = db(edit_friendly(pipe, asked.image, asked.source, asked.source, **knobs))
    out["edit-friendly"] = dict(
        source=same,
        same=same,
        score=mean_scores(edits, its, ceiling)["score"],
        evaluations=used / len(its),
    )
    return out


@dataclass
class Count:
    """Evaluations since it was last restarted."""

    rows: int = 0

    def restart(self) -> int:
        rows = self.rows
        self.rows = 0
        return rows


def counted(pipe: Pipe) -> tuple[Pipe, Count]:
    """The pipe, and a count of its evaluations; one that will be run backwards counts as three."""
    count = Count()
    copy = replace(pipe)

    def counting(x: Tensor, t, cond) -> Tensor:
        backwards = cond.text.requires_grad and torch.is_grad_enabled()
        count.rows += len(x) * (3 if backwards else 1)
        return pipe.eps(x, t, cond)

    copy.eps = counting
    return copy, count
