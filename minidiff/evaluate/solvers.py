"""Which sampler, and in how many evaluations? Measured twice: as error where the flow from noise to
data is known exactly, and as pictures with everything right that their prompts state.

In the plane the best denoiser of a mixture is a formula, so all error is the solver's. Two sets of
tables, each walked in even steps: one even in lambda = log(alpha / sigma), for which exponential
solvers are made, one even in time, for which linear multistep methods are. The order of a solver is
the slope of log error over log steps:

    order = log2(error(n) / error(2 n))

What an evaluation is: one question to the network for one picture. Guidance asks each question
twice, for every solver alike, and is not counted here. How many evaluations a solver takes is
counted, not declared.

Weakness: order is what happens to many steps; at ten the constant counts as much, and guidance
bends the flow. So pictures have the last word, of one small model.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minidiff.core.denoise import Counted, noise
from minidiff.core.schedule import Schedule, linear
from minidiff.data.toy2d import Mixture, gauss_aniso, gaussian_flow_map, gmm8
from minidiff.evaluate.evaluate import full_size, prompt_sets
from minidiff.evaluate.metrics import bootstrap_ci
from minidiff.evaluate.oracle import oracle
from minidiff.formats.fields import read_json
from minidiff.io import check_target, write_bytes, write_json
from minidiff.pipe.pipe import Pipe
from minidiff.samplers import SAMPLERS
from minidiff.techniques import names as near_names

STEPS = (12, 24, 48, 96, 192)  # of the curves in the plane: whole blocks of two and of three
BUDGETS = (4, 6, 8, 10, 15, 25, 50)  # evaluations of a picture
POINTS = 64  # in the plane
EVEN_IN = ("lambda", "time")


# ---- tables that are walked in even steps --------------------------------------------------------


@cache
def tables(even_in: str) -> tuple[Schedule, int, int]:
    """(tables, noisy end, clean end): between the two, even steps of the index are even in lambda
    or in the time of DDPM's linear betas. Both ends are multiples of all STEPS apart, twice over,
    so that the middle of a step is a time too.
    """
    if even_in == "lambda":
        T = 2 * max(STEPS) * 6 + 1
        lam = torch.linspace(2.5, -2.5, T, dtype=torch.float64)  # of index 1 .. T
        alpha = (2 * lam).sigmoid().sqrt()
        sigma = (-2 * lam).sigmoid().sqrt()
        clean = torch.tensor([1.0, 0.0], dtype=torch.float64)
        sch = Schedule(torch.cat([clean[:1], alpha]), torch.cat([clean[1:], sigma]), "even lambda")
        return sch, T, 1
    T = 2 * max(STEPS) * 100
    return linear(T), T, T // 100


def even_grid(even_in: str, steps: int) -> list[int]:
    """steps + 1 falling times, evenly spaced between the ends of `tables`."""
    _, noisy, clean = tables(even_in)
    stride = (noisy - clean) / steps
    return [round(noisy - i * stride) for i in range(steps + 1)]


def starts(sch: Schedule, t: int) -> Tensor:
    """POINTS states at the noisy end."""
    alpha, sigma = sch.at(t)
    return math.hypot(alpha, sigma) * noise((POINTS, 2), 0, dtype=torch.float64)


# ---- error in the plane --------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Mean distance to the exact end points, for each number of steps of STEPS.

    evaluations  what each took
    order        the slope between the two finest whose error is above rounding; nan if there are
                 none
    """

    sampler: str
    data: str
    even_in: str
    steps: tuple[int, ...]
    evaluations: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def order(self) -> float:
        above = [e for e in self.errors if e > 1e-11]
        if len(above) < 2:
            return math.nan
        i = len(above) - 1
        return math.log(above[i - 1] / above[i]) / math.log(self.steps[i] / self.steps[i - 1])


MIXTURES = {"one Gaussian": gauss_aniso, "mixture": lambda: gmm8(1.0, 0.15)}


@cache
def exact_ends(data: str, even_in: str) -> Tensor:
    """Where the flow carries `starts`: by the formula for one Gaussian; for the mixture by a walk
    of fourth order with twelve times the steps of the finest curve.
    """
    sch, noisy, clean = tables(even_in)
    mixture = MIXTURES[data]()
    x = starts(sch, noisy)
    if len(mixture.means) == 1:
        return gaussian_flow_map(mixture.means[0], mixture.covs[0], x, sch, noisy, clean)
    fine = even_grid(even_in, 12 * max(STEPS))
    return SAMPLERS["unipc"].run(mixture.denoise(sch), sch, x, times=fine, order=3)


@torch.no_grad()
def curve(name: str, data: str, even_in: str, **options) -> Curve:
    """The errors of one sampler; `options` beside those that its name stands for."""
    sampler = SAMPLERS[name]
    sch, noisy, _ = tables(even_in)
    mixture: Mixture = MIXTURES[data]()
    want = exact_ends(data, even_in)
    evaluations = []
    errors = []
    settings = sampler.settings | options
    for steps in STEPS:
        counted = Counted(mixture.denoise(sch))
        grid = even_grid(even_in, steps)
        got = sampler.run(counted, sch, starts(sch, noisy), times=grid, **settings)
        evaluations.append(counted.nfe // POINTS)
        errors.append((got - want).norm(dim=-1).mean().item())
    return Curve(name, data, even_in, STEPS, tuple(evaluations), tuple(errors))


def deterministic() -> list[str]:
    """The samplers whose end is a function of their start alone: only they have an order."""
    return [name for name, sampler in SAMPLERS.items() if sampler.order]


def curves(names: Sequence[str] = ()) -> list[Curve]:
    """Of the samplers named (default: all that have an order), on both mixtures and both grids."""
    chosen = names or deterministic()
    found = []
    for name in chosen:
        for data in MIXTURES:
            found += [curve(name, data, even_in) for even_in in EVEN_IN]
    return found


# ---- right pictures ------------------------------------------------------------------------------


def evaluations_of(name: str, steps: int, sch: Schedule, **grid) -> int:
    """How often a sampler asks the network in so many steps: counted, on one point in the plane."""
    sampler = SAMPLERS[name]
    counted = Counted(gauss_aniso().denoise(sch))
    chosen = {k: v for k, v in grid.items() if k in sampler.options}
    x = torch.zeros(1, 2, dtype=torch.float64)
    sampler.run(counted, sch, x, steps=steps, **chosen, **sampler.settings)
    return counted.nfe


@cache
def steps_within(name: str, budget: int, pipe_schedule: Schedule, spacing: str, end: int) -> int:
    """The most steps that a sampler makes in at most `budget` evaluations; 0 if none."""
    best = 0
    for steps in range(1, budget + 1):
        try:
            took = evaluations_of(name, steps, pipe_schedule, spacing=spacing, end=end)
        except ValueError:  # fewer steps than it needs
            continue
        if took <= budget:
            best = steps
    return best


def accuracy(
    pipe: Pipe, name: str, budget: int, n: int, seed: int = 0, batch: int = 32, progress=None
) -> dict | None:
    """{"steps", "right": n of 0 and 1, ...}: of n prompts the pictures in which everything is right
    that the prompt states, at the model's own guidance. None if the sampler needs more evaluations
    than the budget. Prompts and starting noises are the same for every sampler.
    """
    steps = steps_within(name, budget, pipe.schedule, pipe.spacing, pipe.end)
    if not steps:
        return None
    right = []
    for k, p in enumerate(prompt_sets(n, seed, pipe.classes)):
        for i in range(0, len(p.prompts), batch):
            part = slice(i, i + batch)
            noise_seed = seed + 10_000 * k + i
            drawn = pipe.generate(p.prompts[part], seed=noise_seed, steps=steps, sampler=name)
            verdict = oracle().judge(full_size(drawn), p.scenes[part], p.groups[part])
            right += verdict["joint"].int().tolist()
            if progress:
                progress.update(len(verdict["joint"]))
    return {
        "sampler": name,
        "budget": budget,
        "steps": steps,
        "evaluations": evaluations_of(
            name, steps, pipe.schedule, spacing=pipe.spacing, end=pipe.end
        ),
        "model": pipe.name,
        "scale": pipe.scale,
        "n": len(right),
        "seed": seed,
        "right": right,
    }


def accuracies(
    pipe: Pipe,
    names: Sequence[str],
    budgets: Sequence[int],
    n: int,
    seed: int,
    out: Path | None,
    progress: bool,
) -> list[dict]:
    """`accuracy` of every sampler at every budget; one file each in `out`, and what lies there with
    the same settings is not drawn again.
    """
    rows = []
    total = len(names) * len(budgets) * n
    with tqdm(total=total, disable=not progress, desc="samplers", unit="picture") as bar:
        for budget in budgets:
            for name in names:
                file = Path(out) / f"{name}_{budget}.json" if out else None
                known = read_json(file) if file and file.is_file() else {}
                settings = {"model": pipe.name, "scale": pipe.scale, "n": n, "seed": seed}
                if all(known.get(k) == v for k, v in settings.items()):
                    rows.append(known)
                    bar.update(n)
                    continue
                row = accuracy(pipe, name, budget, n, seed, progress=bar)
                if row:
                    rows.append(row)
                    if file:
                        write_json(row, file)
    return rows


def best_at(rows: Sequence[dict], budget: int) -> tuple[dict, list[dict]]:
    """(the row with most right pictures at a budget, the rows that cannot be told from it): the
    95% interval of the paired difference holds 0.
    """
    there = [row for row in rows if row["budget"] == budget]
    first = max(there, key=lambda row: np.mean(row["right"]))
    return first, [row for row in there if row is first or not differs(first, row)]


def differs(better: dict, worse: dict) -> bool:
    """Is the first shown to have more right pictures than the second, on the same prompts?"""
    _, low, _ = bootstrap_ci(np.subtract(better["right"], worse["right"]))
    return bool(low > 0)


def recommended(rows: Sequence[dict]) -> list[tuple[str, int]]:
    """(sampler, evaluations): the smallest budget at which something cannot be told from the best
    at the largest one, and all that cannot at that budget.
    """
    largest = max(row["budget"] for row in rows)
    target, _ = best_at(rows, largest)
    for budget in sorted({row["budget"] for row in rows}):
        enough = [r for r in rows if r["budget"] == budget and not differs(target, r)]
        if enough:
            ordered = sorted(enough, key=lambda row: -np.mean(row["right"]))
            return [(row["sampler"], budget) for row in ordered]
    return []


# ---- the command ---------------------------------------------------------------------------------


def solvers(
    pipe: Pipe | None,
    *,
    names: tuple[str, ...] = (),
    pictures: bool = False,
    budgets: tuple[int, ...] = BUDGETS,
    n: int = 256,
    seed: int = 0,
    out: Path = Path("out/samplers"),
    progress: bool = True,
) -> dict:
    """Compare samplers: error against evaluations where the answer is known; with pictures, also
    how many are right.

    pictures  draw with the model, too: about an hour for all samplers on one core
    budgets   evaluations of a picture
    n         prompts at each budget, a quarter of each set of `minidiff evaluate`
    out       folder of samplers.json, samplers.png, and of what was drawn: a second call goes on
              where the first was
    """
    for name in names:
        if name not in SAMPLERS:
            raise ValueError(f"no sampler called {name!r}; there are: {near_names(name, SAMPLERS)}")
    if n < 8:
        raise ValueError(f"n={n}: 8 prompts or more are needed, two of each set")
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets={budgets}: evaluations are whole numbers from 1")
    out = Path(out)
    check_target(out / "samplers.png", kinds=(".png",))
    chosen = list(names or SAMPLERS)
    found = curves([name for name in chosen if SAMPLERS[name].order])
    rows = []
    if pictures:
        rows = accuracies(pipe, chosen, budgets, n, seed, out / "pictures", progress)
    facts = {
        "curves": [asdict(c) | {"order": c.order} for c in found],
        "pictures": rows,
        "recommended": recommended(rows) if rows else [],
    }
    write_json(facts, out / "samplers.json")
    write_bytes(figure(found, rows), out / "samplers.png")
    print(table(found))
    if rows:
        print("\n" + accuracy_table(rows))
    print(f"\n{out / 'samplers.json'}\n{out / 'samplers.png'}")
    return facts


# ---- shown ---------------------------------------------------------------------------------------


def table(found: Sequence[Curve]) -> str:
    """A line for each curve: errors against evaluations, the measured order, that on paper."""
    lines = [("sampler", "data", "even in", *[f"{s} steps" for s in STEPS], "order", "on paper")]
    for c in found:
        cells = [f"{error:.1e} ({calls})" for error, calls in zip(c.errors, c.evaluations)]
        paper = SAMPLERS[c.sampler].order
        lines.append((c.sampler, c.data, c.even_in, *cells, f"{c.order:.2f}", f"{paper:g}"))
    return aligned(lines) + "\nmean distance to the exact end point (evaluations of each point)"


def accuracy_table(rows: Sequence[dict]) -> str:
    """Percent of pictures in which everything stated is right, by sampler and evaluations; the best
    of a budget and all that cannot be told from it are marked.
    """
    budgets = sorted({row["budget"] for row in rows})
    marked = {budget: best_at(rows, budget)[1] for budget in budgets}
    lines = [("sampler", *[f"{b} evaluations" for b in budgets])]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        cells = []
        for budget in budgets:
            row = next((r for r in rows if r["sampler"] == name and r["budget"] == budget), None)
            cells.append(_percent(row, row in marked[budget]))
        lines.append((name, *cells))
    text = aligned(lines)
    text += "\npercent right [95%]; *: the best at that budget, or not to be told from it"
    first = recommended(rows)
    if first:
        listed = " or ".join(name for name, _ in first)
        text += f"\nenough: {listed} at {first[0][1]} evaluations"
    return text


def _percent(row: dict | None, marked: bool) -> str:
    if row is None:
        return "-"
    mean, low, high = bootstrap_ci(row["right"])
    return f"{100 * mean:.0f} [{100 * low:.0f}, {100 * high:.0f}]{'*' if marked else ''}"


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = []
    for line in lines:
        padded.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    return "\n".join(padded)


def figure(found: Sequence[Curve], rows: Sequence[dict]) -> bytes:
    """A PNG: error over evaluations on the mixture, a panel for each kind of grid, and right
    pictures over evaluations if there are any.
    """
    from matplotlib.figure import Figure

    panels = 2 + bool(rows)
    drawing = Figure(figsize=(4.6 * panels, 4.2), dpi=130, layout="constrained")
    axes = drawing.subplots(1, panels)
    order = list(dict.fromkeys([c.sampler for c in found] + [row["sampler"] for row in rows]))
    style = {name: _style(i) for i, name in enumerate(order)}
    for axis, even_in in zip(axes, EVEN_IN):
        for c in found:
            if c.data == "mixture" and c.even_in == even_in:
                axis.loglog(c.evaluations, c.errors, label=c.sampler, **style[c.sampler])
        axis.set_title(f"steps even in {even_in}", fontsize=10)
        axis.set_xlabel("evaluations of the denoiser")
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
    axes[0].set_ylabel("distance to the exact end point")
    axes[1].legend(fontsize=7, ncols=2)
    if rows:
        for name in order:
            mine = sorted((r for r in rows if r["sampler"] == name), key=lambda r: r["budget"])
            share = [100 * np.mean(row["right"]) for row in mine]
            axes[2].plot([r["budget"] for r in mine], share, label=name, **style[name])
        axes[2].set_xscale("log")
        ticks = sorted({row["budget"] for row in rows})
        axes[2].set_xticks(ticks, [str(t) for t in ticks])
        axes[2].minorticks_off()
        axes[2].set_title("pictures with everything right (%)", fontsize=10)
        axes[2].set_xlabel("evaluations of the network")
        axes[2].grid(alpha=0.3, linewidth=0.4)
        axes[2].legend(fontsize=7, ncols=2, loc="lower right")
    buffer = BytesIO()
    drawing.savefig(buffer, format="png")
    return buffer.getvalue()


def _style(i: int) -> dict:
    """Ten colours, then the same with another line."""
    line = ("-", "--", ":")[i // 10 % 3]
    return {"color": f"C{i % 10}", "linestyle": line, "marker": "o", "markersize": 3}
