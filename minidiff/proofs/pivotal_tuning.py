"""Does a tuned network return the picture under guidance, edit it as well, and forget nothing?"""

from collections import defaultdict

import numpy as np
from torch import Tensor

from minidiff.bench.items import Item, items
from minidiff.bench.scores import grade
from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.inversion.ddim import Inverted, invert, replay
from minidiff.inversion.pivotal_tuning import tune
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, counted, draw, gained, share
from minidiff.train.finetune import READS_TEXT, tuned

N = 6
STEPS = 25
OTHERS = 24  # unrelated prompts


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Recolour rendered pictures by prompt-to-prompt at the model's own guidance, 25 steps: after
    pivotal tuning, against the network as it was.
    """
    its = items(split, n, ("recolour",), seed)
    others = draw(OTHERS, seed)
    prompts = [shapes.short_caption(s) for s in others]

    def unrelated() -> float:
        """Share of other prompts that the network, as it is now, draws right."""
        pictures = pipe.generate(prompts, steps=STEPS, seed=seed)
        return share(oracle().judge(pictures, others, SHORT)["joint"])

    found = defaultdict(list)
    for k, it in enumerate(its):
        states = invert(pipe, it.image, it.source, steps=STEPS)
        copy = pipe.decode(pipe.encode(it.image))
        found["plain"].append(_returned(pipe, it, states, copy))
        found["plain edit"].append(_edited(pipe, it, Inverted(states)))
        options = dict(scale=pipe.scale, seed=seed + k) | knobs
        with tuned(pipe.net, READS_TEXT) as weights:
            tune(pipe, weights, states, it.source, **options)
            found["ours"].append(_returned(pipe, it, states, copy))
            found["ours edit"].append(_edited(pipe, it, Inverted(states)))
            if k < 2:
                found["unrelated"].append(unrelated())
    whole = max(unrelated(), 0.01)
    rows = [
        gained(
            "guided replay, dB to the copy: gain over the untuned network",
            found["ours"],
            found["plain"],
        ),
        gained(
            "EditScore of prompt-to-prompt, less the untuned network's",
            found["ours edit"],
            found["plain edit"],
            -0.03,
            source="paper",
        ),
        Row(
            "unrelated prompts right after tuning, share of before",
            float(np.mean(found["unrelated"])) / whole,
            0.95,
            whole,
            n=OTHERS,
        ),
    ]
    return counted(rows, n)


def _returned(pipe: Pipe, it: Item, states: list[Tensor], copy: Tensor) -> float:
    """dB to the copy of the guided replay by the network as it is now."""
    back = replay(pipe, states[-1], it.source, steps=STEPS, scale=pipe.scale)
    return psnr(back, copy).item()


def _edited(pipe: Pipe, it: Item, inverted: Inverted) -> float:
    """EditScore of prompt-to-prompt."""
    knobs = dict(inverted=inverted, steps=STEPS, scale=pipe.scale)
    pictures = prompt_to_prompt(pipe, it.source, it.target, **knobs)
    ceiling = pipe.decode(pipe.encode(it.answer))
    return grade(pictures[1:], [it], ceiling)[0]["score"]
