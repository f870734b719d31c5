"""JSON that nobody vouches for: objects out of files, and one value of the type that is needed.

    field(config, "beta_start", float, 1e-4)

JSON has types, and a config may have the wrong ones: "0.00085" in quotes, true for a number, a list
for a name. What is not of the type asked for is refused by its name, before it meets arithmetic.
"""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from minidiff.formats.mapped import LIMIT, refusing, short

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}
# larger than any size, count or scale of a network
MOST = 1 << 31


def field(
    config: Mapping, name: str, kind: type, default: object = None, *, above: float | None = None
):
    """config[name], or `default` where it is absent or null.

    kind    bool, int, float, str, list or dict; float takes whole numbers too, no number is a bool
    above   a number must be larger than this, and is always less than 2 ** 31

    ValueError: a value of another type, or out of range.
    """
    value = config.get(name)
    if value is None:
        return default
    if not fits(value, kind, above):
        range_ = f" above {above:g}" if above is not None else ""
        raise ValueError(f"config: {name} is {short(value)}, expected {KINDS[kind]}{range_}")
    return float(value) if kind is float else value


def fits(value: object, kind: type, above: float | None = None) -> bool:
    """Is a value of JSON of this kind, and in range?"""
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return False
    # size first: a whole number of JSON may be too large for a float
    inside = abs(value) < MOST and isfinite(value)
    return inside and (above is None or value > above)


def numbers(config: Mapping, name: str) -> int | tuple[int, ...] | None:
    """A whole number above 0, or a tuple of such; None where there is none."""
    value = config.get(name)
    if value is None:
        return None
    several = value if isinstance(value, (list, tuple)) else [value]
    if not several or not all(fits(n, int, 0) for n in several):
        raise ValueError(
            f"config: {name} is {short(value)}, expected a whole number above 0, or several"
        )
    return tuple(several) if isinstance(value, (list, tuple)) else value


def read_json(path: Path) -> dict:
    """A JSON object out of a file; {} if the file is not there."""
    if not path.is_file():
        return {}
    with refusing(path, "JSON file"):
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it has {path.stat().st_size} bytes; at most {LIMIT} are read")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, expected an object")
    return found
