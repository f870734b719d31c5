"""Is nothing forgotten, where something was?"""

import numpy as np

import minidiff
from minidiff.data import shapes
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.guidance.attend_and_excite import attend_and_excite
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, share

REGIME = dict(steps=10, scale=3.0)  # with the UNet and 50 steps hardly a pair fails


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Two-object prompts that training never saw, with and without, same seeds: 10 steps of the
    tiny transformer.
    """
    pipe = minidiff.load("tiny-dit") if pipe.name == "tiny" else pipe
    rng = np.random.default_rng(seed)
    scenes = [shapes.scene(rng, objects=2, split="test") for _ in range(n)]
    prompts = [shapes.short_caption(s) for s in scenes]
    words = [tuple(word for o in s.objects for word in (o.color, o.shape)) for s in scenes]
    run = dict(seed=seed, **REGIME)
    judge = oracle()
    plain = judge.judge(pipe.generate(prompts, **run), scenes, SHORT)
    ours = judge.judge(attend_and_excite(pipe, prompts, words, **run | knobs), scenes, SHORT)
    for name, verdicts in (("plain", plain), ("excited", ours)):
        named = [what for what in verdicts if what not in ("size", "texture")]
        print(f"    {name:8}", "  ".join(f"{what} {share(verdicts[what]):.2f}" for what in named))
    lost = share(plain["joint"] & ~ours["joint"])
    return [
        Row(
            "all that is said is there: gain over plain sampling",
            share(ours["joint"]) - share(plain["joint"]),
            0.05,
            share(plain["joint"]),
        ),
        Row("pictures that were right and stay so, of all", 1 - lost, 0.95),
    ]
