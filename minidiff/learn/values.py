"""What two answers have in common: structure, largest difference, and the place where it is."""

from collections.abc import Iterator

import torch
from torch import Tensor


def leaves(value, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor and number inside lists, tuples and dicts, with its place such as "[0]" ("" for
    the value itself).
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (bool, int, float)):
        yield path, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from leaves(v, f"{path}[{i}]")
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from leaves(v, f"{path}[{k!r}]")


def kind(value) -> str:
    """The type of a value in words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return (
        "nothing (None)"
        if value is None
        else f"a {type(value).__module__.partition('.')[0]} {type(value).__name__}"
        if type(value).__module__ != "builtins"
        else f"the {type(value).__name__} {value!r}"[:60]
    )


def clone(value):
    """A copy that shares no memory with the value; what is neither tensor nor container stays the
    same object.
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(clone(v) for v in value)
    return {k: clone(v) for k, v in value.items()} if isinstance(value, dict) else value


def difference(a, b) -> tuple[float, str]:
    """(largest |a - b|, where); inf if the structures or shapes differ, or where only one of the
    two is finite.
    """
    worst, where = 0.0, ""
    pairs = list(leaves(a)), list(leaves(b))
    if [p for p, _ in pairs[0]] != [p for p, _ in pairs[1]]:
        return float("inf"), ""
    for (path, x), (_, y) in zip(*pairs):
        if x.shape != y.shape:
            return float("inf"), path
        if not x.numel():
            continue
        gap = (x.double() - y.double()).abs()
        # inf - inf is no difference
        gap = torch.where(x == y, 0.0, gap).nan_to_num(nan=float("inf"))
        if gap.max() > worst:
            index = torch.unravel_index(gap.argmax(), gap.shape)
            worst, where = gap.max().item(), path + (str([int(i) for i in index]) if x.ndim else "")
    return worst, where


def scale(value) -> float:
    """The largest finite number in a value, at least 1: what errors are measured against."""
    found = [
        x.double()[x.isfinite()].abs().amax().item()
        for _, x in leaves(value)
        if x.numel() and x.isfinite().any()
    ]
    return max([1.0, *found])


def close(a, b, tolerance: float) -> bool:
    return difference(a, b)[0] <= tolerance * scale(b)
