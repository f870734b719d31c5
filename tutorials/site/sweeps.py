"""The playground's pictures: one knob after the other, turned from end to end, by the shipped
model, from fixed seeds.

    python tutorials/site/sweeps.py [NAME ...]  # -> tutorials/site/static/playground/: NAME-0.png, ... and sweeps.json (default: all)

A sweep is a picture for every setting of one knob (or of two), each with its number; the page moves
through them. Of a sweep each scene is one PNG of 64 x 64 cells: a column for each value of the
first knob, a row for each of the second, then maybe a row of companions (what went into the picture
above), and in the last row what to compare with. Numbers are taken from the full pictures; a file
holds 256 colours, so that all of them are half a megabyte. Five minutes on a quiet core. What the
page says about them is in playground.py.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import minidiff
from minidiff.core.process import eps_to_x0, q_sample
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.editing.sdedit import sdedit
from minidiff.evaluate.metrics import psnr
from minidiff.evaluate.oracle import FULL, SHORT, compare, oracle
from minidiff.inversion.ddim import Inverted, invert, replay

HERE = Path(__file__).resolve().parent / "static/playground"
STAR = Scene(
    (Obj("star", "purple", "large", 1.0, -1.0, 0.05),), "center", "white", "dotted", (3.0, 5.0)
)
RING = Scene(
    (Obj("ring", "orange", "medium", -1.0, 1.0, 0.1),), "right", "blue", "striped", (4.0, 0.0)
)
PAIR = Scene(
    (Obj("square", "green", "medium", 0.0, 0.5, 0.08), Obj("circle", "red", "large", -0.5, 0.0)),
    "left",
    "grey",
)
SCENES = (STAR, RING, PAIR)
# of the first object
EDITED = tuple(shapes.edit(s, "color", c) for s, c in zip(SCENES, ("cyan", "green", "pink")))
COLOURS = 256  # of a file
NOISES = 4  # pictures drawn of each prompt


@dataclass
class Sweep:
    """`knobs`: (name, values, the one shown first), one or two; scenes are added. A frame is
    (picture, number for the curve, words under it). `scale`: the guidance of all frames, if the
    page is to name it.
    """

    knobs: list[tuple[str, list[float], float]]
    scenes: list[dict] = field(default_factory=list)
    scale: float | None = None

    def add(
        self,
        name: str,
        frames: list[list[tuple[Tensor, float, str]]],
        refs: list[Tensor],
        companions: list[Tensor] = (),
    ) -> None:
        """One scene: frames[row][column] and the pictures beside them, (3 64 64) each."""
        rows = (
            [[f[0] for f in row] for row in frames] + ([companions] if companions else []) + [refs]
        )
        says = [[{"y": round(y, 2), "says": words} for _, y, words in row] for row in frames]
        self.scenes.append({"name": name, "frames": says, "picture": strip(rows)})


def strip(rows: list[list[Tensor]]) -> Image.Image:
    """Rows of pictures in one of few colours (MAXCOVERAGE keeps the rare ones); short rows are
    filled with white.
    """
    wide = max(len(r) for r in rows)
    cells = [torch.cat([*r, *[torch.ones(3, 64, 64)] * (wide - len(r))], dim=2) for r in rows]
    pixels = (
        ((torch.cat(cells, dim=1).clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    )
    return Image.fromarray(pixels).quantize(
        COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    )


def dB(a: Tensor, b: Tensor) -> float:
    return psnr(a[None], b[None]).item()


def against(picture: Tensor, truth: Scene, target: Tensor) -> tuple[Tensor, float, str]:
    """A frame of a picture whose true answer is known: its likeness, and what the oracle finds
    wrong in it.
    """
    verdict, likeness = compare(oracle().read(picture[None])[0], truth), dB(picture, target)
    wrong = [a for a, right in verdict.items() if not right]
    found = f"wrong: {', '.join(wrong)}" if wrong else f"all {len(verdict)} attributes right"
    return picture, likeness, f"{likeness:.1f} dB to the truth; {found}"


# ---- the sweeps ----------------------------------------------------------------------------------


def noise(pipe) -> Sweep:
    s = Sweep([("t", [100, 300, 500, 600, 700, 800, 900, 1000], 500)])
    ts, n = s.knobs[0][1], pipe.noise(1, seed=0)
    for scene in (STAR, RING):
        truth, cond = shapes.render(scene), pipe.embed(shapes.short_caption(scene))
        x = [q_sample(pipe.schedule, pipe.encode(truth), t, n) for t in ts]
        with torch.no_grad():
            guess = [
                pipe.decode(eps_to_x0(pipe.schedule, x_t, pipe.eps(x_t, t, cond), t))[0]
                for x_t, t in zip(x, ts)
            ]
        s.add(
            shapes.short_caption(scene),
            [[against(g, scene, truth[0]) for g in guess]],
            [truth[0]],
            [pipe.decode(x_t)[0] for x_t in x],
        )
    return s


def drawn(pipe, words, **options) -> list[Tensor]:
    """Pictures of each scene in `words`, from the same noises for every setting: [(NOISES 3 64 64)]
    * 3.
    """
    prompts = [words(s) for s in SCENES for _ in range(NOISES)]
    start = pipe.noise(NOISES, seed=0).repeat(len(SCENES), 1, 1, 1)
    return list(pipe.generate(prompts, noise=start, **options).split(NOISES))


def said(run: list[Tensor], i: int, groups: tuple[str, ...]) -> str:
    """What the oracle finds of the words: in the picture that is shown, and in all that were drawn
    at this setting.
    """
    right = [oracle().judge(x, [s] * NOISES, groups)["joint"] for x, s in zip(run, SCENES)]
    n, total = len(SCENES) * NOISES, sum(int(r.sum()) for r in right)
    return (
        f"{'shows' if right[i][0] else 'does not show'} all that was said; of the {n} pictures "
        "drawn at this setting "
        f"{total} do"
    )


def steps(pipe) -> Sweep:
    s = Sweep([("steps", [1, 2, 3, 5, 10, 20, 50], 3)], scale=pipe.scale)
    values = s.knobs[0][1]
    runs = [drawn(pipe, shapes.caption, steps=n, scale=pipe.scale) for n in values]
    far = pipe.generate(
        [shapes.caption(x) for x in SCENES],
        steps=100,
        scale=pipe.scale,
        noise=pipe.noise(1).repeat(3, 1, 1, 1),
    )
    for i, scene in enumerate(SCENES):
        frames = []
        for run in runs:
            y = dB(run[i][0], far[i])
            frames.append((run[i][0], y, f"{y:.1f} dB to 100 steps; {said(run, i, FULL)}"))
        s.add(shapes.caption(scene), [frames], [far[i], shapes.render(scene)[0]])
    return s


def guidance(pipe) -> Sweep:
    s = Sweep([("scale", [0, 1, 2, 3, 5, 8, 12], 1)])
    runs = [drawn(pipe, shapes.short_caption, steps=20, scale=float(v)) for v in s.knobs[0][1]]
    for i, scene in enumerate(SCENES):
        frames = []
        for run in runs:
            spread = 127.5 * run[i].std(0).mean().item()
            burnt = 100 * (run[i].abs() >= 1).float().mean().item()
            frames.append(
                (
                    run[i][0],
                    spread,
                    f"spread {spread:.0f} of 255, {burnt:.0f}% of values clipped; "
                    f"{said(run, i, SHORT)}",
                )
            )
        s.add(shapes.short_caption(scene), [frames], [shapes.render(scene)[0]])
    return s


def inversion(pipe) -> Sweep:
    s = Sweep([("steps", [5, 10, 20, 35, 50, 100], 10), ("scale of the way down", [1, 5], 1)])
    truth, prompts = shapes.render(SCENES), [shapes.short_caption(x) for x in SCENES]
    copy, made = pipe.decode(pipe.encode(truth)), {}
    for n in s.knobs[0][1]:
        x_T = invert(pipe, truth, prompts, steps=n)[-1]
        for scale in s.knobs[1][1]:
            made[n, scale] = replay(pipe, x_T, prompts, steps=n, scale=float(scale))
    for i in range(len(SCENES)):
        frames = [
            [
                (
                    x := made[n, scale][i],
                    y := dB(x, copy[i]),
                    f"{y:.1f} dB to the autoencoder's copy, {dB(x, truth[i]):.1f} dB to the truth",
                )
                for n in s.knobs[0][1]
            ]
            for scale in s.knobs[1][1]
        ]
        s.add(prompts[i], frames, [truth[i], copy[i]])
    return s


def strength(pipe) -> Sweep:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    s = Sweep([("strength", values, 0.6)], scale=pipe.scale)
    source, truth = shapes.render(SCENES), shapes.render(EDITED)
    prompts = [shapes.short_caption(e) for e in EDITED]
    runs = [
        sdedit(pipe, source, prompts, strength=v, steps=25, scale=pipe.scale, seed=0)
        for v in values
    ]
    for i, e in enumerate(EDITED):
        s.add(
            shapes.short_caption(e),
            [[against(x[i], e, truth[i]) for x in runs]],
            [truth[i], source[i]],
        )
    return s


def injection(pipe) -> Sweep:
    knobs = [("cross", [0.0, 0.2, 0.4, 0.8, 1.0], 0.8), ("self_", [0.0, 0.4, 0.8], 0.4)]
    s = Sweep(knobs, scale=pipe.scale)
    source, truth = shapes.render(SCENES), shapes.render(EDITED)
    a, b = ([shapes.short_caption(x) for x in which] for which in (SCENES, EDITED))
    # direct inversion, as for a given picture
    way = Inverted(invert(pipe, source, a, steps=25), share=0.0)
    made = [
        [
            prompt_to_prompt(
                pipe, a, b, inverted=way, cross=c, self_=w, steps=25, scale=pipe.scale
            )[len(a) :]
            for c in s.knobs[0][1]
        ]
        for w in s.knobs[1][1]
    ]
    for i, e in enumerate(EDITED):
        s.add(
            b[i], [[against(x[i], e, truth[i]) for x in row] for row in made], [truth[i], source[i]]
        )
    return s


SWEEPS = {f.__name__: f for f in (noise, steps, guidance, inversion, strength, injection)}


def facts(name: str, s: Sweep) -> dict:
    """What the page reads, as JSON; writes the strips."""
    files = []
    for i, scene in enumerate(s.scenes):
        files.append(f"{name}-{i}.png")
        scene["picture"].save(HERE / files[-1], optimize=True)
    knobs = [
        {"name": n, "values": values, "start": values.index(first)} for n, values, first in s.knobs
    ]
    return {
        "name": name,
        "scale": s.scale,
        "knobs": knobs,
        "scenes": [
            {"name": x["name"], "file": f, "frames": x["frames"]} for x, f in zip(s.scenes, files)
        ],
    }


def main(names: list[str]) -> None:
    if unknown := [n for n in names if n not in SWEEPS]:
        raise SystemExit(f"no sweep called {', '.join(unknown)}; there are: {', '.join(SWEEPS)}")
    HERE.mkdir(parents=True, exist_ok=True)
    file = HERE / "sweeps.json"
    known = {s["name"]: s for s in json.loads(file.read_text())} if file.exists() else {}
    pipe = minidiff.load("tiny")
    for name in names or SWEEPS:
        known[name] = facts(name, SWEEPS[name](pipe))
        print(name, flush=True)
        file.write_text(json.dumps([known[n] for n in SWEEPS if n in known], indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
