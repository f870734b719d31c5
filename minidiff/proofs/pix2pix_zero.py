"""Is there a direction, does the pull hold the structure, and is the noise white?"""

import numpy as np
import torch
import torch.nn.functional as F

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.core.denoise import noise
from minidiff.data import shapes
from minidiff.editing.pix2pix_zero import direction, invert_white, pair_loss, phrases, pix2pix_zero
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row

STEPS = 20


def sentences(item: Item, rng: np.random.Generator, n: int = 60) -> tuple[list[str], list[str]]:
    """n captions of other scenes with the word that changes in the same place, and the same with
    the other word.
    """
    old, new = item.words
    before, place = [], item.source.split().index(old)
    while len(before) < n:
        text = shapes.short_caption(
            shapes.scene(rng, objects=len(item.scene.objects), split="train")
        )
        if text.split()[place] == old and new not in text.split():
            before.append(text)
    return before, [" ".join(new if w == old else w for w in t.split()) for t in before]


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Recolour and reshape of given pictures, 20 steps: directions, the pull, and the noise."""
    its, rng = (
        items("test", max(min(n // 2, 3), 1), ("recolour", "reshape"), seed=seed),
        np.random.default_rng(seed),
    )
    said = [sentences(i, rng) for i in its]
    exact = [(pipe.embed(i.target).text - pipe.embed(i.source).text).flatten() for i in its]
    dirs = [direction(pipe, *s).flatten() for s in said]
    short = [direction(pipe, *phrases(i.source, i.target)).flatten() for i in its]

    def cosine(a, b):
        return float(np.mean([F.cosine_similarity(x, y, 0).item() for x, y in zip(a, b)]))

    image, truth = (torch.cat([getattr(i, k) for i in its]) for k in ("image", "answer"))
    ceiling, source, target = (
        pipe.decode(pipe.encode(truth)),
        [i.source for i in its],
        [i.target for i in its],
    )

    run, found = dict(hold=0.1, steps=STEPS) | knobs, {}
    for name, out in (
        ("no pull", pix2pix_zero(pipe, image, source, target, **run | {"hold": 0.0})),
        ("pull", pix2pix_zero(pipe, image, source, target, **run)),
        (
            "other captions",
            torch.cat(
                [
                    pix2pix_zero(pipe, i.image, i.source, "", before=b, after=a, **run)
                    for i, (b, a) in zip(its, said)
                ]
            ),
        ),
    ):
        found[name] = {
            k: float(np.mean([r[k] for r in grade(out, its, ceiling)]))
            for k in ("T", "K", "D", "score")
        }
        print(
            f"    {name:14} done {found[name]['T']:.2f}  kept {found[name]['K']:.2f}  structure "
            "distance "
            f"{1e3 * found[name]['D']:.2f}  EditScore {found[name]['score']:.2f}"
        )
    free, held, other = found.values()
    pair = {
        w: pair_loss(invert_white(pipe, image, source, steps=STEPS, whiten=w)[-1]).mean().item()
        for w in (0.0, 20.0)
    }
    white = pair_loss(noise((256, *pipe.shape), seed)).mean().item()
    return [
        Row(
            "cosine of a direction from other captions with that of the picture's own",
            cosine(dirs, exact),
            0.5,
            cosine(dirs[1:] + dirs[:1], exact),
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
            white / pair[20.0],
            0.5,
            white / pair[0.0],
        ),
    ]
