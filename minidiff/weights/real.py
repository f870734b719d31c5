"""`minidiff.load(path)`: a public model as a `Pipe`, so that every technique runs on it without
changing a line.

    pipe = minidiff.load("v1-5-pruned.safetensors")  # or .ckpt, or a folder
    pipe = minidiff.load("v2-1_768.ckpt", prediction="v")  # asked for, never guessed
    pipe = minidiff.load("DiT-XL-2-256x256.pt", vae="sd-vae-ft-mse.safetensors")

What the file is, is read off its names and shapes (`family.py`, `plans.py`); weights are mapped,
not copied (`fill.py`). What is left for this page is how the model wants to be sampled: the noise
schedule, what the network predicts, which times a sampler visits and where it stops, from the
scheduler's config if there is one, else as the released models are.

Public format: diffusers' `scheduler_config.json`, whose defaults depend on the class that wrote it
(ENDS_CLEAN). Try: the same seed with `pipe.spacing` "leading", "linspace" and "trailing" at 10
steps.
"""

from math import isqrt
from pathlib import Path

import torch
from torch import nn

from minidiff.core import schedule
from minidiff.core.schedule import Schedule
from minidiff.formats.configs import SCHEDULES, scheduler_config
from minidiff.formats.fill import build, coverage, read
from minidiff.formats.layouts import Source, naming, open_model
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.pipe import Pipe

SCALE = {"unet": 7.5, "dit": 4.0}  # guidance as in the papers' figures
# other values: not implemented
MUST = {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False}
ENDS_CLEAN = {"PNDMScheduler": False}  # class: its default of set_alpha_to_one; True for all others
# by default; all others: linspace
LEADING = ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler", None)


def load_model(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
    text: str | Path | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    ema: bool = False,
    heads: dict[str, int] | None = None,
) -> Pipe:
    """A file or folder with a denoiser -> Pipe, ready for inference.

    dtype       torch.float16 or torch.bfloat16: smaller and rougher; default float32
    prediction  eps, v, x0 or flow, where the file cannot tell (Stable Diffusion 2 as a single file)
    vae, text   files or folders to take the autoencoder and the text tower from, in place of the
                model's own
    tokenizer   a Tokenizer, a tokenizer/ folder or CLIP's merge list; default: the model's, else a
                fetched merge list
    ema         take the running average of the UNet, where a training checkpoint has one
    heads       number of heads by part, for models of a width that was never released

    ValueError, FileNotFoundError: one line that names the file and says what was expected.
    """
    source = open_model(path)
    net = next((part for part in ("unet", "dit") if part in source.family.parts), None)
    if net is None:
        source.args(heads)  # says so if the family is not supported
        raise ValueError(
            f"{path} holds no denoiser but is of kind {source.family.kind} ({source.family.why}): "
            "use it "
            "beside a model (vae=, text=, --lora, --embedding, --control)"
        )
    parts = {net: source} | {
        part: source if other is None else open_model(other)
        for part, other in (("vae", vae), ("text", text))
        if other is not None or part in source.family.parts
    }
    needs = [part for part in (("vae", "text") if net == "unet" else ("vae",)) if part not in parts]
    if needs:
        raise ValueError(
            f"{path} is a {source.family.kind} without {' and '.join(needs)}: name a file or "
            "folder that has "
            f"it ({', '.join(f'{part}=' for part in needs)})"
        )
    predicts, why = source.prediction(prediction)
    if predicts is None:
        raise ValueError(f"{path}: what it predicts is unknown ({why})")
    modules = {
        part: _module(s, part, dtype, ema and part == net, heads) for part, s in parts.items()
    }
    with naming(path):
        coverage(
            source.file,
            source.family,
            {p: modules[p] for p, s in parts.items() if s is source},
            ema,
        )
        settings = sampling(source, predicts)
    if "text" in parts:
        settings |= {"tokenizer": find_tokenizer(parts["text"], tokenizer, modules["text"])}
    side = _side(modules[net], source, predicts)
    pipe = Pipe(
        net=modules[net],
        vae=modules["vae"],
        text=modules.get("text"),
        prediction=predicts,
        name=source.path.name,
        shape=(modules["vae"].latent, side, side),
        scale=SCALE[net],
        literal=net == "unet",
        classes=tuple(map(str, range(getattr(modules[net], "classes", 0) or 0))),
        **settings,
    )
    return pipe.to(device) if device else pipe


def _module(
    source: Source, part: str, dtype: torch.dtype | None, ema: bool, heads: dict[str, int] | None
) -> nn.Module:
    """One part of a model, filled."""
    args = source.args(heads)
    if part not in args:
        raise ValueError(
            f"{source.path} has no {part}: it is of kind {source.family.kind} ({source.family.why})"
        )
    module = build(part, args[part])
    read(source.file, source.family, part, module, dtype, ema)
    return module


def load_control(path: str | Path, *, dtype: torch.dtype | None = None) -> nn.Module:
    """A ControlNet or a T2I-Adapter from a file or folder, for `control.controlnet.controlled` or
    `t2i_adapter.adapted`.

    A file may hold the whole model around a ControlNet, as the first ones did; that is left.
    ValueError: of another kind.
    """
    source = open_model(path)
    part = next((part for part in ("controlnet", "t2i") if part in source.family.parts), None)
    if part is None:
        raise ValueError(
            f"{path} is neither a ControlNet nor a T2I-Adapter but of kind {source.family.kind} "
            f"({source.family.why})"
        )
    return _module(source, part, dtype, False, None)


def sampling(source: Source, prediction: str) -> dict:
    """{"schedule", "spacing", "end"} of a Pipe. ValueError: a scheduler's config asks for what is
    not implemented.

    A UNet's first step is always 1 (`steps_offset`): some configs still say 0, and diffusers
    corrects them too.
    """
    config = scheduler_config(source.scheduler, source.family, prediction)
    if prediction == "flow":
        return dict(schedule=schedule.flow(), spacing="trailing", end=0)
    for name, value in MUST.items():
        if config.get(name) not in (value, None):
            raise ValueError(
                f"scheduler config: {name} is {config[name]!r}; only {value!r} is implemented"
            )
    clean = config.get("set_alpha_to_one", ENDS_CLEAN.get(config.get("_class_name"), True))
    spacing = config.get(
        "timestep_spacing", "leading" if config.get("_class_name") in LEADING else "linspace"
    )
    if spacing not in schedule.SPACINGS:
        raise ValueError(
            f"scheduler config: timestep_spacing is {spacing!r}; expected "
            f"{', '.join(schedule.SPACINGS)}"
        )
    return dict(
        schedule=betas(config),
        spacing=spacing if "unet" in source.family.parts else "linspace",
        end=0 if clean else 1,
    )


def betas(config: dict) -> Schedule:
    """The noise schedule of a scheduler's config."""
    kind, T = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
    if kind not in SCHEDULES or T != 1000:
        raise ValueError(
            f"scheduler config: beta_schedule {kind!r} with {T} times; expected 1000 times and "
            "one of "
            f"{', '.join(SCHEDULES)}"
        )
    if SCHEDULES[kind] == "cosine":
        return schedule.cosine(T)
    return getattr(schedule, SCHEDULES[kind])(
        T, config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    )


def find_tokenizer(
    source: Source, given: str | Path | Tokenizer | None, text: nn.Module
) -> Tokenizer:
    """The tokenizer of a text tower: the one given, the folder beside it, else CLIP's with the
    padding of its family.
    """
    if isinstance(given, Tokenizer):
        return given
    from minidiff.formats.merges import clip_tokenizer

    beside = source.path / "tokenizer"
    if given is None and beside.is_dir():
        return clip_tokenizer(beside, context=text.context)
    openclip = source.family.names.get("text") == "original" or source.family.kind == "sd2"
    return clip_tokenizer(given, pad="zero" if openclip else "eos", context=text.context)


def _side(net: nn.Module, source: Source, prediction: str) -> int:
    """Latents' side that a denoiser was trained on: a transformer's places, a UNet's config, else
    the released models'.
    """
    if hasattr(net, "pos_embed"):
        return isqrt(net.pos_embed.shape[1]) * net.patch
    usual = 96 if source.family.kind == "sd2" and prediction == "v" else 64
    return source.configs.get("unet", {}).get("sample_size") or usual
