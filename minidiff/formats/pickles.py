"""Torch's own files (.ckpt .pt .pth .bin), read without running anything that is in them.

Each holds a pickle, which `pickle_machine.py` follows, and the numbers as raw bytes, which stay
where they are: the pickle is read for a table of places, and tensors are mapped from there. Three
layouts occur.

    zip, since torch 1.6 (2020)   pickle <root>/data.pkl; numbers <root>/data/<key>, stored without
                                  compression
    before that                   pickle the fourth of five (magic, version, sizes of types, object,
                                  list of keys); numbers at the end, each after its length
    TorchScript (OpenAI's CLIP)   as zip, and the object is the module; <root>/code is not read

Why not `torch.load(weights_only=True)`, with inert stand-ins for foreign classes: tried, it refuses
TorchScript files, pickles of protocol 4 and 5, and the calls by which numpy's numbers, defaultdicts
and many trainers' objects are rebuilt; it cannot map old files, and grants a file of 200 bytes any
amount of memory. What both read, they read alike: the tests compare.

Real files wrap their tensors: {"state_dict": ..., "global_step": ...}, or {"model": ..., "ema":
..., "opt": ...}, where the average ("ema") is the one to sample from. The wrapping is taken off and
told in `metadata["unwrapped"]`.

Source: torch/serialization.py; the zip format's APPNOTE 4.3. Try: `zipfile -l` on a .ckpt.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from minidiff.formats.mapped import (
    DTYPES,
    LIMIT,
    Entry,
    TensorFile,
    impostor,
    read,
    refusing,
    short,
)
from minidiff.formats.pickle_machine import Inert, Machine, Storage

MAGIC = 0x1950A86A20F9469CFC6C  # of the layout before the zip
VERSION = 1001
WRAPPERS = ("state_dict", "ema", "model")  # in this order
NAMED = {str(dtype): dtype for dtype in DTYPES.values()}
Places = dict[str, tuple[int, int]]  # key of a storage -> first byte, bytes


def load_pickle(path: str | Path) -> object:
    """The object in a torch file with its wrapping taken off: a dict, a list or a tensor, tensors
    mapped from the file. Objects of unknown classes are `Inert`. Nothing is imported, nothing runs.
    ValueError: one line naming the file.
    """
    maps = {}
    copied = 0

    def make(entry: Entry) -> Tensor:
        nonlocal copied
        copied += 0 if entry.aligned else entry.nbytes
        if copied > 2 * entry.path.stat().st_size:  # one storage, claimed a thousand times
            raise ValueError(
                "its tensors are together larger than the file: made to exhaust the memory"
            )
        return read(entry, maps)

    return _unwrap(Path(path), _unpickle(Path(path), make))[0]


def open_pickle(path: str | Path) -> TensorFile:
    """The tensors of a torch file as a TensorFile; what is no
    tensor is in `ignored`, numbers and texts in `metadata`.
    """
    path = Path(path)
    obj, metadata, ignored = _unwrap(path, _unpickle(path, lambda entry: entry))
    if isinstance(obj, Entry):
        obj = {"(no name)": obj}
    if not isinstance(obj, dict):
        what = (
            f"class {short(obj.name)}, whose code is not run: save its state_dict()"
            if isinstance(obj, Inert)
            else f"type {type(obj).__name__}"
        )
        raise ValueError(f"{path} holds an object of {what}; expected a dictionary of tensors")
    if not _has_tensors(obj):
        metadata = _told(obj) | metadata
        obj = _flat(obj)
    entries = {name: e for name, e in obj.items() if isinstance(e, Entry) and isinstance(name, str)}
    ignored += [_label(k) for k in obj if k not in entries]
    if not entries:
        listed = ", ".join(map(short, ignored[:5])) or "nothing"
        raise ValueError(f"{path} holds no tensors at its top level, only: {listed}")
    return TensorFile(path, "pickle", entries, metadata, tuple(ignored))


# ---- taking off the wrapping ---------------------------------------------------------------------


def _label(key: object) -> str:
    return key if isinstance(key, str) else getattr(key, "name", None) or short(key)


def _told(obj: dict) -> dict[str, str]:
    """The numbers and short texts of a dictionary, as texts."""
    plain = {}
    for key, value in obj.items():
        number = isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)
        if isinstance(key, str) and (number or (isinstance(value, str) and len(value) < 1000)):
            plain[key] = str(value)
    return plain


def _flat(obj: dict) -> dict:
    """Dictionaries of tensors one level further in, as "unet.conv_in.weight": a file may hold
    {"unet": {...}, "vae": {...}}, or the words of a textual inversion.
    """
    found = {}
    for key, inner in obj.items():
        if isinstance(key, str) and _has_tensors(inner):
            found |= {f"{key}.{name}": x for name, x in inner.items() if isinstance(name, str)}
        else:
            found[key] = inner
    return found


def _has_tensors(obj: object) -> bool:
    return isinstance(obj, dict) and any(isinstance(v, (Entry, Tensor)) for v in obj.values())


def _wraps(obj: object) -> bool:
    return isinstance(obj, dict) and (
        _has_tensors(obj) or any(isinstance(obj.get(k), dict) for k in WRAPPERS)
    )


def _unwrap(path: Path, obj: object) -> tuple[object, dict[str, str], list[str]]:
    """(what is inside, the numbers and texts beside it, the names of everything else)."""
    metadata = {}
    ignored = []
    way = []
    while (
        isinstance(obj, dict)
        and len(way) < 4
        and (inner := next((k for k in WRAPPERS if _wraps(obj.get(k))), None))
    ):
        rivals = (
            [k for k in obj if k not in WRAPPERS and _has_tensors(obj[k])]
            if inner != "state_dict"
            else []
        )
        if rivals:
            raise ValueError(
                f"{path} holds several networks "
                f"({', '.join(short(_label(k)) for k in [inner, *rivals[:4]])}); save the one you "
                "want in a file of its own"
            )
        told = _told(obj)
        metadata |= told
        ignored += [_label(k) for k in obj if k not in told and k != inner]
        way = [*way, inner]
        obj = obj[inner]
    return obj, metadata | ({"unwrapped": ".".join(way)} if way else {}), sorted(ignored)


# ---- the three layouts ---------------------------------------------------------------------------


class Frugal(io.FileIO):
    """A file that is read in small pieces only, so no header can claim gigabytes of memory."""

    def read(self, n: int = -1) -> bytes:
        if n > LIMIT:
            raise ValueError(f"a header of {n} bytes; at most {LIMIT} are read")
        return super().read(LIMIT if n < 0 else n)


def _unpickle(path: Path, make: Callable[[Entry], object]) -> object:
    """The object in a file, `make(entry)` in the place of every tensor."""
    impostor(path)
    with refusing(path, "torch file"), Frugal(path) as f:
        head = f.read(9)
        if head.startswith(b"PK\3\4"):
            program, places = _zip(f)
        elif head.startswith(b"\x80"):
            program, places = _legacy(f)
        elif head[8:] == b"{":
            raise ValueError("it looks like a safetensors file: name it so")
        else:
            raise ValueError("neither a zip nor a pickle: no file of torch.save, or damaged")
        obj = Machine(lambda *args: make(_place(path, places, *args))).run(program)
        scripted = isinstance(obj, Inert) and obj.name.startswith("__torch__.")
        return _attributes(obj) if scripted else obj


def _zip(f: Frugal) -> tuple[io.BytesIO, Places]:
    """Where each storage lies in a zip archive. The list of contents is at the end of the file;
    each part has a header of 30 bytes, its name and padding before it.
    """
    infos = zipfile.ZipFile(f).infolist()
    size = f.seek(0, io.SEEK_END)
    names = [info.filename for info in infos]
    programs = [name for name in names if name.split("/")[-1] == "data.pkl" and name.count("/") < 2]
    if len(programs) != 1 or len(set(names)) != len(names):
        raise ValueError(
            f"a zip with {len(programs)} data.pkl among {len(names)} parts, expected one, and no "
            "part twice"
        )
    root = programs[0].removesuffix("data.pkl")
    places = {}
    for info in infos:
        part = info.filename.removeprefix(root)
        if part in ("data.pkl", "byteorder") or part.startswith("data/"):
            f.seek(info.header_offset)
            head = f.read(30)
            name = int.from_bytes(head[26:28], "little")
            extra = int.from_bytes(head[28:30], "little")
            begin = info.header_offset + 30 + name + extra
            if not head.startswith(b"PK\3\4") or begin + info.file_size > size:
                raise ValueError(
                    f"part {short(part)} lies outside the file: it was cut off or damaged"
                )
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"part {short(part)} is compressed, which torch.save never does")
            places[part.removeprefix("data/")] = begin, info.file_size
    program, order = (_bytes(f, *places.pop(name, (0, 0))) for name in ("data.pkl", "byteorder"))
    if order not in (b"", b"little"):
        raise ValueError(f"its numbers are {short(order)}-endian, expected little")
    return io.BytesIO(program), places


def _legacy(f: Frugal) -> tuple[io.BytesIO, Places]:
    """Where each storage lies in the old layout. How long one is in bytes follows from its type,
    which only the object's pickle tells: that one is followed twice, the first time for this.
    """
    stream = io.BytesIO(_bytes(f, 0, LIMIT))
    size = f.seek(0, io.SEEK_END)
    magic, version, system = (Machine().run(stream) for _ in range(3))
    if magic != MAGIC or version != VERSION:
        raise ValueError(
            "a pickle, but not of torch.save; save the tensors with torch.save or as safetensors"
        )
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian, expected little")
    start = stream.tell()
    scout = Machine()
    scout.run(stream)
    keys = Machine().run(stream)
    at = stream.tell()
    places = {}
    for key in keys:
        length = (
            int.from_bytes(_bytes(f, at, 8), "little", signed=True)
            * scout.storages[key].dtype.itemsize
        )
        if length < 0 or at + 8 + length > size or key in places:
            raise ValueError(
                f"storage {short(key)} lies outside the file: it was cut off or damaged"
            )
        places[key] = at + 8, length
        at += 8 + length
    stream.seek(start)
    return stream, places


def _bytes(f: Frugal, begin: int, n: int) -> bytes:
    f.seek(begin)
    return f.read(n)


def _place(
    path: Path,
    places: Places,
    storage: Storage,
    offset: int,
    size: tuple,
    stride: tuple,
    dtype: object = None,
) -> Entry:
    """A tensor as torch's rebuild functions describe it, if
    that is true of the file: none reaches beyond its storage.
    """
    if not isinstance(storage, Storage) or storage.key not in places:
        raise ValueError(
            f"a tensor of the storage {short(getattr(storage, 'key', '?'))}, which is not in the "
            "file"
        )
    if (
        not all(isinstance(x, (tuple, list)) and len(x) <= 8 for x in (size, stride))
        or len(size) != len(stride)
        or not all(
            type(n) is int and 0 <= n < 1 << 48
            for n in (*size, *stride, offset, storage.start, storage.numel)
        )
    ):
        raise ValueError(
            "a tensor with shape, strides or offset that cannot be, in storage "
            f"{short(storage.key)}"
        )
    if dtype is not None and (dtype := NAMED.get(getattr(dtype, "name", None))) is None:
        raise ValueError(
            f"a tensor of a dtype that no weights have; expected one of: {', '.join(NAMED)}"
        )
    begin, nbytes = places[storage.key]
    unit = storage.dtype.itemsize
    dtype = dtype or storage.dtype
    dense = _dense(size, stride)
    start = storage.start * unit + offset * dtype.itemsize
    room = storage.numel * unit
    entry = Entry(tuple(size), dtype, path, begin + start, None if dense else tuple(stride))
    if (
        storage.start * unit + room > nbytes
        or offset * dtype.itemsize + entry.nbytes > room
        or entry.numel * dtype.itemsize > room
    ):
        raise ValueError(
            f"a tensor of shape {tuple(size)} reaches beyond its storage {short(storage.key)}, "
            f"{nbytes} bytes"
        )
    return entry


def _dense(size: tuple, stride: tuple) -> bool:
    """Do the rows of a tensor lie one behind the other, the last index fastest?"""
    expected = 1
    for n, step in zip(reversed(size), reversed(stride)):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def _attributes(module: Inert) -> dict[str, object]:
    """The attributes of a TorchScript module and its
    parts, named like a state dict: "visual.conv1.weight".
    """
    found = {}
    todo = [("", module)]
    seen = 0
    for prefix, part in todo:  # grows as parts of parts are found
        for name, value in part.state.items():
            name = prefix + name
            seen = seen + 1
            if seen > 100_000 or len(name) > 1000:
                raise ValueError("its modules are nested without end")
            if isinstance(value, Inert) and isinstance(value.state, dict):
                todo.append((name + ".", value))
            else:
                found[name] = value
    return found
