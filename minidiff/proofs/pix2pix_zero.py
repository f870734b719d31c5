"""Is there a direction, does the pull hold the structure, and is the noise white?"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.core.denoise import noise
from minidiff.data import shapes
from minidiff.editing.pix2pix_zero import direction, invert_white, pair_loss, phrases, pix2pix_zero
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, mean_scores, together

STEPS = 20


def sentences(item: Item, rng: np.random.Generator, n: int = 60) -> tuple[list[str], list[str]]:
    """n captions of other scenes with the word that changes in the same place, and the same with
    the other word.
    """
    old, new = item.words
    place = item.source.split().index(old)
    number = len(item.scene.objects)
    before = []
    while len(before) < n:
        text = shapes.short_caption(shapes.scene(rng, objects=number, split="train"))
        words = text.split()
        if words[place] == old and new not in words:
            before.append(text)
    after = [" ".join(new if w == old else w for w in text.split()) for text in before]
    return before, after


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Recolour and reshape of given pictures, 20 steps: directions, the pull, and the noise."""
    rng = np.random.default_rng(seed)
    its = items("test", max(min(n // 2, 3), 1), ("recolour", "reshape"), seed=seed)
    captions = [sentences(item, rng) for item in its]

    # the directions
    exact = []
    learned = []
    short = []
    for item, (before, after) in zip(its, captions):
        exact.append((pipe.embed(item.target).text - pipe.embed(item.source).text).flatten())
        learned.append(direction(pipe, before, after).flatten())
        short.append(direction(pipe, *phrases(item.source, item.target)).flatten())

    def cosine(a: list[Tensor], b: list[Tensor]) -> float:
        return float(np.mean([F.cosine_similarity(x, y, 0).item() for x, y in zip(a, b)]))

    # the pull
    asked = together(its)
    ceiling = pipe.decode(pipe.encode(asked.answer))
    run = dict(hold=0.1 * STEPS, steps=STEPS) | knobs
    words = (asked.source, asked.target)
    edits = {
        "no pull": pix2pix_zero(pipe, asked.image, *words, **run | {"hold": 0.0}),
        "pull": pix2pix_zero(pipe, asked.image, *words, **run),
    }
    parts = []
    for item, (before, after) in zip(its, captions):
        parts.append(
            pix2pix_zero(pipe, item.image, item.source, "", before=before, after=after, **run)
        )
    edits["other captions"] = torch.cat(parts)
    scores = {name: mean_scores(out, its, ceiling) for name, out in edits.items()}
    for name, s in scores.items():
        print(
            f"    {name:14} done {s['T']:.2f}  kept {s['K']:.2f}  "
            f"structure distance {1e3 * s['D']:.2f}  EditScore {s['score']:.2f}"
        )
    free = scores["no pull"]
    held = scores["pull"]
    other = scores["other captions"]

    # the noise
    def noise_likeness(whiten: float) -> float:
        x_T = invert_white(pipe, asked.image, asked.source, steps=STEPS, whiten=whiten)[-1]
        return pair_loss(x_T).mean().item()

    white = pair_loss(noise((256, *pipe.shape), seed)).mean().item()
    return [
        Row(
            "cosine of a direction from other captions with that of the picture's own",
            cosine(learned, exact),
            0.5,
            cosine(learned[1:] + learned[:1], exact),
        ),
        Row("the same for the phrases of the prompts alone", cosine(short, exact), 0.5),
        Row("structure distance to the source, saved by the pull", 1 - held["D"] / free["D"], 0.25),
        Row("at the same share of edits done: difference", held["T"] - free["T"], 0, free["T"]),
        Row(
            "edits done by directions from 60 captions of other scenes, with the pull",
            other["T"],
            0.7,
            held["T"],
        ),
        Row(
            "whitened inversion: white noise's self-likeness, of that of the noise found",
            white / noise_likeness(20.0),
            0.5,
            white / noise_likeness(0.0),
        ),
    ]
