"""The contact sheet of every editing page: source, true answer, and the method at each setting of
its own knob.

    python tutorials/sheets.py [NAME ...]  # -> tutorials/figures/sheets/NAME.png

Scenes are those of the bench's dev split. The number under a picture is its likeness to the true
answer in dB.
"""

import sys
from pathlib import Path

import minidiff
from minidiff.bench.items import given, items
from minidiff.evaluate.metrics import psnr
from minidiff.io import grid
from minidiff.techniques import TECHNIQUES

HERE = Path(__file__).parent / "figures/sheets"


def draw(name: str, pipe) -> Path:
    sheet = TECHNIQUES[name].sheet
    fn = TECHNIQUES[name].load()
    pictures, titles = [], []
    for item in items("dev", sheet.rows, (sheet.kind,), seed=7):
        pictures += [item.image[0], item.answer[0]]
        titles += [item.source, item.target]
        for value in sheet.values:
            out = fn(pipe, **given(fn, item) | sheet.fixed | {sheet.knob: value})[-1].cpu()
            pictures.append(out)
            titles.append(
                f"{sheet.knob.strip('_')} {value}: {psnr(out[None], item.answer).item():.1f} dB"
            )
    return grid(pictures, titles, 2 + len(sheet.values), HERE / f"{name}.png", side=140)


def main() -> None:
    pipes = {}
    drawn = [name for name, technique in TECHNIQUES.items() if technique.sheet]
    for name in sys.argv[1:] or drawn:
        model = TECHNIQUES[name].sheet.model
        pipes.setdefault(model, minidiff.load(model))
        print(draw(name, pipes[model]))


if __name__ == "__main__":
    main()
