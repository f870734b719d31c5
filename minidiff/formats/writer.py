"""Writing weights: a safetensors file tensor by tensor,
and files and folders that appear whole or not at all.

A safetensors file begins with the list of what follows (`files.py` has the format), so shapes and
dtypes must be known before the first number is. They are: converting on the meta device costs
nothing. Then each tensor is made, written at its place and forgotten. `safetensors.torch.save_file`
wants all of them in a dictionary at once: a cast model would lie in memory as a whole, 4 GB for
Stable Diffusion, where here it is the largest single tensor, 150 MB.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from minidiff.formats.mapped import DTYPES, Entry, short

CODES = {dtype: code for code, dtype in DTYPES.items()}
# of a folder of weights
MARKS = ("model_index.json", "diffusion_pytorch_model*", "model*.safetensors", "pytorch_model*")


def header(
    entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """(the first bytes of a file, {name: its first byte in the file}).
    The widest dtypes come first, so that all numbers lie at multiples
    of their size, and by name, so that equal tensors make equal files.
    """
    rows = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    places = {}
    for name, e in sorted(entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        places[name], begin = begin, begin + e.nbytes
        rows[name] = {
            "dtype": CODES[e.dtype],
            "shape": list(e.shape),
            "data_offsets": [places[name], begin],
        }
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {
        name: 8 + len(text) + at for name, at in places.items()
    }


def write_safetensors(
    path: Path,
    entries: Mapping[str, Entry],
    pieces: Iterable[Mapping[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as they come: `entries` (shapes and dtypes) says
    which there will be, `pieces` brings them, in any order, a few in
    each dictionary. ValueError: one is missing or not as announced.
    """
    head, places = header(entries, metadata or {})
    with open(path, "wb") as f:
        f.write(head)
        for name, tensor in (item for piece in pieces for item in piece.items()):
            if (tuple(tensor.shape), tensor.dtype) != (entries[name].shape, entries[name].dtype):
                raise ValueError(
                    f"{short(name)} is {tuple(tensor.shape)} {tensor.dtype}; expected "
                    f"{entries[name].shape} {entries[name].dtype}"
                )
            f.seek(places.pop(name))
            f.write(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        if places:
            raise ValueError(
                f"{len(places)} tensor(s) were announced and never came, {short(min(places))} "
                f"among them"
            )
        f.flush()
        os.fsync(f.fileno())


@contextmanager
def replacing(dst: str | Path, force: bool = False, folder: bool = False) -> Iterator[Path]:
    """A name beside `dst` to write to, which takes its place
    when the block ends well; otherwise nothing is left behind.

    ValueError, before anything is written: `dst` exists (unless `force`), is a file where a folder
    is to be, the reverse, or a folder that does not look like one of weights, which `force` would
    empty.
    """
    target = Path(os.path.realpath(dst))  # through symbolic links: they stay links
    if target.exists():
        if not (target.is_dir() if folder else target.is_file()):
            raise ValueError(
                f"{dst} is {'a folder' if target.is_dir() else 'no folder'}, where a "
                f"{'folder' if folder else 'file'} is to be written; choose another name"
            )
        if not force:
            raise ValueError(
                f"{dst} exists; choose another name, or overwrite it with force (--force)"
            )
        if folder and any(target.iterdir()) and not any(any(target.glob(mark)) for mark in MARKS):
            raise ValueError(
                f"{dst} is a folder of other things than weights, which would be lost; choose "
                "another name"
            )
    beside, old = (
        target.with_name(f".{target.name[:100]}.{os.getpid()}.{end}") for end in ("part", "old")
    )
    made = [p for p in target.parents if not p.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            beside.mkdir()
        yield beside
        if folder and target.exists():  # a folder cannot be replaced in one step
            target.rename(old)
            try:
                beside.rename(target)
            except OSError:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            os.replace(beside, target)
    except BaseException as e:
        with suppress(OSError):
            shutil.rmtree(beside) if beside.is_dir() else beside.unlink()
        with suppress(OSError):  # a folder that is not empty stays
            for parent in made:
                parent.rmdir()
        where = Path(getattr(e, "filename", None) or beside)  # a full disk names no file
        if (
            isinstance(e, OSError)
            and e.errno
            and (where.is_relative_to(beside) or where in (target, *target.parents))
        ):
            raise type(e)(f"cannot write {dst}: {e.strerror}") from e
        raise
