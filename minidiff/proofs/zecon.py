"""Another style, the same content?"""

import torch
from torch import Tensor

from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.editing.zecon import zecon
from minidiff.evaluate.oracle import oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, averaged, draw, gained

CONTENT = ("count", "shape", "color", "size", "position")
STYLES = (1.0, 2.0, 3.0)  # of the run without the contrast
STRENGTHS = (0.6, 0.7, 0.8, 0.9)  # of SDEdit


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Plain white grounds to striped ones, against the same without the contrast, and against
    SDEdit at equal success.
    """
    scenes = [
        shapes.edit(shapes.edit(s, "background", "white"), "texture", "plain")
        for s in draw(n, seed)
    ]
    truth = [shapes.edit(s, "texture", "striped") for s in scenes]
    image = shapes.render(scenes)
    source = [shapes.caption(s, size=False, position=False) for s in scenes]
    target = [shapes.caption(s, size=False, position=False) for s in truth]
    style, kept = _score(zecon(pipe, image, source, target, seed=seed), truth)

    bare = []
    for k in STYLES:
        no_contrast = dict(style=k, content=0.0, mse=0.0)
        out = zecon(pipe, image, source, target, seed=seed, **no_contrast)
        bare.append(_score(out, truth))
    noised = []
    for k in STRENGTHS:
        out = sdedit(pipe, image, target, strength=k, steps=25, seed=seed)
        noised.append(_score(out, truth))

    def nearest(runs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The run of most equal success."""
        return min(runs, key=lambda run: abs(run[0].mean() - style.mean()).item())

    _, bare_kept = nearest(bare)
    noised_style, noised_kept = nearest(noised)
    return [
        averaged("the new style is read", style, 0.6, noised_style.mean()),
        averaged("content kept (count, shape, colour, size, place)", kept, 0.9, noised_kept.mean()),
        gained("content kept: gain over no contrast, at equal success", kept, bare_kept),
        gained("content kept: gain over SDEdit, at equal success", kept, noised_kept),
    ]


def _score(images: Tensor, truth: list[shapes.Scene]) -> tuple[Tensor, Tensor]:
    """Of each picture: has it the new texture, share of its content attributes that are right."""
    right = oracle().judge(images.cpu(), truth)
    content = torch.stack([right[what].float() for what in CONTENT]).mean(0)
    return right["texture"].float(), content
