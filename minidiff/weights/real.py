"""`minidiff.load(path)`: a public model as a `Pipe`, so
that every technique runs on it without changing a line.

    pipe = minidiff.load("v1-5-pruned.safetensors")  # or .ckpt, or a folder
    pipe = minidiff.load("v2-1_768.ckpt", prediction="v")  # asked for, never guessed
    pipe = minidiff.load("DiT-XL-2-256x256.pt", vae="sd-vae-ft-mse.safetensors")

What the file is, is read off its names and shapes (`family.py`, `plans.py`); weights are mapped,
not copied (`fill.py`). What is left for this page is how the model wants to be sampled: the noise
schedule, what the network predicts, which times a sampler visits and where it stops, from the
scheduler's config if there is one (`schedulers.py`), else as the released models are.

Try: the same seed with `pipe.spacing` "leading", "linspace" and "trailing" at 10
steps.
"""

import warnings
from math import isqrt
from pathlib import Path

import torch
from torch import nn

from minidiff.formats.family import unsupported
from minidiff.formats.fields import numbers
from minidiff.formats.fill import account, all_sources, build, read
from minidiff.formats.layouts import Source, naming, open_model
from minidiff.formats.schedulers import instead, sampling
from minidiff.models.sizes import SIZES
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.pipe import Pipe

SCALE = {"unet": SIZES["sd15"]["scale"], "dit": SIZES["dit-xl-2"]["scale"]}


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
    heads: dict[str, int | tuple[int, ...]] | None = None,
    drop: tuple[str, ...] = (),
) -> Pipe:
    """A file or folder with a denoiser -> Pipe, ready for inference.

    dtype       torch.float16 or torch.bfloat16: smaller and rougher; default float32
    prediction  eps, v, x0 or flow, where the file cannot tell (Stable Diffusion 2 as a single file)
    vae, text   files or folders to take the autoencoder and the text tower from, in place of the
                model's own
    tokenizer   a Tokenizer, a tokenizer/ folder or CLIP's merge list; default: the model's, else a
                fetched merge list
    ema         take the running average of the UNet, where a training checkpoint has one
    heads       number of heads by part, for models of a width that was never released; of a UNet
                one number, or one for each level
    drop        shell patterns of names to leave out, such as "ztsnr" or "*.scaled_fp8": tensors
                that belong to no network, for which the file would be refused

    A scheduler's config that names another sampler than DDIM is followed as far as its noise
    schedule and grid go, with a warning that says what is used instead.

    ValueError, FileNotFoundError: one line that names the file and says what was expected.
    """
    source = open_model(path, drop)
    net = next((part for part in ("unet", "dit") if part in source.family.parts), None)
    if net is None:
        source.args(heads)  # says so if the family is not supported
        raise ValueError(
            f"{path} holds no denoiser but is of kind {source.family.kind} ({source.family.why}): "
            "use it beside a model (--vae, --text, --lora, --embedding, --control)"
        )
    parts = {net: source}
    for part, other in (("vae", vae), ("text", text)):
        if other is not None:
            parts[part] = open_model(other, drop)
        elif part in source.family.parts:
            parts[part] = source
    needs = [part for part in (("vae", "text") if net == "unet" else ("vae",)) if part not in parts]
    if needs:
        raise ValueError(
            f"{path} is a {source.family.kind} without {' and '.join(needs)}: name a file or "
            f"folder that has it ({', '.join(f'{part}=, --{part}' for part in needs)})"
        )
    predicts, why = source.prediction(prediction)
    if predicts is None:
        raise ValueError(f"{path}: what it predicts is unknown ({why})")
    with naming(path):
        settings = sampling(source, predicts)
        note = instead(source)
        side = _side(source, predicts)
    modules = _filled(parts, dtype, heads, net if ema else None)
    if note:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    if "text" in parts:
        settings |= {"tokenizer": find_tokenizer(parts["text"], tokenizer, modules["text"])}
    pipe = Pipe(
        net=modules[net],
        vae=modules["vae"],
        text=modules.get("text"),
        prediction=predicts,
        name=source.path.name,
        shape=(modules["vae"].latent, *(_places(modules[net]) or side)),
        scale=SCALE[net],
        classes=tuple(map(str, range(getattr(modules[net], "classes", 0) or 0))),
        **settings,
    )
    return pipe.to(device) if device else pipe


def _filled(
    parts: dict[str, Source],
    dtype: torch.dtype | None,
    heads: dict[str, int | tuple[int, ...]] | None,
    average: str | None = None,
) -> dict[str, nn.Module]:
    """{part: its network, filled}, each from its own source. Of every source,
    every tensor must be used or dropped by name, which is settled before a
    number is read. `average`: the part to take the running average of.
    """
    modules = {}
    known = {source: source.args(heads) for source in dict.fromkeys(parts.values())}
    for part, source in parts.items():
        args = known[source]
        if part not in args:
            raise ValueError(
                f"{source.path} has no {part}: it is of kind {source.family.kind} "
                f"({source.family.why})"
            )
        with naming(source.path):
            modules[part] = build(part, args[part])
    rows = {}
    for source in known:
        own = {part: modules[part] for part, s in parts.items() if s is source}
        with naming(source.path):
            found = all_sources(source.file, source.family, own, average in own)
            account(source.file, source.family, found, average in own)
        rows |= found
    for part, source in parts.items():
        read(source.file, source.family, part, modules[part], dtype, rows=rows[part])
    return modules


def load_control(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    heads: dict[str, int | tuple[int, ...]] | None = None,
    drop: tuple[str, ...] = (),
) -> nn.Module:
    """A ControlNet or a T2I-Adapter from a file or folder, for `control.controlnet.controlled` or
    `t2i_adapter.adapted`; `heads` and `drop` as in `load_model`.

    A file may hold the whole model around a ControlNet, as the first ones did; that is left.
    ValueError: of another kind.
    """
    source = open_model(path, drop)
    if why := unsupported(source.family):
        raise ValueError(f"{path}: {why}")
    part = next((part for part in ("controlnet", "t2i") if part in source.family.parts), None)
    if part is None:
        raise ValueError(
            f"{path} is neither a ControlNet nor a T2I-Adapter but of kind {source.family.kind} "
            f"({source.family.why})"
        )
    return _filled({part: source}, dtype, heads)[part]


def find_tokenizer(
    source: Source, given: str | Path | Tokenizer | None, text: nn.Module
) -> Tokenizer:
    """The tokenizer of a text tower: the one given, the folder
    beside it, else CLIP's with the padding of its family.
    """
    if isinstance(given, Tokenizer):
        return given
    from minidiff.formats.merges import clip_tokenizer

    beside = source.path / "tokenizer"
    if given is None and beside.is_dir():
        return clip_tokenizer(beside, context=text.context)
    openclip = source.family.names.get("text") == "original" or source.family.kind == "sd2"
    return clip_tokenizer(given, pad="zero" if openclip else "eos", context=text.context)


def _places(net: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the latents that a transformer's positions are for; None for a UNet."""
    if not hasattr(net, "pos_embed"):
        return None
    side = isqrt(net.pos_embed.shape[1]) * net.patch
    return side, side


def _side(source: Source, prediction: str) -> tuple[int, int]:
    """(height, width) of the latents that a UNet was trained on, from its config or as released."""
    size = numbers(source.configs.get("unet", {}), "sample_size")
    if size is None:
        size = 96 if source.family.kind == "sd2" and prediction == "v" else 64
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"unet config: sample_size is {list(size)}, expected one number or two")
    return size
