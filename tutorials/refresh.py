"""Make anew everything that quotes a figure or shows a picture of the shipped weights, after they
have changed: `make refresh`.

    python tutorials/refresh.py --list                  # the stages and their commands
    python tutorials/refresh.py                         # all of them; hours on two cores
    python tutorials/refresh.py --only readme           # some
    BENCH=1 make refresh                                # with the bench scored again (more hours)

The leaderboard is written from runs/bench, or the folder --bench, if that is there.

Figures are measured into tutorials/measured/*.json, and the pages' tables are written from there by
tables.py: no page holds a figure that was typed in. A stage that was finished with the weights as
they are is not run again (`--again` does); interrupted, the same command goes on.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from minidiff.bench.bench import latest, pack
from minidiff.io import write_bytes, write_json
from minidiff.weights.store import PARTS, TINY, manifest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MEASURED = HERE / "measured"
BENCH = ROOT / "runs/bench"
COMPARED = {  # command and options of what compares, and the figure its picture becomes
    "samplers": (("--pictures",), "work_precision.png"),
    "guides": ((), ""),
    "backbones": ((), "backbones.png"),
}
DONE = ROOT / "out/refresh.json"  # {stage: what it was made of}
N = 512  # pictures of `minidiff evaluate`


@dataclass(frozen=True)
class Stage:
    """Commands that belong together.

    judges  its exit code 1 says that a claim fails, which is told at the end
    always  it is quick and reads what the others wrote, so it is never left out
    """

    name: str
    about: str
    commands: tuple[tuple[str, ...], ...]
    judges: bool = False
    always: bool = False


def stages(bench: Path | None, score: bool, snapshots: Path | None) -> list[Stage]:
    """All stages, in the order in which they need each other."""
    minidiff = ("-m", "minidiff")
    refresh = "tutorials/refresh.py"
    doctor = (*minidiff, "doctor", "--store")
    prove = (*minidiff, "prove", "--out", "tutorials/measured/proofs")
    out = [Stage("doctor", "the numbers that `minidiff doctor` compares with", (doctor,))]
    for name in PARTS:
        to = f"tutorials/measured/{name}.json"
        evaluate = (*minidiff, "evaluate", name, "--n", str(N), "--json", to)
        out.append(Stage(f"evaluate-{name}", f"the share of {name}'s right pictures", (evaluate,)))
    out.append(Stage("proofs", "every technique's claims", (prove,), judges=True))
    for name, (options, _) in COMPARED.items():
        folder = str(ROOT / "runs" / name)
        compare = (*minidiff, name, *options, "--out", folder)
        out.append(Stage(name, f"{name} side by side", (compare, (refresh, "--keep", folder))))
    if snapshots:
        learn = (refresh, "--learning", str(snapshots))
        out.append(Stage("learning", "which attribute is learned when", (learn,)))
    out += [
        Stage("figures", "the figures of README and pages", (("tutorials/figures.py",),)),
        Stage("sheets", "the contact sheets of the editing pages", (("tutorials/sheets.py",),)),
    ]
    on_test = (*minidiff, "bench", "--split", "test")
    if bench and score:
        scoring = (*on_test, "--out", str(bench))
        out.append(Stage("bench", "every method on the test split: hours", (scoring,), judges=True))
    if bench:
        page = ("--report", str(bench), "--page", "tutorials/editing/leaderboard.md")
        tables = [(*on_test, *page)]
        if has_split(bench, "hard"):
            tables.append((*minidiff, "bench", "--split", "hard", *page))
        tables.append((refresh, "--board", str(bench)))
        about = "its tables, its pictures, and the rows behind them"
        out.append(Stage("leaderboard", about, tuple(tables), judges=True))
    tables = ("tutorials/tables.py",)
    out += [
        Stage("readme", "tables of README and pages, of figures and code", (tables,), always=True),
        Stage("notebooks", "the notebooks, built and run", (("notebooks/build.py",),)),
    ]
    return out


def weights() -> str:
    """One hash of all shipped weights."""
    hashes = [f"{name} {row['sha256']}" for name, row in sorted(manifest().items())]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def run(stage: Stage) -> int:
    """The stage's commands one after the other; the first exit code that stops them, else the
    largest.
    """
    worst = 0
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for command in stage.commands:
        print("$", shown(command), flush=True)
        env = os.environ | {"PYTHONPATH": path}
        code = subprocess.run([sys.executable, *command], cwd=ROOT, env=env).returncode
        if code and not (stage.judges and code == 1):
            return code
        worst = max(worst, code)
    return worst


def shown(command: tuple[str, ...]) -> str:
    return shlex.join(["python", *command])


def learning(folder: Path) -> None:
    """minidiff/weights/tiny/learning.json from snapshots PICTURES.safetensors of a training."""
    from minidiff.evaluate.evaluate import learning_curve

    files = [(int(f.stem), f) for f in folder.glob("*.safetensors") if f.stem.isdigit()]
    if not files:
        raise SystemExit(f"{folder} holds no snapshot called PICTURES_SEEN.safetensors")
    learning_curve(sorted(files), json=TINY / "learning.json")


def has_split(bench: Path, split: str) -> bool:
    """Does a folder of results hold any of that split?"""
    return bench.exists() and any(row["split"] == split for row in latest(bench))


def board(bench: Path) -> None:
    """The leaderboard's pictures and figures, and the rows they were made of, from the folder of
    its results.
    """
    pictures = {"grid": "bench", "matrix": "bench_matrix", "budgets": "bench_budgets"}
    for end in ("", "_hard"):
        for name, shown in pictures.items():
            file = bench / f"{name}{end}.png"
            if file.exists():
                write_bytes(file.read_bytes(), HERE / f"figures/{shown}{end}.png")
        file = bench / f"bench{end}.json"
        if file.exists():
            write_bytes(file.read_bytes(), HERE / f"editing/bench{end}.json")
    pack(bench, MEASURED / "bench")


def keep(folder: Path) -> None:
    """A comparison, from the folder that has its name: figures for the tables, a picture for its
    page.
    """
    name = folder.name
    write_bytes((folder / f"{name}.json").read_bytes(), MEASURED / f"{name}.json")
    _, shown = COMPARED[name]
    if shown:
        write_bytes((folder / f"{name}.png").read_bytes(), HERE / "figures" / shown)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone")
    p.add_argument("--list", action="store_true", help="print the stages and stop")
    p.add_argument("--again", action="store_true", help="also what was done with these weights")
    p.add_argument(
        "--bench", type=Path, metavar="FOLDER", help="results of `minidiff bench` (runs/bench)"
    )
    p.add_argument("--score", action="store_true", help="run the bench first")
    p.add_argument("--snapshots", type=Path, metavar="FOLDER", help="of a training, for learning")
    p.add_argument("--learning", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--board", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    for write, folder in (
        (learning, args.learning),
        (board, args.board),
        (keep, args.keep),
    ):
        if folder:
            write(folder)
            return 0
    bench = args.bench or (BENCH if args.score or BENCH.exists() else None)
    every = {s.name: s for s in stages(bench, args.score, args.snapshots)}
    if unknown := [name for name in args.only or () if name not in every]:
        p.error(f"no stage called {', '.join(unknown)}; there are: {', '.join(every)}")
    chosen = [s for s in every.values() if not args.only or s.name in args.only]
    if args.list:
        for stage in chosen:
            print(f"{stage.name:12} {stage.about}")
            for command in stage.commands:
                print(f"{'':12} $ {shown(command)}")
        return 0
    return go(chosen, args.again)


def go(chosen: list[Stage], again: bool = False) -> int:
    """Run the stages; 0, or the exit code of the one that stopped, or 1 if a claim fails."""
    failing = []
    for stage in chosen:
        done = json.loads(DONE.read_text()) if DONE.exists() else {}
        made_of = {"weights": weights(), "commands": [shown(c) for c in stage.commands]}
        if done.get(stage.name) == made_of and not (again or stage.always):
            print(f"{stage.name}: done with these weights")
            continue
        print(f"{stage.name}: {stage.about}", flush=True)
        code = run(stage)
        if code and not (stage.judges and code == 1):
            print(f"{stage.name} stopped with exit code {code}", file=sys.stderr)
            return code
        if code:
            failing.append(stage.name)
        write_json(done | {stage.name: made_of}, DONE)
    if failing:
        print(f"finished; claims fail in: {', '.join(failing)}")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
