"""Foundations: one paper a file, from 2015 on. Those that are learned in the plane (`plane.py`) are
records of one list; `minidiff prove foundations` measures all of them.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from torch import Tensor, nn

from minidiff.foundations.plane import STEPS, learn

__all__ = ["FOUNDATIONS", "Foundation"]


@dataclass(frozen=True)
class Foundation:
    """One paper that is learned in the plane.

    Its file has `network`, `loss` and `learned` (see `plane.py`), and, where more than one training
    is needed, a `teach` of its own.

    name     of its file, with hyphens
    year     of its first version
    paper    authors, year, arXiv number, name
    about    one sentence: what was new
    steps    of training that it needs
    """

    name: str
    year: int
    paper: str
    about: str
    steps: int = STEPS

    @property
    def module(self) -> ModuleType:
        """Its file."""
        return import_module(f"minidiff.foundations.{self.name.replace('-', '_')}")

    def teach(self, points: Tensor, **options) -> tuple[nn.Module, float]:
        """(trained network, CPU seconds) from points (n d); options: steps, seed, progress."""
        module = self.module
        options = {"steps": self.steps} | options
        if hasattr(module, "teach"):
            return module.teach(points, **options)
        return learn(module.network, module.loss, points, **options)


ALL = (
    Foundation(
        "ddpm",
        2020,
        "Ho, Jain, Abbeel 2020, 2006.11239, DDPM",
        "A chain of many small steps, learned by predicting the noise",
    ),
    Foundation(
        "score-sde",
        2020,
        "Song et al. 2020, 2011.13456, score SDE",
        "The chain in continuous time, with a flow that has a likelihood",
    ),
    Foundation(
        "edm",
        2022,
        "Karras et al. 2022, 2206.00364, EDM",
        "A network between factors that keep its input and its target at unit size",
        steps=2 * STEPS,
    ),
    Foundation(
        "flow-matching",
        2022,
        "Lipman et al. 2022, 2210.02747, flow matching",
        "Learn the mean velocity of straight lines from noise to data",
    ),
    Foundation(
        "rectified-flow",
        2022,
        "Liu, Gong, Liu 2022, 2209.03003, rectified flow",
        "Learn a flow again from its own pairs: its paths become straight",
    ),
    Foundation(
        "minibatch-ot",
        2023,
        "Tong et al. 2023, 2302.00482, minibatch optimal transport",
        "Pair each data point with noise that is near, before a flow is learned",
    ),
)

FOUNDATIONS = {f.name: f for f in ALL}
