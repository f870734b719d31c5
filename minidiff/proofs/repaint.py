"""Does what is painted into a hole continue what is around it, and what does that cost?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data import shapes
from minidiff.data.shapes import Scene
from minidiff.evaluate.oracle import NAME, oracle
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row, counted, draw, gained
from minidiff.restoration.jumps import evaluations, jumps
from minidiff.restoration.repaint import repaint

PAPER = evaluations(jumps(list(range(250, -1, -1)), 10, 10))
OURS = dict(steps=25, length=5, repeats=2)


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """Half of an object is gone, and nothing told unless said: seam and completion against
    evaluations.
    """
    scenes = draw(n, seed)
    image = shapes.render(scenes)
    mask = half_holes(scenes)
    prompts = [shapes.short_caption(s) for s in scenes]

    def fill(prompt="", **knobs) -> Tensor:
        return repaint(pipe, image, prompt, mask=mask, seed=seed, **knobs).cpu()

    runs = {
        "once": fill(steps=25, length=5, repeats=1),
        "thrice": fill(steps=25, length=5, repeats=3),
        "ours": fill(**OURS),
        "told": fill(prompts, **OURS),
        "long": fill(steps=50, length=10, repeats=10),
    }
    edge = {name: seam(x, image, mask) for name, x in runs.items()}
    right = {name: completed(x, scenes) for name, x in runs.items()}
    ts = list(range(OURS["steps"], -1, -1))
    cost = evaluations(jumps(ts, OURS["length"], OURS["repeats"]))
    rows = [
        Row(
            "the paper's resampling, 3 against 1: seam energy falls by (share)",
            1 - edge["thrice"] / edge["once"],
            0.0,
            source="paper",
        ),
        gained("the same: objects completed, gain", right["thrice"], right["once"]),
    ]
    for name, said in (("ours", "45 evaluations"), ("told", "the same, told the caption")):
        rows += [
            gained(
                f"{said}, less 410 of the paper's told nothing: objects completed",
                right[name],
                right["long"],
                -0.05,
                source="aim",
            ),
            Row(
                f"{said}: seam energy, 410 evaluations over ours",
                edge["long"] / edge[name],
                1.0,
                edge["long"] / edge["once"],
            ),
        ]
    rows.append(
        Row(
            "evaluations of the paper's way (250, 10, 10) over ours",
            PAPER / cost,
            10.0,
        )
    )
    return counted(rows, n)


def half_holes(scenes: list[Scene], side: int = 64) -> Tensor:
    """(b 1 side side): 1 over the right half of the object's box and two pixels around it."""
    out = []
    for present in shapes.object_masks(scenes)[:, 0] > 0.3:
        rows = present.any(1).nonzero().flatten()
        columns = present.any(0).nonzero().flatten()
        top = max(rows[0] - 2, 0)
        middle = (columns[0] + columns[-1] + 1) // 2
        hole = torch.zeros(1, 64, 64)
        hole[:, top : rows[-1] + 3, middle : columns[-1] + 3] = 1
        out.append(hole)
    return F.max_pool2d(torch.stack(out), 64 // side)


def seam(x: Tensor, image: Tensor, mask: Tensor) -> float:
    """Seam energy: mean squared error of the differences between neighbours of which one lies in
    the hole, one outside.
    """
    total = count = 0.0
    for dim in (2, 3):
        crossing = (mask.diff(dim=dim) != 0).float()
        total += (crossing * (x - image).diff(dim=dim) ** 2).sum().item()
        count += crossing.sum().item() * x.shape[1]
    return total / count


def completed(x: Tensor, scenes: list[Scene]) -> Tensor:
    """(b,) bool: does the oracle read the true colour and shape, of one object?"""
    if x.shape[-1] != 64:
        x = F.interpolate(x, (64, 64), mode="bicubic").clamp(-1, 1)
    return oracle().judge(x, scenes, NAME)["joint"]
