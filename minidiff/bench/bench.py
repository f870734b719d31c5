"""ShapesEditBench: every editing method on the same scenes, against the true edited picture.

    minidiff bench --methods sdedit direct-inversion --items 2  # two scenes a kind
    minidiff bench --split test --seeds 3 --out runs/bench  # all of them; resumes where it was
    minidiff bench --methods sdedit --steps 10 25 50 100  # score against evaluations
    minidiff bench --report runs/bench  # its tables, JSON and pictures again
    minidiff bench --fit sdedit inverted  # choose their knobs, on dev only

Sources are renders, never model samples, so the right answer is known, and a method must invert or
noise what it did not draw. A method is called by the names of its arguments: what it asks for
(source prompt, mask, ...) is what it gets, and the column "inputs" says so. Picture i of a kind has
the same noise for every method, alone or in a batch.

Every method appends its rows to OUT/METHOD.jsonl: an interrupted run goes on where it stopped, rows
of other settings are left aside, and several processes may run different methods into one folder;
one that asks for a method that another is running is refused.
"""

import gzip
import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from minidiff.bench import knobs, leaderboard
from minidiff.bench.cost import Cost
from minidiff.bench.items import KINDS, Item, given, items
from minidiff.bench.methods import STEPS, Method, at_steps, everything, fittable, method
from minidiff.bench.scores import VERSION, grade
from minidiff.io import write_bytes, write_image
from minidiff.pipe.pipe import Pipe
from minidiff.train.checkpoint import held
from minidiff.train.fit import multiplies_bfloat16

SMOKE = ("copy", "vae-copy", "truth", "vae-truth", "resample@steps=20")
ITEMS = {"dev": 8, "test": 32, "hard": 32, "hard-dev": 8}  # scenes of a kind
HEAT = 2  # scenes of a kind on which every setting is tried before the best third goes on
SEEDS = 10_000  # apart: the noise seeds of one kind's scenes are consecutive


def call(
    pipe: Pipe, m: Method, batch: list[Item], wrong: list[str], seed: int, options: dict
) -> tuple[torch.Tensor, Cost]:
    """The edits (b 3 64 64) of some items, and what they cost; picture i has seed + i.

    Of the pictures that a method returns the last b are the edits: some return the source's
    reconstruction first.
    """
    known = given(
        m.fn,
        batch,
        masked=m.masked,
        misread=m.misread,
        seed=seed,
        blend=[item.nouns for item in batch],
        truth=torch.cat([item.answer for item in batch]),
        wrong=wrong[0] if len(wrong) == 1 else wrong,
    )
    with Cost(pipe) as cost:
        pictures = m.fn(pipe, **known | options)
    edits = pictures[-len(batch) :]
    return edits.detach().float().cpu(), cost


def attempts(
    pipe: Pipe, m: Method, batch: list[Item], wrong: list[str], seed: int, options: dict
) -> list[tuple[torch.Tensor, dict]]:
    """(edit (1 3 64 64), what it cost) of each item.

    A method may refuse an item (ValueError): then its edit is the source, which scores 0, and the
    reason is kept. If it refuses several at once, each is asked alone.
    """
    reason = ""
    try:
        edits, cost = call(pipe, m, batch, wrong, seed, options)
    except ValueError as refusal:
        if len(batch) > 1:
            alone = []
            for j, item in enumerate(batch):
                alone += attempts(pipe, m, [item], [wrong[j]], seed + j, options)
            return alone
        edits = batch[0].image
        cost = Cost(pipe)
        reason = str(refusal) or "no reason given"
    paid = {
        "nfe": cost.nfe / len(batch),
        "seconds": cost.seconds / len(batch),
        "mb": cost.mb,
        "batch": len(batch),
        "refused": reason,
    }
    return [(edit[None], paid) for edit in edits]


def chunks(missing: list[int], batch: int) -> list[list[int]]:
    """Runs of consecutive numbers, at most `batch` long. 0 stays alone, for its time and memory are
    those of one edit.
    """
    runs: list[list[int]] = []
    for i in missing:
        last = runs[-1] if runs else []
        alone = last and last[0] == 0
        follows = last and not alone and i == last[-1] + 1
        if follows and len(last) < batch:
            last.append(i)
        else:
            runs.append([i])
    return runs


def rows_of(path: Path) -> list[dict]:
    """What a file of rows holds, and the packed one of its name beside it (`pack`); a line that an
    interruption tore is left out.
    """
    packed = path.with_name(f"{path.name}.gz")
    text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else ""
    text += path.read_text() if path.exists() else ""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def null_for_nan(value):
    """JSON has no NaN."""
    is_nan = isinstance(value, float) and value != value
    return None if is_nan else value


def append(rows: list[dict], path: Path) -> list[dict]:
    """Add lines to a file in one write, so that nobody reads half of them; the rows as written (NaN
    becomes null).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{name: null_for_nan(value) for name, value in row.items()} for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        text = "\n" + text  # behind a torn line
    with open(path, "ab") as f:
        f.write(text.encode())
        f.flush()
        os.fsync(f.fileno())
    return rows


def latest(folder: Path) -> list[dict]:
    """All rows of a folder; of a method that ran with several settings those of the last one, kind
    by kind.
    """
    files = {
        path.with_name(path.name.removesuffix(".gz")) for path in Path(folder).glob("*.jsonl*")
    }
    rows = []
    for path in sorted(files):
        rows += rows_of(path)
    last = {(r["method"], r["split"], r["kind"]): r["cfg"] for r in rows}
    return [r for r in rows if last[r["method"], r["split"], r["kind"]] == r["cfg"]]


def pack(folder: Path, to: Path) -> None:
    """The rows of a folder as small files NAME.jsonl.gz, floats to five digits: what the tables of
    the project were made of. `--report` reads such a folder, and a run that finds them goes on.
    """

    def short(value):
        return float(f"{value:.5g}") if isinstance(value, float) else value

    by_method: dict[str, list[str]] = {}
    for row in latest(folder):
        line = json.dumps({name: short(value) for name, value in row.items()})
        by_method.setdefault(row["method"], []).append(line + "\n")
    for name, lines in by_method.items():
        packed = gzip.compress("".join(lines).encode(), mtime=0)
        write_bytes(packed, Path(to) / f"{name}.jsonl.gz")


def run_chunk(
    pipe: Pipe, m: Method, scenes: list[Item], numbers: list[int], facts: dict
) -> tuple[list[dict], torch.Tensor]:
    """Edit and grade the scenes of these numbers together: (a row for each, the edits (b 3 64 64)).

    `scenes`: all of a kind, and one more, for the "wrong" prompt of each is its neighbour's.
    """
    batch = [scenes[i] for i in numbers]
    wrong = [scenes[i + 1].target for i in numbers]
    seed = SEEDS * facts["k"] + numbers[0]
    tried = attempts(pipe, m, batch, wrong, seed, facts["options"])
    refusals = [paid["refused"] for _, paid in tried]
    if "@" in m.name and all(refusals):
        raise ValueError(f"{m.name}: {refusals[0]}")
    edits = torch.cat([edit for edit, _ in tried])
    answers = torch.cat([item.answer for item in batch])
    ceilings = pipe.decode(pipe.encode(answers)).float().cpu()
    rows = []
    for i, (_, paid), scores in zip(numbers, tried, grade(edits, batch, ceilings)):
        objects = len(scenes[i].scene.objects)
        rows.append(facts | {"i": i, "objects": objects} | paid | scores)
    return rows, edits


def run(
    pipe: Pipe,
    name: str,
    out: Path,
    *,
    split: str,
    n: int,
    seeds: int = 1,
    kinds: tuple[str, ...] = KINDS,
    batch: int = 16,
    progress: bool = False,
) -> list[dict]:
    """Run one method, or what is missing of it, into out/NAME.jsonl; its rows.
    ValueError if another process runs it into that folder.
    """
    m = method(name)
    path = Path(out) / f"{name}.jsonl"
    common = {"method": name, "inputs": m.inputs, "split": split, "fitted": knobs.fitted(name)}
    if "seed" not in inspect.signature(m.fn).parameters:
        seeds = 1
    rows = []
    does = f"runs {name} into {out}: wait until it ends, or run other methods"
    with held(Path(out) / f".{name}.lock", does):
        written = {(r["kind"], r["i"], r["k"], r["split"], r["cfg"]): r for r in rows_of(path)}
        for kind in kinds:
            settings = m.options(kind)
            cfg = knobs.digest(name, f"{pipe.name}, scores {VERSION}", m.fn, settings)
            scenes = items(split, n + 1, (kind,))
            of_kind = []
            for k in range(seeds):
                facts = common | {"kind": kind, "k": k, "cfg": cfg, "options": settings}
                keys = {i: (kind, i, k, split, cfg) for i in range(n)}
                done = {i: written[key] for i, key in keys.items() if key in written}
                missing = [i for i in range(n) if i not in done]
                for numbers in chunks(missing, batch):
                    new, edits = run_chunk(pipe, m, scenes, numbers, facts)
                    for row in append(new, path):
                        done[row["i"]] = row
                    if numbers[0] == k == 0:
                        picture = leaderboard.picture_of(Path(out), name, split, kind)
                        write_image(torch.nan_to_num(edits[:1]), picture)
                of_kind += [done[i] for i in range(n)]
            if progress:
                report(name, kind, of_kind)
            rows += of_kind
    return rows


def report(name: str, kind: str, rows: list[dict]) -> None:
    """One line of means, on the error stream."""
    mean = {c: sum(r[c] for r in rows) / len(rows) for c in ("T", "K", "score")}
    print(
        f"{name:32} {kind:12} T {mean['T']:.2f}   K {mean['K']:.2f}   score {mean['score']:.3f}",
        file=sys.stderr,
    )


def tune(
    pipe: Pipe,
    name: str,
    out: Path,
    *,
    n: int,
    kinds: tuple[str, ...] = KINDS,
    steps: int = STEPS,
    batch: int = 16,
    progress: bool = False,
) -> dict:
    """Try all that bench/knobs.py lists for a method, on dev, and write the best into knobs.json;
    the line written.

    A race in two heats: every setting on the first scenes of each kind, then the best third (two at
    least) on all n. A method whose knobs count steps is fitted in as many as the tables have,
    whatever `steps` says. Networks compute in bfloat16 where the processor multiplies it: that
    decides which settings are tried again, and no score of a table. What out/fit/NAME.jsonl has
    already is not run again.
    """
    m = method(name)
    if knobs.sweep(name).per_step:
        steps = STEPS
    fixed = m.fixed | ({"steps": steps} if "steps" in m.fixed else {})
    path = Path(out) / "fit" / f"{name}.jsonl"

    def heat(settings: list[dict], scenes: int) -> list[dict[str, float]]:
        """{kind: mean score} of every setting."""
        # what was measured on other kinds had other scenes, and other noises
        mine = [r for r in rows_of(path) if list(r["scores"]) == list(kinds)]
        done = {(r["cfg"], r["items"]): r["scores"] for r in mine}
        scores = []
        start = time.monotonic()
        for setting in settings:
            options = fixed | setting
            cfg = knobs.digest(name, f"{pipe.name}, scores {VERSION}", m.fn, options)
            if (cfg, scenes) not in done:
                done[cfg, scenes] = trial(pipe, m, items("dev", scenes, kinds), options, batch)
                line = {"cfg": cfg, "items": scenes, "setting": setting}
                append([line | {"scores": done[cfg, scenes]}], path)
            scores.append(done[cfg, scenes])
            if progress:
                left = (time.monotonic() - start) / len(scores) * (len(settings) - len(scores))
                title = ",".join(f"{knob}={value}" for knob, value in setting.items())
                print(
                    f"{name:24} {len(scores):3}/{len(settings)} on {scenes} scenes of each kind: "
                    f"{mean(scores[-1]):.3f}  {title}  ({left / 60:.0f} min left)",
                    file=sys.stderr,
                )
        return scores

    tries = knobs.combinations(name)
    with held(path.with_suffix(".lock"), f"fits {name} into {out}: wait until it ends"):
        finalists = tries
        if HEAT < n:
            first = heat(tries, HEAT)
            order = sorted(range(len(tries)), key=lambda j: -mean(first[j]))
            third = max(2, -(-len(tries) // 3))
            finalists = [tries[j] for j in order[:third]]
        last = heat(finalists, n)
    best = max(range(len(finalists)), key=lambda j: mean(last[j]))
    best_of = {kind: max(range(len(finalists)), key=lambda j: last[j][kind]) for kind in kinds}
    reached = {kind: last[j][kind] for kind, j in best_of.items()}
    return knobs.save(
        name,
        {
            "chosen": finalists[best],
            "per_kind": {kind: finalists[j] for kind, j in best_of.items()},
            "score": round(mean(last[best]), 4),
            "score_per_kind": round(mean(reached), 4),
            "items": n,
            "steps": steps,
            "tried": len(tries),
        },
    )


def trial(pipe: Pipe, m: Method, scenes: list[Item], options: dict, batch: int) -> dict[str, float]:
    """{kind: mean score} of one setting on scenes of several kinds, which are edited together;
    picture i has seed i.
    """
    scores: dict[str, list[float]] = {}
    for i in range(0, len(scenes), batch):
        together = scenes[i : i + batch]
        others = [scenes[(i + j + 1) % len(scenes)].target for j in range(len(together))]
        with torch.autocast(pipe.device.type, torch.bfloat16, enabled=multiplies_bfloat16()):
            tried = attempts(pipe, m, together, others, i, options)
        edits = torch.cat([edit for edit, _ in tried])
        answers = torch.cat([item.answer for item in together])
        ceilings = pipe.decode(pipe.encode(answers)).float().cpu()
        for item, graded in zip(together, grade(edits, together, ceilings)):
            scores.setdefault(item.kind, []).append(graded["score"])
    return {kind: sum(of_kind) / len(of_kind) for kind, of_kind in scores.items()}


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def bench(
    pipe: Pipe | None,
    *,
    methods: tuple[str, ...] = (),
    split: Literal["dev", "test", "hard", "hard-dev"] = "dev",
    items: int | None = None,
    seeds: int = 1,
    kinds: tuple[str, ...] = (),
    steps: tuple[int, ...] = (),
    per_kind: bool = False,
    out: Path = Path("out/bench"),
    batch: int = 16,
    smoke: bool = False,
    fit: tuple[str, ...] = (),
    report: Path | None = None,
    page: Path | None = None,
    progress: bool = True,
) -> dict:
    """Score editing methods against the true edited pictures of known scenes.

    methods   controls, techniques, NAME+mask, NAME+misread, NAME@option=value (default: all that
              the bench can run)
    split     dev, to tune on, or test, to report; hard: the scenes of test with light, marks and
              outlines that no caption names (hard-dev: those of dev)
    items     scenes of each kind of edit (default: 8 of dev, 32 of test)
    seeds     noise seeds for each scene
    kinds     kinds of edits (default: all eight)
    steps     numbers of steps that every method runs in (default: 50); several make the picture of
              scores against evaluations
    per_kind  also run every method with the setting that was best for each kind, where it was
              fitted: the column "per kind"
    out       folder of the results; what is there already is not run again
    batch     scenes per call; the first of a kind always goes alone, for its time and memory
    smoke     only a few controls, on two dev scenes of each kind: do they come in the expected
              order?
    fit       methods, or "all": choose their guidance and knobs on dev (bench/knobs.py), write them
              down, and stop
    report    a folder of results: write its tables, JSON and pictures again, and stop
    page      a Markdown page whose leaderboard is rewritten too

    Returns the report: {"split", "methods", "kinds", "controls", "passed", ...}, or with `fit` the
    lines written, by method.
    """
    if report is not None:
        if not Path(report).is_dir():
            raise ValueError(f"--report {report}: there is no such folder of results")
        return leaderboard.write(latest(report), Path(report), split=split, page=page)
    kinds = tuple(kinds) or KINDS
    check_kinds(kinds)
    if smoke or fit:
        split = "dev"
    n = items if items is not None else 2 if smoke else ITEMS[split]
    if min(n, seeds, batch, *steps) < 1:
        raise ValueError(
            f"items={n}, seeds={seeds}, batch={batch}, steps={steps}: all must be 1 or more"
        )
    try:
        if fit:
            return fit_all(pipe, fit, out, n, kinds, steps, batch, progress)
        names = rows_to_run(methods, smoke, steps, per_kind)
        rows = []
        for name in names:
            rows += run(
                pipe,
                name,
                Path(out),
                split=split,
                n=n,
                seeds=seeds,
                kinds=kinds,
                batch=batch,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; what was done is in {out}: the same command goes on from there"
        ) from None
    others = [r for r in latest(out) if r["method"] not in names]  # of earlier runs
    return leaderboard.write(rows + others, Path(out), split=split, page=page)


def check_kinds(kinds: tuple[str, ...]) -> None:
    """ValueError for an unknown kind of edit."""
    items("dev", 0, kinds)


def rows_to_run(
    methods: tuple[str, ...], smoke: bool, steps: tuple[int, ...], per_kind: bool
) -> list[str]:
    """The names of the rows that were asked for, each checked before any work."""
    names = list(methods) or (list(SMOKE) if smoke else everything())
    for name in names:
        method(name)
    if per_kind:
        names += [f"{name}@{knobs.PER_KIND}" for name in names if knobs.has_per_kind(name)]
    if steps:
        names = [at_steps(name, count) for count in steps for name in names]
    return list(dict.fromkeys(names))


def fit_all(
    pipe: Pipe,
    names: tuple[str, ...],
    out: Path,
    n: int,
    kinds: tuple[str, ...],
    steps: tuple[int, ...],
    batch: int,
    progress: bool,
) -> dict[str, dict]:
    """Fit several methods, one after the other; {method: its line of knobs.json}."""
    if names == ("all",):
        names = tuple(fittable())
    if len(steps) > 1:
        raise ValueError(f"steps={steps}: knobs are fitted at one number of steps")
    for name in names:
        if "@" in name or "+misread" in name:
            raise ValueError(f"{name}: knobs are fitted for a method, not for one of its settings")
        method(name)
        knobs.combinations(name)
    lines = {}
    for name in names:
        lines[name] = tune(
            pipe,
            name,
            Path(out),
            n=n,
            kinds=kinds,
            steps=steps[0] if steps else STEPS,
            batch=batch,
            progress=progress,
        )
    return lines
