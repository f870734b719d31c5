"""What two answers have in common: structure, largest difference, and the place where it is."""

from collections.abc import Iterator
from numbers import Integral, Real

import torch
from torch import Tensor


def leaves(value, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor, number and text inside lists, tuples and dicts, with its place such as "[0]";
    "" for the value itself.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Real):  # numpy's numbers, too
        dtype = torch.int64 if isinstance(value, Integral) else torch.float64
        yield path, torch.tensor(value, dtype=dtype)
    elif isinstance(value, str):  # its letters
        yield path, torch.tensor(list(value.encode()))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from leaves(part, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}[{key!r}]")


def is_number(value) -> bool:
    """A number of Python or numpy, or a tensor without axes: each is as good for an answer."""
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0)


def is_sequence(value) -> bool:
    """A list or a tuple: each is as good for an answer."""
    return isinstance(value, (list, tuple))


def kind(value) -> str:
    """The type of a value in words."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    module = type(value).__module__
    if module == "builtins":
        return f"the {type(value).__name__} {value!r}"[:60]
    return f"a {module.partition('.')[0]} {type(value).__name__}"


def in_words(value) -> str:
    """An argument in a call, short: numbers, texts and small lists as they are, tensors by their
    shape, all else by its name.
    """
    if isinstance(value, Tensor):
        times = value.dtype == torch.int64 and value.ndim == 1 and len(value) <= 4
        return str(value.tolist()) if times else f"tensor {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        short = len(value) <= 8 and all(isinstance(part, (Real, str)) for part in value)
        return str(value) if short else kind(value)
    if value is None or isinstance(value, (int, str)):
        return repr(value)
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    return name if isinstance(name, str) and name.isidentifier() else type(value).__name__


def clone(value):
    """A copy that shares no memory with the value; what is neither tensor nor container stays the
    same object.
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(clone(part) for part in value)
    if isinstance(value, dict):
        return {key: clone(part) for key, part in value.items()}
    return value


def difference(a, b) -> tuple[float, str]:
    """(largest |a - b|, where); inf if the structures or shapes differ, or where only one of the
    two is finite.
    """
    parts_a = list(leaves(a))
    parts_b = list(leaves(b))
    if [path for path, _ in parts_a] != [path for path, _ in parts_b]:
        return float("inf"), ""
    worst = 0.0
    where = ""
    for (path, x), (_, y) in zip(parts_a, parts_b):
        if x.shape != y.shape:
            return float("inf"), path
        if not x.numel():
            continue
        gap = _gap(x, y)
        largest = gap.max().item()
        if largest > worst:
            worst = largest
            where = path + _place(gap)
    return worst, where


def _gap(x: Tensor, y: Tensor) -> Tensor:
    """|x - y| in float64: 0 where both are the same infinity, inf where one of them is NaN."""
    gap = (x.double() - y.double()).abs()
    infinite = float("inf")
    return torch.where(x == y, 0.0, gap).nan_to_num(nan=infinite, posinf=infinite)


def _place(gap: Tensor) -> str:
    """The indices of the largest value, such as "[0, 3]"; "" for a single number."""
    if gap.ndim == 0:
        return ""
    indices = torch.unravel_index(gap.argmax(), gap.shape)
    return str([int(i) for i in indices])


def scale(value) -> float:
    """The largest finite number in a value, at least 1: what errors are measured against."""
    largest = 1.0
    for _, part in leaves(value):
        numbers = part.double()[part.isfinite()].abs()
        if numbers.numel():
            largest = max(largest, numbers.max().item())
    return largest


def close(a, b, tolerance: float) -> bool:
    error, _ = difference(a, b)
    return error <= tolerance * scale(b)
