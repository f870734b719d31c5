"""Toy proofs: what each technique claims, measured on scenes whose right answer is known.

A proof is a function (pipe, n, seed) -> rows in a file of this folder, whose `N` says how many
scenes it takes unless told otherwise. A row holds the claim, the figure, the threshold and where
that comes from (`claims.SOURCES`), the baseline, n and seeds. No threshold was taken from a figure
that came out, and a proof that fails is printed as failing.

    minidiff prove --out out/proofs             # all of them; a second call goes on where it was
    minidiff prove sdedit ddnm --again          # some, whatever lies in the folder
"""

import ast
import hashlib
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from time import process_time

from minidiff.evaluate.solvers import aligned
from minidiff.formats.fields import read_json
from minidiff.io import write_json
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.claims import Row
from minidiff.techniques import TECHNIQUES
from minidiff.techniques import names as listed
from minidiff.weights.store import manifest

N = 24  # scenes of a proof that has no N of its own
NO_PROOFS = {"__init__", "claims", "prove"}  # the other files of this folder


def proofs() -> dict[str, str]:
    """{name: module} of every proof: those of the techniques in their order, then the others."""
    stems = {f.stem for f in Path(__file__).parent.glob("*.py")} - NO_PROOFS
    order = [technique.stem for technique in TECHNIQUES.values() if technique.stem in stems]
    order += sorted(stems - {*order})
    return {stem.replace("_", "-"): f"minidiff.proofs.{stem}" for stem in order}


def prove(
    pipe: Pipe,
    *,
    names: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    n: int | None = None,
    seed: int = 100,
    out: Path | None = None,
    again: bool = False,
) -> dict:
    """Run the proofs named (default: all) and print them; {"rows": [...], "passed": bool}.

    skip   proofs to leave out
    n      scenes of each proof; default: what each one needs
    out    folder with one JSON file a proof; one that was measured with the same settings, code and
           weights is read from there
    again  measure those, too
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n}: at least one scene is needed")
    known = proofs()
    for name in (*names, *skip):
        if name not in known:
            raise ValueError(f"no proof called {name!r}; there are: {listed(name, known)}")
    chosen = [name for name in names or known if name not in skip]
    if not chosen:
        raise ValueError("all the proofs named are skipped; nothing is left to measure")
    if out and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a folder was expected")
    weights = fingerprint(pipe)
    done = []
    try:
        for name in chosen:
            module = import_module(known[name])
            settings = {"model": pipe.name, "n": n or getattr(module, "N", N), "seed": seed}
            made_of = {"settings": settings, "code": code_of(known[name]), "weights": weights}
            file = out / f"{name}.json" if out else None
            found = None if again else measured_before(file, made_of)
            done.append(found or measure(name, module.prove, pipe, made_of, file))
            if found:
                show(found, "as measured before")
    finally:  # what is done is told, also to who interrupts the rest
        print(f"\n{table(done)}\n")
        if len(done) < len(chosen):
            kept = f"; those are kept in {out}" if out else ""
            print(f"{len(done)} of {len(chosen)} proofs are done{kept}")
    rows = [row for result in done for row in result["rows"]]
    failing = sum(not row["holds"] for row in rows)
    print(f"{len(rows) - failing} of {len(rows)} claims hold")
    return {"rows": rows, "passed": not failing}


def measure(name: str, proof, pipe: Pipe, made_of: dict, file: Path | None) -> dict:
    """Run one proof: what it found, printed, and written to `file`."""
    print(f"{name}: {' '.join(proof.__doc__.split())}")
    start = process_time()
    rows = proof(pipe, made_of["settings"]["n"], made_of["settings"]["seed"])
    seconds = round(process_time() - start, 1)
    result = {
        "proof": name,
        **made_of,
        "cpu_seconds": seconds,
        "rows": [as_facts(name, row) for row in rows],
    }
    show(result, f"{seconds:.0f} s")
    if file:
        write_json(result, file)
    return result


def as_facts(name: str, row: Row) -> dict:
    """A row for JSON: plain numbers, None for what is none, the proof's name, the verdict."""
    facts = {"proof": name, **asdict(row), "holds": row.holds}
    for key in ("figure", "threshold", "baseline", "low", "high"):
        known = facts[key] is not None and isfinite(facts[key])
        facts[key] = float(facts[key]) if known else None
    return facts


# ---- what was measured before --------------------------------------------------------------------


def measured_before(file: Path | None, made_of: dict) -> dict | None:
    """The result in a file, if it was made of the same settings, code and weights."""
    if file is None or not file.is_file():
        return None
    result = read_json(file)
    same = all(result.get(key) == value for key, value in made_of.items())
    return result if same and isinstance(result.get("rows"), list) else None


def code_of(module: str) -> str:
    """Hash of a proof's file and of all files of the package that it imports: the technique's among
    them.
    """
    text = Path(find_spec(module).origin).read_bytes()
    imported = [n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
    ours = sorted({name for name in imported if name and name.startswith("minidiff.")})
    parts = [text] + [Path(find_spec(name).origin).read_bytes() for name in ours]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def fingerprint(pipe: Pipe) -> dict[str, str]:
    """Hashes of the pipe's own weights, and of the shipped files that judge and are compared
    with.
    """
    own = hashlib.sha256()
    for part in (pipe.net, pipe.vae, pipe.text):
        if part is not None:
            for name, tensor in part.state_dict().items():
                own.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    files = {name: row["sha256"][:16] for name, row in manifest().items()}
    return {"model": own.hexdigest()[:16], **files}


# ---- printed -------------------------------------------------------------------------------------


def show(result: dict, how: str) -> None:
    """The claims of one proof, a line each."""
    settings = result["settings"]
    print(f"  {result['proof']}: n {settings['n']}, seed {settings['seed']}; {how}")
    for row in result["rows"]:
        base = "" if row["baseline"] is None else f"   (without {row['baseline']:.2f})"
        print(
            f"  {verdict(row)}  {row['claim']:75} {figure(row):24} "
            f"at least {row['threshold']:.2f} ({row['source']}){base}"
        )


def verdict(row: dict) -> str:
    return "holds" if row["holds"] else "FAILS"


def figure(row: dict) -> str:
    """The figure, with its interval where it has one."""
    if row["figure"] is None:
        return "not a number"
    if row["low"] is None:
        return f"{row['figure']:.2f}"
    return f"{row['figure']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


HEAD = ("proof", "claim", "figure (95%)", "at least", "from", "without", "n", "seeds", "")


def cells(row: dict) -> tuple[str, ...]:
    """A row of the table of all claims."""
    return (
        row["proof"],
        row["claim"],
        figure(row),
        f"{row['threshold']:.2f}",
        row["source"],
        "" if row["baseline"] is None else f"{row['baseline']:.2f}",
        str(row["n"] or "-"),
        str(row["seeds"]),
        verdict(row),
    )


def table(results: list[dict]) -> str:
    """All claims as aligned text."""
    lines = [HEAD] + [cells(row) for result in results for row in result["rows"]]
    return aligned(lines)
