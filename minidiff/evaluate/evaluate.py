"""How good is a model? Prompts of seen and held-out attribute tuples, pictures, and what two
oracles say of them.

Four sets of prompts: one or two objects, from tuples that training saw or from the tenth it never
saw ("held out": composition, not memory). Half of each set is captioned in full, half in short, and
only what a caption states is scored. The learned oracle judges attributes, analysis by synthesis
the silhouettes, the Frechet distance whole sets. Beside them stand the same measurements of real
renders and of the autoencoder's round trips: what a perfect model would get.

    evaluate("tiny", n=192, json="out.json")               # prints one table

Weakness: both oracles know this world only, and 48 prompts a set leave an interval of several
points. Try changing: scale 1 and 6; steps 10.
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from io import BytesIO
from json import loads
from math import isfinite
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minidiff.data import shapes
from minidiff.evaluate.metrics import bootstrap_ci, frechet, psnr
from minidiff.evaluate.oracle import ATTRIBUTES, FULL, NAME, SHORT, oracle, stated
from minidiff.evaluate.synthesis import silhouettes
from minidiff.io import check_target, write_bytes, write_json
from minidiff.pipe.pipe import Pipe
from minidiff.train.checkpoint import CHECKPOINT, averaged_weights

SETS = {
    "one seen": (1, "train"),
    "one held out": (1, "test"),
    "two seen": (2, "train"),
    "two held out": (2, "test"),
}
ROWS = (*ATTRIBUTES, "joint", "silhouette", "ring hole")
HOLE = 0.15  # a ring is clean if its inside is this near to the background (RGB distance)
STREAM = 20_000  # first word of this file's random seeds: no training uses it


@dataclass(frozen=True)
class Prompts:
    """Scenes, the prompt of each, and which attributes beside count, shape and colour that prompt
    states.
    """

    name: str
    scenes: list[shapes.Scene]
    prompts: list[str]
    groups: list[tuple[str, ...]]


# ---- what to ask for -----------------------------------------------------------------------------


def prompt_sets(n: int, seed: int = 0, classes: Sequence[str] = ()) -> list[Prompts]:
    """`n` prompts shared out over SETS, every other one short; for a model that knows `classes`, n
    class names.
    """
    rng = np.random.default_rng([STREAM, seed])
    if classes:
        names = []
        while len(names) < n:
            names += [classes[i] for i in rng.permutation(len(classes))]
        names = names[:n]
        return [Prompts("classes", [_of_class(rng, name) for name in names], names, [NAME] * n)]
    out = []
    for name, (objects, split) in SETS.items():
        scenes = [shapes.scene(rng, objects=objects, split=split) for _ in range(n // len(SETS))]
        prompts = []
        groups = []
        for i, s in enumerate(scenes):
            in_full = i % 2 == 0
            prompts.append(shapes.caption(s) if in_full else shapes.short_caption(s))
            groups.append(FULL if in_full else SHORT)
        out.append(Prompts(name, scenes, prompts, groups))
    return out


def _of_class(rng: np.random.Generator, name: str) -> shapes.Scene:
    """A one-object scene of a class such as "red circle"; its background never has the object's
    colour word.
    """
    color, shape = name.split()
    while True:
        s = shapes.scene(rng, objects=1)
        if s.background != color:
            return shapes.edit(shapes.edit(s, "color", color), "shape", shape)


def full_size(images: Tensor) -> Tensor:
    """Pictures as the oracles take them: 64x64 (bilinear from smaller), float32, on the CPU."""
    images = images.detach().float().cpu()
    if images.shape[-1] == 64:
        return images
    return F.interpolate(images, size=(64, 64), mode="bilinear").clamp(-1, 1)


def _pipe(pipe_or_name: Pipe | str) -> Pipe:
    if isinstance(pipe_or_name, str):
        from minidiff.weights.store import load

        return load(pipe_or_name)
    return pipe_or_name


def _pictures(
    pipe: Pipe, prompts: list[str], seed: int, bar: tqdm, batch: int = 32, **how
) -> Tensor:
    """One picture a prompt; picture i depends on seed + i only. `how`: steps, scale, interval."""
    out = []
    for i in range(0, len(prompts), batch):
        part = prompts[i : i + batch]
        out.append(full_size(pipe.generate(part, seed=seed + i, **how)))
        bar.update(len(part))
    return torch.cat(out)


# ---- what came out -------------------------------------------------------------------------------


def _cell(values, percent: bool = True) -> dict | None:
    """Mean and 95% interval (of percentages if so), or None where there is nothing to average."""
    mean, low, high = bootstrap_ci(values)
    if not isfinite(mean):
        return None
    factor = 100 if percent else 1
    return dict(mean=factor * mean, low=factor * low, high=factor * high, n=len(values))


def score(images: Tensor, p: Prompts, outline: bool = True) -> dict[str, dict | None]:
    """{row of ROWS: {"mean", "low", "high", "n"}} in percent, of pictures (b 3 64 64): each
    attribute over the prompts that state it; without `outline` the two slow rows that look at
    silhouettes are left out.
    """
    right = oracle().judge(images, p.scenes, p.groups)
    asked = stated(p.scenes, p.groups)
    rows = {name: _cell(right[name][asked[name]].float()) for name in ATTRIBUTES}
    rows["joint"] = _cell(right["joint"].float())
    if outline:
        fits = silhouettes(images, p.scenes)
        rings = [fit for row in fits for fit in row if fit.shape == "ring"]
        rows["silhouette"] = _cell([np.mean([fit.iou for fit in row]) for row in fits])
        rows["ring hole"] = _cell([float(ring.hole < HOLE) for ring in rings])
    return rows


def _references(pipe: Pipe, sets: list[Prompts], n: int, seed: int) -> dict:
    """What real renders, and renders that went through the pipe's autoencoder, get in place of
    samples.
    """
    rng = np.random.default_rng([STREAM + 1, seed])
    captioned = len(sets) > 1  # else the model knows class names, of one object
    numbers = [2 if captioned and i % 2 else 1 for i in range(n)]
    scenes = [shapes.scene(rng, objects=number, split="test") for number in numbers]
    ideal = Prompts("renders", scenes, [], [FULL if captioned else NAME] * n)
    real = shapes.render(scenes, pipe.image_size[0])
    out = {"renders": score(full_size(real), ideal)}
    if pipe.vae:
        trip = torch.cat([pipe.decode(pipe.encode(x)).float().cpu() for x in real.split(64)])
        out["round trips"] = score(full_size(trip), ideal)
        out["vae_psnr"] = _cell(psnr(trip, real), percent=False)
    return out


def _distances(pipe: Pipe, images: Tensor, sets: list[Prompts], seed: int) -> dict[str, float]:
    """Frechet distance of the samples to renders of the same scenes, and that of other renders to
    the latter, both as a share of the renders' total variance: the numbers do not depend on the
    scale of the features.
    """

    def features(sets: list[Prompts]) -> Tensor:
        scenes = [s for p in sets for s in p.scenes]
        return oracle().features(full_size(shapes.render(scenes, pipe.image_size[0])))

    n = sum(len(p.scenes) for p in sets)
    real = features(sets)
    other = features(prompt_sets(n, seed + 1, pipe.classes))
    variance = real.double().var(0).sum().item()
    return {
        "samples": frechet(oracle().features(images), real) / variance,
        "other renders": frechet(other, real) / variance,
    }


def evaluate(
    pipe_or_name: Pipe | str = "tiny",
    *,
    n: int = 192,
    steps: int = 50,
    scale: float | None = None,
    interval: tuple[float, float] | None = None,
    seed: int = 0,
    json: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """Draw about `n` pictures of a model of the toy world, score them, print a table; returns (and
    writes to `json`):

    {"sets": {set: rows}, "renders": rows, "round trips": rows, "frechet", "vae_psnr", ...}, rows as
    of `score`. Errors: ValueError for fewer than 8 pictures or a model that cannot be asked for
    anything.
    """
    pipe = _pipe(pipe_or_name)
    if n < 8 or not (pipe.text or pipe.classes):
        raise ValueError(
            f"n={n} of {pipe.name or 'this model'}: evaluation needs 8 pictures or more, "
            "and a model that takes prompts or class names"
        )
    if json:
        check_target(json, kinds=(".json",))
    scale = pipe.scale if scale is None else scale
    sets = prompt_sets(n, seed, pipe.classes)
    start = time.process_time()
    how = dict(steps=steps, scale=scale, interval=interval)
    images = []
    total = sum(len(p.prompts) for p in sets)
    with tqdm(total=total, disable=not progress, desc="evaluate") as bar:
        for k, p in enumerate(sets):
            images.append(_pictures(pipe, p.prompts, seed + 10_000 * k, bar, **how))
    out = {
        "model": pipe.name,
        "n": n,
        "steps": steps,
        "scale": scale,
        "interval": interval,
        "seed": seed,
        "sets": {p.name: score(x, p) for p, x in zip(sets, images)},
        **_references(pipe, sets, max(n // 2, 8), seed),
        "frechet": _distances(pipe, torch.cat(images), sets, seed),
    }
    out["cpu_seconds"] = round(time.process_time() - start, 1)
    print(table(out))
    if json:
        write_json(out, json)
    return out


def table(result: dict) -> str:
    """The result of `evaluate` as plain text: percent [95% interval]."""
    columns = dict(result["sets"])
    for name in ("renders", "round trips"):
        if name in result:
            columns[name] = result[name]
    lines = [[f"{result['model']}, percent", *columns]]
    for row in ROWS:
        lines.append([row, *[_shown(column.get(row)) for column in columns.values()]])
    width = [max(map(len, column)) for column in zip(*lines)]
    text = []
    for first, *rest in lines:
        cells = [cell.rjust(w) for cell, w in zip(rest, width[1:])]
        text.append("  ".join([first.ljust(width[0]), *cells]))
    f = result["frechet"]
    text.append(
        f"Frechet distance to renders of the same scenes {f['samples']:.3f} of their variance; "
        f"other renders have {f['other renders']:.3f}"
    )
    v = result.get("vae_psnr")
    if v:
        text.append(
            f"autoencoder on held-out renders {v['mean']:.2f} dB [{v['low']:.2f}, {v['high']:.2f}]"
        )
    times = ""
    if result.get("interval"):
        start, end = result["interval"]
        times = f" at times {start:g} to {end:g}"
    text.append(
        f"{result['n']} pictures, {result['steps']} steps, scale {result['scale']}{times}, "
        f"seed {result['seed']}; only what a prompt states is counted"
    )
    return "\n".join(text)


def _shown(cell: dict | None) -> str:
    return f"{cell['mean']:.1f} [{cell['low']:.0f}, {cell['high']:.0f}]" if cell else "-"


# ---- learning curves -----------------------------------------------------------------------------


def _state(path: str | Path) -> dict[str, Tensor]:
    """Weights of a snapshot: plain safetensors, or a training checkpoint (its averaged weights)."""
    from minidiff.weights.store import read_safetensors

    path = Path(path)
    if path.name == CHECKPOINT:
        return averaged_weights(path.parent)
    return read_safetensors(path)


def learning_curve(
    snapshots: Sequence[tuple[int, str | Path]],
    pipe: Pipe | str = "tiny",
    *,
    n: int = 64,
    steps: int = 25,
    scale: float | None = None,
    seed: int = 0,
    json: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """Which attribute is learned when: {"points": [{"images": pictures seen, "rows": rows of
    `score`}]}.

    `snapshots`: (pictures seen, file with the weights of pipe.net). Every point answers the same
    prompts of one object with the same noise; the pipe itself keeps its weights.
    """
    pipe = _pipe(pipe)
    scale = pipe.scale if scale is None else scale
    p = prompt_sets(n if pipe.classes else len(SETS) * n, seed, pipe.classes)[0]
    pipe = replace(pipe, net=deepcopy(pipe.net))
    points = []
    with tqdm(total=n * len(snapshots), disable=not progress, desc="learning curve") as bar:
        for seen, path in sorted(snapshots):
            pipe.net.load_state_dict(_state(path))
            images = _pictures(pipe, p.prompts, seed, bar, steps=steps, scale=scale)
            points.append({"images": seen, "rows": score(images, p, outline=False)})
    out = {
        "model": pipe.name,
        "n": n,
        "steps": steps,
        "scale": scale,
        "seed": seed,
        "points": points,
    }
    if json:
        write_json(out, json)
    return out


def learning_figure(json: str | Path, png: str | Path) -> Path:
    """Draw the file of `learning_curve`: accuracy of each attribute against the pictures seen."""
    from matplotlib.figure import Figure

    points = loads(Path(json).read_text())["points"]
    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="training pictures seen", ylabel="right (%)", ylim=(0, 102))
    for row in (*ATTRIBUTES, "joint"):
        known = [point for point in points if point["rows"].get(row)]
        if known:
            axes.plot(
                [point["images"] for point in known],
                [point["rows"][row]["mean"] for point in known],
                marker="o",
                markersize=3,
                label=row,
                color="black" if row == "joint" else None,
                linewidth=2 if row == "joint" else 1.2,
            )
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    axes.grid(alpha=0.3)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return write_bytes(buffer.getvalue(), png)
