"""The tables of ShapesEditBench: rows of scores -> leaderboard.md, bench.json, grid.png (card C29.8).

Intervals are 95% bootstrap intervals of a mean; whole scenes are drawn, not single noise seeds. "Better" is a paired
bootstrap over the scenes both ran on: the interval of the difference lies above 0. A control never ranks, nor does a
setting given after "@", nor a method that saw fewer scenes than others; methods that are told the exact mask rank among
themselves. A scene whose true picture an oracle misreads can grade nobody: it is left out for all, and named.

    area of a knob's curve = share of the unit square of (Bn, T) that lies below and left of one of its settings
"""
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from minidiff.evaluate import knobs
from minidiff.evaluate.controls import CONTROLS
from minidiff.evaluate.items import KINDS, items
from minidiff.evaluate.metrics import bootstrap_ci
from minidiff.io import grid, read_image, write_bytes, write_json

BLOCK = re.compile(r"(<!-- leaderboard( in short)? -->\n).*?(<!-- end -->)", re.S)
MISREAD = "+misread"
FEW = 6                                                  # scenes below which no interval says anything
MEANS = ("T", "K", "B", "C", "P", "D", "Q1", "Q2", "B_vae", "C_vae", "B_floor", "B_pie", "Bn", "Cn", "score", "disagree",
         "T1", "T2", "nfe")


# ---- numbers ------------------------------------------------------------------------------------------------------------

def mean(values: Iterable) -> float | None:
    """Mean of what is not None; None of nothing."""
    found = [v for v in values if v is not None]
    return float(np.mean(found)) if found else None


def interval(rows: list[dict], what: str = "score") -> tuple[float, float, float]:
    """(mean, low, high), clustered by scene."""
    return bootstrap_ci([r[what] for r in rows], clusters=[f"{r['kind']} {r['i']}" for r in rows])


def by_scene(rows: list[dict]) -> dict[tuple, float]:
    """{(kind, i): score, averaged over the noise seeds}."""
    found: dict[tuple, list] = {}
    for r in rows:
        found.setdefault((r["kind"], r["i"]), []).append(r["score"])
    return {k: float(np.mean(v)) for k, v in found.items()}


def difference(a: list[dict], b: list[dict]) -> tuple[float, float, float]:
    """(mean, low, high) of score a - score b over the scenes that both have."""
    a, b = by_scene(a), by_scene(b)
    return bootstrap_ci([a[k] - b[k] for k in a if k in b])


def summary(rows: list[dict]) -> dict:
    """One method's line."""
    first, alone = rows[0], [r for r in rows if r["batch"] == 1 and not r.get("refused")] or rows
    cfgs = sorted({r["cfg"] for r in rows})
    kinds = {k: [r for r in rows if r["kind"] == k] for k in KINDS}
    return {"method": first["method"], "inputs": first["inputs"], "fitted": first["fitted"], "rows": len(rows),
            "refused": sum(bool(r.get("refused")) for r in rows),
            "cfg": cfgs[0] if len(cfgs) == 1 else sha256("".join(cfgs).encode()).hexdigest()[:8],
            **{k: mean(r[k] for r in rows) for k in MEANS},
            "seconds": mean(r["seconds"] for r in alone),
            "mb": max((r["mb"] for r in alone if r["mb"] is not None), default=None),
            "T_ci": interval(rows, "T")[1:], "score_ci": interval(rows)[1:],
            "by_kind": {k: {"score": interval(v)[0], "ci": interval(v)[1:], "T": mean(r["T"] for r in v),
                            "K": mean(r["K"] for r in v), "first": v[0]["score"]} for k, v in kinds.items() if v},
            "by_objects": {str(o): mean(r["score"] for r in rows if r["objects"] == o) for o in (1, 2)}}


def ranked(name: str) -> bool:
    return name not in CONTROLS and "@" not in name and MISREAD not in name


def winners(groups: dict[str, list[dict]], masked: bool) -> dict[str, dict]:
    """{kind: best method, second, and the paired difference}, among those that are told the mask or those that are not."""
    out = {}
    for kind in KINDS:
        mine = {n: [r for r in rows if r["kind"] == kind] for n, rows in groups.items()
                if ranked(n) and ("M" in rows[0]["inputs"]) == masked}
        most = max((len(by_scene(v)) for v in mine.values()), default=0)
        whole = [n for n, v in mine.items() if v and len(by_scene(v)) == most]
        order = sorted(whole, key=lambda n: -np.mean([r["score"] for r in mine[n]]))
        if order:
            best, second = order[0], order[1] if len(order) > 1 else None
            out[kind] = {"best": best, "score": interval(mine[best]), "second": second, "scenes": len(by_scene(mine[best])),
                         "difference": difference(mine[best], mine[second]) if second else None}
    return out


def unfit(groups: dict[str, list[dict]]) -> list[tuple]:
    """(kind, i) of the scenes whose true picture is not read right, if the truth was run."""
    return sorted({(r["kind"], r["i"]) for r in groups.get("truth", []) if r["T"] < 1 or r["K"] < 1})


def curves(groups: dict[str, list[dict]]) -> dict[str, dict]:
    """{method: {"knob", "points": [(value, Bn, T)], "area"}} of methods that ran at three or more values of their curve's
    knob (`NAME@knob=value`)."""
    out = {}
    for base in dict.fromkeys(n.split("@")[0] for n in groups if "@" in n):
        knob = knobs.sweep(base).curve[0]
        mine = {n.split("=")[1]: rows for n, rows in groups.items() if n.startswith(f"{base}@{knob}=") and "," not in n}
        points = sorted((float(v), mean(r["Bn"] for r in rows), mean(r["T"] for r in rows)) for v, rows in mine.items())
        if len(points) >= 3:
            out[base] = {"knob": knob, "points": points, "area": dominated([(b, t) for _, b, t in points])}
    return out


def misread(groups: dict[str, list[dict]]) -> dict[str, dict]:
    """{method: how it does when the source caption has a wrong word, and the paired difference to the right caption}."""
    pairs = {n: groups.get(n.replace(MISREAD, ""), []) for n in groups if MISREAD in n}
    return {n: {"T": mean(r["T"] for r in groups[n]), "K": mean(r["K"] for r in groups[n]), "score": interval(groups[n]),
                "difference": difference(groups[n], right)} for n, right in pairs.items() if right}


def dominated(points: list[tuple[float, float]]) -> float:
    """Area of the union of the rectangles from 0 to each point of the unit square."""
    area, right = 0., 0.
    for x, _ in sorted(points):
        area += (x - right) * max(y for x2, y in points if x2 >= x)
        right = x
    return area


def controls(lines: dict[str, dict]) -> list[tuple[str, bool]]:
    """(claim, does it hold?) for the controls that were run, whatever options they ran with."""
    by = {n.split("@")[0]: s for n, s in lines.items() if n.split("@")[0] in CONTROLS}
    claims = [("the truth scores T = K = 1 and 50 dB", ("truth",),
               lambda t: t["T"] == t["K"] == t["score"] == 1 and all(t[c] in (50, None) for c in "BC")),
              ("a copy of the source scores 0", ("copy",), lambda c: c["T"] == c["score"] == 0),
              ("so does the autoencoder's copy", ("vae-copy",), lambda c: c["score"] <= .02),
              ("the truth through the autoencoder scores 0.95 or more", ("vae-truth",), lambda v: v["score"] >= .95),
              ("drawing the prompt anew scores at most 0.2", ("resample",), lambda r: r["score"] <= .2),
              ("climbing CLIP raises Q1 over the copy's", ("hacker", "copy"), lambda h, c: h["Q1"] > c["Q1"] + .05),
              ("and not T (at most 0.05)", ("hacker",), lambda h: h["T"] <= .05)]
    return [(claim, bool(holds(*[by[n] for n in names]))) for claim, names, holds in claims if set(names) <= by.keys()]


# ---- words --------------------------------------------------------------------------------------------------------------

def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(r)} |" for r in [head, ["---"] * len(head), *rows])


def num(v: float | None, digits: int = 2) -> str:
    return "-" if v is None or v != v else f"{v:.{digits}f}"


def ci(v, digits: int = 3) -> str:
    return f"{num(v[0], digits)} to {num(v[1], digits)}"


def note(s: dict) -> str:
    said = ["not fitted"] * (not s["fitted"]) + [f"refused {s['refused']} of {s['rows']}"] * (s["refused"] > 0)
    return f" ({', '.join(said)})" if said else ""


def main_table(lines: list[dict]) -> str:
    pc = lambda v: num(None if v is None else 100 * v, 0)  # noqa: E731
    head = ["method", "inputs", "n", "T % (95%)", "K %", "B dB (VAE)", "C dB (VAE)", "P", "D x1e3", "Q1", "Q2", "EditScore",
            "95%", "disagree %", "evals", "s/edit", "MB", "cfg"]
    return table(head, [[
        s["method"] + note(s), s["inputs"] or "-", str(s["rows"]),
        f"{pc(s['T'])} ({ci([100 * v for v in s['T_ci']], 0)})", pc(s["K"]), f"{num(s['B'], 1)} ({num(s['B_vae'], 1)})",
        f"{num(s['C'], 1)} ({num(s['C_vae'], 1)})", num(s["P"], 3), num(1e3 * s["D"], 1), num(s["Q1"]), num(s["Q2"]),
        f"**{num(s['score'], 3)}**", ci(s["score_ci"]), pc(s["disagree"]), num(s["nfe"], 0), num(s["seconds"]),
        num(s["mb"], 0), s["cfg"]] for s in lines])


def kind_table(lines: list[dict]) -> str:
    return table(["method", *KINDS, "1 object", "2 objects"], [[
        s["method"], *[num(s["by_kind"].get(k, {}).get("score")) for k in KINDS],
        *[num(s["by_objects"][o]) for o in "12"]] for s in lines])


def short_table(lines: list[dict]) -> str:
    """All methods in one narrow table, for a front page."""
    score = lambda s: f"**{num(s['score'])}** ({ci(s['score_ci'], 2)})"  # noqa: E731
    return table(["method", "inputs", "n", *KINDS, "EditScore (95%)", "evals", "s/edit"], [[
        s["method"], s["inputs"] or "-", str(s["rows"]), *[num(s["by_kind"].get(k, {}).get("score")) for k in KINDS],
        score(s), num(s["nfe"], 0), num(s["seconds"], 1)] for s in lines])


def winner_table(found: dict[str, dict]) -> str:
    def better(w: dict) -> str:
        d, enough = w["difference"], w["scenes"] >= FEW
        return "-" if d is None else f"{num(d[0], 3)} ({ci(d[1:])}): " + (
            "too few scenes" if not enough else "yes" if d[1] > 0 else "not shown")
    return table(["kind", "best", "EditScore (95%)", "second", "difference (95%): better?"], [
        [kind, w["best"], f"{num(w['score'][0], 3)} ({ci(w['score'][1:])})", w["second"] or "-", better(w)]
        if w["score"][0] > 0 else [kind, "none", "0", "-", "-"] for kind, w in found.items()])


def markdown(facts: dict) -> str:
    lines = facts["methods"]
    left = ", ".join(f"{kind} {i}" for kind, i in facts["unfit"])
    parts = [f"Split {facts['split']}, up to {facts['scenes']} scenes of each kind and {facts['seeds']} noise seed(s)."
             + f" Left out, for an oracle misreads the true picture itself: {left}." * bool(left),
             main_table(lines), "EditScore by kind of edit, and by the number of objects in the source:", kind_table(lines)]
    for masked, found in facts["winners"].items():
        if found:
            parts += [f"The best technique of each kind, {masked}:", winner_table(found)]
    if facts["curves"]:
        parts += ["The knob that trades the edit for the rest (share of the square of Bn and T below the curve):", table(
            ["method", "knob", "value: Bn, T", "area"],
            [[n, c["knob"], "; ".join(f"{v:g}: {b:.2f}, {t:.2f}" for v, b, t in c["points"]), num(c["area"], 3)]
             for n, c in facts["curves"].items()])]
    if facts["misread"]:
        parts += ["With one wrong word in the source caption:", table(
            ["method", "T %", "K %", "EditScore (95%)", "difference to the right caption (95%)"],
            [[n, num(100 * m["T"], 0), num(100 * m["K"], 0), f"{num(m['score'][0], 3)} ({ci(m['score'][1:])})",
              f"{num(m['difference'][0], 3)} ({ci(m['difference'][1:])})"] for n, m in facts["misread"].items()])]
    if facts["controls"]:
        parts += ["Controls:", "\n".join(f"- {'holds' if ok else '**FAILS**'}: {claim}" for claim, ok in facts["controls"])]
    return "\n\n".join(parts) + "\n"


# ---- files --------------------------------------------------------------------------------------------------------------

def write(rows: list[dict], out: Path, *, split: str, page: Path | None = None) -> dict:
    """leaderboard.md, bench.json and grid.png of all rows of a split; what bench.json holds. ValueError without any row."""
    groups: dict[str, list[dict]] = {}
    for r in rows:
        if r["split"] == split:
            groups.setdefault(r["method"], []).append(r)
    if not groups:
        raise ValueError(f"no results of split {split!r} in {out}; run the bench first, or give the other --split")
    true, bad = len(groups.get("truth", [])), unfit(groups)
    groups = {n: [r for r in rows if (r["kind"], r["i"]) not in bad] for n, rows in groups.items()}
    groups = {n: rows for n, rows in groups.items() if rows}
    wrong = misread(groups)
    groups = {n: rows for n, rows in groups.items() if n not in wrong}
    most = max(len(by_scene(rows)) for rows in groups.values())
    order = sorted(groups, key=lambda n: (n in CONTROLS, len(by_scene(groups[n])) < most,
                                          -np.mean([r["score"] for r in groups[n]])))
    lines = {n: summary(groups[n]) for n in order}
    checks = controls(lines)
    checks += [("the oracles read 95% of the true pictures right", len(bad) <= .05 * true)] if true else []
    facts = {"split": split, "scenes": 1 + max(r["i"] for r in rows), "seeds": 1 + max(r["k"] for r in rows),
             "unfit": bad, "methods": list(lines.values()), "curves": curves(groups), "misread": wrong, "controls": checks,
             "winners": {"not told the mask": winners(groups, False), "told the exact mask": winners(groups, True)},
             "passed": all(ok for _, ok in checks)}
    write_json(facts, out / "bench.json")
    write_bytes(markdown(facts).encode(), out / "leaderboard.md")
    sheet(lines, out, split)
    if page is not None:
        text = Path(page).read_text()
        if not BLOCK.search(text):
            raise ValueError(f"{page} has no block between <!-- leaderboard --> (or leaderboard in short) and <!-- end -->")
        made = {"": markdown(facts), " in short": short_table(facts["methods"]) + "\n"}
        write_bytes(BLOCK.sub(lambda m: f"{m[1]}\n{made[m[2] or '']}\n{m[3]}", text).encode(), page)
    return facts


def sheet(lines: dict[str, dict], out: Path, split: str) -> None:
    """grid.png: a column for the first scene of each kind; source, truth, then a row for every method."""
    shown = [n for n in lines if n not in ("copy", "truth", "vae-copy", "vae-truth") and "@" not in n] or list(lines)
    file = lambda n, kind: out / "pictures" / f"{n}.{kind}.png"  # noqa: E731
    kinds = [k for k in KINDS if any(file(n, k).exists() for n in shown)]
    first, blank = [items(split, 1, (k,))[0] for k in kinds], torch.ones(3, 64, 64)
    pictures, titles = [i.image[0] for i in first] + [i.answer[0] for i in first], [i.source for i in first]
    titles += [i.target for i in first]
    for n in shown:
        pictures += [read_image(file(n, k))[0] if file(n, k).exists() else blank for k in kinds]
        titles += [f"{n} {num(lines[n]['by_kind'].get(k, {}).get('first'))}" for k in kinds]
    if kinds:
        grid(pictures, titles, len(kinds), out / "grid.png", side=128)
