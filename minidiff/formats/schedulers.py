"""How a model wants to be sampled: what a scheduler's config says, in our terms.

    sampling(source, "eps")  ->  {"schedule": ..., "spacing": "leading", "end": 1, "literal": True}

A config names the class of diffusers that wrote it, and means that class's defaults. We sample with
DDIM unless asked otherwise. `literal`, diffusers' own arithmetic on grids that do not divide the
schedule evenly, belongs to its DDIM and PNDM classes alone: the others move from one time of their
grid to the next, and so does our plain DDIM (Euler's method in sigma / alpha, which Euler's
scheduler is too). `instead` says in words what is used for a class that is another sampler.

Public format: diffusers' `scheduler_config.json`.
"""

from minidiff.core import schedule
from minidiff.core.schedule import Schedule
from minidiff.formats.configs import SCHEDULES, scheduler_config
from minidiff.formats.fields import field
from minidiff.formats.layouts import Source

# other values: not implemented
MUST = {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False}
ENDS_CLEAN = {"PNDMScheduler": False}  # class: its default of set_alpha_to_one; True for all others
LITERAL = ("DDIMScheduler", "PNDMScheduler")
# by default; all others: linspace
LEADING = ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
SOLVER = "the same method is sampler='dpm++' (--sampler dpm++)"
UNIPC = "the same method is sampler='unipc' (--sampler unipc)"
INSTEAD = {  # class: how our DDIM differs from it
    "EulerDiscreteScheduler": "the same steps in other symbols, to about 1% of the latents' spread",
    "EulerAncestralDiscreteScheduler": "without the noise on the way; eta=1 (--eta 1) is close",
    "DDPMScheduler": "without the noise on the way; eta=1 (--eta 1) is close",
    "DPMSolverMultistepScheduler": SOLVER,
    "UniPCMultistepScheduler": UNIPC,
    "LCMScheduler": "which needs more than its 1 to 8 steps",
    "TCDScheduler": "which needs more than its 1 to 8 steps",
}


def sampling(source: Source, prediction: str) -> dict:
    """{"schedule", "spacing", "end", "literal"} of a Pipe. ValueError: a scheduler's config asks
    for what is not implemented.

    A UNet's first step is always 1 (`steps_offset`): some configs still say 0, and diffusers
    corrects them too.
    """
    config = scheduler_config(source.scheduler, source.family, prediction)
    if prediction == "flow":
        return dict(schedule=schedule.flow(), spacing="trailing", end=0, literal=False)
    for name, value in MUST.items():
        if config.get(name) not in (value, None):
            raise ValueError(
                f"scheduler config: {name} is {config[name]!r}; only {value!r} is implemented"
            )
    kind = field(config, "_class_name", str, LITERAL[0])
    clean = field(config, "set_alpha_to_one", bool, ENDS_CLEAN.get(kind, True))
    spacing = field(config, "timestep_spacing", str, "leading" if kind in LEADING else "linspace")
    if spacing not in schedule.SPACINGS:
        raise ValueError(
            f"scheduler config: timestep_spacing is {spacing!r}; expected "
            f"{', '.join(schedule.SPACINGS)}"
        )
    unet = "unet" in source.family.parts
    return dict(
        schedule=betas(config),
        spacing=spacing if unet else "linspace",
        end=0 if clean else 1,
        literal=unet and kind in LITERAL,
    )


def instead(source: Source) -> str | None:
    """What is used in place of the scheduler that the config names; None where that is ours."""
    kind = field(source.scheduler, "_class_name", str, LITERAL[0])
    if kind in LITERAL or kind.startswith("FlowMatch"):
        return None
    how = INSTEAD.get(kind, "another method on the same grid")
    return f"its scheduler config names {kind}; DDIM is used: {how}"


def betas(config: dict) -> Schedule:
    """The noise schedule of a scheduler's config."""
    kind = field(config, "beta_schedule", str, "linear")
    times = field(config, "num_train_timesteps", int, 1000)
    if kind not in SCHEDULES or times != 1000:
        raise ValueError(
            f"scheduler config: beta_schedule {kind!r} with {times} times; expected 1000 times and "
            f"one of {', '.join(SCHEDULES)}"
        )
    if SCHEDULES[kind] == "cosine":
        return schedule.cosine(times)
    first = field(config, "beta_start", float, 1e-4, above=0)
    last = field(config, "beta_end", float, 0.02, above=0)
    return getattr(schedule, SCHEDULES[kind])(times, first, last)
