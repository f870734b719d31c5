"""What may be tuned, and what tuning found: the settings every method runs with in ShapesEditBench.

`SWEEPS` says which values of which options are tried. `minidiff bench --fit METHOD` runs all their
combinations on the dev split and writes the best into knobs.json beside this file; a run on either
split takes what stands there, and prints a hash of all settings in effect. A method that was never
fitted runs at its own defaults, and the table says so.

To add a method: a line in SWEEPS with at most about eight combinations, then `--fit` it.
"""

import ast
import hashlib
import inspect
import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from minidiff.io import write_json

HERE = Path(__file__).with_name("knobs.json")


@dataclass(frozen=True)
class Sweep:
    """`tries`: {option: values}. `per_kind`: one choice for each kind of edit. `curve`: (option,
    values) of the knob that trades the edit against the rest.
    """

    tries: dict = field(default_factory=dict)
    per_kind: bool = False
    curve: tuple[str, tuple] = ("", ())


def strength(*values: float, **more: tuple) -> Sweep:
    """A method whose `strength` says how much of the picture is forgotten: one value for each kind,
    and a curve.
    """
    return Sweep(
        {"strength": values} | more, True, ("strength", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    )


SHARES = {"cross": (0.1, 0.4), "self_": (0.2, 0.9)}  # of the steps with the source's attention maps
# the same edit, on another inversion
LIKE = {"null-text": "direct-inversion", "negative-prompt": "direct-inversion"}
SWEEPS = {
    "sdedit": strength(0.4, 0.55, 0.7, 0.85),
    "edict": strength(0.5, 0.7, 0.9),
    "edit-friendly": strength(0.5, 0.64, 0.8, 0.9),
    "zecon": strength(0.5, 0.7, 0.9),
    "diffedit": strength(0.7, 1.0, threshold=(0.3, 0.5)),
    "blended-latent": strength(0.75, 0.9, 1.0),
    "blended-diffusion": strength(0.6, 0.75),
    "unitune": strength(0.6, 0.8, 0.95),
    "prompt-to-prompt": Sweep(SHARES, True),
    "direct-inversion": Sweep(SHARES, True),
    "plug-and-play": Sweep({"features": (0.4, 0.8), "attention": (0.2, 0.5)}, True),
    "masactrl": Sweep({"start": (0.1, 0.3), "layer": (0.3, 0.6)}, True),
    "pix2pix-zero": Sweep({"hold": (0.0, 0.05, 0.1, 0.2)}, True),
    "magicmix": Sweep({"nu": (0.5, 0.7, 0.9), "kmax": (0.6, 0.9)}, True),
    "ilvr": Sweep({"factor": (2, 4), "stop": (0.0, 0.3)}, True),
    "delta-denoising": Sweep({"iterations": (50, 100, 200)}, True),
    "asyrp": Sweep({"strength": (0.5, 1.0, 2.0)}, True),
    "boundary": Sweep({"distance": (1.0, 2.0, 4.0)}, True),
    "classifier-guidance": Sweep({"strength": (0.5, 1.0, 2.0)}, True),
    "semantic-guidance": Sweep({"text": (300.0, 1000.0)}, True),
    "ddib": Sweep({"scale": (1.0, 3.0)}),
    "inpaint": Sweep({"scale": (1.0, 3.0, 5.0)}),
    "repaint": Sweep({"scale": (1.0, 3.0)}),
}


def names(method: str) -> list[str]:
    """Under which names the knobs of a method may stand, the first that is known counts: its own,
    that without a mask, that of the method it shares its knobs with.
    """
    base = method.split("@")[0].removesuffix("+misread")
    plain = base.removesuffix("+mask")
    return [base, plain, LIKE.get(plain, plain)]


def sweep(method: str) -> Sweep:
    """By name, with or without "+mask", "+misread" and "@..."."""
    return next((SWEEPS[name] for name in names(method) if name in SWEEPS), Sweep())


def combinations(method: str) -> list[dict]:
    """Every setting that `--fit` tries; ValueError for a method without a line in SWEEPS."""
    tries = sweep(method).tries
    if not tries:
        raise ValueError(
            f"{method} has no knobs to fit; those that have: {', '.join(SWEEPS)} (bench/knobs.py)"
        )
    return [dict(zip(tries, values)) for values in product(*tries.values())]


def load(path: Path = HERE) -> dict:
    """{method: {"chosen": {...} or {kind: {...}}, "score", "items", "hash"}}."""
    return json.loads(path.read_text()) if path.exists() else {}


def chosen(method: str, kind: str, known: dict | None = None) -> dict:
    """The options a method runs with on one kind: fitted ones, then what its name says after
    "@".
    """
    said, known = method.partition("@")[2], load() if known is None else known
    row = next((known[name] for name in names(method) if name in known), {"chosen": {}})
    found = row["chosen"]
    found = found.get(kind, {}) if row.get("per_kind") else found
    return found | {k: number(v) for k, v in (part.split("=") for part in said.split(",") if part)}


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
        k: p.default
        for k, p in inspect.signature(fn).parameters.items()
        if p.default is not p.empty
    }
    said = json.dumps([method, model, defaults | options], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def fitted(method: str) -> bool:
    """Are the knobs of a method those that `--fit` chose? (One without knobs has nothing to
    fit.)
    """
    return not sweep(method).tries or bool({*names(method)} & load().keys())


def save(method: str, row: dict, path: Path = HERE) -> dict:
    """Put one method's line into the file, which is read again just before: others may have been
    fitted meanwhile.
    """
    row |= {
        "hash": hashlib.sha256(json.dumps(row["chosen"], sort_keys=True).encode()).hexdigest()[:8]
    }
    write_json(dict(sorted((load(path) | {method: row}).items())), path)
    return row
