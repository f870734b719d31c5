"""Backbones side by side: the same data, words, loss and minutes; which network learns most?

A paper compares networks at equal numbers of steps or parameters, and one that is twice as slow
then looks better than it is. Here each gets the same CPU time: a step of it is timed first, and it
trains for as many steps as fit. All else is the same: latents and text states of "tiny", batches,
times, noises, optimiser and rates, number of parameters as near as its sizes allow.

    loss        on held-out scenes, every time with the same noise
    shape gain  by how many percent it rises when the caption names another shape: is it listened to
    right       pictures of held-out captions whose shape and colour are those asked for
    speed       evaluations a second of a batch of 16

Try: one minute and ten, whether the order is the same; a network of your own as another contender.

Weakness: one rate for all is the rate of the network it was chosen for, "tiny". A few minutes on
one core say who learns fast, and not who is best at the end.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minidiff.data import shapes
from minidiff.evaluate.evaluate import STREAM, full_size
from minidiff.evaluate.metrics import bootstrap_ci
from minidiff.evaluate.oracle import SHORT, oracle
from minidiff.evaluate.solvers import aligned
from minidiff.formats.fields import read_json
from minidiff.foundations.latent_diffusion import (
    diffusion_loss,
    encoded_scenes,
    latent_batches,
    shape_gain,
)
from minidiff.io import check_target, grid, write_bytes, write_json
from minidiff.models import BACKBONES
from minidiff.models.sizes import SIZES
from minidiff.pipe.pipe import Pipe
from minidiff.techniques import names as near_names
from minidiff.train.fit import LOG, fit, multiplies_bfloat16

BATCH = 16
SCENES = 12_000  # one object each
HELD_OUT = 256  # scenes of the loss
POINTS = 8  # of a learning curve
TIMED = 5  # steps, after one that is not counted
STEPS, SCALE = 25, 3.0  # of the pictures


@dataclass(frozen=True)
class Contender:
    """One network of the comparison: an entry of `SIZES`, with some arguments of its own."""

    name: str
    size: str
    changes: dict = field(default_factory=dict)

    def make(self, seed: int) -> nn.Module:
        """The network with random weights."""
        kind = next(key for key in BACKBONES if key in SIZES[self.size])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return BACKBONES[kind].make(**SIZES[self.size][kind] | self.changes)


ALL = (
    Contender("unet", "tiny"),
    Contender("dit", "tiny-dit"),
    Contender("dit, no 3x3 filters", "tiny-dit", {"local": False}),
    Contender("unet, scale and shift", "tiny", {"time": "scale_shift"}),
    Contender("attention_unet", "tiny-attention-unet"),
    Contender("r2unet", "tiny-r2unet"),
    Contender("dual_attention_unet", "tiny-dual-unet"),
)
CONTENDERS = {c.name: c for c in ALL}


@dataclass(frozen=True)
class Lesson:
    """What all contenders are taught and asked: the pipe whose network they replace, batches of
    training, and one of held-out scenes.
    """

    pipe: Pipe
    batch: Callable[[int], dict[str, Tensor]]
    held_out: dict[str, Tensor]

    def loss(self, net: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        return diffusion_loss(net, rows, self.pipe.schedule, self.pipe.prediction)

    @torch.no_grad()
    def held_out_loss(self, net: nn.Module) -> float:
        """Mean over the held-out scenes."""
        parts = []
        for i in range(0, HELD_OUT, 64):
            rows = {name: values[i : i + 64] for name, values in self.held_out.items()}
            parts.append(self.loss(net, rows).item())
        return float(np.mean(parts))


def lesson(pipe: Pipe, seed: int, out: Path) -> Lesson:
    """Latents of scenes with one object each, kept in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    scenes, z = encoded_scenes(pipe.vae, SCENES, seed, out / "latents.safetensors", pairs=0.0)
    words = (pipe.text, pipe.tokenizer)
    batch = latent_batches(scenes, z, *words, BATCH, seed, pipe.schedule.T, even=0.5)
    rng = np.random.default_rng([STREAM + 5, seed])
    unseen = [shapes.scene(rng, objects=1, split="test") for _ in range(HELD_OUT)]
    latents = pipe.encode(shapes.render(unseen))
    once = latent_batches(unseen, latents, *words, HELD_OUT, seed + 1, pipe.schedule.T, even=0.5)
    return Lesson(pipe, batch, once(0))


# ---- one contender -------------------------------------------------------------------------------


def seconds_a_step(net: nn.Module, taught: Lesson) -> float:
    """CPU seconds of a training step, the least of a few, on a copy."""
    copy = deepcopy(net)
    ends: list[float] = []

    def timed(step: int) -> dict[str, Tensor]:
        ends.append(time.process_time())
        return taught.batch(step)

    fit(copy, taught.loss, timed, steps=TIMED + 2, progress=False, amp=multiplies_bfloat16())
    return float(np.diff(ends)[1:].min())


@torch.no_grad()
def evaluations_a_second(net: nn.Module, taught: Lesson) -> float:
    """Rows of a batch of 16 over the least CPU time of a few forward passes."""
    rows = {name: values[:BATCH] for name, values in taught.held_out.items()}
    seconds = []
    for _ in range(TIMED + 1):
        start = time.process_time()
        taught.loss(net, rows)
        seconds.append(time.process_time() - start)
    return BATCH / min(seconds)


def train(c: Contender, taught: Lesson, minutes: float, seed: int, out: Path) -> nn.Module:
    """The network after so many CPU minutes; its folder holds the curve, and resumes."""
    net = c.make(seed)
    plan = out / "plan.json"
    if not plan.is_file():
        steps = max(round(60 * minutes / seconds_a_step(net, taught)), POINTS)
        write_json({"minutes": minutes, "steps": steps}, plan)
    told = read_json(plan)
    if told["minutes"] != minutes:
        raise ValueError(f"{out} holds a training of {told['minutes']} minutes, not {minutes}")
    return fit(
        net,
        taught.loss,
        taught.batch,
        steps=told["steps"],
        out=out,
        lr=2e-3,
        muon_lr=4.5e-3,
        decay=0.5,
        ema=0.995,
        seed=seed,
        amp=multiplies_bfloat16(),
        settings={"contender": c.name},
        peek=lambda average, step: {"held_out": taught.held_out_loss(average)},
        peek_every=max(told["steps"] // POINTS, 1),
        save_every=200,
    )


def measure(c: Contender, taught: Lesson, minutes: float, n: int, seed: int, out: Path) -> dict:
    """Train one contender and ask what it has learned; n pictures."""
    net = train(c, taught, minutes, seed, out).requires_grad_(False)
    pipe = replace(taught.pipe, net=net)
    rng = np.random.default_rng([STREAM + 6, seed])
    scenes = [shapes.scene(rng, objects=1, split="test") for _ in range(n)]
    said = [shapes.short_caption(s) for s in scenes]
    pictures = []
    for i in range(0, n, 32):
        drawn = pipe.generate(said[i : i + 32], seed=seed + i, steps=STEPS, scale=SCALE)
        pictures.append(full_size(drawn))
    verdicts = oracle().judge(torch.cat(pictures), scenes, SHORT)
    both = verdicts["shape"] & verdicts["color"]
    grid(torch.cat(pictures)[:8], said[:8], 8, out / "pictures.png", side=96)
    return {
        "network": c.name,
        "minutes": minutes,
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": read_json(out / "plan.json")["steps"],
        "cpu_minutes": _spent(out) / 60,
        "loss": taught.held_out_loss(net),
        "gain": shape_gain(pipe, n=64),
        "speed": evaluations_a_second(net, taught),
        "shape": verdicts["shape"].tolist(),
        "color": verdicts["color"].tolist(),
        "right": both.tolist(),
        "n": n,
        "seed": seed,
        "curve": learning_curve(out),
    }


def _spent(out: Path) -> float:
    """CPU seconds of a finished training."""
    return max(row.get("cpu_seconds", 0.0) for row in _log(out))


def learning_curve(out: Path) -> list[tuple[float, float]]:
    """(share of the minutes, held-out loss) of every look at a training."""
    looks = [row for row in _log(out) if "held_out" in row]
    last = looks[-1]["step"]
    return [(row["step"] / last, row["held_out"]) for row in looks]


def _log(out: Path) -> Iterator[dict]:
    for line in (out / LOG).read_text().splitlines():
        yield json.loads(line)


# ---- the command ---------------------------------------------------------------------------------


def backbones(
    pipe: Pipe,
    *,
    names: tuple[str, ...] = (),
    minutes: float = 4.0,
    n: int = 64,
    seed: int = 0,
    out: Path = Path("out/backbones"),
) -> list[dict]:
    """Compare networks that train for equal CPU minutes: loss, shape gain, pictures right, speed.

    minutes  of CPU time each
    n        pictures of each
    out      folder of backbones.json, backbones.png and the trainings: a second call goes on where
             the first was
    """
    for name in names:
        if name not in CONTENDERS:
            raise ValueError(
                f"no network called {name!r}; there are: {near_names(name, CONTENDERS)}"
            )
    if not 0.05 <= minutes < 10_000:
        raise ValueError(f"minutes={minutes}: a training takes .05 or more")
    if n < 8:
        raise ValueError(f"n={n}: 8 pictures or more are needed")
    if pipe.name != "tiny":
        raise ValueError(
            f"{pipe.name or 'this model'}: the networks learn the latents and words of tiny"
        )
    out = Path(out)
    check_target(out / "backbones.png", kinds=(".png",))
    taught = lesson(pipe, seed, out)
    rows = []
    for name in names or CONTENDERS:
        folder = out / name.replace(" ", "_").replace(",", "")
        file = folder / "row.json"
        known = read_json(file) if file.is_file() else {}
        settings = {"minutes": minutes, "n": n, "seed": seed}
        if any(known.get(key) != value for key, value in settings.items()):
            known = measure(CONTENDERS[name], taught, minutes, n, seed, folder)
            write_json(known, file)
        rows.append(known)
    write_json({"rows": rows}, out / "backbones.json")
    write_bytes(figure(rows), out / "backbones.png")
    print(table(rows))
    print(f"\n{out / 'backbones.json'}\n{out / 'backbones.png'}")
    return rows


# ---- shown ---------------------------------------------------------------------------------------


def table(rows: Sequence[dict]) -> str:
    """A line for each network, the least loss first."""
    lines = [
        (
            "network",
            "parameters",
            "steps",
            "loss",
            "shape gain %",
            "shape %",
            "colour %",
            "both % [95%]",
            "evaluations a second",
        )
    ]
    for row in sorted(rows, key=lambda row: row["loss"]):
        mean, low, high = (100 * x for x in bootstrap_ci(row["right"]))
        lines.append(
            (
                row["network"],
                f"{row['parameters'] / 1e6:.2f} M",
                str(row["steps"]),
                f"{row['loss']:.4f}",
                f"{row['gain']:.1f}",
                f"{100 * np.mean(row['shape']):.0f}",
                f"{100 * np.mean(row['color']):.0f}",
                f"{mean:.0f} [{low:.0f}, {high:.0f}]",
                f"{row['speed']:.0f}",
            )
        )
    said = f"each trained for {rows[0]['minutes']:g} CPU minutes; n {rows[0]['n']} pictures"
    return f"{aligned(lines)}\n{said}"


def figure(rows: Sequence[dict]) -> bytes:
    """A PNG: held-out loss over the share of the minutes, and pictures right over speed."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 4.2), dpi=130, layout="constrained")
    curves, fast = drawing.subplots(1, 2)
    ordered = sorted(rows, key=lambda row: row["loss"])
    for i, row in enumerate(ordered):
        color = f"C{i % 10}"
        shares, losses = zip(*row["curve"])
        minutes = row["minutes"] * np.array(shares)
        curves.plot(minutes, losses, color=color, marker="o", markersize=3, label=row["network"])
        fast.plot(row["speed"], 100 * np.mean(row["right"]), "o", color=color)
    curves.set_yscale("log")
    curves.set_xlabel("CPU minutes of training")
    curves.set_ylabel("loss on held-out scenes")
    fast.set_xlabel("evaluations a second")
    fast.set_ylabel("shape and colour right, %")
    fast.set_ylim(-3, 103)
    drawing.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for axis in (curves, fast):
        axis.grid(alpha=0.3, linewidth=0.4)
    buffer = BytesIO()
    drawing.savefig(buffer, format="png")
    return buffer.getvalue()
