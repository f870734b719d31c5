"""The contact sheet of every editing page: source, true answer, and the method at each setting of
its own knob.

    python tutorials/sheets.py [NAME ...]  # -> tutorials/figures/sheets/NAME.png

Scenes are those of the bench's dev split. The number under a picture is its likeness to the true
answer in dB. Beside the sheet of a technique that edits a given picture goes a triptych for the
gallery, figures/triptychs/NAME.png: the first scene, its true answer, and the picture of that row
which is nearest to it.
"""

import inspect
import sys
from pathlib import Path

import torch

import minidiff
from minidiff.bench.items import given, items
from minidiff.evaluate.metrics import psnr
from minidiff.io import grid, write_image
from minidiff.techniques import TECHNIQUES

HERE = Path(__file__).parent / "figures"


def edits(fn) -> bool:
    """Does it always change a given picture? Else its pictures have no source to stand beside."""
    image = inspect.signature(fn).parameters.get("image")
    return image is not None and image.default is inspect.Parameter.empty


def draw(name: str, pipe) -> Path:
    sheet = TECHNIQUES[name].sheet
    fn = TECHNIQUES[name].load()
    pictures, titles = [], []
    first = []  # (likeness, picture) of the first scene's row
    scenes = items("dev", sheet.rows, (sheet.kind,), seed=7)
    for item in scenes:
        pictures += [item.image[0], item.answer[0]]
        titles += [item.source, item.target]
        for value in sheet.values:
            out = fn(pipe, **given(fn, item) | sheet.fixed | {sheet.knob: value})[-1].cpu()
            likeness = psnr(out[None], item.answer).item()
            pictures.append(out)
            titles.append(f"{sheet.knob.strip('_')} {value}: {likeness:.1f} dB")
            if item is scenes[0]:
                first.append((likeness, out))
    if edits(fn):
        _, nearest = max(first, key=lambda pair: pair[0])
        triptych = torch.cat([scenes[0].image[0], scenes[0].answer[0], nearest], dim=-1)
        write_image(triptych[None], HERE / f"triptychs/{name}.png")
    return grid(pictures, titles, 2 + len(sheet.values), HERE / f"sheets/{name}.png", side=140)


def main() -> None:
    pipes = {}
    drawn = [name for name, technique in TECHNIQUES.items() if technique.sheet]
    for name in sys.argv[1:] or drawn:
        model = TECHNIQUES[name].sheet.model
        pipes.setdefault(model, minidiff.load(model))
        print(draw(name, pipes[model]))


if __name__ == "__main__":
    main()
