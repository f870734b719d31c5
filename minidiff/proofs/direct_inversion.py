"""Is learning needed? Every way to edit a given picture with guidance, side by side."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.editing.real_pictures import edit_each
from minidiff.evaluate.metrics import psnr
from minidiff.inversion.ddim import Inverted, invert
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.inversion.null_text import learn_nulls
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.null_text import guided
from minidiff.proofs.prove import Row

STEPS, ATTENTION = 25, dict(cross=0.5, self_=1.0)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring of given pictures by prompt-to-prompt at guidance 3 and 7.5; 25 steps, at most 4
    pictures.
    """
    its = items("test", min(n, 4), ("recolour",), seed=seed)
    soft, hard = (measure(pipe, its, scale) for scale in (3.0, 7.5))
    for scale, found in ((3.0, soft), (7.5, hard)):
        print(
            f"  guidance {scale:g}: dB to the picture (source row; edit row, same prompt), "
            "EditScore, evaluations"
        )
        for name, f in found.items():
            print(
                f"    {name:18} {f['source']:6.2f} {f['same']:6.2f} {f['score']:6.2f} "
                f"{f['evaluations']:6.0f}"
            )
    rows = [
        Row(
            f"guidance {scale:g}: reconstruction of {name} against null-text's, dB",
            f[name]["source"] - f["null-text"]["source"],
            -0.5,
            f["ddim"]["source"] - f["null-text"]["source"],
        )
        for scale, f in ((3.0, soft), (7.5, hard))
        for name in ("direct", "negative-prompt")
    ]
    return [
        *rows,
        Row(
            "EditScore of direct against null-text's, both scales",
            np.mean([f["direct"]["score"] - f["null-text"]["score"] for f in (soft, hard)]),
            -0.02,
        ),
        Row(
            "EditScore of the closed form against null-text's, both scales",
            np.mean([f["closed form"]["score"] - f["null-text"]["score"] for f in (soft, hard)]),
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
    image, source, target = (
        torch.cat([i.image for i in its]),
        [i.source for i in its],
        [i.target for i in its],
    )
    ceiling, cond = pipe.decode(pipe.encode(torch.cat([i.answer for i in its]))), pipe.embed(source)
    spy, count = counted(pipe)
    states = invert(spy, image, source, steps=STEPS)
    base, count[0] = count[0], 0
    learned = learn_nulls(spy, states, source, scale=scale)
    learning, out = count[0], {}
    db = lambda x: psnr(x, image).mean().item()  # noqa: E731
    for name, found in {
        "ddim": Inverted(states, [pipe.null(len(its))] * STEPS),
        "null-text": learned,
        "negative-prompt": Inverted(states, [cond] * STEPS),
        "direct": Inverted(states, share=0.0),
        "half the share": Inverted(states, share=0.5),
        "closed form": Inverted(states, share=1.0),
    }.items():
        count[0] = 0
        edit = edit_each(spy, found, source, target, steps=STEPS, scale=scale, **ATTENTION)
        used = base + count[0] + (learning if name == "null-text" else 0)
        if found.share is None:  # both rows of identical prompts are the guided replay
            one = two = db(guided(pipe, found, cond, scale))
        else:
            one, two = (
                db(pipe.decode(states[0])),
                db(edit_each(pipe, found, source, source, steps=STEPS, scale=scale, **ATTENTION)),
            )
        out[name] = dict(
            source=one, same=two, score=score(edit, its, ceiling), evaluations=used / len(its)
        )
    count[0] = 0
    edit = edit_friendly(spy, image, source, target, steps=STEPS, scale=scale, source_scale=scale)
    used = count[0] / len(its)
    same = db(
        edit_friendly(pipe, image, source, source, steps=STEPS, scale=scale, source_scale=scale)
    )
    return out | {
        "edit-friendly": dict(
            source=same, same=same, score=score(edit, its, ceiling), evaluations=used
        )
    }


def counted(pipe: Pipe) -> tuple[Pipe, list[int]]:
    """The pipe, and a count of its evaluations; one that will be run backwards counts as three."""
    spy, count, eps = replace(pipe), [0], pipe.eps

    def counting(x: Tensor, t, cond) -> Tensor:
        count[0] += len(x) * (3 if cond.text.requires_grad and torch.is_grad_enabled() else 1)
        return eps(x, t, cond)

    spy.eps = counting
    return spy, count


def score(edits: Tensor, its: list[Item], ceiling: Tensor) -> float:
    """Mean EditScore."""
    return float(np.mean([row["score"] for row in grade(edits, its, ceiling)]))
