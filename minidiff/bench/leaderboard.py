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


def note(s: dict) -> str:
    said = ["not fitted"] * (not s["fitted"]) + [f"refused {s['refused']} of {s['rows']}"] * (
        s["refused"] > 0
    )
    return f" ({', '.join(said)})" if said else ""


def main_table(lines: list[dict]) -> str:
    pc = lambda v: num(None if v is None else 100 * v, 0)  # noqa: E731
    head = [
        "method",
        "inputs",
        "n",
        "T % (95%)",
        "K %",
        "B dB (VAE)",
        "C dB (VAE)",
        "P",
        "D x1e3",
        "Q1",
        "Q2",
        "EditScore",
        "95%",
        "disagree %",
        "evals",
        "s/edit",
        "MB",
        "cfg",
    ]
    return table(
        head,
        [
            [
                s["method"] + note(s),
                s["inputs"] or "-",
                str(s["rows"]),
                f"{pc(s['T'])} ({ci([100 * v for v in s['T_ci']], 0)})",
                pc(s["K"]),
                f"{num(s['B'], 1)} ({num(s['B_vae'], 1)})",
                f"{num(s['C'], 1)} ({num(s['C_vae'], 1)})",
                num(s["P"], 3),
                num(1e3 * s["D"], 1),
                num(s["Q1"]),
                num(s["Q2"]),
                f"**{num(s['score'], 3)}**",
                ci(s["score_ci"]),
                pc(s["disagree"]),
                num(s["nfe"], 0),
                num(s["seconds"]),
                num(s["mb"], 0),
                s["cfg"],
            ]
            for s in lines
        ],
    )


def kind_table(lines: list[dict]) -> str:
    return table(
        ["method", *KINDS, "1 object", "2 objects"],
        [
            [
                s["method"],
                *[num(s["by_kind"].get(k, {}).get("score")) for k in KINDS],
                *[num(s["by_objects"][o]) for o in "12"],
            ]
            for s in lines
        ],
    )


def short_table(lines: list[dict]) -> str:
    """All methods in one narrow table, for a front page."""
    score = lambda s: f"**{num(s['score'])}** ({ci(s['score_ci'], 2)})"  # noqa: E731
    return table(
        ["method", "inputs", "n", *KINDS, "EditScore (95%)", "evals", "s/edit"],
        [
            [
                s["method"],
                s["inputs"] or "-",
                str(s["rows"]),
                *[num(s["by_kind"].get(k, {}).get("score")) for k in KINDS],
                score(s),
                num(s["nfe"], 0),
                num(s["seconds"], 1),
            ]
            for s in lines
        ],
    )


def winner_table(found: dict[str, dict]) -> str:
    def better(w: dict) -> str:
        d, enough = w["difference"], w["scenes"] >= FEW
        return (
            "-"
            if d is None
            else f"{num(d[0], 3)} ({ci(d[1:])}): "
            + ("too few scenes" if not enough else "yes" if d[1] > 0 else "not shown")
        )

    return table(
        ["kind", "best", "EditScore (95%)", "second", "difference (95%): better?"],
        [
            [
                kind,
                w["best"],
                f"{num(w['score'][0], 3)} ({ci(w['score'][1:])})",
                w["second"] or "-",
                better(w),
            ]
            if w["score"][0] > 0
            else [kind, "none", "0", "-", "-"]
            for kind, w in found.items()
        ],
    )


def markdown(facts: dict) -> str:
    lines = facts["methods"]
    left = ", ".join(f"{kind} {i}" for kind, i in facts["unfit"])
    parts = [
        (
            f"Split {facts['split']}, up to {facts['scenes']} scenes of each kind and "
            f"{facts['seeds']} noise seed(s)."
        )
        + f" Left out, for an oracle misreads the true picture itself: {left}." * bool(left),
        main_table(lines),
        "EditScore by kind of edit, and by the number of objects in the source:",
        kind_table(lines),
    ]
    for masked, found in facts["winners"].items():
        if found:
            parts += [f"The best technique of each kind, {masked}:", winner_table(found)]
    if facts["curves"]:
        parts += [
            (
                "The knob that trades the edit for the rest (share of the square of Bn and T "
                "below the curve):"
            ),
            table(
                ["method", "knob", "value: Bn, T", "area"],
                [
                    [
                        n,
                        c["knob"],
                        "; ".join(f"{v:g}: {b:.2f}, {t:.2f}" for v, b, t in c["points"]),
                        num(c["area"], 3),
                    ]
                    for n, c in facts["curves"].items()
                ],
            ),
        ]
    if facts["misread"]:
        parts += [
            "With one wrong word in the source caption:",
            table(
                [
                    "method",
                    "T %",
                    "K %",
                    "EditScore (95%)",
                    "difference to the right caption (95%)",
                ],
                [
                    [
                        n,
                        num(100 * m["T"], 0),
                        num(100 * m["K"], 0),
                        f"{num(m['score'][0], 3)} ({ci(m['score'][1:])})",
                        f"{num(m['difference'][0], 3)} ({ci(m['difference'][1:])})",
                    ]
                    for n, m in facts["misread"].items()
                ],
            ),
        ]
    if facts["controls"]:
        parts += [
            "Controls:",
            "\n".join(
                f"- {'holds' if ok else '**FAILS**'}: {claim}" for claim, ok in facts["controls"]
            ),
        ]
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
        text = Path(page).read_text()
        if not BLOCK.search(text):
            raise ValueError(
                f"{page} has no block between <!-- leaderboard --> (or leaderboard in short) "
                "and <!-- end -->"
            )
        made = {"": markdown(facts), " in short": short_table(facts["methods"]) + "\n"}
        write_bytes(BLOCK.sub(lambda m: f"{m[1]}\n{made[m[2] or '']}\n{m[3]}", text).encode(), page)
    return facts


def sheet(lines: dict[str, dict], out: Path, split: str) -> None:
    """grid.png: a column for the first scene of each kind; source, truth, then a row for every
    method.
    """
    shown = [
        n for n in lines if n not in ("copy", "truth", "vae-copy", "vae-truth") and "@" not in n
    ] or list(lines)
    file = lambda n, kind: out / "pictures" / f"{n}.{kind}.png"  # noqa: E731
    kinds = [k for k in KINDS if any(file(n, k).exists() for n in shown)]
    first, blank = [items(split, 1, (k,))[0] for k in kinds], torch.ones(3, 64, 64)
    pictures, titles = (
        [i.image[0] for i in first] + [i.answer[0] for i in first],
        [i.source for i in first],
    )
    titles += [i.target for i in first]
    for n in shown:
        pictures += [read_image(file(n, k))[0] if file(n, k).exists() else blank for k in kinds]
        titles += [f"{n} {num(lines[n]['by_kind'].get(k, {}).get('first'))}" for k in kinds]
    if kinds:
        grid(pictures, titles, len(kinds), out / "grid.png", side=128)
