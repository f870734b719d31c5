"""Is the noise that is read off a picture a better start than fresh noise?"""

from torch import Tensor

from minidiff.bench.items import items
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import masked_psnr
from minidiff.inversion.edit_friendly import edit_friendly
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, mean_scores, together
from minidiff.proofs.edict import decimals, partial


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Recolouring and changing the ground, against SDEdit and DDIM inversion at the same strength;
    25 steps, 8 pictures.
    """
    its = items("test", min(n, 4), ("recolour", "background"), seed=seed)
    asked = together(its)
    knobs = dict(strength=0.64, steps=25)
    image = asked.image
    same = edit_friendly(pipe, image, asked.source, asked.source, seed=seed, **knobs)
    error = (same - pipe.decode(pipe.encode(image))).abs().max().item()

    ceiling = pipe.decode(pipe.encode(asked.answer))

    def score(edits: Tensor) -> float:
        return mean_scores(edits, its, ceiling)["score"]

    def outside(edits: Tensor) -> float:
        return masked_psnr(edits, asked.answer, 1 - asked.mask).nanmean().item()

    ours = edit_friendly(pipe, image, asked.source, asked.target, seed=seed, **knobs)
    fresh = sdedit(pipe, image, asked.target, seed=seed, **knobs)
    ode = partial(pipe, image, asked.source, asked.target, **knobs)
    return [
        Row(
            "same prompt, guidance 3 both ways: correct decimals of the picture",
            decimals(error),
            4,
        ),
        Row(
            "EditScore: gain over SDEdit at the same strength",
            score(ours) - score(fresh),
            0,
            score(fresh),
        ),
        Row(
            "outside the edit: gain over SDEdit, dB",
            outside(ours) - outside(fresh),
            3,
            outside(fresh),
        ),
        Row(
            "EditScore: gain over DDIM inversion at the same strength",
            score(ours) - score(ode),
            0,
            score(ode),
        ),
    ]
