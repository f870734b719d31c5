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
from minidiff.proofs.claims import Row, counted, gained, item_scores, together
from minidiff.proofs.null_text import guided

N = 8
STEPS = 25
ATTENTION = dict(cross=0.5, self_=1.0)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring of given pictures by prompt-to-prompt at the model's own guidance and at 7.5, the
    paper's; 25 steps.

    """
    its = items("test", n, ("recolour",), seed=seed)
    measured = {scale: measure(pipe, its, scale) for scale in (pipe.scale, 7.5)}
    for scale, methods in measured.items():
        print(
            f"  guidance {scale:g}: dB to the picture (source row; edit row, same prompt), "
            "EditScore, evaluations"
        )
        for name, m in methods.items():
            print(
                f"    {name:18} {m['source'].mean():6.2f} {m['same'].mean():6.2f} "
                f"{m['score'].mean():6.2f} "
                f"{m['evaluations']:6.0f}"
            )
    rows = []
    for scale, methods in measured.items():
        learned = methods["null-text"]["source"]
        for name in ("direct", "negative-prompt"):
            rows.append(
                gained(
                    f"guidance {scale:g}: reconstruction of {name}, less null-text's, dB",
                    methods[name]["source"],
                    learned,
                    -0.5,
                    source="paper",
                )
            )

    def score(name: str) -> np.ndarray:
        return np.mean([m[name]["score"] for m in measured.values()], axis=0)

    soft = measured[pipe.scale]
    rows += [
        gained(
            f"EditScore of {name}, less null-text's, both scales",
            score(inversion),
            score("null-text"),
            -0.02,
            source="paper",
        )
        for name, inversion in (("direct", "direct"), ("the closed form", "closed form"))
    ]
    rows += [
        Row(
            "null-text's evaluations for one of direct's",
            soft["null-text"]["evaluations"] / soft["direct"]["evaluations"],
            8,
        ),
    ]
    return counted(rows, n)


def measure(pipe: Pipe, its: list[Item], scale: float) -> dict[str, dict]:
    """Each method: dB to the picture in the source row and in the edit row of identical prompts,
    EditScore (all b), evaluations.
    """
    asked = together(its)
    ceiling = pipe.decode(pipe.encode(asked.answer))
    cond = pipe.embed(asked.source)
    counting, count = counting_pipe(pipe)

    def db(x: Tensor) -> Tensor:
        return psnr(x, asked.image)

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
            score=item_scores(edits, its, ceiling)["score"],
            evaluations=used / len(its),
        )

    knobs = dict(steps=STEPS, scale=scale, source_scale=scale)
    edits = edit_friendly(counting, asked.image, asked.source, asked.target, **knobs)
    used = count.restart()
    same = db(edit_friendly(pipe, asked.image, asked.source, asked.source, **knobs))
    out["edit-friendly"] = dict(
        source=same,
        same=same,
        score=item_scores(edits, its, ceiling)["score"],
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


def counting_pipe(pipe: Pipe) -> tuple[Pipe, Count]:
    """The pipe, and a count of its evaluations; one that will be run backwards counts as three."""
    count = Count()
    copy = replace(pipe)

    def counting(x: Tensor, t, cond) -> Tensor:
        backwards = cond.text.requires_grad and torch.is_grad_enabled()
        count.rows += len(x) * (3 if backwards else 1)
        return pipe.eps(x, t, cond)

    copy.eps = counting
    return copy, count
