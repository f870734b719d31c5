"""The samplers: one record each, and the only list of them. A sampler is one function

    sampler(denoise, schedule, x, cond, *, steps, ...) -> clean latents of x's shape

from a starting state x at time T. Of these keywords it takes, by their names, what it needs:

    steps               how many moves
    spacing, start, end the model's grid, as in `Schedule.timesteps`
    times               a grid of one's own, in place of those four
    eta, seed           noise on the way, 0 to 1, and where it comes from
    literal             repeat the arithmetic of public code where that departs from the papers
    prediction          what the model was trained to output
    progress            show a bar

A new sampler is a file of this folder and a record of the list. Two names may be one function at
other settings: Euler's method in sigma / alpha is DDIM.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise
from minidiff.core.schedule import Schedule
from minidiff.samplers.ddim import ddim
from minidiff.samplers.ddpm import ddpm
from minidiff.samplers.deis import deis
from minidiff.samplers.dpm_solver import dpm_solver
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp
from minidiff.samplers.dpm_solver_sde import dpm_solver_sde
from minidiff.samplers.heun import heun
from minidiff.samplers.midpoint import fireflow, midpoint
from minidiff.samplers.plms import plms
from minidiff.samplers.pndm import pndm
from minidiff.samplers.restart import restart
from minidiff.samplers.unipc import unipc

__all__ = [
    "SAMPLERS",
    "Sampler",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpm_solver_pp",
    "dpm_solver_sde",
    "fireflow",
    "heun",
    "midpoint",
    "plms",
    "pndm",
    "restart",
    "solve",
    "unipc",
]


@dataclass(frozen=True)
class Sampler:
    """One sampler.

    paper     authors, year, arXiv number, name
    about     one sentence: what one wants it for
    settings  {option: value} that it always runs with: what its name stands for
    order     its order of convergence on paper; 0: it draws noise on the way and has none, or is
              another's second name
    even_in   what its steps should be even in for that: "lambda", log(alpha / sigma), or "time"
    page      its page in tutorials/
    """

    name: str
    run: Callable[..., Tensor]
    paper: str
    about: str
    settings: dict[str, Any] = field(default_factory=dict)
    order: float = 0
    even_in: str = "lambda"
    page: str = "00_the_six_words"

    @property
    def options(self) -> set[str]:
        """The keywords that may be chosen."""
        return {*inspect.signature(self.run).parameters} - {*self.settings}


ALL = (
    Sampler(
        "ddim",
        ddim,
        "Song, Meng, Ermon 2020, 2010.02502, DDIM",
        "The usual one: no noise on the way, 50 steps",
        order=1,
    ),
    Sampler(
        "euler",
        ddim,
        "Karras et al. 2022, 2206.00364, Euler's method in sigma / alpha",
        "DDIM under its other name, to the clean end of the tables",
        settings={"eta": 0.0, "end": 0, "literal": False},
        page="samplers/edm",
    ),
    Sampler(
        "euler-a",
        ddim,
        "Song, Meng, Ermon 2020, 2010.02502, DDIM with eta 1",
        "DDIM with all the noise of ancestral sampling: another picture for every number of steps",
        settings={"eta": 1.0, "end": 0, "literal": False},
        page="samplers/edm",
    ),
    Sampler(
        "heun",
        heun,
        "Karras et al. 2022, 2206.00364, EDM's stochastic sampler",
        "Second order at two evaluations a step, with noise on the way if one wants it (churn)",
        order=2,
        page="samplers/edm",
    ),
    Sampler(
        "restart",
        restart,
        "Xu et al. 2023, 2306.14878, Restart",
        "Back up into the noise and down again, a few times: forgets what went wrong before",
        page="samplers/restart",
    ),
    Sampler(
        "plms",
        plms,
        "Liu et al. 2022, 2202.09778, PNDM without its Runge-Kutta start",
        "What Stable Diffusion came with: the last four answers continued",
        order=2,
        even_in="time",
        page="samplers/pndm",
    ),
    Sampler(
        "dpm-2",
        dpm_solver,
        "Lu et al. 2022, 2206.00927, DPM-Solver-2",
        "Two evaluations a move, the second half way: what its successors are measured against",
        settings={"order": 2},
        order=2,
        page="samplers/dpm_solver",
    ),
    Sampler(
        "dpm-3",
        dpm_solver,
        "Lu et al. 2022, 2206.00927, DPM-Solver-3",
        "Three evaluations a move, of third order: for 20 evaluations or more",
        settings={"order": 3},
        order=3,
        page="samplers/dpm_solver",
    ),
    Sampler(
        "pndm",
        pndm,
        "Liu et al. 2022, 2202.09778, F-PNDM",
        "PLMS with the paper's own start, three steps of Runge and Kutta: 9 evaluations more",
        order=2,
        even_in="time",
        page="samplers/pndm",
    ),
    Sampler(
        "midpoint",
        midpoint,
        "Wang et al. 2024, 2411.04746, RF-Solver",
        "Second order on the straightened path, two evaluations a step; runs upwards as well",
        order=2,
        page="samplers/rf_solver",
    ),
    Sampler(
        "fireflow",
        fireflow,
        "Deng et al. 2024, 2412.07517, FireFlow",
        "The same for one evaluation a step: the middle of the last step shows the way to the next",
        order=2,
        page="samplers/rf_solver",
    ),
    Sampler(
        "dpm++",
        dpm_solver_pp,
        "Lu et al. 2022, 2211.01095, DPM-Solver++(2M)",
        "Second order at one evaluation a step: 10 to 20 steps do",
        settings={"order": 2},
        order=2,
        page="samplers/dpm_solver",
    ),
    Sampler(
        "dpm++3m",
        dpm_solver_pp,
        "Lu et al. 2022, 2211.01095, DPM-Solver++(3M)",
        "A parabola in place of the line: less error from about 15 steps on",
        settings={"order": 3},
        order=3,
        page="samplers/dpm_solver",
    ),
    Sampler(
        "dpm++sde",
        dpm_solver_sde,
        "Lu et al. 2022, 2211.01095, SDE-DPM-Solver++(2M)",
        "Ancestral sampling at second order: 20 to 30 steps, another picture for each number",
        settings={"eta": 1.0},
        page="samplers/dpm_solver",
    ),
    Sampler(
        "unipc",
        unipc,
        "Zhao et al. 2023, 2302.04867, UniPC",
        "Every step is corrected by the next one's answer: third order, 6 to 12 steps do",
        settings={"order": 2},
        order=3,
        page="samplers/unipc",
    ),
    Sampler(
        "unipc-3",
        unipc,
        "Zhao et al. 2023, 2302.04867, UniPC-3",
        "The same with a parabola: fourth order, for 12 steps or more",
        settings={"order": 3},
        order=4,
        page="samplers/unipc",
    ),
    Sampler(
        "deis",
        deis,
        "Zhang, Chen 2022, 2204.13902, DEIS in log-rho",
        "The noise continued along a parabola and integrated exactly: 10 to 20 steps",
        order=3,
        page="samplers/unipc",
    ),
    Sampler(
        "ddpm",
        ddpm,
        "Ho, Jain, Abbeel 2020, 2006.11239, ancestral sampling",
        "The original way down, with noise at every step: many steps",
    ),
)
SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in ALL}


def solve(
    name: str, denoise: Denoise, sch: Schedule, x: Tensor, cond: Cond | None, **settings: Any
) -> Tensor:
    """Run the sampler of that name, handing it those of the settings that it takes.

    ValueError: an unknown name, an eta for a sampler that has none, a start that is not finite, or
    a network whose answers are not.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    if settings.get("eta") and "eta" not in sampler.options:
        able = [other.name for other in ALL if "eta" in other.options]
        raise ValueError(
            f"eta={settings['eta']} with sampler={name!r}: only {', '.join(able)} has an eta"
        )
    if not x.isfinite().all():
        raise ValueError("the state to start from holds NaN or infinite numbers")
    chosen = {k: v for k, v in settings.items() if k in sampler.options}
    out = sampler.run(denoise, sch, x, cond, **chosen, **sampler.settings)
    if not out.isfinite().all():
        raise ValueError(
            f"sampler={name!r} ended in NaN or infinite numbers: either the network answers with "
            "them (half precision on a model that needs float32 does), or the steps are too few"
        )
    return out
