"""Does a tuned network return the picture under guidance, edit it as well, and forget nothing?"""

from collections import defaultdict
from time import process_time

import numpy as np
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.inversion.ddim import Inverted, invert, replay
from minidiff.inversion.null_text import learn_nulls
from minidiff.inversion.pivotal_tuning import tune
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, draw, share
from minidiff.train.finetune import READS_TEXT, tuned

STEPS = 25
SCALE = 3.0


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Recolour rendered pictures by prompt-to-prompt: pivotal tuning against null-text inversion,
    guidance 3, 25 steps.
    """
    its = items(split, max(n // 6, 1), ("recolour",), seed)
    others = draw(n, seed)
    prompts = [shapes.short_caption(s) for s in others]

    def unrelated() -> float:
        """Share of other prompts that the network, as it is now, draws right."""
        pictures = pipe.generate(prompts, steps=STEPS, scale=SCALE, seed=seed)
        return share(oracle().judge(pictures, others, SHORT)["joint"])

    measured = defaultdict(list)
    for k, it in enumerate(its):
        states = invert(pipe, it.image, it.source, steps=STEPS)
        copy = pipe.decode(pipe.encode(it.image))
        measured["plain"].append(_returned(pipe, it, states, copy))

        localities = {"held": knobs.get("locality", 0.1), "free": 0.0}
        for name, locality in localities.items():
            options = dict(scale=SCALE, seed=seed + k) | knobs | {"locality": locality}
            with tuned(pipe.net, READS_TEXT) as weights:
                start = process_time()
                tune(pipe, weights, states, it.source, **options)
                if name == "held":
                    measured["ours s"].append(process_time() - start)
                    measured["ours"].append(_returned(pipe, it, states, copy))
                    score, _ = _edited(pipe, it, Inverted(states), copy)
                    measured["ours edit"].append(score)
                if k < 2:
                    measured[name].append(unrelated())

        start = process_time()
        nulls = learn_nulls(pipe, states, it.source, scale=SCALE)
        measured["null s"].append(process_time() - start)
        score, db = _edited(pipe, it, nulls, copy)
        measured["null edit"].append(score)
        measured["null"].append(db)
    f = {name: float(np.mean(values)) for name, values in measured.items()}
    whole = max(unrelated(), 0.01)
    return [
        Row(
            "guided replay, dB to the copy: over null-text inversion's",
            f["ours"] - f["null"],
            0,
            f["null"],
        ),
        Row(
            "guided replay: gain over the untuned network, dB",
            f["ours"] - f["plain"],
            0,
            f["plain"],
        ),
        Row(
            "EditScore: over null-text inversion and prompt-to-prompt",
            f["ours edit"] - f["null edit"],
            -0.03,
            f["null edit"],
        ),
        Row(
            "seconds saved on null-text inversion (processor)",
            f["null s"] - f["ours s"],
            0,
            f["null s"],
        ),
        Row(
            "unrelated prompts right after tuning, share of before", f["held"] / whole, 0.95, whole
        ),
        Row("without locality: share that is lost", 1 - f["free"] / whole, 0.15),
    ]


def _returned(pipe: Pipe, it: Item, states: list[Tensor], copy: Tensor) -> float:
    """dB to the copy of the guided replay by the network as it is now."""
    return psnr(replay(pipe, states[-1], it.source, steps=STEPS, scale=SCALE), copy).item()


def _edited(pipe: Pipe, it: Item, inverted: Inverted, copy: Tensor) -> tuple[float, float]:
    """(EditScore of prompt-to-prompt, dB of its source row to the copy)."""
    knobs = dict(inverted=inverted, steps=STEPS, scale=SCALE)
    pictures = prompt_to_prompt(pipe, it.source, it.target, **knobs)
    ceiling = pipe.decode(pipe.encode(it.answer))
    score = grade(pictures[1:], [it], ceiling)[0]["score"]
    return score, psnr(pictures[:1], copy).item()
