"""Conditions: what a denoiser is told besides x_t, as
one small bundle whose rows are the rows of the batch.

A `Cond` never changes; take rows with `cond[i]`, stack bundles with `Cond.cat`, swap a field with
`replace`. `Cond()` is the condition of an unconditional model: no fields, no rows, and every
operation leaves it as it is.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cond:
    """Any of: text tokens b n d, their mask b n (True =
    real token), label b, image b c h w, named extras b ...
    """

    text: Tensor | None = None
    mask: Tensor | None = None
    label: Tensor | None = None
    image: Tensor | None = None
    extra: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        rows = {k: len(v) for k, v in self._tensors().items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"fields of a Cond must have equally many rows, got {rows}")

    def _tensors(self) -> dict[str, Tensor]:
        own = {k: getattr(self, k) for k in ("text", "mask", "label", "image")}
        named = own | {f"extra.{k}": v for k, v in (self.extra or {}).items()}
        return {k: v for k, v in named.items() if v is not None}

    @classmethod
    def _of(cls, tensors: dict[str, Tensor]) -> "Cond":
        extra = {k.removeprefix("extra."): v for k, v in tensors.items() if k.startswith("extra.")}
        return cls(
            **{k: v for k, v in tensors.items() if not k.startswith("extra.")}, extra=extra or None
        )

    def _map(self, fn: Callable[[Tensor], Tensor]) -> "Cond":
        return self._of({k: fn(v) for k, v in self._tensors().items()})

    def __len__(self) -> int:
        return next((len(v) for v in self._tensors().values()), 0)

    def __getitem__(self, i: int | slice | list[int] | Tensor) -> "Cond":
        """Rows i: an int (the batch axis stays), a slice, a list or a tensor of indices."""
        if isinstance(i, int):
            if not -len(self) <= i < len(self):
                raise IndexError(f"row {i} of a Cond with {len(self)} rows")
            i = slice(i, i + 1 or None)
        return self._map(lambda v: v[i])

    @classmethod
    def cat(cls, conds: list["Cond"]) -> "Cond":
        """Stack the rows of several bundles; they must hold
        the same fields, of the same shape behind the rows.
        """
        shapes = [{k: tuple(v.shape[1:]) for k, v in c._tensors().items()} for c in conds]
        for s in shapes[1:]:
            if s != shapes[0]:
                raise ValueError(
                    f"Cond.cat needs the same fields and shapes in every part, got {shapes[0]} and "
                    f"{s}"
                )
        parts = [c._tensors() for c in conds]
        return cls._of({k: torch.cat([p[k] for p in parts]) for k in parts[0]})

    def expand(self, b: int) -> "Cond":
        """One row repeated to b rows; b rows stay as they are."""
        if len(self) in (0, b):
            return self
        if len(self) != 1:
            raise ValueError(
                f"can only expand 1 row (or {b}) to {b} rows, this Cond has {len(self)}; pick rows "
                "first"
            )
        return self._map(lambda v: v.expand(b, *v.shape[1:]))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Cond":
        """Move every field; `dtype` is for floating-point
        fields only, labels and masks keep theirs.
        """
        return self._map(
            lambda v: v.to(device=device, dtype=dtype if v.is_floating_point() else None)
        )

    def replace(self, **fields: Any) -> "Cond":
        """The same bundle with some fields exchanged."""
        return dataclasses.replace(self, **fields)
