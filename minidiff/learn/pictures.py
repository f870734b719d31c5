"""A wrong answer as a picture: the learner's, the target, and the difference."""

import torch
from torch import Tensor

from minidiff.learn.records import folder
from minidiff.learn.values import leaves

SMALLEST = 8  # pixels on a side, below which there is nothing to see


def draw_difference(name: str, answer, target) -> str:
    """Draw the first maps in which the two can be compared; returns the path of the picture, or ""
    if there are none or the disk is full.
    """
    pair = first_maps(answer, target)
    if pair is None:
        return ""
    # a figure of its own, not pyplot's: a notebook's open figures are left alone
    from matplotlib.figure import Figure

    yours, right = pair
    low = right.min().item()
    high = right.max().item()
    figure = Figure(figsize=(6, 2.2), dpi=120, layout="constrained")
    left, middle, last = figure.subplots(1, 3)
    _show_map(left, yours, "yours", low, high)
    _show_map(middle, right, "target", low, high)
    _show_map(last, (yours - right).abs(), "difference", 0.0, None)
    path = folder() / f"{name}.png"
    try:
        folder().mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError:
        return ""
    return str(path)


def first_maps(answer, target) -> tuple[Tensor, Tensor] | None:
    """Two maps (h w) in float64 at the same place of both values, large enough to be seen."""
    for (_, yours), (_, right) in zip(leaves(answer), leaves(target)):
        if right.ndim < 2 or yours.shape != right.shape or min(right.shape[-2:]) < SMALLEST:
            continue
        size = right.shape[-2:]
        return (
            yours.detach().double().reshape(-1, *size)[0],
            right.detach().double().reshape(-1, *size)[0],
        )
    return None


def _show_map(axes, values: Tensor, title: str, low: float, high: float | None) -> None:
    axes.imshow(torch.nan_to_num(values).numpy(), cmap="gray", vmin=low, vmax=high)
    axes.set(title=title, xticks=[], yticks=[])


def show(path: str) -> None:
    """In a notebook, the picture itself."""
    try:
        from IPython import get_ipython
        from IPython.display import Image, display
    except ImportError:
        return
    if get_ipython() is not None:
        display(Image(filename=path))
