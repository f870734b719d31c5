"""Can it move and reshape a thing that stays the same thing?"""

from functools import partial

import numpy as np
import torch

from minidiff.bench.items import items
from minidiff.bench.scores import grade
from minidiff.editing.masactrl import masactrl
from minidiff.editing.plug_and_play import plug_and_play
from minidiff.evaluate.metrics import psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Move and reshape of given pictures, 25 steps, against the same inverted noise replayed and
    against plug-and-play.
    """
    rows, per = [], max(min(n, 8), 1)
    for kind in ("move", "reshape"):
        its = items("test", per, (kind,), seed=seed)
        image, truth = (torch.cat([getattr(i, k) for i in its]) for k in ("image", "answer"))
        ceiling, prompts = (
            pipe.decode(pipe.encode(truth)),
            ([i.source for i in its], [i.target for i in its]),
        )
        found = {}
        for name, fn in {
            "ours": partial(masactrl, **knobs),
            "replay": partial(masactrl, start=1.0),
            "plug-and-play": plug_and_play,
        }.items():
            out = fn(pipe, image, *prompts, steps=25)
            g = grade(out, its, ceiling)
            found[name] = {
                k: float(np.mean([r[k] for r in g])) for k in ("T", "K", "B", "C", "score")
            }
            found[name]["truth"] = psnr(out, truth).mean().item()
            print(
                f"    {kind:8} {name:14}", "  ".join(f"{k} {v:.2f}" for k, v in found[name].items())
            )
        ours, base = found["ours"], found["replay"]
        rows += [
            Row(f"{kind}: done", ours["T"], 0.7, found["plug-and-play"]["T"]),
            Row(f"{kind}: what should stay has stayed", ours["K"], 0.9, base["K"]),
            Row(
                f"{kind}: likeness to the true answer, gain over the replay, dB",
                ours["truth"] - base["truth"],
                1,
                base["truth"],
            ),
        ]
    return rows
