"""Does the walk change structure, and is eta found without looking at the answer?"""

from functools import partial
from time import process_time

import numpy as np
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.editing.imagic import ETAS, choose_eta, learned, said_and_moved
from minidiff.inversion.ddim import invert, replay
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, gained
from minidiff.weights.store import load_clip

N = 4  # of each of two kinds


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Edits of structure (reshape, move), n pictures of each: auto-eta against the best eta, and
    against DDIM inversion at the model's own guidance.
    """
    its = items(split, n, ("reshape", "move"), seed)
    clip = load_clip()
    ours = []
    best = []
    base = []
    falls = []
    seconds = []
    for k, it in enumerate(its):
        copy = pipe.decode(pipe.encode(it.answer))
        words = clip.embed_text(pipe.tokenizer(it.target))
        start = process_time()
        with learned(pipe, it.image, it.target, seed=seed + k, **knobs) as walk:
            measure = partial(_measured, clip, walk, it.image, words)
            eta, _ = choose_eta(measure)
            chosen = walk([eta])
            seconds.append(process_time() - start)
            ours += _scores(chosen, it, copy)
            best.append(max([*_scores(walk(ETAS), it, copy), ours[-1]]))
        losses = walk.losses[0]
        falls.append(1 - np.mean(losses[-10:]) / np.mean(losses[:5]))
        noise = invert(pipe, it.image, it.source, steps=25)[-1]
        base += _scores(replay(pipe, noise, it.target, steps=25, scale=pipe.scale), it, copy)
    print(f"    {np.mean(seconds):.0f} s an edit of one core (published: 8 minutes)")
    return [
        gained("EditScore on reshape and move: gain over DDIM inversion", ours, base),
        Row(
            "auto eta: share of the EditScore at the best eta (by the answer)",
            float(np.mean(ours)) / max(float(np.mean(best)), 1e-9),
            0.9,
            float(np.mean(best)),
            n=len(its),
        ),
        averaged("stage A: its loss falls, share (published: 500 updates; here 60)", falls, 0.3),
    ]


def _measured(clip, walk, image: Tensor, words: Tensor, etas):
    """What `choose_eta` looks at: how much is said at each eta, and how far the picture moved."""
    return said_and_moved(clip, walk(etas), image, words)


def _scores(edits: Tensor, item: Item, ceiling: Tensor) -> list[float]:
    """EditScores of several edits of one item."""
    return [r["score"] for r in grade(edits, [item] * len(edits), ceiling.expand_as(edits))]
