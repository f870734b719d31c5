"""The whole idea in one figure: one scene, generated
and edited three ways, each above its true answer.

The toy world is procedural, so the picture an edit should have given can be rendered. The edits
start from the true picture of the scene, not from the model's drawing of it, and each is told what
a user would tell it: in words. (The inversion gets the whole caption: what it leaves out, size,
place or texture, would drift.)
"""

import time
from pathlib import Path

import torch

import minidiff
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene
from minidiff.editing.real_pictures import direct_inversion
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import psnr
from minidiff.inversion.ddim import invert, replay
from minidiff.io import check_target, grid

SCENE = Scene(
    (Obj("ring", "orange", "large", 0.0, 1.0, 0.05),), "center", "green", "striped", (3.0, 5.0)
)
EDITS = {
    "SDEdit": ("color", "blue"),
    "inversion + re-prompt": ("background", "yellow"),
    "prompt-to-prompt": ("shape", "square"),
}


def demo(
    out: str | Path = "out/demo.png",
    seed: int = 1,
    steps: int = 50,
    pipe=None,
    progress: bool = False,
) -> dict:
    """Draw the figure at `out`; returns {"figure", "seconds",
    PSNR in dB of every picture to the true answer}.

    About a minute on two cores with the shipped model `tiny`. Errors: those of `minidiff.load` and
    `minidiff.io.grid`.
    """
    check_target(out)
    start = time.perf_counter()
    pipe = pipe or minidiff.load("tiny")
    source = shapes.short_caption(SCENE)
    whole = shapes.caption(SCENE)
    image = shapes.render(SCENE)
    truths = [SCENE] + [shapes.edit(SCENE, what, value) for what, value in EDITS.values()]
    words = (shapes.caption, shapes.short_caption, shapes.caption, shapes.short_caption)
    prompts = [say(s) for say, s in zip(words, truths)]
    kw = {"steps": steps, "progress": progress}
    pictures = (
        torch.cat(
            [
                pipe.generate(prompts[0], seed=seed, **kw),
                sdedit(pipe, image, prompts[1], strength=0.7, seed=seed, **kw),
                replay(
                    pipe, invert(pipe, image, whole, **kw)[-1], prompts[2], scale=pipe.scale, **kw
                ),
                direct_inversion(pipe, image, source, prompts[3], cross=0.6, self_=0.2, **kw),
            ]
        )
        .float()
        .cpu()
    )
    right = shapes.render(truths)
    scores = [round(v, 2) for v in psnr(pictures, right).tolist()]
    names = ["generated", *EDITS]
    above = [f"{n}: {p}" for n, p in zip(names, prompts)]
    below = ["the scene, which all edits start from"] + [
        f"true answer (PSNR {v:.1f} dB)" for v in scores[1:]
    ]
    grid([*pictures, *right], above + below, len(names), out)
    return {"figure": str(out), "seconds": round(time.perf_counter() - start, 1)} | dict(
        zip(names, scores)
    )
