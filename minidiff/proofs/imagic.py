"""Does the walk change structure, and is eta found without looking at the answer?"""

from time import process_time

import numpy as np

from minidiff.bench.items import items
from minidiff.bench.scores import grade
from minidiff.editing.imagic import ETAS, choose_eta, learned, said_and_moved
from minidiff.inversion.ddim import invert, replay
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row
from minidiff.weights.store import load_clip


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Edits of structure (reshape, move) of rendered pictures: auto-eta against the best eta and
    against DDIM inversion.
    """
    its, clip = items(split, max(n // 12, 1), ("reshape", "move"), seed), load_clip()
    ours, best, base, fell, seconds = [], [], [], [], []
    for k, it in enumerate(its):
        copy, words = (
            pipe.decode(pipe.encode(it.answer)),
            clip.embed_text(pipe.tokenizer(it.target)),
        )

        def score(x, it=it, copy=copy):
            return [r["score"] for r in grade(x, [it] * len(x), copy.expand_as(x))]

        start = process_time()
        with learned(pipe, it.image, it.target, seed=seed + k, **knobs) as walk:
            eta, _ = choose_eta(lambda etas: said_and_moved(clip, walk(etas), it.image, words))  # noqa: B023
            chosen = walk([eta])
            seconds.append(process_time() - start)
            ours += score(chosen)
            best.append(max(score(walk(ETAS)) + ours[-1:]))
        a = walk.losses[0]
        fell.append(1 - np.mean(a[-10:]) / np.mean(a[:5]))
        base += score(
            replay(
                pipe,
                invert(pipe, it.image, it.source, steps=25)[-1],
                it.target,
                steps=25,
                scale=3.0,
            )
        )
    ours, best, base = (float(np.mean(v)) for v in (ours, best, base))
    return [
        Row(
            "EditScore on reshape and move, over DDIM inversion with the target prompt",
            ours - base,
            0,
            base,
        ),
        Row(
            "auto eta: share of the EditScore at the best eta (by the answer)",
            ours / max(best, 1e-9),
            0.9,
            best,
        ),
        Row(
            "stage A: its loss falls, % (published: 500 updates; here 60)",
            100 * float(np.mean(fell)),
            30,
        ),
        Row(
            "seconds left of a minute an edit (processor; published: 8 minutes)",
            60 - float(np.mean(seconds)),
            0,
        ),
    ]
