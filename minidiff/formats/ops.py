"""How a tensor is stored elsewhere: the ops of the name tables (`keymaps.py`), each read and
written by a pure function.

    ours = gather(theirs, op, tensor)           their tensors = scatter(plan, ours)

On meta tensors `gather` gives the shape to expect, so shapes need no second set of formulas. What
can be a view is one: memory-mapped numbers stay on the disk until they are used.

Try: `gather` of a "third" with the three parts in another order; the text tower runs, and reads
nothing right any more.
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from minidiff.formats.keymaps import Theirs


def _first(parts: list[Tensor]) -> Tensor:
    return parts[0]


def _squeezed(parts: list[Tensor]) -> Tensor:
    """A linear weight from a 1x1 convolution's, or from what is linear already."""
    return parts[0][:, :, 0, 0] if parts[0].shape[2:] == (1, 1) else parts[0]


def _transposed(parts: list[Tensor]) -> Tensor:
    return parts[0].T.contiguous()


def _third(i: int) -> Callable[[list[Tensor]], Tensor]:
    def rows(parts: list[Tensor]) -> Tensor:
        n, left = divmod(len(parts[0]), 3)
        if left:
            raise ValueError(f"{len(parts[0])} rows do not divide into those of q, k and v")
        return parts[0][i * n : (i + 1) * n]

    return rows


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows below each other. For meta tensors `torch.cat` would
    import PyTorch's compiler (2 s, 40 MB) to add up shapes.
    """
    if not parts[0].is_meta:
        return torch.cat(parts)
    dtype = reduce(torch.promote_types, (p.dtype for p in parts))
    return parts[0].new_empty(sum(len(p) for p in parts), *parts[0].shape[1:], dtype=dtype)


def _equal(parts: list[Tensor]) -> Tensor:
    if not parts[0].is_meta and not all(torch.equal(parts[0], p) for p in parts[1:]):
        raise ValueError(
            "the blocks hold different copies of what is one tensor here; only equal copies can be "
            "read"
        )
    return parts[0]


def _nothing(parts: list[Tensor]) -> Tensor:
    raise ValueError(
        "this tensor is not stored there; a formula fixes it, and a new network has it"
    )


Reading = Callable[[list[Tensor]], Tensor]  # their tensors -> ours
READ: dict[str, Reading] = {
    "same": _first,
    "flat": _squeezed,  # linear; old files may hold a 1x1 convolution
    "squeeze": _squeezed,
    "transpose": _transposed,
    "third0": _third(0),
    "third1": _third(1),
    "third2": _third(2),
    "join": _joined,
    "copies": _equal,
    "computed": _nothing,
}


def write(op: str, ours: Tensor, n: int) -> list[Tensor]:
    """Their n tensors from ours; of a "third" the one
    piece, which `scatter` puts beside the others.
    """
    match op:
        case "squeeze":
            return [ours[:, :, None, None]]
        case "transpose":
            return [ours.T.contiguous()]
        case "join":
            return list(ours.chunk(n))
        case "copies":
            return [ours.clone() for _ in range(n)]
        case "computed":
            return []
        case _:
            return [ours]


def gather(theirs: Theirs, op: str, tensor: Callable[[str], Tensor]) -> Tensor:
    """Our tensor, from one row of `source_names`; `tensor(name)` gives one of theirs.

    ValueError: rows that are no three thirds, copies that differ, a tensor they do not store
    ("computed").
    """
    return READ[op]([tensor(name) for name in _names(theirs)])


def scatter(plan: dict[str, tuple[Theirs, str]], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from ours, for all rows of `source_names`:
    the inverse of `gather`, thirds concatenated.

    ValueError: not all three thirds of a tensor are there.
    """
    pieces: dict[str, dict[str, Tensor]] = {}
    for ours, (theirs, op) in plan.items():
        names = _names(theirs)
        for name, piece in zip(names, write(op, tensors[ours], len(names)), strict=True):
            pieces.setdefault(name, {})[op] = piece
    whole = {}
    for name, found in pieces.items():
        ops = sorted(found)
        if len(ops) != (3 if ops[0].startswith("third") else 1):
            raise ValueError(
                f"{name} is made of q, k and v in that order; only {', '.join(ops)} given"
            )
        whole[name] = found[ops[0]] if len(ops) == 1 else _joined([found[op] for op in ops])
    return whole


def _names(theirs: Theirs) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs
