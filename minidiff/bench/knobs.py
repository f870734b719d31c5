"""What may be tuned, and what tuning found: the settings every method runs with in ShapesEditBench.

Guidance is a knob of every method that has it, controls included: its values are crossed with at
most four settings of its own, which the record in techniques.py lists. `minidiff bench --fit
METHOD` runs all of them on the dev split and writes into knobs.json beside this file

    chosen    ONE setting for all kinds of edit, with which the tables are made
    per_kind  the best for each kind, for the column beside it (`METHOD@per_kind`)

A run takes what stands there, and prints a hash of all settings in effect. A method that was never
fitted runs at its own defaults, and the table says so.
"""

import ast
import hashlib
import inspect
import json
from itertools import product
from pathlib import Path

from minidiff.bench.controls import CONTROLS
from minidiff.io import write_json
from minidiff.techniques import GUIDANCE, TECHNIQUES, Sweep

HERE = Path(__file__).with_name("knobs.json")
# the same edit, on another inversion or under another name
LIKE = {
    "null-text": "direct-inversion",
    "negative-prompt": "direct-inversion",
    "p2p-edit-friendly": "direct-inversion",
    "ddib": "inverted",
}
PER_KIND = "per_kind"


def names(method: str) -> list[str]:
    """Under which names the knobs of a method may stand, the first that is known counts: its own,
    that without a mask, that of the method it shares its knobs with.
    """
    base = method.split("@")[0].removesuffix("+misread")
    plain = base.removesuffix("+mask")
    return [base, plain, LIKE.get(plain, plain)]


def function(method: str):
    """The function of a control or a technique."""
    plain = names(method)[1]
    return CONTROLS[plain] if plain in CONTROLS else TECHNIQUES[plain].load()


def sweep(method: str) -> Sweep:
    """By name, with or without "+mask", "+misread" and "@..."."""
    plain = names(method)[1]
    return TECHNIQUES[plain].sweep if plain in TECHNIQUES else Sweep()


def guidance(method: str) -> dict[str, tuple]:
    """{option: values} of how strongly it is pulled towards the words; {} if it has no such
    option.
    """
    plain = names(method)[1]
    technique = TECHNIQUES.get(plain)
    option = technique.guidance if technique else "scale"
    values = technique.sweep.guidance if technique else GUIDANCE
    has_it = option in inspect.signature(function(method)).parameters
    return {option: values} if has_it else {}


def combinations(method: str) -> list[dict]:
    """Every setting that `--fit` tries: each guidance with each combination of the method's own.
    ValueError for a method without either.
    """
    tries = sweep(method).tries | guidance(method)
    if not tries:
        raise ValueError(f"{method} has no guidance and no knobs: there is nothing to fit")
    return [dict(zip(tries, values)) for values in product(*tries.values())]


def load(path: Path = HERE) -> dict:
    """{method: {"chosen": {...}, "per_kind": {kind: {...}}, "score", "items", "hash", ...}}."""
    return json.loads(path.read_text()) if path.exists() else {}


def row_of(method: str, known: dict | None = None) -> dict | None:
    """What knobs.json says of a method; None if it, and those like it, were never fitted."""
    known = load() if known is None else known
    return next((known[name] for name in names(method) if name in known), None)


def chosen(method: str, kind: str, known: dict | None = None) -> dict:
    """The options a method runs with on one kind: fitted ones, then what its name says after "@":
    `option=value`, or `per_kind` for the best of each kind.
    """
    said = [part for part in method.partition("@")[2].split(",") if part]
    row = row_of(method, known)
    options = {}
    if row is not None and row.get("per_kind") is True:  # of the first edition: by kind only
        options |= row["chosen"].get(kind, {})
    elif row is not None:
        options |= row["per_kind"].get(kind, {}) if PER_KIND in said else row["chosen"]
    for part in said:
        name, _, value = part.partition("=")
        if name != PER_KIND:
            options[name] = number(value)
    return options


def has_per_kind(method: str) -> bool:
    """Does knobs.json have, beside the one choice, the best of each kind?"""
    row = row_of(method)
    return "@" not in method and row is not None and isinstance(row.get("per_kind"), dict)


def number(text: str):
    """`.4` -> 0.4, `True` -> True; what is no number or word of Python stays text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def digest(method: str, model: str, fn, options: dict) -> str:
    """Eight letters that change with any setting in effect: the defaults of the function and what
    overrides them.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(fn).parameters.items()
        if parameter.default is not parameter.empty
    }
    return short_hash(json.dumps([method, model, defaults | options], sort_keys=True, default=str))


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def fitted(method: str) -> bool:
    """Are the knobs of a method those that `--fit` chose? Without knobs there is nothing to fit."""
    nothing = not sweep(method).tries and not guidance(method)
    return nothing or row_of(method) is not None


def save(method: str, row: dict, path: Path = HERE) -> dict:
    """Put one method's line into the file, which is read again just before: others may have been
    fitted meanwhile.
    """
    row["hash"] = short_hash(json.dumps(row["chosen"], sort_keys=True))
    rows = load(path) | {method: row}
    write_json(dict(sorted(rows.items())), path)
    return row
