"""Is only the named thing changed?"""

import numpy as np
import torch

from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.evaluate.metrics import masked_psnr
from minidiff.evaluate.oracle import ATTRIBUTES, compare, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw, object_region, recoloured

BATCH = 12


def prove(pipe: Pipe, n: int, seed: int, *, scale: float = 5.0, **knobs) -> list[Row]:
    """Recolouring of the model's own pictures, on captions that leave out position, size and
    texture.
    """
    rng, scenes, judge = np.random.default_rng(seed), draw(n, seed), oracle()
    edited = [recoloured(s, rng) for s in scenes]
    prompts = [[shapes.short_caption(s) for s in which] for which in (scenes, edited)]
    source, ours, again = [], [], []
    for i in range(0, n, BATCH):
        a, b = (p[i : i + BATCH] for p in prompts)
        pair = prompt_to_prompt(pipe, a, b, seed=seed + i, scale=scale, **knobs).chunk(2)
        source, ours = [*source, pair[0]], [*ours, pair[1]]
        again.append(pipe.generate(b, seed=seed + i, scale=scale))
    source, ours, again = (torch.cat(v) for v in (source, ours, again))
    keep = torch.stack([1 - object_region(x, s.objects[0].color) for x, s in zip(source, scenes)])

    def score(x):
        rows = [
            (compare(r, e), r, r0) for r, e, r0 in zip(judge.read(x), edited, judge.read(source))
        ]
        kept = [np.mean([_same(r, r0, a) for a in ATTRIBUTES if a != "color"]) for _, r, r0 in rows]
        return (
            np.mean([c["color"] for c, _, _ in rows]),
            np.mean(kept),
            masked_psnr(x, source, keep).nanmean().item(),
        )

    (hit, kept, outside), (hit0, kept0, outside0) = score(ours), score(again)
    return [
        Row("recolour: edited attribute right", hit, 0.9, hit0),
        Row("recolour: untouched attributes kept (as read in the source)", kept, 0.95, kept0),
        Row(
            "PSNR outside the object: gain over re-sampling with the same seed, dB",
            outside - outside0,
            6,
            outside0,
        ),
    ]


def _same(a: dict, b: dict, attribute: str) -> bool:
    if attribute in ("position", "background", "texture"):
        return a[attribute] == b[attribute]
    if attribute == "count" or len(a["objects"]) != len(b["objects"]):
        return len(a["objects"]) == len(b["objects"])
    return all(x[attribute] == y[attribute] for x, y in zip(a["objects"], b["objects"]))
