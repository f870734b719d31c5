"""Is the direct walk shorter than the way through noise, at no loss of edit?"""

from torch import Tensor

from minidiff.bench.items import KINDS, items
from minidiff.editing.ddib import ddib
from minidiff.editing.flowedit import flowedit
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, counted, gained, item_scores, together

N = 8  # of each of eight kinds


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """n of every kind of edit, against DDIB's way through noise and edit-friendly inversion."""
    its = items("test", n, KINDS, seed=seed)
    asked = together(its)
    words = (asked.source, asked.target)
    copy = pipe.decode(pipe.encode(asked.image))
    ceiling = pipe.decode(pipe.encode(asked.answer))
    direct = flowedit(pipe, asked.image, *words, seed=seed)
    through_noise = ddib(pipe, asked.image, *words, steps=50, scale=pipe.scale)
    rival_edits = edit_friendly(pipe, asked.image, *words, seed=seed)
    unasked = (asked.source, asked.source)
    same = flowedit(pipe, asked.image, *unasked, source_scale=pipe.scale, seed=seed)

    def moved(edits: Tensor) -> Tensor:
        return (edits - copy).square().mean((1, 2, 3)).sqrt()

    ours = item_scores(direct, its, ceiling)
    ddibs = item_scores(through_noise, its, ceiling)
    rival = item_scores(rival_edits, its, ceiling)
    rows = [
        Row(
            "equal prompts and scales: minus the largest difference from the copy",
            -(same - copy).abs().max().item(),
            -1e-3,
            source="identity",
        ),
        averaged("the edit is there (T)", ours["T"], 0.8, ddibs["T"].mean()),
        gained(
            "rms distance to the picture: saved on DDIB's way through noise",
            -moved(direct),
            -moved(through_noise),
        ),
        gained("EditScore: gain over DDIB", ours["score"], ddibs["score"]),
        gained("EditScore: gain over edit-friendly inversion", ours["score"], rival["score"]),
    ]
    return counted(rows, len(its))
