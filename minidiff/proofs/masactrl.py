"""Can it move and reshape a thing that stays the same thing?"""

from functools import partial

from minidiff.bench.items import items
from minidiff.editing.masactrl import masactrl
from minidiff.editing.plug_and_play import plug_and_play
from minidiff.evaluate.metrics import psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, mean_scores, together


def prove(pipe: Pipe, n: int, seed: int, **knobs) -> list[Row]:
    """Move and reshape of given pictures, 25 steps, against the same inverted noise replayed and
    against plug-and-play.
    """
    methods = {
        "ours": partial(masactrl, **knobs),
        "replay": partial(masactrl, start=1.0),
        "plug-and-play": plug_and_play,
    }
    rows = []
    for kind in ("move", "reshape"):
        its = items("test", max(min(n, 8), 1), (kind,), seed=seed)
        asked = together(its)
        ceiling = pipe.decode(pipe.encode(asked.answer))
        found = {}
        for name, edit in methods.items():
            out = edit(pipe, asked.image, asked.source, asked.target, steps=25)
            scores = mean_scores(out, its, ceiling)
            scores["truth"] = psnr(out, asked.answer).mean().item()
            shown = [
                f"{what} {scores[what]:.2f}" for what in ("T", "K", "B", "C", "score", "truth")
            ]
            print(f"    {kind:8} {name:14}", "  ".join(shown))
            found[name] = scores
        ours = found["ours"]
        base = found["replay"]
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
