"""The tables of ShapesEditBench: rows of scores -> leaderboard.md, bench.json, grid.png.

What the numbers are stands in `summary.py`; here they become words, tables and a sheet of pictures.
"""

import re
from pathlib import Path

import torch

from minidiff.bench import summary
from minidiff.bench.items import KINDS, items
from minidiff.io import grid, read_image, write_bytes, write_json

BLOCK = re.compile(r"(<!-- leaderboard( in short)? -->\n).*?(<!-- end -->)", re.S)
FEW = 6  # scenes below which no interval says anything


# ---- words ---------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(r)} |" for r in [head, ["---"] * len(head), *rows])


def num(v: float | None, digits: int = 2) -> str:
    return "-" if v is None or v != v else f"{v:.{digits}f}"


def ci(v, digits: int = 3) -> str:
    return f"{num(v[0], digits)} to {num(v[1], digits)}"


def percent(share: float | None) -> str:
    return num(None if share is None else 100 * share, 0)


def score(value: tuple[float, float, float], digits: int = 3) -> str:
    """(mean, low, high)"""
    return f"{num(value[0], digits)} ({ci(value[1:], digits)})"


def note(s: dict) -> str:
    parts = []
    if not s["fitted"]:
        parts.append("not fitted")
    if s["refused"]:
        parts.append(f"refused {s['refused']} of {s['rows']}")
    return f" ({', '.join(parts)})" if parts else ""


def main_table(lines: list[dict]) -> str:
    columns = {
        "method": lambda s: s["method"] + note(s),
        "inputs": lambda s: s["inputs"] or "-",
        "n": lambda s: str(s["rows"]),
        "T % (95%)": lambda s: f"{percent(s['T'])} ({ci([100 * v for v in s['T_ci']], 0)})",
        "K %": lambda s: percent(s["K"]),
        "B dB (VAE)": lambda s: f"{num(s['B'], 1)} ({num(s['B_vae'], 1)})",
        "C dB (VAE)": lambda s: f"{num(s['C'], 1)} ({num(s['C_vae'], 1)})",
        "P": lambda s: num(s["P"], 3),
        "D x1e3": lambda s: num(1e3 * s["D"], 1),
        "Q1": lambda s: num(s["Q1"]),
        "Q2": lambda s: num(s["Q2"]),
        "EditScore": lambda s: f"**{num(s['score'], 3)}**",
        "95%": lambda s: ci(s["score_ci"]),
        "disagree %": lambda s: percent(s["disagree"]),
        "evals": lambda s: num(s["nfe"], 0),
        "s/edit": lambda s: num(s["seconds"]),
        "MB": lambda s: num(s["mb"], 0),
        "cfg": lambda s: s["cfg"],
    }
    return table(list(columns), [[cell(s) for cell in columns.values()] for s in lines])


def by_kind(s: dict) -> list[str]:
    """A method's score on every kind, "-" where it did not run."""
    return [num(s["by_kind"][kind]["score"]) if kind in s["by_kind"] else "-" for kind in KINDS]


def kind_table(lines: list[dict]) -> str:
    head = ["method", *KINDS, "1 object", "2 objects"]
    rows = []
    for s in lines:
        by_objects = s["by_objects"]
        rows.append([s["method"], *by_kind(s), num(by_objects["1"]), num(by_objects["2"])])
    return table(head, rows)


def short_table(lines: list[dict]) -> str:
    """All methods in one narrow table, for a front page."""
    head = ["method", "inputs", "n", *KINDS, "EditScore (95%)", "evals", "s/edit"]
    rows = []
    for s in lines:
        bold = f"**{num(s['score'])}** ({ci(s['score_ci'], 2)})"
        cost = [num(s["nfe"], 0), num(s["seconds"], 1)]
        rows.append([s["method"], s["inputs"] or "-", str(s["rows"]), *by_kind(s), bold, *cost])
    return table(head, rows)


def better(w: dict) -> str:
    """How sure it is that a winner is better than the second."""
    if w["difference"] is None:
        return "-"
    if w["scenes"] < FEW:
        answer = "too few scenes"
    else:
        answer = "yes" if w["difference"][1] > 0 else "not shown"
    return f"{score(w['difference'])}: {answer}"


def winner_table(winners: dict[str, dict]) -> str:
    head = ["kind", "best", "EditScore (95%)", "second", "difference (95%): better?"]
    rows = []
    for kind, w in winners.items():
        if w["score"][0] > 0:
            rows.append([kind, w["best"], score(w["score"]), w["second"] or "-", better(w)])
        else:
            rows.append([kind, "none", "0", "-", "-"])
    return table(head, rows)


def curve_table(curves: dict[str, dict]) -> str:
    rows = []
    for name, curve in curves.items():
        points = "; ".join(f"{value:g}: {b:.2f}, {t:.2f}" for value, b, t in curve["points"])
        rows.append([name, curve["knob"], points, num(curve["area"], 3)])
    return table(["method", "knob", "value: Bn, T", "area"], rows)


def misread_table(misread: dict[str, dict]) -> str:
    head = ["method", "T %", "K %", "EditScore (95%)", "difference to the right caption (95%)"]
    rows = []
    for name, m in misread.items():
        rows.append(
            [name, percent(m["T"]), percent(m["K"]), score(m["score"]), score(m["difference"])]
        )
    return table(head, rows)


def markdown(facts: dict) -> str:
    lines = facts["methods"]
    opening = (
        f"Split {facts['split']}, up to {facts['scenes']} scenes of each kind "
        f"and {facts['seeds']} noise seed(s)."
    )
    if facts["unfit"]:
        unfit = ", ".join(f"{kind} {i}" for kind, i in facts["unfit"])
        opening += f" Left out, for an oracle misreads the true picture itself: {unfit}."
    parts = [
        opening,
        main_table(lines),
        "EditScore by kind of edit, and by the number of objects in the source:",
        kind_table(lines),
    ]
    for masked, winners in facts["winners"].items():
        if winners:
            parts += [f"The best technique of each kind, {masked}:", winner_table(winners)]
    if facts["curves"]:
        parts.append(
            "The knob that trades the edit for the rest "
            "(share of the square of Bn and T below the curve):"
        )
        parts.append(curve_table(facts["curves"]))
    if facts["misread"]:
        parts.append("With one wrong word in the source caption:")
        parts.append(misread_table(facts["misread"]))
    if facts["controls"]:
        claims = [f"- {'holds' if ok else '**FAILS**'}: {claim}" for claim, ok in facts["controls"]]
        parts += ["Controls:", "\n".join(claims)]
    return "\n\n".join(parts) + "\n"


# ---- files ---------------------------------------------------------------------------------------


def write(rows: list[dict], out: Path, *, split: str, page: Path | None = None) -> dict:
    """leaderboard.md, bench.json and grid.png of all rows of a split; what bench.json holds.
    ValueError without any row.
    """
    facts = summary.facts(rows, split)
    lines = {s["method"]: s for s in facts["methods"]}
    write_json(facts, out / "bench.json")
    write_bytes(markdown(facts).encode(), out / "leaderboard.md")
    sheet(lines, out, split)
    if page is not None:
        rewrite(page, facts)
    return facts


def rewrite(page: Path, facts: dict) -> None:
    """Put the tables into a page: in full between <!-- leaderboard --> and <!-- end -->, in one
    between <!-- leaderboard in short --> and <!-- end -->.
    """
    text = Path(page).read_text()
    if not BLOCK.search(text):
        raise ValueError(
            f"{page} has no block between <!-- leaderboard --> (or leaderboard in short) "
            "and <!-- end -->"
        )
    full = markdown(facts)
    short = short_table(facts["methods"]) + "\n"

    def filled(block: re.Match) -> str:
        start, in_short, end = block.groups()
        return f"{start}\n{short if in_short else full}\n{end}"

    write_bytes(BLOCK.sub(filled, text).encode(), page)


def sheet(lines: dict[str, dict], out: Path, split: str) -> None:
    """grid.png: a column for the first scene of each kind; source, truth, then a row for every
    method.
    """

    def file(name: str, kind: str) -> Path:
        return out / "pictures" / f"{name}.{kind}.png"

    trivial = ("copy", "truth", "vae-copy", "vae-truth")
    shown = [name for name in lines if name not in trivial and "@" not in name] or list(lines)
    kinds = [kind for kind in KINDS if any(file(name, kind).exists() for name in shown)]
    if not kinds:
        return
    first = [items(split, 1, (kind,))[0] for kind in kinds]
    pictures = [item.image[0] for item in first] + [item.answer[0] for item in first]
    titles = [item.source for item in first] + [item.target for item in first]
    for name in shown:
        scores = lines[name]["by_kind"]
        for kind in kinds:
            path = file(name, kind)
            pictures.append(read_image(path)[0] if path.exists() else torch.ones(3, 64, 64))
            titles.append(f"{name} {num(scores[kind]['first']) if kind in scores else '-'}")
    grid(pictures, titles, len(kinds), out / "grid.png", side=128)
