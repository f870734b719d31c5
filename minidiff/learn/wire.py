"""Values as bytes, for two processes of which one does not trust the other.

    data = pack({"kind": "answer", "value": tensor})
    value = unpack(data)                      # ValueError for anything that `pack` does not write

A submission runs in a process of its own and sends its answers so. Pickle would run what the other
side likes; this is JSON for the structure and plain bytes for the numbers, and reading it runs
nothing. What cannot be sent (a network, a file) arrives as an empty object of a class of that name.

The file stands alone: the process of the submission has a copy of it and not the rest of this room.
"""

import json
import re
import struct

import numpy as np
import torch
from torch import Tensor

MOST = 64 * 2**20  # bytes of one message
TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
}
HEAD = struct.Struct(">Q")


# ---- writing -------------------------------------------------------------------------------------


def pack(value) -> bytes:
    """The length of the structure, the structure as JSON, and the numbers of its tensors.
    ValueError for more than MOST bytes.
    """
    parts: list[bytes] = []
    text = json.dumps(_tree(value, parts)).encode()
    data = b"".join([HEAD.pack(len(text)), text, *parts])
    if len(data) > MOST:
        raise ValueError(f"{len(data) / 2**20:.0f} MB are too much, at most {MOST / 2**20:.0f}")
    return data


def _tree(value, parts: list[bytes]):
    """The value as JSON has it; the bytes of tensors go to `parts`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return _tensor(value, parts)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        array = np.asarray(value)
        parts.append(np.ascontiguousarray(array).tobytes())
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return {kind: [array.dtype.str, list(array.shape)]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_tree(inner, parts) for inner in value]}
    if type(value) is dict:
        return {"dict": [[_tree(k, parts), _tree(v, parts)] for k, v in value.items()]}
    if type(value).__name__ == "Cond" and type(value).__module__ == "minidiff.core.cond":
        return {"cond": [[name, _tree(part, parts)] for name, part in vars(value).items()]}
    return {"other": [type(value).__module__, type(value).__name__]}


def _tensor(value: Tensor, parts: list[bytes]):
    name = str(value.dtype).removeprefix("torch.")
    if name not in TYPES or value.is_meta or value.layout != torch.strided:
        return {"other": ["torch", "Tensor"]}
    flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    parts.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return {"tensor": [name, list(value.shape)]}


# ---- reading -------------------------------------------------------------------------------------


def unpack(data: bytes):
    """The value of `pack`'s bytes. ValueError if they are anything else."""
    try:
        (length,) = HEAD.unpack_from(data)
        tree = json.loads(data[HEAD.size : HEAD.size + length])
        value, end = _value(tree, data, HEAD.size + length)
    except (KeyError, TypeError, RecursionError, OverflowError, struct.error, RuntimeError) as e:
        raise ValueError(f"these bytes are no message ({type(e).__name__})") from None
    if end != len(data):
        raise ValueError("these bytes are no message (something follows it)")
    return value


def _value(tree, data: bytes, at: int):
    """(value, where the numbers of the next one begin)."""
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise TypeError("a bare list")
        return tree, at
    ((kind, held),) = tree.items()
    if kind in ("tensor", "array", "number"):
        return _numbers(kind, held, data, at)
    if kind in ("list", "tuple"):
        values = []
        for inner in held:
            value, at = _value(inner, data, at)
            values.append(value)
        return (values if kind == "list" else tuple(values)), at
    if kind in ("dict", "cond"):
        pairs = {}
        for key, inner in held:
            name, at = _value(key, data, at)
            pairs[name], at = _value(inner, data, at)
        return (pairs if kind == "dict" else _cond(pairs)), at
    if kind == "other":
        return _other(*held), at
    raise KeyError(kind)


def _numbers(kind: str, held, data: bytes, at: int):
    name, shape = held
    if not all(type(side) is int and side >= 0 for side in shape):
        raise TypeError("a shape")
    dtype = TYPES[name] if kind == "tensor" else np.dtype(_plain(name))
    count = 1
    for side in shape:
        count *= side
    size = count * dtype.itemsize
    if size > len(data) - at:
        raise ValueError("these bytes are no message (numbers are missing)")
    part = bytearray(data[at : at + size])
    if kind == "tensor":
        flat = torch.frombuffer(part, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return flat.reshape(shape), at + size
    array = np.frombuffer(part, dtype).reshape(shape)
    return (array if kind == "array" else array[()]), at + size


def _plain(name: str) -> str:
    """The name of a numpy type that holds numbers and no objects."""
    if not re.fullmatch(r"[<>|=]?[biufc]\d{1,2}", name):
        raise TypeError(name)
    return name


def _cond(pairs: dict):
    from minidiff.core.cond import Cond

    return Cond(**pairs)


def _other(module: str, name: str):
    """An empty object of a class of that name, for the sentence that says what came."""
    if not re.fullmatch(r"[\w.]{1,60}", module) or not re.fullmatch(r"\w{1,40}", name):
        raise TypeError("a name")
    return type(name, (), {"__module__": module})()
