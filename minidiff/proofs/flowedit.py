"""Is the direct walk shorter than the way through noise, at no loss of edit?"""

from minidiff.bench.items import KINDS, items
from minidiff.editing.ddib import ddib
from minidiff.editing.flowedit import flowedit
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.diffedit import mean_score, parts
from minidiff.proofs.prove import Row


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Every kind of edit, against DDIB's way through noise and edit-friendly inversion."""
    each = max(n // len(KINDS), 1)
    its = items("test", each, KINDS, seed=seed)
    image, answer, _, source, target = parts(its)
    copy = pipe.decode(pipe.encode(image))
    ceiling = pipe.decode(pipe.encode(answer))
    ours = flowedit(pipe, image, source, target, seed=seed)
    through_noise = ddib(pipe, image, source, target, steps=50, scale=3.0)
    rival = edit_friendly(pipe, image, source, target, seed=seed)
    same = flowedit(pipe, image, source, source, source_scale=3.5, seed=seed)

    def moved(out):
        return (out - copy).square().mean().sqrt().item()

    edits = {"ours": ours, "ddib": through_noise, "rival": rival}
    hit = {name: mean_score(out, its, ceiling, "T") for name, out in edits.items()}
    score = {name: mean_score(out, its, ceiling) for name, out in edits.items()}
    return [
        Row(
            "equal prompts and scales: minus the largest difference from the copy",
            -(same - copy).abs().max().item(),
            -1e-3,
        ),
        Row("the edit is there (T)", hit["ours"], 0.8, hit["ddib"]),
        Row(
            "rms distance to the picture: shorter than DDIB's, by a factor of",
            moved(through_noise) / moved(ours),
            1.0,
        ),
        Row("EditScore", score["ours"], 0.55, score["ddib"]),
        Row(
            "EditScore: gain over edit-friendly inversion",
            score["ours"] - score["rival"],
            0.0,
            score["rival"],
        ),
    ]
