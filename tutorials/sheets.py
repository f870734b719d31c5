"""The contact sheet of every editing page: source, true answer, and the method at each setting of
its own knob.

    python tutorials/sheets.py [NAME ...]  # -> tutorials/figures/sheets/NAME.png

Scenes are those of the bench's dev split. The number under a picture is its likeness to the true
answer in dB.
"""

import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import minidiff
from minidiff.bench.items import given, items
from minidiff.io import grid
from minidiff.shipped.autoencoder import psnr
from minidiff.techniques import EDITS

HERE = Path(__file__).parent / "figures/sheets"


@dataclass(frozen=True)
class Sheet:
    """One row per scene of `kind`; `knob` takes the `values`, `fixed` is the same in every
    picture.
    """

    kind: str
    knob: str
    values: tuple
    fixed: dict = field(default_factory=dict)
    rows: int = 3
    model: str = "tiny"


HELD = {"cross": 0.8, "self_": 0.8}
SHEETS = {
    "sdedit": Sheet("recolour", "strength", (0.2, 0.4, 0.6, 0.8, 1.0)),
    "asyrp": Sheet("texture", "strength", (0.0, 0.5, 1.0, 2.0), {"steps": 15}, rows=1),
    "boundary": Sheet(
        "background", "distance", (0.0, 0.5, 1.0, 2.0), {"steps": 20, "mix": 0.4}, rows=2
    ),
    "zecon": Sheet("texture", "style", (0.0, 1.0, 2.0, 3.0, 5.0), rows=2),
    "anagram": Sheet(
        "move",
        "view",
        ("rotate180", "mirror", "flip", "jigsaw"),
        {"other": "a blue circle on a white background", "steps": 25},
        rows=2,
    ),
    "inpaint": Sheet("recolour", "strength", (0.2, 0.4, 0.6, 0.8, 1.0), {"steps": 25}, rows=2),
    "ilvr": Sheet("reshape", "factor", (1, 2, 4, 8, 16), {"steps": 25}, rows=2),
    "classifier-guidance": Sheet(
        "move", "scale", (0.0, 1.0, 3.0, 6.0, 20.0), {"steps": 40}, rows=2
    ),
    "semantic-guidance": Sheet(
        "recolour", "structure", (0.0, 300.0, 1000.0, 3000.0), {"steps": 25}, rows=2
    ),
    "prompt-to-prompt": Sheet("recolour", "self_", (0.0, 0.2, 0.4, 0.6, 0.8), {"cross": 0.4}),
    "null-text": Sheet(
        "recolour", "inner", (0, 1, 3, 10), {"steps": 25, "scale": 7.5} | HELD, rows=2
    ),
    "negative-prompt": Sheet(
        "recolour", "scale", (1.0, 2.0, 3.0, 5.0, 7.5), {"steps": 25} | HELD, rows=2
    ),
    "direct-inversion": Sheet(
        "recolour", "share", (0.0, 0.25, 0.5, 0.75, 1.0), {"steps": 25} | HELD, rows=2
    ),
    "edict": Sheet("recolour", "strength", (0.2, 0.4, 0.6, 0.8, 1.0), {"steps": 25}, rows=2),
    "edit-friendly": Sheet("recolour", "strength", (0.4, 0.5, 0.6, 0.7, 0.8), {"steps": 25}),
    "ddib": Sheet("recolour", "scale", (1.0, 1.5, 2.0, 3.0, 5.0), {"steps": 50}),
    "diffusion-clip": Sheet("recolour", "updates", (0, 10, 20, 30), rows=1),
    "imagic": Sheet(
        "recolour",
        "eta",
        (0.0, 0.5, 0.7, 0.8, 1.0),
        {"text_updates": 40, "net_updates": 40},
        rows=1,
    ),
    "unitune": Sheet("recolour", "updates", (0, 20, 40, 80, 160), rows=1),
    "pivotal-tuning": Sheet("recolour", "updates", (0, 5, 20, 40), rows=1),
    "diffedit": Sheet("reshape", "threshold", (0.2, 0.35, 0.5, 0.65, 0.8), {"steps": 15}, rows=2),
    "magicmix": Sheet(
        "reshape", "nu", (0.4, 0.6, 0.7, 0.8, 1.0), {"kmin": 0.1, "kmax": 0.9, "steps": 20}, rows=2
    ),
    "blended-latent": Sheet("reshape", "grow", (0, 1, 2, 3), {"steps": 20}, rows=2),
    "blended-diffusion": Sheet(
        "recolour", "weight", (0.0, 100.0, 500.0, 2500.0), {"steps": 20, "runs": 1}, rows=2
    ),
    "delta-denoising": Sheet("recolour", "iterations", (10, 25, 50, 100), rows=2),
    "plug-and-play": Sheet(
        "background", "attention", (0.0, 0.25, 0.5, 0.75, 1.0), {"steps": 20}, rows=2
    ),
    "masactrl": Sheet("move", "start", (0.0, 0.1, 0.4, 0.7, 1.0), {"steps": 20}, rows=2),
    "pix2pix-zero": Sheet("recolour", "hold", (0.0, 0.1, 0.3, 1.0, 3.0), {"steps": 20}, rows=2),
    "attend-and-excite": Sheet(
        "add",
        "strength",
        (0.0, 2.0, 5.0, 20.0),
        {"words": None, "steps": 10},
        rows=2,
        model="tiny-dit",
    ),
    "repaint": Sheet("delete", "repeats", (1, 2, 3, 5), rows=2),
}


def draw(name: str, pipe) -> Path:
    sheet = SHEETS[name]
    module, function = EDITS[name].split(":")
    fn = getattr(import_module(module), function)
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
    for name in sys.argv[1:] or SHEETS:
        model = SHEETS[name].model
        pipes.setdefault(model, minidiff.load(model))
        print(draw(name, pipes[model]))


if __name__ == "__main__":
    main()
