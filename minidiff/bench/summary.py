"""The numbers of ShapesEditBench: rows of scores -> means, intervals, winners, curves, controls.

Intervals are 95% bootstrap intervals of a mean; whole scenes are drawn, not single noise seeds.
"Better" is a paired bootstrap over the scenes both ran on: the interval of the difference lies
above 0. A control never ranks, nor does a setting given after "@", nor a method that saw fewer
scenes than others; methods that are told the exact mask rank among themselves. A scene whose true
picture an oracle misreads can grade nobody: it is left out for all, and named.

    area of a knob's curve = share of the unit square of (Bn, T) that lies below and left of one of
    its settings
"""

from collections.abc import Iterable
from hashlib import sha256

import numpy as np

from minidiff.bench import knobs
from minidiff.bench.controls import CONTROLS
from minidiff.bench.items import KINDS
from minidiff.evaluate.metrics import bootstrap_ci

MISREAD = "+misread"
MEANS = (
    "T",
    "K",
    "B",
    "C",
    "P",
    "D",
    "Q1",
    "Q2",
    "B_vae",
    "C_vae",
    "B_floor",
    "B_pie",
    "Bn",
    "Cn",
    "score",
    "disagree",
    "T1",
    "T2",
    "nfe",
)


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


def line(rows: list[dict]) -> dict:
    """One method's line."""
    first, alone = rows[0], [r for r in rows if r["batch"] == 1 and not r.get("refused")] or rows
    cfgs = sorted({r["cfg"] for r in rows})
    kinds = {k: [r for r in rows if r["kind"] == k] for k in KINDS}
    return {
        "method": first["method"],
        "inputs": first["inputs"],
        "fitted": first["fitted"],
        "rows": len(rows),
        "refused": sum(bool(r.get("refused")) for r in rows),
        "cfg": cfgs[0] if len(cfgs) == 1 else sha256("".join(cfgs).encode()).hexdigest()[:8],
        **{k: mean(r[k] for r in rows) for k in MEANS},
        "seconds": mean(r["seconds"] for r in alone),
        "mb": max((r["mb"] for r in alone if r["mb"] is not None), default=None),
        "T_ci": interval(rows, "T")[1:],
        "score_ci": interval(rows)[1:],
        "by_kind": {
            k: {
                "score": interval(v)[0],
                "ci": interval(v)[1:],
                "T": mean(r["T"] for r in v),
                "K": mean(r["K"] for r in v),
                "first": v[0]["score"],
            }
            for k, v in kinds.items()
            if v
        },
        "by_objects": {str(o): mean(r["score"] for r in rows if r["objects"] == o) for o in (1, 2)},
    }


def ranked(name: str) -> bool:
    return name not in CONTROLS and "@" not in name and MISREAD not in name


def winners(groups: dict[str, list[dict]], masked: bool) -> dict[str, dict]:
    """{kind: best method, second, and the paired difference}, among those that are told the mask or
    those that are not.
    """
    out = {}
    for kind in KINDS:
        mine = {
            n: [r for r in rows if r["kind"] == kind]
            for n, rows in groups.items()
            if ranked(n) and ("M" in rows[0]["inputs"]) == masked
        }
        most = max((len(by_scene(v)) for v in mine.values()), default=0)
        whole = [n for n, v in mine.items() if v and len(by_scene(v)) == most]
        order = sorted(whole, key=lambda n: -np.mean([r["score"] for r in mine[n]]))
        if order:
            best, second = order[0], order[1] if len(order) > 1 else None
            out[kind] = {
                "best": best,
                "score": interval(mine[best]),
                "second": second,
                "scenes": len(by_scene(mine[best])),
                "difference": difference(mine[best], mine[second]) if second else None,
            }
    return out


def unfit(groups: dict[str, list[dict]]) -> list[tuple]:
    """(kind, i) of the scenes whose true picture is not read right, if the truth was run."""
    return sorted(
        {(r["kind"], r["i"]) for r in groups.get("truth", []) if r["T"] < 1 or r["K"] < 1}
    )


def curves(groups: dict[str, list[dict]]) -> dict[str, dict]:
    """{method: {"knob", "points": [(value, Bn, T)], "area"}} of methods that ran at three or more
    values of their curve's knob (`NAME@knob=value`).
    """
    out = {}
    for base in dict.fromkeys(n.split("@")[0] for n in groups if "@" in n):
        knob = knobs.sweep(base).curve[0]
        mine = {
            n.split("=")[1]: rows
            for n, rows in groups.items()
            if n.startswith(f"{base}@{knob}=") and "," not in n
        }
        points = sorted(
            (float(v), mean(r["Bn"] for r in rows), mean(r["T"] for r in rows))
            for v, rows in mine.items()
        )
        if len(points) >= 3:
            out[base] = {
                "knob": knob,
                "points": points,
                "area": dominated([(b, t) for _, b, t in points]),
            }
    return out


def misread(groups: dict[str, list[dict]]) -> dict[str, dict]:
    """{method: how it does when the source caption has a wrong word, and the paired difference to
    the right caption}.
    """
    pairs = {n: groups.get(n.replace(MISREAD, ""), []) for n in groups if MISREAD in n}
    return {
        n: {
            "T": mean(r["T"] for r in groups[n]),
            "K": mean(r["K"] for r in groups[n]),
            "score": interval(groups[n]),
            "difference": difference(groups[n], right),
        }
        for n, right in pairs.items()
        if right
    }


def dominated(points: list[tuple[float, float]]) -> float:
    """Area of the union of the rectangles from 0 to each point of the unit square."""
    area, right = 0.0, 0.0
    for x, _ in sorted(points):
        area += (x - right) * max(y for x2, y in points if x2 >= x)
        right = x
    return area


def controls(lines: dict[str, dict]) -> list[tuple[str, bool]]:
    """(claim, does it hold?) for the controls that were run, whatever options they ran with."""
    by = {n.split("@")[0]: s for n, s in lines.items() if n.split("@")[0] in CONTROLS}
    claims = [
        (
            "the truth scores T = K = 1 and 50 dB",
            ("truth",),
            lambda t: t["T"] == t["K"] == t["score"] == 1 and all(t[c] in (50, None) for c in "BC"),
        ),
        ("a copy of the source scores 0", ("copy",), lambda c: c["T"] == c["score"] == 0),
        ("so does the autoencoder's copy", ("vae-copy",), lambda c: c["score"] <= 0.02),
        (
            "the truth through the autoencoder scores 0.95 or more",
            ("vae-truth",),
            lambda v: v["score"] >= 0.95,
        ),
        ("drawing the prompt anew scores at most 0.2", ("resample",), lambda r: r["score"] <= 0.2),
        (
            "climbing CLIP raises Q1 over the copy's",
            ("hacker", "copy"),
            lambda h, c: h["Q1"] > c["Q1"] + 0.05,
        ),
        ("and not T (at most 0.05)", ("hacker",), lambda h: h["T"] <= 0.05),
    ]
    return [
        (claim, bool(holds(*[by[n] for n in names])))
        for claim, names, holds in claims
        if set(names) <= by.keys()
    ]


def facts(rows: list[dict], split: str) -> dict:
    """All that the tables say of the rows of a split, as bench.json holds it; ValueError without
    any row.
    """
    groups: dict[str, list[dict]] = {}
    for r in rows:
        if r["split"] == split:
            groups.setdefault(r["method"], []).append(r)
    if not groups:
        raise ValueError(
            f"no results of split {split!r}; run the bench first, or give the other --split"
        )
    true, bad = len(groups.get("truth", [])), unfit(groups)
    groups = {n: [r for r in rows if (r["kind"], r["i"]) not in bad] for n, rows in groups.items()}
    groups = {n: rows for n, rows in groups.items() if rows}
    wrong = misread(groups)
    groups = {n: rows for n, rows in groups.items() if n not in wrong}
    most = max(len(by_scene(rows)) for rows in groups.values())
    order = sorted(
        groups,
        key=lambda n: (
            n in CONTROLS,
            len(by_scene(groups[n])) < most,
            -np.mean([r["score"] for r in groups[n]]),
        ),
    )
    lines = {n: line(groups[n]) for n in order}
    checks = controls(lines)
    checks += (
        [("the oracles read 95% of the true pictures right", len(bad) <= 0.05 * true)]
        if true
        else []
    )
    return {
        "split": split,
        "scenes": 1 + max(r["i"] for r in rows),
        "seeds": 1 + max(r["k"] for r in rows),
        "unfit": bad,
        "methods": list(lines.values()),
        "curves": curves(groups),
        "misread": wrong,
        "controls": checks,
        "winners": {
            "not told the mask": winners(groups, False),
            "told the exact mask": winners(groups, True),
        },
        "passed": all(ok for _, ok in checks),
    }
