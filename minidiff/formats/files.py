"""Opening any file or folder of weights: the safetensors
format, shards, and the way to torch's pickles.

`open_tensors(path)` answers from headers alone which tensors there are; `.tensor(name)` maps one of
them (`mapped.py`).

    a file     .safetensors, .sft, or .ckpt .pt .pth .bin, which hold a pickle (`pickles.py`: read,
               never run)
    shards     an index, `{"weight_map": {tensor: file}}`, beside the files it names
    a folder   one of these; `.safetensors` rather than `.bin`, plain rather than a variant such as
               `.fp16.safetensors`

Whatever is wrong with a file (cut off, another format under this name, a web page where a download
failed, offsets made to deceive) is found before a number is read, and told in one line that names
the file.

Source: the safetensors format, github.com/huggingface/safetensors; file names as `diffusers` and
`transformers` write them. Try: `head -c 500 some.safetensors`: the format is that simple.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

from minidiff.formats.mapped import (
    DTYPES,
    LIMIT,
    Entry,
    TensorFile,
    finite,
    impostor,
    memory_file,
    refusing,
    sha256,
    short,
)
from minidiff.formats.pickle_machine import STEPS
from minidiff.formats.pickles import load_pickle, open_pickle

__all__ = [
    "Entry",
    "TensorFile",
    "finite",
    "load_pickle",
    "memory_file",
    "open_safetensors",
    "open_tensors",
    "sha256",
]

# in the order of preference in a folder
SUFFIXES = (".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pth")
PICKLES = SUFFIXES[2:]
NAMES = re.compile(
    r"(?P<base>.+?)(\.(?P<variant>[a-z]\w*))?(?P<suffix>\.(safetensors|sft|bin|ckpt|pt|pth))"
    r"(?P<index>\.index(\.(?P<of>[a-z]\w*))?\.json)?",
    re.IGNORECASE,
)
# what torch.compile and data-parallel training put before the names of a network
WRAPPED = re.compile(r"(^|(?<=\.))_orig_mod\.")
PARALLEL = "module."
SHARD = re.compile(r"-\d+-of-\d+")


def open_tensors(path: str | Path, variant: str | None = None) -> TensorFile:
    """The table of tensors in a file, in shards (their folder
    or index file), or in a folder with one file of weights.

    variant   in a folder: "fp16" takes `*.fp16.safetensors`; None the plain file, or else the only
              variant there is

    FileNotFoundError: nothing there, a shard missing. ValueError: damaged, of another kind, more
    than one.
    """
    path = _choose(Path(path), variant) if Path(path).is_dir() else Path(path)
    return _unwrapped(_open(path))


def is_pickle(path: str | Path) -> bool:
    """Is a file torch's own, by its name?"""
    return Path(path).suffix.lower() in PICKLES


def _open(path: Path) -> TensorFile:
    impostor(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return open_shards(path)
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path} is no weights file by its name; expected one ending in {', '.join(SUFFIXES)}"
        )
    return open_pickle(path) if is_pickle(path) else open_safetensors(path)


def _unwrapped(file: TensorFile) -> TensorFile:
    """The file under the names that its network has without torch.compile and parallel training.
    ValueError: two names become one.
    """
    parallel = bool(file) and all(name.startswith(PARALLEL) for name in file)
    plain = {}
    for name, entry in file.items():
        inner = WRAPPED.sub("", name.removeprefix(PARALLEL) if parallel else name)
        if inner in plain:
            raise ValueError(f"{file.path}: {short(inner)} occurs twice, once as {short(name)}")
        plain[inner] = entry
    return replace(file, entries=plain)


# ---- safetensors ---------------------------------------------------------------------------------


def open_safetensors(path: str | Path) -> TensorFile:
    """The whole format:

    8 bytes     N, the length of the header, unsigned, lowest byte first
    N bytes     JSON: {"w": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, ...,
                "__metadata__": {str: str}}
    the rest    the numbers of all tensors, without gaps, rows dense, lowest byte first;
                offsets count from here
    """
    path = Path(path)
    impostor(path)
    with refusing(path, "safetensors file"), open(path, "rb") as f:
        size = path.stat().st_size
        n = int.from_bytes(f.read(8), "little")
        if size < 8 or n > size - 8:
            raise ValueError(
                f"{size} bytes cannot hold the header it claims: cut off, or another format "
                "(torch's: .ckpt)"
            )
        if n > LIMIT:
            raise ValueError(f"a header of {n} bytes; at most {LIMIT} are read")
        header = _json(f.read(n))
        metadata = header.pop("__metadata__", {})
        start = 8 + n
        entries = {name: _entry(path, name, row, start) for name, row in header.items()}
        end = start
        for name, e in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
            if e.begin != end:
                raise ValueError(
                    f"tensor {short(name)} "
                    f"{'overlaps another one' if e.begin < end else 'comes after a gap'}"
                )
            end += e.nbytes
        if end != size:
            raise ValueError(
                f"its tensors end at byte {end}, the file at {size}: it was cut off or damaged"
            )
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not texts")
    return TensorFile(path, "safetensors", entries, metadata)


def _entry(path: Path, name: str, row: dict, start: int) -> Entry:
    """One row of the header, if it makes sense in itself."""
    if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= row.keys():
        raise ValueError(f"tensor {short(name)} lacks dtype, shape or data_offsets")
    dtype = row["dtype"]
    shape = row["shape"]
    offsets = row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"tensor {short(name)} is of dtype {short(dtype)}; known are {', '.join(DTYPES)}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > 8
        or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
    ):
        raise ValueError(
            f"tensor {short(name)} has shape {short(shape)}; expected up to 8 whole numbers, none "
            "negative"
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in offsets)
    ):
        raise ValueError(
            f"tensor {short(name)} has data_offsets {short(offsets)}; expected [begin, end]"
        )
    entry = Entry(tuple(shape), DTYPES[dtype], path, start + offsets[0])
    if offsets[1] - offsets[0] != entry.nbytes:
        raise ValueError(
            f"tensor {short(name)} of shape {tuple(shape)} in {dtype} takes {entry.nbytes} bytes, "
            f"its data_offsets say {offsets[1] - offsets[0]}"
        )
    return entry


def _json(raw: bytes) -> dict[str, object]:
    if sum(map(raw.count, (b",", b"[", b"{"))) > STEPS:  # cheap to count, dear to build
        raise ValueError(f"more than {STEPS:,} values: no weights, or made to exhaust the memory")
    found = json.loads(raw.decode(), object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError("its JSON is no object")
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object in which no key occurs twice: two readers could take different ones."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {short(key)} occurs twice")
        found[key] = value
    return found


# ---- shards and folders --------------------------------------------------------------------------


def open_shards(index: str | Path) -> TensorFile:
    """The tensors of an index file, each from the shard that the index says."""
    index = Path(index)
    with refusing(index, "index of shards"):
        if index.stat().st_size > LIMIT:
            raise ValueError(f"it has {index.stat().st_size} bytes; at most {LIMIT} are read")
        where = _json(index.read_bytes())["weight_map"]
        for name, shard in where.items():
            if (
                not isinstance(shard, str)
                or Path(shard).name != shard
                or Path(shard).suffix.lower() not in SUFFIXES
            ):
                raise ValueError(
                    f"tensor {short(name)} is said to be in {short(shard)}, expected a file beside "
                    "it"
                )
        if not where:
            raise ValueError("it names no shards")
    shards = sorted(set(where.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.parent / missing[0]} is missing ({len(missing)} of the {len(shards)} shards "
            f"that {index.name} names); fetch it"
        )
    parts = {shard: _open(index.parent / shard) for shard in shards}
    lost = [name for name, shard in where.items() if name not in parts[shard]]
    if lost:
        name = lost[0]
        raise ValueError(
            f"{index.parent / where[name]} lacks tensor {short(name)}, which {index.name} says is "
            f"there ({len(lost)} such tensor(s)); the shards do not belong together"
        )
    metadata = {k: v for part in parts.values() for k, v in part.metadata.items()}
    unlisted = tuple(
        name for part in parts.values() for name in (*part, *part.ignored) if name not in where
    )
    return TensorFile(
        index,
        "shards",
        {name: parts[shard][name] for name, shard in where.items()},
        metadata,
        unlisted,
    )


def _choose(folder: Path, variant: str | None) -> Path:
    """The one file of weights in a folder, or the index of its shards."""
    found = []
    for path in folder.iterdir():
        m = NAMES.fullmatch(path.name)
        if m and not SHARD.search(path.name) and path.is_file():
            rank = SUFFIXES.index(m["suffix"].lower()), bool(m["index"])
            found.append((m["variant"] or m["of"], rank, path))
    variants = {v for v, _, _ in found}
    if not found:
        hint = (
            "a whole pipeline; open its unet, vae or text_encoder"
            if (folder / "model_index.json").exists()
            else f"expected a file ending in {', '.join(SUFFIXES)}, or the index of shards"
        )
        raise FileNotFoundError(f"no weights file in {folder} ({hint})")
    if variant is None and None not in variants:
        if len(variants) > 1:
            raise ValueError(
                f"{folder} holds only variants ({', '.join(sorted(variants))}); choose one"
            )
        variant = variants.pop()
    ranked = sorted((rank, path) for v, rank, path in found if v == variant)
    if not ranked:
        raise FileNotFoundError(
            f"no {variant} weights in {folder}; there: {', '.join(v or 'plain' for v in variants)}"
        )
    best = [path for rank, path in ranked if rank == ranked[0][0]]
    if len(best) > 1:
        raise ValueError(
            f"{folder} holds {len(best)} files of weights ({', '.join(p.name for p in best[:4])}); "
            "give the path of one"
        )
    return best[0]
