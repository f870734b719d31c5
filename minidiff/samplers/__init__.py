"""The samplers by name. Each is one function

    sampler(denoise, schedule, x, cond, *, steps, ...) -> clean latents of x's shape

from a starting state x at time T. Of these keywords it takes, by their names, what it needs:

    steps               how many moves
    spacing, end        the model's grid, as in `Schedule.timesteps`
    eta, seed           noise on the way, 0 to 1, and where it comes from
    literal             repeat the arithmetic of public code where that departs from the papers
    prediction          what the model was trained to output
    progress            show a bar

A new sampler is a file of this folder and a line of the table.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.schedule import Schedule
from minidiff.samplers.ddim import ddim
from minidiff.samplers.ddpm import ddpm
from minidiff.samplers.dpm_solver import dpm_solver
from minidiff.samplers.plms import plms

__all__ = ["SAMPLERS", "ddim", "ddpm", "dpm_solver", "plms", "solve"]

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddim": ddim,
    "plms": plms,
    "dpm++": dpm_solver,
    "ddpm": ddpm,
}


def solve(
    name: str, denoise: Denoise, sch: Schedule, x: Tensor, cond: Cond | None, **settings: Any
) -> Tensor:
    """Run the sampler of that name, handing it those of the settings that it takes.

    ValueError: an unknown name, or an eta for a sampler that has none.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    takes = inspect.signature(sampler).parameters
    if settings.get("eta") and "eta" not in takes:
        able = [other for other, f in SAMPLERS.items() if "eta" in inspect.signature(f).parameters]
        raise ValueError(
            f"eta={settings['eta']} with sampler={name!r}: only {', '.join(able)} has an eta"
        )
    return sampler(denoise, sch, x, cond, **{k: v for k, v in settings.items() if k in takes})
