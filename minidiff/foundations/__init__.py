"""Foundations: one paper a file, from 2015 on. Those that are learned in the plane (`plane.py`) are
records of one list; `minidiff train NAME` learns one, `minidiff prove foundations` measures all.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

__all__ = ["FOUNDATIONS", "Foundation"]


@dataclass(frozen=True)
class Foundation:
    """One paper that is learned in the plane.

    name     of its file, with hyphens
    year     of its first version
    paper    authors, year, arXiv number, name
    about    one sentence: what was new
    """

    name: str
    year: int
    paper: str
    about: str

    @property
    def module(self) -> ModuleType:
        """Its file: `network`, `loss`, `learned`."""
        return import_module(f"minidiff.foundations.{self.name.replace('-', '_')}")


ALL = (
    Foundation(
        "flow-matching",
        2022,
        "Lipman et al. 2022, 2210.02747; Liu et al. 2022, 2209.03003, rectified flow",
        "Learn the mean velocity of straight lines from noise to data",
    ),
)

FOUNDATIONS = {f.name: f for f in ALL}
