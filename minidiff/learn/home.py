"""Where progress is kept, and the picture of the last wrong answer: MINIDIFF_HOME, or .minidiff in
the home folder.
"""

import json
import os
from pathlib import Path

import torch

from minidiff.learn.values import leaves


def folder() -> Path:
    return Path(os.environ.get("MINIDIFF_HOME") or Path.home() / ".minidiff")


def known() -> dict[str, dict]:
    """{exercise: {"tries", "passed", "hints"}}; a file that cannot be read counts as none."""
    try:
        return json.loads((folder() / "progress.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def of(name: str) -> dict:
    return {"tries": 0, "passed": False, "hints": 0} | known().get(name, {})


def remember(name: str, passed: bool | None = None, hints: int = 0) -> dict:
    """Count a try (`passed` given) or hints; returns what is known of the exercise. A full disk is
    told of, not fatal.
    """
    from minidiff.io import write_json

    row = of(name)
    row = {
        "tries": row["tries"] + (passed is not None),
        "passed": row["passed"] or bool(passed),
        "hints": row["hints"] + hints,
    }
    try:
        folder().mkdir(parents=True, exist_ok=True)
        write_json(known() | {name: row}, folder() / "progress.json")
    except OSError as e:
        print(f"(progress was not saved: {e})")
    return row


def picture(name: str, out, want) -> str:
    """The path of a picture with yours, the target and the difference, if the answer is one; else
    "".
    """
    pair = next(
        (
            (x, y)
            for (_, x), (_, y) in zip(leaves(out), leaves(want))
            if y.ndim >= 2 and min(y.shape[-2:]) >= 8 and x.shape == y.shape
        ),
        None,
    )
    if pair is None:
        return ""
    from matplotlib.figure import Figure

    x, y = (v.detach().double().reshape(-1, *v.shape[-2:])[0] for v in pair)
    low, high = y.min().item(), y.max().item()
    figure = Figure(figsize=(6, 2.2), dpi=120, layout="constrained")
    for axes, v, title, lo, hi in zip(
        figure.subplots(1, 3),
        (x, y, (x - y).abs()),
        ("yours", "target", "difference"),
        (low, low, 0),
        (high, high, None),
    ):
        axes.imshow(torch.nan_to_num(v).numpy(), cmap="gray", vmin=lo, vmax=hi)
        axes.set(title=title, xticks=[], yticks=[])
    try:
        folder().mkdir(parents=True, exist_ok=True)
        path = folder() / f"{name}.png"
        figure.savefig(path)
        return str(path)
    except OSError:
        return ""


def show(path: str) -> None:
    """In a notebook, the picture itself."""
    try:
        from IPython import get_ipython
        from IPython.display import Image, display
    except ImportError:
        return
    if get_ipython() is not None:
        display(Image(filename=path))
