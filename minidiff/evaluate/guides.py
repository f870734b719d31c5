"""Guidances side by side: is it right, is it varied, are its colours those of the world?

Every guidance buys accuracy with variety, and its scale says how much; scales of different
guidances are not the same thing. So each is run at several, and variety is compared where accuracy
is equal. Every other prompt is short, so that size, place and texture are the model's to choose;
the others state everything.

    accuracy   share of pictures in which everything is right that the prompt states
    variety    distance between two pictures of a short prompt in the learned oracle's features, as
               a share of that between two renders of the same caption
    off-palette  share of pixels that no render comes near: a channel beyond what renders reach

Weakness: variety counts wrong pictures as varied ones; hence "at equal accuracy".
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minidiff.data import shapes
from minidiff.evaluate.evaluate import STREAM, full_size
from minidiff.evaluate.metrics import bootstrap_ci
from minidiff.evaluate.oracle import FULL, SHORT, oracle
from minidiff.evaluate.solvers import aligned
from minidiff.formats.fields import read_json
from minidiff.guidance import GUIDES
from minidiff.io import check_target, write_json
from minidiff.pipe.pipe import Pipe
from minidiff.techniques import names as near_names

MARGIN = 0.04  # of pictures in [-1, 1]: how far beyond the renders' range a pixel may lie
LEVEL = 95.0  # percent right at which variety is compared


@dataclass(frozen=True)
class Asked:
    """Scenes, their prompts, each to be drawn twice, and what each prompt states."""

    scenes: list[shapes.Scene]
    prompts: list[str]
    groups: list[tuple[str, ...]]


def asked(n: int, seed: int) -> Asked:
    """n scenes that training never saw: by turns one object in short and in full, two in short and
    in full.
    """
    rng = np.random.default_rng([STREAM + 2, seed])
    told = Asked([], [], [])
    for i in range(n):
        s = shapes.scene(rng, objects=1 + i // 2 % 2, split="test")
        short = i % 2 == 0
        told.scenes.append(s)
        told.prompts.append(shapes.short_caption(s) if short else shapes.caption(s))
        told.groups.append(SHORT if short else FULL)
    return told


@cache
def palette() -> tuple[Tensor, Tensor]:
    """(least, greatest) value of each channel in 512 renders, each (3,)."""
    rng = np.random.default_rng([STREAM + 3])
    pictures = shapes.render([shapes.scene(rng, objects=1 + i % 2) for i in range(512)])
    return pictures.amin((0, 2, 3)), pictures.amax((0, 2, 3))


def off_palette(images: Tensor) -> Tensor:
    """Share of the pixels of each picture (b 3 h w) with a channel beyond the renders' range."""
    least, greatest = palette()
    below = images < least.view(3, 1, 1) - MARGIN
    above = images > greatest.view(3, 1, 1) + MARGIN
    return (below | above).any(1).float().mean((1, 2))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Distance (b,) of pictures in the learned oracle's features."""
    return (oracle().features(one) - oracle().features(other)).norm(dim=1)


@cache
def renders_apart(n: int, seed: int) -> float:
    """Mean distance of two renders of one short caption: what full variety is."""
    rng = np.random.default_rng([STREAM + 4, seed])
    told = asked(n, seed)
    scenes = [s for s, group in zip(told.scenes, told.groups) if group == SHORT]
    pairs = []
    for _ in range(2):
        drawn = [another(rng, s) for s in scenes]
        pairs.append(shapes.render(drawn))
    return apart(*pairs).mean().item()


def another(rng: np.random.Generator, s: shapes.Scene) -> shapes.Scene:
    """A scene with the short caption of s, and all else drawn anew."""
    free = shapes.scene(rng, objects=len(s.objects))
    objects = []
    for own, said in zip(free.objects, s.objects):
        objects.append(replace(own, shape=said.shape, color=said.color))
    position = s.position if len(objects) == 2 else free.position
    return replace(free, objects=tuple(objects), background=s.background, position=position)


@torch.no_grad()
def measure(
    pipe: Pipe, name: str, scale: float, n: int, seed: int, steps: int, batch: int = 32, bar=None
) -> dict:
    """What one guidance does at one scale: for each of n prompts `right` (mean of two pictures)
    and `off`, for the short ones `apart`, and the evaluations of one picture.
    """
    told = asked(n, seed)
    guided = GUIDES[name].make(pipe, scale)
    right, distance, off = [], [], []
    asked_for = 0
    for i in range(0, n, batch):
        part = slice(i, i + batch)
        pair = []
        for twin in range(2):
            with counted_rows(type(pipe.net)) as rows:
                drawn = pipe.generate(
                    told.prompts[part],
                    seed=seed + 100_000 * twin + i,
                    steps=steps,
                    scale=1.0,
                    denoise=guided,
                )
            asked_for += sum(rows)
            pair.append(full_size(drawn))
        verdicts = [
            oracle().judge(x, told.scenes[part], told.groups[part])["joint"].float() for x in pair
        ]
        right += ((verdicts[0] + verdicts[1]) / 2).tolist()
        between = apart(*pair).tolist()
        distance += [d for d, g in zip(between, told.groups[part]) if g == SHORT]
        off += ((off_palette(pair[0]) + off_palette(pair[1])) / 2).tolist()
        if bar:
            bar.update(2 * len(pair[0]))
    return {
        "guide": name,
        "scale": scale,
        "model": pipe.name,
        "n": n,
        "seed": seed,
        "steps": steps,
        "evaluations": asked_for / (2 * n),
        "right": right,
        "apart": distance,
        "off": off,
    }


@contextmanager
def counted_rows(kind: type[torch.nn.Module]) -> Iterator[list[int]]:
    """What the networks of a kind are asked while the block is open, whichever they are: rows of
    each forward pass. (A guidance may ask a second network.)
    """
    rows: list[int] = []

    def note(module, args):
        if isinstance(module, kind):
            rows.append(len(args[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield rows
    finally:
        hook.remove()


def guides(
    pipe: Pipe,
    *,
    names: tuple[str, ...] = (),
    n: int = 96,
    steps: int = 25,
    seed: int = 0,
    out: Path = Path("out/guides"),
    progress: bool = True,
) -> dict:
    """Compare guidances: accuracy, variety at equal accuracy, colours out of the world's range,
    evaluations.

    n      prompts, each drawn twice
    steps  of DDIM
    out    folder of guides.json and of what was measured: a second call goes on where the first was
    """
    for name in names:
        if name not in GUIDES:
            raise ValueError(f"no guidance called {name!r}; there are: {near_names(name, GUIDES)}")
    if n < 8:
        raise ValueError(f"n={n}: 8 prompts or more are needed")
    out = Path(out)
    check_target(out / "guides.json", kinds=(".json",))
    chosen = names or tuple(GUIDES)
    jobs = [(name, scale) for name in chosen for scale in GUIDES[name].scales]
    rows = []
    with tqdm(total=2 * n * len(jobs), disable=not progress, desc="guides", unit="picture") as bar:
        for name, scale in jobs:
            file = out / "rows" / f"{name}_{scale:g}.json"
            known = read_json(file) if file.is_file() else {}
            settings = {"model": pipe.name, "n": n, "seed": seed, "steps": steps}
            if any(known.get(k) != v for k, v in settings.items()):
                known = measure(pipe, name, scale, n, seed, steps, bar=bar)
                write_json(known, file)
            else:
                bar.update(2 * n)
            rows.append(known)
    facts = {"rows": rows, "renders_apart": renders_apart(n, seed)}
    write_json(facts, out / "guides.json")
    print(table(rows, facts["renders_apart"]))
    return facts


def varied_at(rows: Sequence[dict], level: float, full: float) -> float | None:
    """Variety of one guidance where its accuracy is `level` percent: on the line between the two
    scales around it; None if it never gets there.
    """
    ordered = sorted(rows, key=lambda row: row["scale"])
    right = [100 * np.mean(row["right"]) for row in ordered]
    variety = [np.mean(row["apart"]) / full for row in ordered]
    for i, reached in enumerate(right):
        if reached >= level:
            if i == 0:
                return float(variety[0])
            share = (level - right[i - 1]) / (reached - right[i - 1])
            return float(variety[i - 1] + share * (variety[i] - variety[i - 1]))
    return None


def table(rows: Sequence[dict], full: float) -> str:
    """A line for each guidance and scale; behind the first of each its variety at LEVEL."""
    head = (
        "guidance",
        "scale",
        "right %",
        "variety",
        "off-palette %",
        "evaluations",
        f"variety at {LEVEL:g}%",
    )
    lines = [head]
    for name in dict.fromkeys(row["guide"] for row in rows):
        mine = [row for row in rows if row["guide"] == name]
        at_level = varied_at(mine, LEVEL, full)
        for i, row in enumerate(mine):
            mean, low, high = (100 * x for x in bootstrap_ci(row["right"]))
            last = "" if i else ("never reached" if at_level is None else f"{at_level:.2f}")
            lines.append(
                (
                    name if i == 0 else "",
                    f"{row['scale']:g}",
                    f"{mean:.1f} [{low:.0f}, {high:.0f}]",
                    f"{np.mean(row['apart']) / full:.2f}",
                    f"{100 * np.mean(row['off']):.2f}",
                    f"{row['evaluations']:g}",
                    last,
                )
            )
    return aligned(lines) + (
        "\nright: everything the prompt states [95%]; variety: 1 is that of renders"
    )
