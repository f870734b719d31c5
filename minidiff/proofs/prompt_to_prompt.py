"""Is only the named thing changed?"""

import numpy as np
import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.evaluate.metrics import masked_psnr
from minidiff.evaluate.oracle import ATTRIBUTES, compare, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, draw, gained, object_region, recoloured

N = 48
BATCH = 12


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Recolouring of the model's own pictures at its own guidance, on captions that leave out
    position, size and texture; against re-sampling with the same noise.
    """
    rng = np.random.default_rng(seed)
    scenes = draw(n, seed)
    edited = [recoloured(s, rng) for s in scenes]
    before = [shapes.short_caption(s) for s in scenes]
    after = [shapes.short_caption(s) for s in edited]
    sources = []
    edits = []
    fresh = []
    for i in range(0, n, BATCH):
        old = before[i : i + BATCH]
        new = after[i : i + BATCH]
        run = dict(seed=seed + i, scale=pipe.scale)
        source, edit = prompt_to_prompt(pipe, old, new, **run, **knobs).chunk(2)
        sources.append(source)
        edits.append(edit)
        fresh.append(pipe.generate(new, **run))
    source = torch.cat(sources)
    keep = torch.stack([1 - object_region(x, s.objects[0].color) for x, s in zip(source, scenes)])
    source_read = oracle().read(source)

    def score(x: Tensor) -> tuple[list[bool], list[float], Tensor]:
        """Of each picture: is it recoloured, share of the other attributes kept, dB to the source
        around it.
        """
        hits = []
        kept = []
        for read, before, s in zip(oracle().read(x), source_read, edited):
            hits.append(compare(read, s)["color"])
            others = [name for name in ATTRIBUTES if name != "color"]
            kept.append(np.mean([_same(read, before, name) for name in others]))
        return hits, kept, masked_psnr(x, source, keep)

    hit, kept, outside = score(torch.cat(edits))
    hit0, kept0, outside0 = score(torch.cat(fresh))
    return [
        averaged("recolour: edited attribute right", hit, 0.9, np.mean(hit0)),
        averaged(
            "recolour: untouched attributes kept (as read in the source)",
            kept,
            0.95,
            np.mean(kept0),
        ),
        gained("the same: gain over re-sampling with the same seed", kept, kept0),
        gained(
            "PSNR outside the object: gain over re-sampling with the same seed, dB",
            outside,
            outside0,
            6,
            source="aim",
        ),
    ]


def _same(a: dict, b: dict, attribute: str) -> bool:
    if attribute in ("position", "background", "texture"):
        return a[attribute] == b[attribute]
    if attribute == "count" or len(a["objects"]) != len(b["objects"]):
        return len(a["objects"]) == len(b["objects"])
    return all(x[attribute] == y[attribute] for x, y in zip(a["objects"], b["objects"]))
