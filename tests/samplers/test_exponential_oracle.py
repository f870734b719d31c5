"""The exponential integrators against diffusers' schedulers: the same grid, the same network, the
same final latents.

The network is a smooth function of the state and the time; what it says is read as eps, v or x0.
diffusers rounds its tables to float32. Its DEIS also computes the weights in it, as differences of
nearly equal numbers, of which few digits are left at 333 steps: here it is given float64 to compute
in. UniPC's "bh1" is not compared: where the last step goes to sigma = 0 diffusers multiplies
infinity by 0. The test of a move by hand has it.
"""

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import noises
from minidiff.core.process import to_eps
from minidiff.samplers.deis import deis
from minidiff.samplers.dpm_solver import dpm_solver
from minidiff.samplers.dpm_solver_pp import dpm_solver_pp
from minidiff.samplers.dpm_solver_sde import dpm_solver_sde
from minidiff.samplers.unipc import unipc

pytestmark = pytest.mark.oracle
SCH = schedule.scaled_linear()
STEPS = (1, 2, 3, 5, 7, 10, 20, 333)
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
UNIPC, DEIS = "UniPCMultistepScheduler", "DEISMultistepScheduler"
EPS_FORM = dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", lower_order_final=True)
CASES = {
    "2M": (dpm_solver_pp, dict(order=2), MULTI, dict(solver_order=2)),
    "3M": (dpm_solver_pp, dict(order=3, literal=True), MULTI, dict(solver_order=3)),
    "SDE-2M": (
        dpm_solver_sde,
        dict(eta=1.0, seed=4),
        MULTI,
        dict(solver_order=2, algorithm_type="sde-dpmsolver++"),
    ),
    "unipc-2": (unipc, dict(order=2), UNIPC, dict(solver_order=2)),
    "unipc-3": (unipc, dict(order=3), UNIPC, dict(solver_order=3)),
    "deis-2": (deis, dict(order=2, end=1, literal=True), DEIS, dict(solver_order=2)),
    "deis-3": (deis, dict(order=3, end=1, literal=True), DEIS, dict(solver_order=3)),
    "single-2": (
        dpm_solver,
        dict(order=2, end=1, literal=True),
        SINGLE,
        dict(solver_order=2, **EPS_FORM),
    ),
    "single-3": (
        dpm_solver,
        dict(order=3, end=1, literal=True),
        SINGLE,
        dict(solver_order=3, **EPS_FORM),
    ),
}


def network(x, t):
    """What a network with times 0..999 says."""
    return torch.tanh(x * 0.7 + 0.3 * x.roll(1, -1) + torch.cos(torch.tensor(t / 300.0)).item())


def theirs(name, options, x, steps, spacing, prediction, fresh=None):
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    diffusers.utils.logging.set_verbosity_error()
    if name != SINGLE:  # which knows one spacing only
        options = options | dict(timestep_spacing=spacing, steps_offset=1)
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=PREDICTION[prediction],
        **options,
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    for t in scheduler.timesteps:
        drawn = {} if fresh is None else {"variance_noise": next(fresh)}
        x = scheduler.step(network(x, t.item()), t, x, **drawn).prev_sample
    return x


KINDS = [(spacing, "eps") for spacing in ("linspace", "leading", "trailing")]
KINDS += [("linspace", "v"), ("linspace", "x0")]
ASKED = [
    (case, spacing, prediction)
    for case, (_, _, name, _) in CASES.items()
    for spacing, prediction in KINDS
    if name != SINGLE or spacing == "linspace"  # diffusers' singlestep scheduler has no other
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case, spacing, prediction", ASKED)
def test_final_latents_equal_diffusers(case, spacing, prediction):
    run, ours, name, options = CASES[case]
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x, t, cond):
        return to_eps(SCH, x, network(x, t - 1), t, prediction)

    often = spacing == "linspace" and prediction == "eps"
    for steps in STEPS if often else STEPS[:-1]:
        fresh = noises(x, 4) if case == "SDE-2M" else None
        want = theirs(name, options, x, steps, spacing, prediction, fresh)
        got = run(denoise, SCH, x, steps=steps, spacing=spacing, **ours)
        gap = (got - want).abs().max() / want.abs().max()
        assert gap < 1e-5, f"{steps} steps: {gap:.2g}"
