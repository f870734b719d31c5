"""Is the direct walk shorter than the way through noise, at no loss of edit?"""

from torch import Tensor

from minidiff.bench.items import KINDS, items
from minidiff.editing.ddib import ddib
from minidiff.editing.flowedit import flowedit
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, mean_scores, together


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Every kind of edit, against DDIB's way through noise and edit-friendly inversion."""
    each = max(n // len(KINDS), 1)
    its = items("test", each, KINDS, seed=seed)
    asked = together(its)
    words = (asked.source, asked.target)
    copy = pipe.decode(pipe.encode(asked.image))
    ceiling = pipe.decode(pipe.encode(asked.answer))
    direct = flowedit(pipe, asked.image, *words, seed=seed)
    through_noise = ddib(pipe, asked.image, *words, steps=50, scale=3.0)
    rival_edits = edit_friendly(pipe, asked.image, *words, seed=seed)
    same = flowedit(pipe, asked.image, asked.source, asked.source, source_scale=3.5, seed=seed)

    def moved(edits: Tensor) -> float:
        return (edits - copy).square().mean().sqrt().item()

    ours = mean_scores(direct, its, ceiling)
    ddibs = mean_scores(through_noise, its, ceiling)
    rival = mean_scores(rival_edits, its, ceiling)
    return [
        Row(
            "equal prompts and scales: minus the largest difference from the copy",
            -(same - copy).abs().max().item(),
            -1e-3,
        ),
        Row("the edit is there (T)", ours["T"], 0.8, ddibs["T"]),
        Row(
            "rms distance to the picture: shorter than DDIB's, by a factor of",
            moved(through_noise) / moved(direct),
            1.0,
        ),
        Row("EditScore", ours["score"], 0.55, ddibs["score"]),
        Row(
            "EditScore: gain over edit-friendly inversion",
            ours["score"] - rival["score"],
            0.0,
            rival["score"],
        ),
    ]
