"""Does a tuned network return the picture under guidance, edit it as null-text does, and stay what
it was elsewhere?
"""

from time import process_time

import numpy as np

from minidiff.bench.items import items
from minidiff.bench.scores import grade
from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.inversion.ddim import Inverted, invert, replay
from minidiff.inversion.null_text import learn_nulls
from minidiff.inversion.pivotal_tuning import tune
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw
from minidiff.train.finetune import READS_TEXT, tuned

STEPS, SCALE = 25, 3.0


def prove(pipe: Pipe, n: int, seed: int, split: str = "test", **knobs) -> list[Row]:
    """Recolour rendered pictures by prompt-to-prompt: pivotal tuning against null-text inversion,
    guidance 3, 25 steps.
    """
    its, others = items(split, max(n // 6, 1), ("recolour",), seed), draw(n, seed)
    told = [shapes.short_caption(s) for s in others]

    def right():
        drawn = pipe.generate(told, steps=STEPS, scale=SCALE, seed=seed)
        return oracle().judge(drawn, others, SHORT)["joint"].float().mean().item()

    found = {
        k: []
        for k in (
            "plain",
            "ours",
            "null",
            "ours edit",
            "null edit",
            "held",
            "free",
            "ours s",
            "null s",
        )
    }
    for k, it in enumerate(its):
        states, copy = (
            invert(pipe, it.image, it.source, steps=STEPS),
            pipe.decode(pipe.encode(it.image)),
        )

        def back():
            return psnr(replay(pipe, states[-1], it.source, steps=STEPS, scale=SCALE), copy).item()  # noqa: B023

        def edited(inverted):
            out = prompt_to_prompt(
                pipe,
                it.source,  # noqa: B023
                it.target,  # noqa: B023
                inverted=inverted,
                steps=STEPS,
                scale=SCALE,
            )
            rows = grade(out[1:], [it], pipe.decode(pipe.encode(it.answer)))  # noqa: B023
            return rows[0]["score"], psnr(out[:1], copy).item()  # noqa: B023

        found["plain"].append(back())
        for name, locality in (("held", knobs.get("locality", 0.1)), ("free", 0.0)):
            with tuned(pipe.net, READS_TEXT) as weights:
                start = process_time()
                tune(
                    pipe,
                    weights,
                    states,
                    it.source,
                    scale=SCALE,
                    seed=seed + k,
                    **knobs | {"locality": locality},
                )
                if name == "held":
                    found["ours s"].append(process_time() - start)
                    found["ours"].append(back())
                    found["ours edit"].append(edited(Inverted(states))[0])
                if k < 2:
                    found[name].append(right())
        start = process_time()
        nulls = learn_nulls(pipe, states, it.source, scale=SCALE)
        found["null s"].append(process_time() - start)
        score, db = edited(nulls)
        found["null edit"].append(score)
        found["null"].append(db)
    f, whole = {k: float(np.mean(v)) for k, v in found.items()}, max(right(), 0.01)
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
