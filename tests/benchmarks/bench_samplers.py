"""What a sampler costs beside the network: microseconds a step, ours and diffusers'.

    python tests/benchmarks/bench_samplers.py            # all that both have
    python tests/benchmarks/bench_samplers.py unipc      # some

The network is a tensor that is handed back, so all that is timed is the loop. The two take turns,
and of many turns each keeps its fastest: so a busy machine disturbs both alike. Read the ratio.
"""

import sys
import time
import warnings

import torch

from minidiff.core import schedule
from minidiff.samplers import SAMPLERS

STEPS = 50
TURNS = 40
SHAPE = (1, 4, 16, 16)
TABLES = schedule.scaled_linear()
BETAS = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
)
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
THEIRS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm-2": ("DPMSolverSinglestepScheduler", {"solver_order": 2, **NOISE}),
    "dpm++": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
}


def ours(name: str, x: torch.Tensor, eps: torch.Tensor) -> int:
    """One run; how often the network was asked."""
    asked = 0

    def denoise(x, t, cond):
        nonlocal asked
        asked += 1
        return eps

    sampler = SAMPLERS[name]
    sampler.run(denoise, TABLES, x, steps=STEPS, **sampler.settings)
    return asked


def theirs(scheduler, x: torch.Tensor, eps: torch.Tensor) -> int:
    asked = 0
    scheduler.set_timesteps(STEPS)
    state = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scheduler.scale_model_input(state, t)
        state = scheduler.step(eps, t, state).prev_sample
        asked += 1
    return asked


def fastest(run, *args) -> float:
    """Microseconds for each time the network was asked, once."""
    start = time.perf_counter()
    asked = run(*args)
    return (time.perf_counter() - start) / asked * 1e6


def main(names: list[str]) -> None:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x = torch.randn(SHAPE)
    eps = torch.randn(SHAPE)
    print(f"{'sampler':10} {'ours':>8} {'diffusers':>10} {'ratio':>6}   us an evaluation, best of")
    for name in names or THEIRS:
        kind, options = THEIRS[name]
        best, other = float("inf"), float("inf")
        for _ in range(TURNS):
            best = min(best, fastest(ours, name, x, eps))
            scheduler = getattr(diffusers, kind)(**BETAS, **options)
            other = min(other, fastest(theirs, scheduler, x, eps))
        print(f"{name:10} {best:8.1f} {other:10.1f} {best / other:6.2f}   {TURNS}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
