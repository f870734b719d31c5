"""Can it move and reshape a thing that stays the same thing?"""

from functools import partial

from minidiff.bench.items import items
from minidiff.editing.masactrl import masactrl
from minidiff.editing.plug_and_play import plug_and_play
from minidiff.evaluate.metrics import psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, gained, item_scores, together

N = 16  # of each of two kinds


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
        its = items("test", n, (kind,), seed=seed)
        asked = together(its)
        ceiling = pipe.decode(pipe.encode(asked.answer))
        found = {}
        for name, edit in methods.items():
            out = edit(pipe, asked.image, asked.source, asked.target, steps=25)
            scores = item_scores(out, its, ceiling)
            scores["truth"] = psnr(out, asked.answer).numpy()
            shown = [
                f"{what} {scores[what].mean():.2f}"
                for what in ("T", "K", "B", "C", "score", "truth")
            ]
            print(f"    {kind:8} {name:14}", "  ".join(shown))
            found[name] = scores
        ours = found["ours"]
        base = found["replay"]
        rows += [
            gained(
                f"{kind}: done, gain over plug-and-play", ours["T"], found["plug-and-play"]["T"]
            ),
            averaged(f"{kind}: what should stay has stayed", ours["K"], 0.9, base["K"].mean()),
            gained(
                f"{kind}: likeness to the true answer, gain over the replay, dB",
                ours["truth"],
                base["truth"],
            ),
        ]
    return rows
