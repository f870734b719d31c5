"""The tables of ShapesEditBench: rows of scores -> the FILES of a folder.

What the numbers are stands in `summary.py`; here they become words, tables and pictures.
"""

import re
from io import BytesIO
from pathlib import Path

import torch

from minidiff.bench import summary
from minidiff.bench.agreement import PIE_BENCH
from minidiff.bench.items import KINDS, items
from minidiff.io import grid, read_image, write_bytes, write_json

BLOCK = re.compile(r"(<!-- leaderboard( [\w-]+)? -->\n).*?(<!-- end -->)", re.S)
FILES = ("leaderboard.md", "bench.json", "grid.png", "matrix.csv", "matrix.png", "budgets.png")


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


def control_gap(s: dict) -> str:
    """The paired difference to the control that a method must beat."""
    if "against" not in s or s["against"]["scenes"] < summary.FEW:
        return "-"
    mean, low, high = s["against"]["all"]
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def main_table(lines: list[dict]) -> str:
    columns = {
        "method": lambda s: s["method"] + note(s),
        "inputs": lambda s: s["inputs"] or "-",
        "n": lambda s: str(s["rows"]),
        "T % (95%)": lambda s: f"{percent(s['T'])} ({ci([100 * v for v in s['T_ci']], 0)})",
        "K %": lambda s: percent(s["K"]),
        "Bn": lambda s: num(s["Bn"]),
        "Cn": lambda s: num(s["Cn"]),
        "Nn": lambda s: num(s.get("Nn")),
        "EditScore": lambda s: f"**{num(s['score'], 3)}**",
        "95%": lambda s: ci(s["score_ci"]),
        "per kind": lambda s: num(s["per_kind"], 3),
        f"against {summary.BASELINE}": control_gap,
        "B dB (VAE)": lambda s: f"{num(s['B'], 1)} ({num(s['B_vae'], 1)})",
        "C dB (VAE)": lambda s: f"{num(s['C'], 1)} ({num(s['C_vae'], 1)})",
        "P": lambda s: num(s["P"], 3),
        "D x1e3": lambda s: num(1e3 * s["D"], 1),
        "Q1": lambda s: num(s["Q1"]),
        "Q2": lambda s: num(s["Q2"]),
        "disagree %": lambda s: percent(s["disagree"]),
        "evals": lambda s: num(s["nfe"], 0),
        "s/edit": lambda s: num(s["seconds"]),
        "MB": lambda s: num(s["mb"], 0),
        "cfg": lambda s: s["cfg"],
    }
    if all(s.get("Nn") is None for s in lines):
        del columns["Nn"]
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


def best_of(w: dict) -> str:
    """The winner, or all who may be: nobody is named whom chance could have put first."""
    if not w["score"][0] > 0:
        return "none"
    if w["second"] is None:
        return w["best"]
    if w["scenes"] < summary.FEW:
        return f"too few scenes ({w['scenes']}); highest: {w['best']}"
    if len(w["tied"]) == 1:
        return w["best"]
    return " or ".join(w["tied"]) + ": cannot be told apart"


def winner_table(winners: dict[str, dict]) -> str:
    head = ["kind", "n", "best", "its EditScore (95%)", "second", "difference (95%)"]
    rows = []
    for kind, w in winners.items():
        gap = score(w["difference"]) if w["difference"] else "-"
        second = w["second"] or "-"
        rows.append([kind, str(w["scenes"]), best_of(w), score(w["score"]), second, gap])
    return table(head, rows)


def control_table(lines: list[dict]) -> str:
    """For which kinds a method is shown to beat the control (+), or to fall behind it (-)."""
    rows = []
    for s in lines:
        cells = []
        for kind in KINDS:
            gap = s["against"]["by_kind"].get(kind)
            cells.append("-" if gap is None else f"{gap[0]:+.2f}{shown(gap)}")
        rows.append([s["method"], str(s["against"]["scenes"]), *cells, control_gap(s)])
    return table(["method", "n", *KINDS, "all (95%)"], rows)


def shown(gap: tuple[float, float, float]) -> str:
    """A star where the interval of a difference leaves out 0."""
    return "\\*" if gap[1] > 0 or gap[2] < 0 else ""


def budget_table(points: list[dict]) -> str:
    rows = []
    for p in points:
        name = f"**{p['method']}**" if p["front"] else p["method"]
        value = score((p["score"], *p["ci"]))
        rows.append([name, str(p["steps"]), num(p["nfe"], 0), value, "yes" if p["front"] else ""])
    return table(["method", "steps", "evals", "EditScore (95%)", "on the front"], rows)


def agreement_text(agreement: dict) -> list[str]:
    """What becomes of the order of the methods if the score is put together otherwise."""
    parts = []
    mean = agreement["mean"]
    if mean is not None:
        text = (
            "If the cube root were a mean, T (K + Bn + (1 + Cn) / 2) / 3: rank correlation of the "
            f"{mean['methods']} methods' order under both: {num(mean['rho'])}."
        )
        if mean["moved"]:
            moved = [f"{name} {before} to {after}" for name, before, after in mean["moved"][:5]]
            text += f" Those that move furthest, by place: {', '.join(moved)}."
        parts.append(text)
    pie = agreement["pie"]
    if pie is not None:
        rhos = [f"{what} {num(rho)}" for what, rho in pie["rho"].items()]
        parts.append(
            "Rank correlation with PIE-Bench's photographs, of the "
            f"{len(pie['methods'])} of {len(PIE_BENCH)} methods whose numbers are known here "
            f"({', '.join(pie['methods'])}): {'; '.join(rhos)}. So few methods prove nothing."
        )
    return parts


def fall_table(lines: list[dict]) -> str:
    """What each method loses from the plain scenes to the same ones with things that no caption
    names, and how much of those it keeps.
    """
    rows = []
    for s in sorted(lines, key=lambda s: s["fall"]["all"][0]):
        before, after = s["fall"]["means"]
        cells = [num(before), num(after), score(s["fall"]["all"], 2), num(s["Nn"])]
        rows.append([s["method"], str(s["fall"]["scenes"]), *cells])
    return table(["method", "n", "plain", "hard", "falls by (95%)", "Nn"], rows)


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
    parts = [opening]
    for task in summary.TASKS:
        own = [s for s in lines if s["task"] == task]
        if own:
            parts += [f"**{task.capitalize()}**", main_table(own)]
    parts += [
        "EditScore by kind of edit, and by the number of objects in the source:",
        kind_table(lines),
    ]
    compared = [s for s in lines if "against" in s and s["against"]["scenes"] >= summary.FEW]
    if compared:
        parts.append(
            f"Paired difference to the control {summary.BASELINE}, which replays the inverted "
            "noise with the target prompt (\\*: its 95% interval leaves out 0):"
        )
        parts.append(control_table(compared))
    fallen = [s for s in lines if "fall" in s]
    if fallen:
        parts.append("EditScore on the plain scenes of test and on the same scenes made hard:")
        parts.append(fall_table(fallen))
    for task, winners in facts["winners"].items():
        if winners:
            parts += [f"The best technique of each kind, {task}:", winner_table(winners)]
    for task, points in facts["budgets"].items():
        parts += [f"Score against evaluations, {task}:", budget_table(points)]
    if facts["matrix"]:
        parts.append(
            "Who is shown to beat whom: `matrix.csv`, `matrix.png` (row minus column, paired)."
        )
    parts += agreement_text(facts["agreement"])
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
        parts += ["What the controls must show:", "\n".join(claims)]
    return "\n\n".join(parts) + "\n"


# ---- files ---------------------------------------------------------------------------------------


def file_of(out: Path, name: str, split: str) -> Path:
    """Where one of the FILES of a split lies: those of the hard one have its name in theirs."""
    stem, _, kind = name.rpartition(".")
    return out / (f"{stem}_hard.{kind}" if split == "hard" else name)


def picture_of(out: Path, method: str, split: str, kind: str) -> Path:
    """Where a method's edit of the first scene of a kind lies."""
    return out / "pictures" / split / f"{method}.{kind}.png"


def write(rows: list[dict], out: Path, *, split: str, page: Path | None = None) -> dict:
    """The FILES of all rows of a split, those that there is something for; what bench.json holds.
    ValueError without any row.
    """
    facts = summary.facts(rows, split)
    lines = {s["method"]: s for s in facts["methods"]}
    write_json(facts, file_of(out, "bench.json", split))
    write_bytes(markdown(facts).encode(), file_of(out, "leaderboard.md", split))
    sheet(lines, out, split)
    if facts["matrix"]:
        csv = matrix_csv(facts["matrix"])
        write_bytes(csv.encode(), file_of(out, "matrix.csv", split))
        matrix_picture(facts["matrix"], file_of(out, "matrix.png", split))
    if facts["budgets"]:
        budget_picture(facts["budgets"], file_of(out, "budgets.png", split))
    if page is not None:
        rewrite(page, facts)
    return facts


def rewrite(page: Path, facts: dict) -> None:
    """Put the tables into a page, between <!-- leaderboard --> and <!-- end -->; those of the hard
    split between <!-- leaderboard hard --> and <!-- end -->.
    """
    text = Path(page).read_text()
    wanted = " hard" if facts["split"] == "hard" else ""
    if wanted not in [(block[2] or "") for block in BLOCK.finditer(text)]:
        raise ValueError(
            f"{page} has no block between <!-- leaderboard{wanted} --> and <!-- end -->"
        )
    full = markdown(facts)

    def put(block: re.Match) -> str:
        mine = (block[2] or "") == wanted
        return f"{block[1]}\n{full}\n{block[3]}" if mine else block[0]

    write_bytes(BLOCK.sub(put, text).encode(), page)


def sheet(lines: dict[str, dict], out: Path, split: str) -> None:
    """grid.png: a column for the first scene of each kind; source, truth, then a row for every
    method.
    """

    def file(name: str, kind: str) -> Path:
        return picture_of(out, name, split, kind)

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
    grid(pictures, titles, len(kinds), file_of(out, "grid.png", split), side=128)


def matrix_csv(matrix: dict) -> str:
    """A line for every ordered pair of methods: scenes, difference, interval, verdict."""
    lines = ["method,other,scenes,difference,low,high,beats"]
    names = matrix["methods"]
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            if i == j or matrix["difference"][i][j] is None:
                continue
            low = matrix["low"][i][j]
            high = matrix["high"][i][j]
            verdict = "yes" if low > 0 else "no" if high < 0 else "not shown"
            numbers = f"{matrix['difference'][i][j]:.4f},{low:.4f},{high:.4f}"
            lines.append(f"{name},{other},{matrix['scenes'][i][j]},{numbers},{verdict}")
    return "\n".join(lines) + "\n"


def matrix_picture(matrix: dict, path: Path) -> None:
    """A square for every pair: blue where the row is shown to beat the column, red where the column
    beats the row, grey where chance would do.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names = matrix["methods"]
    n = len(names)
    side = 2.4 + 0.24 * max(n, 6)  # inches; names and title need room however few there are
    figure = Figure(figsize=(side + 0.6, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for i in range(n):
        for j in range(n):
            low = matrix["low"][i][j]
            if low is None or i == j:
                continue
            colour = "#eeeeee"
            if low > 0:
                colour = "#2b6cb0"
            elif matrix["high"][i][j] < 0:
                colour = "#c05621"
            axes.add_patch(Rectangle((j + 0.04, i + 0.04), 0.92, 0.92, color=colour))
    axes.set(xlim=(0, n), ylim=(n, 0), aspect="equal")
    axes.set_xticks([i + 0.5 for i in range(n)], names, rotation=90, fontsize=7)
    axes.set_yticks([i + 0.5 for i in range(n)], names, fontsize=7)
    axes.tick_params(length=0)
    axes.set_title("blue: the row beats the column; grey: not shown", fontsize=8)
    write_bytes(png_of(figure), path)


def budget_picture(budgets: dict[str, list[dict]], path: Path) -> None:
    """Score against evaluations, a panel for every task; points on the front are filled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6 * len(budgets)), dpi=120, layout="constrained")
    for k, (task, points) in enumerate(budgets.items()):
        axes = figure.add_subplot(len(budgets), 1, k + 1)
        for name in dict.fromkeys(p["method"] for p in points):
            own = [p for p in points if p["method"] == name]
            evaluations = [p["nfe"] for p in own]
            heights = [p["score"] for p in own]
            (drawn,) = axes.plot(evaluations, heights, linewidth=1.2, label=name)
            for p in own:
                filled = drawn.get_color() if p["front"] else "white"
                axes.plot(
                    p["nfe"], p["score"], "o", markersize=5, mfc=filled, mec=drawn.get_color()
                )
        axes.set(xscale="log", xlabel="network evaluations", ylabel="EditScore", title=task)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
    write_bytes(png_of(figure), path)


def png_of(figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
