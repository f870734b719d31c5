"""`TensorFile`: a file of tensors as a dictionary of
shapes, whose numbers are read only where somebody looks.

Every container of weights (safetensors, shards, torch's pickles) comes down to one table: name ->
where in which file, which dtype, which shape. The reader of each container makes that table from a
few kilobytes of header; this module turns its rows into tensors by mapping the file into memory, so
4 GB open in milliseconds and pages come from the disk one by one as they are touched. A mapping is
private: writing into a tensor never changes the file.

Try: `list(open_tensors(path).items())[:3]`, then `.tensor(name)`, and watch the resident memory of
the process.
"""

import hashlib
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import translate
from pathlib import Path

import torch
from torch import Tensor

# bytes of header, pickle or index that we agree to parse; a full Stable Diffusion file has 0.3 MB
LIMIT = 8 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PARSING = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    EOFError,
    OSError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Entry:
    """What a header says about one tensor. `stride`
    None: rows lie densely, the last index fastest.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path | None = None
    begin: int = 0  # its first byte in the file
    stride: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def aligned(self) -> bool:
        """Can it be mapped? torch wants numbers at multiples of
        their size; old files and headers have them anywhere.
        """
        return self.begin % self.dtype.itemsize == 0

    @property
    def nbytes(self) -> int:
        """Bytes of the file from its first number to its
        last; more than numel * itemsize for a view with gaps.
        """
        if self.stride is None or not self.numel:
            return self.numel * self.dtype.itemsize
        return (1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))) * self.dtype.itemsize


@dataclass(eq=False, repr=False)
class TensorFile(Mapping):
    """Names -> Entry, from headers alone. `kind` is safetensors, pickle, shards or memory;
    `metadata` what the file says beside its tensors, `ignored` the names in it that are no tensors
    (step counters, optimizers, callbacks).
    """

    path: Path
    kind: str
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    held: dict[str, Tensor] | None = None  # kind "memory": the tensors themselves
    maps: dict[Path, mmap.mmap] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"TensorFile({str(self.path)!r}, {self.kind}, {len(self)} tensors)"

    def without(self, patterns: Iterable[str]) -> "TensorFile":
        """The file less the tensors whose names match one of the shell patterns ("v_pred",
        "*.scaled_fp8"); these are `ignored`. A pattern that no name matches takes nothing away.
        """
        looks = [re.compile(translate(pattern)) for pattern in patterns]
        gone = tuple(name for name in self if any(look.match(name) for look in looks))
        kept = {name: entry for name, entry in self.entries.items() if name not in gone}
        return replace(self, entries=kept, ignored=self.ignored + gone)

    def tensor(self, name: str, copy: bool = False) -> Tensor:
        """The tensor called `name`, on the CPU, in the stored dtype, mapped from the file.
        `copy=True` reads it into memory of its own: for whoever casts it to another dtype and drops
        it, as touched pages of a mapping stay resident.
        """
        if name not in self.entries:
            raise ValueError(f"{self.path} holds no tensor {short(name)}")
        if self.held is not None:
            return self.held[name].clone() if copy else self.held[name]
        return read(self.entries[name], self.maps, copy)


def memory_file(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> TensorFile:
    """The same face over tensors that are in memory already."""
    entries = {name: Entry(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    return TensorFile(Path("<memory>"), "memory", entries, dict(metadata or {}), held=dict(tensors))


def read(entry: Entry, maps: dict[Path, mmap.mmap], copy: bool = False) -> Tensor:
    """One row of the table as a tensor. `maps` keeps one mapping for each file."""
    if not entry.numel:
        return torch.empty(entry.shape, dtype=entry.dtype)
    end = entry.begin + entry.nbytes
    if entry.path.stat().st_size < end:
        raise ValueError(f"{entry.path} became shorter since it was opened; open it again")
    if copy or not entry.aligned:
        part = bytearray(entry.nbytes)
        with open(entry.path, "rb") as f:
            f.seek(entry.begin)
            f.readinto(part)
    else:
        if entry.path not in maps or len(maps[entry.path]) < end:
            with open(entry.path, "rb") as f:
                maps[entry.path] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
        part = memoryview(maps[entry.path])[entry.begin : end]
    flat = torch.frombuffer(part, dtype=entry.dtype)
    return (
        flat.view(entry.shape)
        if entry.stride is None
        else flat.as_strided(entry.shape, entry.stride)
    )


def finite(tensor: Tensor, name: str, path: str | Path) -> Tensor:
    """The tensor itself, if none of its numbers is NaN or
    infinite; otherwise a ValueError with name and count.
    """
    if tensor.is_floating_point() and not all_finite(tensor):
        bad = int((~tensor.float().isfinite()).sum())
        raise ValueError(
            f"{path}: tensor {short(name)} holds NaN or infinite numbers ({bad} of "
            f"{tensor.numel()})"
        )
    return tensor


def all_finite(tensor: Tensor) -> bool:
    """Is no number NaN or infinite? No temporary: 10 times as fast as isfinite.

    No sum with such a number is finite. A sum of large numbers may overflow; then the least and the
    greatest tell.
    """
    # numbers of one byte are for storing, not for computing
    wide = tensor.detach().float() if tensor.dtype.itemsize == 1 else tensor.detach()
    if math.isfinite(wide.sum().item()):
        return True
    low, high = torch.aminmax(wide)
    return math.isfinite(low.item()) and math.isfinite(high.item())


def sha256(path: str | Path) -> str:
    """The hash of a file of any size, read in pieces of 1 MB."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


# ---- complaints ----------------------------------------------------------------------------------


def short(name: object, most: int = 100) -> str:
    """A name or value out of a file that nobody vouches for, fit for a line of text."""
    text = name if isinstance(name, str) else repr(name)
    text = text if len(text) <= most else text[:most] + " ..."
    return repr(text) if isinstance(name, str) else text


@contextmanager
def refusing(path: Path, what: str):
    """Whatever parsing a damaged or hostile file may raise ends as one line with its name."""
    try:
        yield
    except PARSING as e:
        why = re.sub(r"\s+", " ", str(e))[:300] or type(e).__name__
        raise ValueError(f"{path} is no readable {what} ({why})") from e


def impostor(path: Path) -> None:
    """FileNotFoundError or ValueError for what is no
    file, empty, or what a failed download leaves behind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights file at {path}" + (" (it is a folder)" if path.is_dir() else "")
        )
    with open(path, "rb") as f:
        head = f.read(512).lstrip().lower()
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); fetch it again")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is an HTML page, not weights: the download failed; fetch it again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a git-lfs pointer, not weights: fetch the file itself with `git lfs pull`"
        )
