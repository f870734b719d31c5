"""Our samplers against k-diffusion's functions: the same denoiser, the same noise levels, the same
noise, in float64.

k-diffusion works on x / alpha with levels sigma / alpha, and asks for the picture. Its file of
samplers is loaded alone: the packages that its other files want are stood in for by empty ones.
"""

import importlib.metadata
import importlib.util
import sys
import types

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.denoise import noise, noises
from minidiff.core.schedule import solver_times
from minidiff.samplers import solve

pytestmark = pytest.mark.oracle
STEPS = (1, 2, 3, 5, 7, 10, 20, 333)
TABLES = {"scaled linear": schedule.scaled_linear(), "flow": schedule.flow(), "ve": schedule.ve()}
STANDS_IN = ("scipy", "scipy.integrate", "torchdiffeq", "torchsde")


@pytest.fixture(scope="module")
def theirs():
    """The module k_diffusion/sampling.py."""
    try:
        files = importlib.metadata.files("k-diffusion") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is not installed (development extra)")
    path = next(f for f in files if str(f).endswith("k_diffusion/sampling.py")).locate()
    missing = [name for name in STANDS_IN if importlib.util.find_spec(name.split(".")[0]) is None]
    for name in missing:
        sys.modules[name] = types.ModuleType(name)
    if "scipy" in missing:
        sys.modules["scipy"].integrate = sys.modules["scipy.integrate"]
    if "torchdiffeq" in missing:
        sys.modules["torchdiffeq"].odeint = None
    package = types.ModuleType("k_diffusion")
    package.utils = types.ModuleType("k_diffusion.utils")
    package.utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": package.utils}
    try:
        spec.loader.exec_module(module)
    finally:
        for name in (*missing, "k_diffusion", "k_diffusion.utils"):
            sys.modules.pop(name, None)
    return module


def eps(x, t, cond=None):
    """A smooth network that nobody trained."""
    return torch.tanh(0.7 * x + torch.cos(torch.arange(5, dtype=x.dtype) + 0.003 * t))


def start():
    return noise((3, 5), 1, dtype=torch.float64)


# ours: (theirs, what it is called with, how its grid is laid)
PAIRS = {
    "euler": ("sample_euler", {}, "linspace"),
    "euler-a": ("sample_euler_ancestral", {"eta": 1.0}, "linspace"),
    "heun": ("sample_heun", {}, "karras"),
    "dpm++": ("sample_dpmpp_2m", {}, "solver"),
    "dpm++sde": ("sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "midpoint"}, "solver"),
}


ASKED = [(ours, steps) for ours in PAIRS for steps in STEPS]
ASKED.remove(("dpm++sde", 1))  # theirs stops with an UnboundLocalError


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("ours, steps", ASKED)
def test_final_states_equal_k_diffusions(theirs, ours, tables, steps):
    sch = TABLES[tables]
    name, settings, grid = PAIRS[ours]
    times = solver_times(sch, steps) if grid == "solver" else sch.timesteps(steps, spacing=grid)
    levels = torch.tensor([sch.sigma[t] / sch.alpha[t] for t in times], dtype=torch.float64)
    index = dict(zip(levels.tolist(), times))

    def denoised(x, sigma):
        t = index[sigma.flatten()[0].item()]
        return x - sigma.view(-1, 1) * eps(sch.at(t)[0] * x, t)

    fresh = noises(start(), 4)
    if "eta" in settings:
        settings = settings | {"noise_sampler": lambda *levels: next(fresh)}
    x = start() / sch.at(times[0])[0]
    want = getattr(theirs, name)(denoised, x, levels, disable=True, **settings)
    got = solve(ours, eps, sch, start(), None, times=times, seed=4)
    assert (got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max())
