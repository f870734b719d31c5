"""Which methods ShapesEditBench can run, and what each is given: read off their signatures.

A name is a control (bench/controls.py) or a technique (techniques.py), one that may take a mask
with "+mask", one that reads the source caption with "+misread" for a caption with a wrong word;
each with options after "@": `sdedit+mask@strength=0.9`.

Every method runs in the same number of steps. The full table has one row for one function: what
equals another row at equal options (`same_as` in its record) has none of its own, nor has what no
item can serve (`no_row`, or an argument that no item knows).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from minidiff.bench import knobs
from minidiff.bench.controls import CONTROLS
from minidiff.bench.items import KINDS
from minidiff.pipe.checks import check_numbers
from minidiff.techniques import TECHNIQUES, names

# what a method may need
KNOWN = {"pipe", "image", "source", "target", "prompt", "mask", "blend", "seed", "truth", "wrong"}
STEPS = 50  # of every method that takes steps
SHOWN = (0.2, 0.4, 0.6, 0.8)  # the SDEdit rows by default


@dataclass(frozen=True)
class Method:
    """`inputs`, the letters of the table: P target prompt, S source prompt, W the edited object's
    name, M exact mask, I instruction, F tuned for every edit. `fixed`: the options it runs with
    before any are fitted, the number of steps and what its record says.
    """

    name: str
    fn: Callable
    masked: bool
    misread: bool = False

    @property
    def inputs(self) -> str:
        asked = inspect.signature(self.fn).parameters
        if "truth" in asked:
            return ""
        base = self.name.split("@")[0].removesuffix("+misread").removesuffix("+mask")
        must_mask = "mask" in asked and asked["mask"].default is inspect.Parameter.empty
        letters = ""
        if {"target", "prompt"} & asked.keys():
            letters += "P"
        if "instruction" in asked:
            letters += "I"
        if "source" in asked:
            letters += "S"
        if "blend" in asked:
            letters += "W"
        if must_mask or ("mask" in asked and self.masked):
            letters += "M"
        if base in TECHNIQUES and TECHNIQUES[base].tunes:
            letters += "F"
        return letters

    @property
    def fixed(self) -> dict:
        budget = {"steps": STEPS} if "steps" in inspect.signature(self.fn).parameters else {}
        return budget | knobs.sweep(self.name).fixed

    def options(self, kind: str) -> dict:
        """The settings it runs with on one kind of edit."""
        return self.fixed | knobs.chosen(self.name, kind)


def lacks(fn) -> list[str]:
    """What a function needs and no item knows; a technique that takes no picture lacks something to
    edit.
    """
    asked = inspect.signature(fn).parameters
    missing = [
        name
        for name, p in asked.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and name not in KNOWN
    ]
    if "image" not in asked and fn not in CONTROLS.values():
        missing.append("a picture to edit")
    return missing


def method(name: str) -> Method:
    """A method by its name; ValueError if there is none, or items cannot serve it."""
    base = name.split("@")[0].removesuffix("+misread")
    plain = base.removesuffix("+mask")
    if plain not in CONTROLS and plain not in TECHNIQUES:
        there_are = names(plain, [*CONTROLS, *TECHNIQUES])
        raise ValueError(f"no method called {plain!r}; there are: {there_are}")
    fn = knobs.function(plain)
    missing = lacks(fn)
    if missing:
        raise ValueError(
            f"{plain} cannot be asked here: it needs {', '.join(missing)}; "
            "the bench gives image, source, target or prompt, mask, seed"
        )
    asked = inspect.signature(fn).parameters
    m = Method(name, fn, masked=base != plain, misread=base != name.split("@")[0])
    if m.masked and "mask" not in asked:
        raise ValueError(f"{plain} takes no mask; leave +mask out")
    if m.misread and "source" not in asked:
        raise ValueError(f"{plain} reads no source caption; leave +misread out")
    takes_more = any(p.kind is p.VAR_KEYWORD for p in asked.values())
    for kind in KINDS:
        options = knobs.chosen(name, kind)
        wrong = options.keys() - asked.keys()
        if wrong and not takes_more:
            raise ValueError(
                f"{plain} has no option {', '.join(sorted(wrong))}; it has {', '.join(asked)}"
            )
        check_numbers(options, asked)
    return m


def at_steps(name: str, steps: int) -> str:
    """The name of a method that runs in so many steps: its own at the usual number, or if it has
    none.
    """
    if steps == STEPS or "steps" not in inspect.signature(method(name).fn).parameters:
        return name
    return f"{name}{',' if '@' in name else '@'}steps={steps}"


def everything() -> list[str]:
    """Names of all rows of the full table: controls, techniques, and each that may take a mask with
    one; of functions that are the same one.
    """
    served = []
    free_to_mask = []
    for name, technique in TECHNIQUES.items():
        fn = technique.load()
        if lacks(fn) or technique.no_row or technique.same_as:
            continue
        served.append(name)
        mask = inspect.signature(fn).parameters.get("mask")
        if mask is not None and mask.default is not inspect.Parameter.empty:
            free_to_mask.append(f"{name}+mask")
    by_strength = [f"sdedit@strength={s}" for s in SHOWN]
    return [*CONTROLS, *by_strength, *served, *free_to_mask]


def fittable() -> list[str]:
    """Rows of the full table that have something to fit."""
    rows = [name for name in everything() if "@" not in name]
    return [name for name in rows if knobs.guidance(name) or knobs.sweep(name).tries]
