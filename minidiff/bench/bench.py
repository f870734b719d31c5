"""ShapesEditBench: every editing method on the same scenes, against the true edited picture.

    minidiff bench --methods sdedit direct-inversion --items 2  # two scenes a kind
    minidiff bench --split test --seeds 3 --out runs/bench  # all of them; resumes where it was
    minidiff bench --report runs/bench  # its table, JSON and picture again
    minidiff bench --fit sdedit  # choose its knobs, on dev only

Sources are renders, never model samples, so the right answer is known, and a method must invert or
noise what it did not draw. A method is called by the names of its arguments: what it asks for
(source prompt, mask, ...) is what it gets, and the column "inputs" says so. Picture i of a kind has
the same noise for every method, alone or in a batch.

Every method appends its rows to OUT/METHOD.jsonl: an interrupted run goes on where it stopped, rows
of other settings are left aside, and several processes may run different methods into one folder.
"""

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Literal

import torch

from minidiff.bench import knobs, leaderboard
from minidiff.bench.cost import Cost
from minidiff.bench.items import KINDS, Item, given
from minidiff.bench.items import items as drawn
from minidiff.bench.methods import Method, everything, method
from minidiff.bench.scores import VERSION, grade
from minidiff.io import write_image
from minidiff.pipe.pipe import Pipe

SMOKE = ("copy", "vae-copy", "truth", "vae-truth", "resample@steps=20")
ITEMS = {"dev": 8, "test": 50}  # scenes of a kind
SEEDS = 10_000  # apart: the noise seeds of one kind's scenes are consecutive


def call(
    pipe: Pipe, m: Method, its: list[Item], wrong: list[str], seed: int, options: dict
) -> tuple[torch.Tensor, Cost]:
    """The edits (b 3 64 64) of some items, and what they cost; picture i has seed + i. Of the
    pictures returned the last b are the edits: some methods return the source's reconstruction
    first.
    """
    known = given(
        m.fn,
        its,
        masked=m.masked,
        misread=m.misread,
        seed=seed,
        truth=torch.cat([i.answer for i in its]),
        wrong=wrong[0] if len(wrong) == 1 else wrong,
    )
    with Cost(pipe) as cost:
        out = m.fn(pipe, **known | options)
    return out[-len(its) :].detach().float().cpu(), cost


def attempts(
    pipe: Pipe, m: Method, its: list[Item], wrong: list[str], seed: int, options: dict
) -> list[tuple[torch.Tensor, dict]]:
    """(edit (1 3 64 64), what it cost) of each item. A method may refuse one (ValueError): then its
    edit is the source, which scores 0, and the reason is kept. If it refuses several at once, each
    is asked alone.
    """
    why = ""
    try:
        images, cost = call(pipe, m, its, wrong, seed, options)
    except ValueError as e:
        if len(its) > 1:
            return [
                a
                for j in range(len(its))
                for a in attempts(pipe, m, its[j : j + 1], wrong[j : j + 1], seed + j, options)
            ]
        images, cost, why = its[0].image, Cost(pipe), str(e) or "no reason given"
    n = len(its)
    paid = {
        "nfe": cost.nfe / n,
        "seconds": cost.seconds / n,
        "mb": cost.mb,
        "batch": n,
        "refused": why,
    }
    return [(image[None], paid) for image in images]


def chunks(todo: list[int], batch: int) -> list[list[int]]:
    """Runs of consecutive numbers, at most `batch` long; 0 stays alone, for its time and memory are
    those of one edit.
    """
    out: list[list[int]] = []
    for i in todo:
        if out and out[-1][0] and i == out[-1][-1] + 1 and len(out[-1]) < batch:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def rows_of(path: Path) -> list[dict]:
    """What a file of rows holds; a line that an interruption tore is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append(rows: list[dict], path: Path) -> list[dict]:
    """Add lines to a file in one write, so that nobody reads half of them; the rows as written (NaN
    becomes null).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{k: None if isinstance(v, float) and v != v else v for k, v in r.items()} for r in rows]
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with open(path, "ab") as f:
        f.write(b"\n" * bool(torn) + "".join(json.dumps(r) + "\n" for r in rows).encode())
        f.flush()
        os.fsync(f.fileno())
    return rows


def latest(folder: Path) -> list[dict]:
    """All rows of a folder; of a method that ran with several settings those of the last one, kind
    by kind.
    """
    rows = [r for path in sorted(Path(folder).glob("*.jsonl")) for r in rows_of(path)]
    last = {(r["method"], r["split"], r["kind"]): r["cfg"] for r in rows}
    return [r for r in rows if last[r["method"], r["split"], r["kind"]] == r["cfg"]]


def run(
    pipe: Pipe,
    name: str,
    out: Path,
    *,
    split: str,
    n: int,
    seeds: int = 1,
    kinds: tuple[str, ...] = KINDS,
    options: dict | None = None,
    batch: int = 8,
    progress: bool = False,
) -> list[dict]:
    """Run one method, or what is missing of it, into out/NAME.jsonl; its rows. `options` replace
    the fitted ones.
    """
    m, path, rows = method(name), Path(out) / f"{name}.jsonl", []
    seeds = seeds if "seed" in inspect.signature(m.fn).parameters else 1
    common = {"method": name, "inputs": m.inputs, "split": split, "fitted": knobs.fitted(name)}
    done = {(r["kind"], r["i"], r["k"], r["split"], r["cfg"]): r for r in rows_of(path)}
    for kind in kinds:
        its = drawn(split, n + 1, (kind,))  # one more: the last one's "wrong" prompt
        how = knobs.chosen(name, kind) if options is None else options
        cfg = knobs.digest(name, f"{pipe.name}, scores {VERSION}", m.fn, how)
        for k in range(seeds):
            have = {
                i: done[kind, i, k, split, cfg]
                for i in range(n)
                if (kind, i, k, split, cfg) in done
            }
            for some in chunks([i for i in range(n) if i not in have], batch):
                mine = [its[i] for i in some]
                tried = attempts(
                    pipe, m, mine, [its[i + 1].target for i in some], SEEDS * k + some[0], how
                )
                refusals = [cost["refused"] for _, cost in tried]
                if "@" in name and all(refusals):
                    raise ValueError(f"{name}: {refusals[0]}")
                images = torch.cat([image for image, _ in tried])
                ceilings = (
                    pipe.decode(pipe.encode(torch.cat([i.answer for i in mine]))).float().cpu()
                )
                facts = common | {"kind": kind, "k": k, "cfg": cfg, "options": how}
                new = [
                    facts | {"i": i, "objects": len(item.scene.objects)} | paid | scores
                    for i, item, (_, paid), scores in zip(
                        some, mine, tried, grade(images, mine, ceilings)
                    )
                ]
                have |= dict(zip(some, append(new, path)))
                if some[0] == k == 0:
                    write_image(
                        torch.nan_to_num(images[:1]), Path(out) / "pictures" / f"{name}.{kind}.png"
                    )
            rows += [have[i] for i in sorted(have)]
        if progress:
            mean = {
                c: sum(r[c] for r in rows if r["kind"] == kind) / (n * seeds)
                for c in ("T", "K", "score")
            }
            print(
                (
                    f"{name:32} {kind:12} T {mean['T']:.2f}   K {mean['K']:.2f}   score "
                    f"{mean['score']:.3f}"
                ),
                file=sys.stderr,
            )
    return rows


def tune(
    pipe: Pipe,
    name: str,
    out: Path,
    *,
    n: int,
    kinds: tuple[str, ...] = KINDS,
    batch: int = 8,
    progress: bool = False,
) -> dict:
    """Try all that bench/knobs.py lists for a method, on dev, and write the best into
    knobs.json; the line written.
    """
    tries, scores = knobs.combinations(name), {}
    for o in tries:
        folder = Path(out) / "fit" / ",".join(f"{k}={v}" for k, v in o.items())
        rows = run(
            pipe,
            name,
            folder,
            split="dev",
            n=n,
            kinds=kinds,
            options=o,
            batch=batch,
            progress=progress,
        )
        scores[id(o)] = {
            kind: sum(r["score"] for r in rows if r["kind"] == kind) / n for kind in kinds
        }
    best_for = lambda some: max(tries, key=lambda o: sum(scores[id(o)][k] for k in some))  # noqa: E731
    per_kind = knobs.sweep(name).per_kind
    choice = {kind: best_for([kind] if per_kind else kinds) for kind in kinds}
    score = sum(scores[id(o)][kind] for kind, o in choice.items()) / len(kinds)
    return knobs.save(
        name,
        {
            "chosen": choice if per_kind else best_for(kinds),
            "per_kind": per_kind,
            "score": round(score, 4),
            "items": n,
            "tried": len(tries),
        },
    )


def bench(
    pipe: Pipe | None,
    *,
    methods: tuple[str, ...] = (),
    split: Literal["dev", "test"] = "dev",
    items: int | None = None,
    seeds: int = 1,
    kinds: tuple[str, ...] = (),
    out: Path = Path("out/bench"),
    batch: int = 8,
    smoke: bool = False,
    fit: str = "",
    report: Path | None = None,
    page: Path | None = None,
    progress: bool = True,
) -> dict:
    """Score editing methods against the true edited pictures of known scenes.

    methods  controls, techniques, NAME+mask, NAME+misread, NAME@option=value (default: all that the
             bench can run)
    split    dev, to tune on, or test, to report
    items    scenes of each kind of edit (default: 8 of dev, 50 of test)
    seeds    noise seeds for each scene
    kinds    kinds of edits (default: all eight)
    out      folder of the results; what is there already is not run again
    batch    scenes per call; the first of a kind always goes alone, for its time and memory
    smoke    only a few controls, on two dev scenes of each kind: do they come in the expected
             order?
    fit      a method: choose its knobs on dev (bench/knobs.py), write them down, and stop
    report   a folder of results: write its table, JSON and picture again, and stop
    page     a Markdown page whose leaderboard is rewritten too

    Returns the report: {"split", "methods", "kinds", "controls", "passed", ...}, or with `fit` the
    line written.
    """
    if report is not None:
        return leaderboard.write(latest(report), Path(report), split=split, page=page)
    kinds, split = tuple(kinds) or KINDS, "dev" if smoke or fit else split
    n = (2 if smoke else 4 if fit else ITEMS[split]) if items is None else items
    if min(n, seeds, batch) < 1:
        raise ValueError(f"items={n}, seeds={seeds}, batch={batch}: all must be 1 or more")
    if fit:
        return tune(pipe, fit, Path(out), n=n, kinds=kinds, batch=batch, progress=progress)
    names = list(methods) or (list(SMOKE) if smoke else everything())
    for name in names:  # a wrong name is told before any work
        method(name)
    mine = [
        r
        for name in names
        for r in run(
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
    ]
    # what other runs left in the folder
    rest = [r for r in latest(out) if r["method"] not in names]
    return leaderboard.write(mine + rest, Path(out), split=split, page=page)
