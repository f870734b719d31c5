"""What may be tuned, and what tuning found: the settings every method runs with in ShapesEditBench.

A technique's record (techniques.py) says which values of which options are tried. `minidiff bench
--fit METHOD` runs all their combinations on the dev split and writes the best into knobs.json
beside this file; a run on either split takes what stands there, and prints a hash of all settings
in effect. A method that was never fitted runs at its own defaults, and the table says so.

To add one: a `sweep` of at most about eight combinations in its record, then `--fit` it.
"""

import ast
import hashlib
import inspect
import json
from itertools import product
from pathlib import Path

from minidiff.io import write_json
from minidiff.techniques import TECHNIQUES, Sweep

HERE = Path(__file__).with_name("knobs.json")
# the same edit, on another inversion
LIKE = {"null-text": "direct-inversion", "negative-prompt": "direct-inversion"}


def names(method: str) -> list[str]:
    """Under which names the knobs of a method may stand, the first that is known counts: its own,
    that without a mask, that of the method it shares its knobs with.
    """
    base = method.split("@")[0].removesuffix("+misread")
    plain = base.removesuffix("+mask")
    return [base, plain, LIKE.get(plain, plain)]


def sweep(method: str) -> Sweep:
    """By name, with or without "+mask", "+misread" and "@..."."""
    plain = names(method)[1]
    return TECHNIQUES[plain].sweep if plain in TECHNIQUES else Sweep()


def combinations(method: str) -> list[dict]:
    """Every setting that `--fit` tries; ValueError for a method without a sweep."""
    tries = sweep(method).tries
    if not tries:
        able = [name for name, technique in TECHNIQUES.items() if technique.sweep.tries]
        raise ValueError(
            f"{method} has no knobs to fit; those that have: {', '.join(able)} (techniques.py)"
        )
    return [dict(zip(tries, values)) for values in product(*tries.values())]


def load(path: Path = HERE) -> dict:
    """{method: {"chosen": {...} or {kind: {...}}, "score", "items", "hash"}}."""
    return json.loads(path.read_text()) if path.exists() else {}


def chosen(method: str, kind: str, known: dict | None = None) -> dict:
    """The options a method runs with on one kind: fitted ones, then what its name says after
    "@".
    """
    known = load() if known is None else known
    options = {}
    row = next((known[name] for name in names(method) if name in known), None)
    if row is not None:
        options |= row["chosen"].get(kind, {}) if row.get("per_kind") else row["chosen"]
    for part in method.partition("@")[2].split(","):
        if part:
            name, value = part.split("=")
            options[name] = number(value)
    return options


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
    return not sweep(method).tries or bool({*names(method)} & load().keys())


def save(method: str, row: dict, path: Path = HERE) -> dict:
    """Put one method's line into the file, which is read again just before: others may have been
    fitted meanwhile.
    """
    row["hash"] = short_hash(json.dumps(row["chosen"], sort_keys=True))
    rows = load(path) | {method: row}
    write_json(dict(sorted(rows.items())), path)
    return row
