"""The numbers of ShapesEditBench: rows of scores -> means, intervals, winners, curves, controls.

Intervals are 95% bootstrap intervals of a mean; whole scenes are drawn, not single noise seeds.
"Better" is a paired bootstrap over the scenes both ran on: the interval of the difference lies
above 0. Nobody wins by chance: the winners of a kind are all whom the best is not shown to beat. A
control never ranks, nor does a setting given after "@", nor a method that saw fewer scenes than
others. What is told different things is asked different questions: methods rank among those of
their task. A scene whose true picture an oracle misreads can grade nobody: it is left out for all,
and named.

    area of a knob's curve = share of the unit square of (Bn, T) that lies below and left of one of
    its settings
"""

import re
from collections.abc import Iterable
from hashlib import sha256

import numpy as np

from minidiff.bench import agreement, knobs
from minidiff.bench.controls import CONTROLS
from minidiff.bench.items import KINDS
from minidiff.evaluate.metrics import bootstrap_ci

MISREAD = "+misread"
BASELINE = "inverted"  # the control that a method must beat
FEW = 6  # scenes below which no interval says anything
# rows that have a column or a table of their own
ASIDE = re.compile(r"@(per_kind|steps=\d+)(,steps=\d+)?$")
TASKS = (
    "told both prompts",
    "told the target prompt alone",
    "told the exact mask",
    "tuned for every edit",
    "told an instruction",
    "controls",
)
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
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def interval(rows: list[dict], what: str = "score") -> tuple[float, float, float]:
    """(mean, low, high), clustered by scene."""
    return bootstrap_ci([r[what] for r in rows], clusters=[f"{r['kind']} {r['i']}" for r in rows])


def by_scene(rows: list[dict]) -> dict[tuple, float]:
    """{(kind, i): score, averaged over the noise seeds}."""
    scores: dict[tuple, list] = {}
    for r in rows:
        scores.setdefault((r["kind"], r["i"]), []).append(r["score"])
    return {scene: float(np.mean(of_scene)) for scene, of_scene in scores.items()}


def difference(a: list[dict], b: list[dict]) -> tuple[float, float, float]:
    """(mean, low, high) of score a - score b over the scenes that both have."""
    ours = by_scene(a)
    theirs = by_scene(b)
    return bootstrap_ci([ours[scene] - theirs[scene] for scene in ours if scene in theirs])


def line(rows: list[dict]) -> dict:
    """One method's line."""
    first = rows[0]
    cfgs = sorted({r["cfg"] for r in rows})
    alone = [r for r in rows if r["batch"] == 1 and not r.get("refused")] or rows
    kinds = {kind: [r for r in rows if r["kind"] == kind] for kind in KINDS}
    return {
        "method": first["method"],
        "inputs": first["inputs"],
        "fitted": first["fitted"],
        "rows": len(rows),
        "refused": sum(bool(r.get("refused")) for r in rows),
        "cfg": cfgs[0] if len(cfgs) == 1 else sha256("".join(cfgs).encode()).hexdigest()[:8],
        **{what: mean(r[what] for r in rows) for what in MEANS},
        "Nn": mean(r.get("Nn") for r in rows),  # of hard items alone
        "seconds": mean(r["seconds"] for r in alone),
        "mb": max((r["mb"] for r in alone if r["mb"] is not None), default=None),
        "T_ci": interval(rows, "T")[1:],
        "score_ci": interval(rows)[1:],
        "by_kind": {kind: of_kind(group) for kind, group in kinds.items() if group},
        "by_objects": {str(n): mean(r["score"] for r in rows if r["objects"] == n) for n in (1, 2)},
    }


def of_kind(rows: list[dict]) -> dict:
    """A method's scores on one kind of edit; `first`: that of its first scene."""
    score, *ends = interval(rows)
    return {
        "score": score,
        "ci": tuple(ends),
        "T": mean(r["T"] for r in rows),
        "K": mean(r["K"] for r in rows),
        "first": rows[0]["score"],
    }


def ranked(name: str) -> bool:
    return name not in CONTROLS and "@" not in name and MISREAD not in name


def task(name: str, inputs: str) -> str:
    """Which of the TASKS a method does, by what it is given."""
    if name.split("@")[0] in CONTROLS:
        return "controls"
    if "M" in inputs:
        return "told the exact mask"
    if "F" in inputs:
        return "tuned for every edit"
    if "I" in inputs:
        return "told an instruction"
    return "told both prompts" if "S" in inputs else "told the target prompt alone"


def against(rows: list[dict], control: list[dict]) -> dict:
    """The paired difference to the control, over all scenes and for each kind: {"all": (mean, low,
    high), "scenes": n, "by_kind": {kind: (mean, low, high)}}.
    """
    kinds = {}
    for kind in KINDS:
        ours = [r for r in rows if r["kind"] == kind]
        theirs = [r for r in control if r["kind"] == kind]
        if by_scene(ours).keys() & by_scene(theirs).keys():
            kinds[kind] = difference(ours, theirs)
    both = by_scene(rows).keys() & by_scene(control).keys()
    return {"all": difference(rows, control), "scenes": len(both), "by_kind": kinds}


def fall(plain: list[dict], hard: list[dict]) -> dict | None:
    """What a method loses from the plain scenes to the same ones made hard: {"all": (mean, low,
    high) of plain - hard, "scenes": n, "means": (plain, hard)}; None without scenes in common.
    """
    before = by_scene(plain)
    after = by_scene(hard)
    both = [scene for scene in before if scene in after]
    if not both:
        return None
    means = tuple(float(np.mean([side[scene] for scene in both])) for side in (before, after))
    return {"all": difference(plain, hard), "scenes": len(both), "means": means}


def matrix(groups: dict[str, list[dict]], draws: int = 2000, seed: int = 0) -> dict:
    """Every method against every other: {"methods": names, "scenes", "difference", "low", "high"},
    each but the names a table with a row and a column for every method, row minus column. One draw
    of scenes serves all pairs; a pair with too few scenes in common has None.
    """
    scores = [by_scene(rows) for rows in groups.values()]
    scenes = sorted({scene for of_method in scores for scene in of_method})
    table = np.array([[s.get(scene, np.nan) for scene in scenes] for s in scores])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(scenes), size=(draws, len(scenes)))
    times = np.stack([np.bincount(d, minlength=len(scenes)) for d in drawn])  # draws scenes
    out: dict = {"methods": list(groups), "scenes": [], "difference": [], "low": [], "high": []}
    for own in table:
        gap = own - table  # methods scenes
        both = ~np.isnan(gap)
        gap = np.where(both, gap, 0.0)
        means = (times @ gap.T) / np.maximum(times @ both.T, 1)  # draws methods
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        count = both.sum(1)
        out["scenes"].append(count.tolist())
        for what, values in (
            ("difference", gap.sum(1) / np.maximum(count, 1)),
            ("low", low),
            ("high", high),
        ):
            out[what].append([float(v) if n >= FEW else None for v, n in zip(values, count)])
    return out


def budgets(groups: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """{task: points} of methods that ran in several numbers of steps: {"method", "steps", "nfe",
    "score", "ci", "front"}. On the front is what no other point of the task beats with as few
    evaluations.
    """
    runs: dict[str, list[dict]] = {}
    for name, rows in groups.items():
        base, _, said = name.partition("@")
        steps = rows[0].get("options", {}).get("steps")
        if steps is None or (said and said != f"steps={steps}"):
            continue
        score, *ends = interval(rows)
        point = {"method": base, "steps": steps, "nfe": mean(r["nfe"] for r in rows)}
        runs.setdefault(base, []).append(point | {"score": score, "ci": tuple(ends)})
    out: dict[str, list[dict]] = {}
    for base, points in runs.items():
        if len(points) > 1:
            rows = groups[base] if base in groups else groups[f"{base}@steps={points[0]['steps']}"]
            points.sort(key=lambda p: p["steps"])
            out.setdefault(task(base, rows[0]["inputs"]), []).extend(points)
    for points in out.values():
        for p in points:
            p["front"] = not any(q["nfe"] <= p["nfe"] and q["score"] > p["score"] for q in points)
    return out


def winners(groups: dict[str, list[dict]], wanted: str) -> dict[str, dict]:
    """{kind: best method, second, the paired difference, and `tied`, all whom the best is not shown
    to beat, itself included}, among the methods of one task.
    """
    able = {
        name: rows
        for name, rows in groups.items()
        if ranked(name) and task(name, rows[0]["inputs"]) == wanted
    }
    out = {}
    for kind in KINDS:
        rows_of = {name: [r for r in rows if r["kind"] == kind] for name, rows in able.items()}
        scenes = {name: len(by_scene(rows)) for name, rows in rows_of.items()}
        most = max(scenes.values(), default=0)
        if most == 0:
            continue
        whole = [name for name in rows_of if scenes[name] == most]
        whole.sort(key=lambda name: -np.mean([r["score"] for r in rows_of[name]]))
        best = whole[0]
        second = whole[1] if len(whole) > 1 else None
        gaps = {name: difference(rows_of[best], rows_of[name]) for name in whole[1:]}
        unbeaten = [name for name, gap in gaps.items() if most < FEW or not gap[1] > 0]
        out[kind] = {
            "best": best,
            "tied": [best, *unbeaten],
            "score": interval(rows_of[best]),
            "second": second,
            "scenes": most,
            "difference": gaps[second] if second else None,
        }
    return out


def unfit(groups: dict[str, list[dict]]) -> list[tuple]:
    """(kind, i) of the scenes whose true picture is not read right, if the truth was run."""
    wrong = [r for r in groups.get("truth", []) if r["T"] < 1 or r["K"] < 1]
    return sorted({(r["kind"], r["i"]) for r in wrong})


def curves(groups: dict[str, list[dict]]) -> dict[str, dict]:
    """{method: {"knob", "points": [(value, Bn, T)], "area"}} of methods that ran at three or more
    values of their curve's knob (`NAME@knob=value`).
    """
    out = {}
    for base in dict.fromkeys(name.split("@")[0] for name in groups if "@" in name):
        knob = knobs.sweep(base).curve[0]
        points = []
        for name, rows in groups.items():
            if name.startswith(f"{base}@{knob}=") and "," not in name:
                value = float(name.split("=")[1])
                points.append((value, mean(r["Bn"] for r in rows), mean(r["T"] for r in rows)))
        points.sort()
        if len(points) >= 3:
            area = dominated([(bn, t) for _, bn, t in points])
            out[base] = {"knob": knob, "points": points, "area": area}
    return out


def misread(groups: dict[str, list[dict]]) -> dict[str, dict]:
    """{method: how it does when the source caption has a wrong word, and the paired difference to
    the right caption}.
    """
    out = {}
    for name, rows in groups.items():
        right = groups.get(name.replace(MISREAD, ""), [])
        if MISREAD in name and right:
            out[name] = {
                "T": mean(r["T"] for r in rows),
                "K": mean(r["K"] for r in rows),
                "score": interval(rows),
                "difference": difference(rows, right),
            }
    return out


def dominated(points: list[tuple[float, float]]) -> float:
    """Area of the union of the rectangles from 0 to each point of the unit square."""
    area = 0.0
    left = 0.0
    for x, _ in sorted(points):
        height = max(y for x2, y in points if x2 >= x)
        area += (x - left) * height
        left = x
    return area


def controls(lines: dict[str, dict]) -> list[tuple[str, bool]]:
    """(claim, does it hold?) for the controls that were run, whatever options they ran with."""
    by = {name.split("@")[0]: line for name, line in lines.items()}

    def truth_is_1(t: dict) -> bool:
        whole = t["T"] == t["K"] == t["score"] == 1
        return whole and t["B"] in (50, None) and t["C"] in (50, None)

    claims = [
        ("the truth scores T = K = 1 and 50 dB", ["truth"], truth_is_1),
        ("a copy of the source scores 0", ["copy"], lambda c: c["T"] == c["score"] == 0),
        ("so does the autoencoder's copy", ["vae-copy"], lambda c: c["score"] <= 0.02),
        (
            "the truth through the autoencoder scores 0.95 or more",
            ["vae-truth"],
            lambda v: v["score"] >= 0.95,
        ),
        ("drawing the prompt anew scores at most 0.2", ["resample"], lambda r: r["score"] <= 0.2),
        (
            "climbing CLIP raises Q1 over the copy's",
            ["hacker", "copy"],
            lambda h, c: h["Q1"] > c["Q1"] + 0.05,
        ),
        ("and not T (at most 0.05)", ["hacker"], lambda h: h["T"] <= 0.05),
    ]
    checks = []
    for claim, names, holds in claims:
        if all(name in by for name in names):
            checks.append((claim, bool(holds(*[by[name] for name in names]))))
    return checks


def facts(rows: list[dict], split: str) -> dict:
    """All that the tables say of the rows of a split, as bench.json holds it; ValueError without
    any row.
    """
    groups: dict[str, list[dict]] = {}
    for r in rows:
        if r["split"] == split:
            groups.setdefault(r["method"], []).append(r)
    if not groups:
        there = sorted({r["split"] for r in rows})
        has = f"those of {', '.join(there)}" if there else "none at all"
        raise ValueError(
            f"no results of split {split!r}: the folder has {has}; run the bench first, or give "
            "another --split"
        )
    unread = unfit(groups)
    truths = len(groups.get("truth", []))
    for name, group in groups.items():
        groups[name] = [r for r in group if (r["kind"], r["i"]) not in unread]
    groups = {name: group for name, group in groups.items() if group}
    wrong = misread(groups)
    groups = {name: group for name, group in groups.items() if name not in wrong}
    most = max(len(by_scene(group)) for group in groups.values())

    def rank(name: str) -> tuple:
        """Controls last, those that saw fewer scenes before them, and by falling score."""
        fewer = len(by_scene(groups[name])) < most
        return name in CONTROLS, fewer, -np.mean([r["score"] for r in groups[name]])

    lines = {}
    for name in sorted(groups, key=rank):
        beside = ASIDE.search(name) and name.split("@")[0] in groups
        if not beside:
            lines[name] = line(groups[name])
    for name, own in lines.items():
        own["task"] = task(name, own["inputs"])
        beside = groups.get(f"{name}@per_kind")
        own["per_kind"] = mean(r["score"] for r in beside) if beside else None
        gap = against(groups[name], groups.get(BASELINE, []))
        if gap["scenes"] and name not in CONTROLS:
            own["against"] = gap
        if split == "hard":
            of_test = [r for r in rows if r["method"] == name and r["split"] == "test"]
            fallen = fall(of_test, groups[name])
            if fallen:
                own["fall"] = fallen
    compared = {name: groups[name] for name in lines if ranked(name) or name == BASELINE}
    checks = controls(lines)
    if truths:
        claim = "the oracles read 95% of the true pictures right"
        checks.append((claim, len(unread) <= 0.05 * truths))
    return {
        "split": split,
        "scenes": 1 + max(r["i"] for r in rows if r["split"] == split),
        "seeds": 1 + max(r["k"] for r in rows if r["split"] == split),
        "unfit": unread,
        "methods": list(lines.values()),
        "curves": curves(groups),
        "misread": wrong,
        "controls": checks,
        "winners": {name: winners(groups, name) for name in TASKS},
        "matrix": matrix(compared) if len(compared) > 1 else None,
        "budgets": budgets(groups),
        "agreement": {
            "mean": agreement.mean_instead({name: groups[name] for name in lines if ranked(name)}),
            "pie": agreement.with_pie_bench(lines),
        },
        "passed": all(ok for _, ok in checks),
    }
