"""The dialects of LoRA files: which tensor belongs to
which of our weights. The mathematics is in `lora.py`.

A file says two things with each name, which layer and which factor. The layer is found by walking
OUR network and spelling every layer in every dialect; nobody ever turns `to_out_0` back into
`to_out.0`, which underscores do not allow.

    kohya, LyCORIS   layer   lora_unet_down_blocks_0_..., or by the original names
                             lora_unet_input_blocks_1_1_...; lora_te_text_model_encoder_layers_0_...
                     factor  .lora_down.weight, .lora_up.weight, .lora_mid.weight, .alpha,
                             .hada_..., .lokr_...
    diffusers, old   layer   [unet.]...attn1.processor.to_q, text_encoder....self_attn.to_q
                     factor  _lora.down.weight, _lora.up.weight
    diffusers        layer   unet....to_q, text_encoder....q_proj
                     factor  .lora.down.weight, .lora_linear_layer.down.weight
    PEFT             layer   [unet.][base_model.model.]....to_q, text_encoder....q_proj
                     factor  .lora_A.weight (down), .lora_B.weight (up)

Files of early 2023 that number their layers (`unet:17:down`, or a bare list) are refused by name.

PEFT and diffusers write alpha beside the tensors: in `adapter_config.json` or in the metadata entry
`lora_adapter_metadata`. "Rank-stabilised" files (Kalajdzievski 2023, arXiv 2312.03732) divide alpha
by sqrt(r), not r.

Try: `homes(minidiff.build("sd15", device="meta"))`, and look for two of our layers with one kohya
name (there are none).
"""

import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from minidiff.formats.fields import field, fits, read_json
from minidiff.formats.files import open_tensors
from minidiff.formats.keymaps import source_names
from minidiff.formats.mapped import TensorFile, finite, short
from minidiff.models.unet import UNet
from minidiff.pipe.pipe import Pipe

Factors = dict[str, Tensor]  # "down", "up", "alpha", "hada_w1_a", ... -> tensor
LAYERS = (nn.Linear, nn.Conv2d)
# ours: what others put before it
PARTS = {"net": ("unet.", "transformer.", ""), "text": ("text_encoder.", "")}
FACTOR = re.compile(
    r"""(?P<layer>.+?) (?: \.lora_(?P<kohya>down|up|mid)\.weight
    | (?:_lora|\.lora|\.lora_linear_layer)\.(?P<diffusers>down|up)\.weight
    | \.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight
    | (?:_lora|\.lora|\.lora_linear_layer)?\.(?P<alpha>alpha)
    | \.(?P<lycoris>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)
    | \.(?:dora_scale|lora_magnitude_vector(?:\.[^.]+)*)(?P<dora>) )""",
    re.VERBOSE,
)
PEFT = {"A": "down", "B": "up"}
NUMBERED = re.compile(r"\w+:\d+:(up|down)")
NOTES = (  # of names without a home: what they suggest
    (
        r"lora_te2_|text_encoder_2\.|.*down_blocks.*transformer_blocks[._][1-9]|.*input_blocks.*transformer_blocks_[1-9]",
        "the file was made for SDXL",
    ),
    (
        r"(lora_)?transformer[._]|.*(double|single|joint)_(transformer_)?blocks[._]",
        "the file was made for a transformer",
    ),
    (
        r".*\.(diff|diff_b|w_norm|b_norm|oft_blocks|oft_diag|on_input|[ab][12]\.weight)$",
        "LyCORIS algorithms other than LoRA, LoHa and LoKr are not implemented",
    ),
)


def collect(
    source: str | Path | TensorFile, pipe: Pipe, drop: Iterable[str] = ()
) -> tuple[Path, dict[str, Factors], list[str]]:
    """(path, {our layer: its factors}, the names in the file that belong to no layer of ours).

    ValueError: no LoRA in it, a factor given twice, NaN or infinite numbers, DoRA, numbered layers.
    """
    file = source if isinstance(source, TensorFile) else open_tensors(source)
    odd = [k for k in file.ignored if FACTOR.fullmatch(k)]  # factors that are no tensors
    file = file.without(drop)
    if numbered := next((k for k in file if NUMBERED.fullmatch(k)), None):
        raise ValueError(
            f"{file.path}: {short(numbered)} numbers its layer, as files of early 2023 do, which "
            "is not supported; convert it to names with the program that wrote it"
        )
    found = {}
    named = []
    homeless = []
    where = homes(pipe)
    for key in [*file, *odd]:
        hit = FACTOR.fullmatch(key)
        layer = where.get(hit["layer"].replace("base_model.model.", "", 1)) if hit else None
        if hit and hit["dora"] is not None:
            raise ValueError(
                f"{file.path}: {short(key)} belongs to DoRA, which is not implemented; take a "
                "plain LoRA"
            )
        if layer is None or key not in file:
            homeless.append(key)
            continue
        role = next(hit[g] for g in ("kohya", "diffusers", "peft", "alpha", "lycoris") if hit[g])
        named.append((key, layer, PEFT.get(role, role)))
    for key, layer, role in named:
        if role in found.setdefault(layer, {}):
            raise ValueError(
                f"{file.path}: {short(key)} is a second {role!r} for {layer}; expected one LoRA in "
                "a file"
            )
        tensor = finite(file.tensor(key), key, file.path)
        if not tensor.is_floating_point() and role != "alpha":
            raise ValueError(
                f"{file.path}: {short(key)} is {tensor.dtype}, expected floating-point numbers"
            )
        found[layer][role] = tensor
    _configure(file, found)
    return file.path, found, homeless


def homeless_message(path: Path, homeless: list[str], layers: int, pipe: Pipe) -> str:
    """One line about names that belong nowhere, with what they suggest."""
    if not homeless:
        return f"{path} holds no LoRA: not one tensor"
    few = ", ".join(short(k) for k in homeless[:3]) + (" ..." if homeless[3:] else "")
    notes = [note for pattern, note in NOTES if any(re.match(pattern, k) for k in homeless)]
    notes += (
        ["there is no text tower"]
        if pipe.text is None and any("te" in k[:7] for k in homeless)
        else []
    )
    return (
        (
            f"{path}: {len(homeless)} name(s) have no home in {pipe.name or 'this model'} "
            f"({layers} layer(s) have one): "
        )
        + few
        + "".join(f"; {note}" for note in notes[:1])
    )


# ---- layers by name ------------------------------------------------------------------------------


def homes(pipe: Pipe) -> dict[str, str]:
    """{a layer's name in some dialect: our name "net...."
    or "text...."}, for every linear and convolution.
    """
    table = {}
    for part, prefixes in PARTS.items():
        module = getattr(pipe, part)
        names = (
            [n for n, m in module.named_modules() if isinstance(m, LAYERS)]
            if module is not None
            else []
        )
        original = _original(module, names)
        for name in names:
            for spelled in _spellings(part, name, original.get(name), prefixes):
                if table.setdefault(spelled, f"{part}.{name}") != f"{part}.{name}":
                    raise ValueError(
                        f"{table[spelled]} and {part}.{name} are both called {spelled!r} in LoRA "
                        "files"
                    )
    return table


def _original(module: nn.Module | None, names: list[str]) -> dict[str, str]:
    if not isinstance(module, UNet):
        return {}
    rows = source_names("unet", [n + ".weight" for n in names])
    return {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for ours, (theirs, _) in rows.items()
    }


def _spellings(part: str, name: str, original: str | None, prefixes: tuple[str, ...]) -> set[str]:
    own = {name} if part == "net" else {name, "text_model." + name}
    old = (
        {re.sub(r"(attn\d)\.(to_[qkv]|to_out)(\.0)?$", r"\1.processor.\2", n) for n in own}
        if part == "net"
        else {re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", n) for n in own}
    )
    kohya = {"net": ("lora_unet_",), "text": ("lora_te_", "lora_te1_")}[part]
    flat = {n.replace(".", "_") for n in own | ({original} if original else set())}
    dotted = {p + n for p, n in product(prefixes, own | old)}
    return dotted | {p + n for p, n in product(kohya, flat)}


# ---- alpha beside the tensors (PEFT) -------------------------------------------------------------


def _configure(file: TensorFile, found: dict[str, Factors]) -> None:
    """Add the alphas of PEFT's settings to factors that have none of their own."""
    settings = _settings(file)
    matched = set()
    for layer, factors in found.items() if settings else ():
        part, name = layer.split(".", 1)
        own = {
            k.removeprefix(p): v
            for p in reversed(PARTS[part])
            for k, v in settings.items()
            if k.startswith(p)
        }
        if own.get("peft_type", "LORA") != "LORA" or own.get("use_dora"):
            raise ValueError(
                f"{file.path}: PEFT's {'DoRA' if own.get('use_dora') else short(own['peft_type'])} "
                f"is not implemented; take a plain LoRA"
            )
        patterns = {
            k: a
            for k, a in own.get("alpha_pattern", {}).items()
            if f".text_model.{name}".endswith("." + k)
        }
        matched |= patterns.keys()
        alpha = next(iter(patterns.values()), own.get("lora_alpha"))
        if alpha is not None and "alpha" not in factors and "down" in factors:
            # so that alpha / r is alpha / sqrt(r)
            scale = len(factors["down"]) ** 0.5 if own.get("use_rslora") else 1.0
            factors["alpha"] = torch.tensor(alpha * scale)
    lost = {k for key, v in settings.items() if key.endswith("alpha_pattern") for k in v} - matched
    if lost:
        raise ValueError(
            f"{file.path}: alpha_pattern {short(min(lost))} names no layer of the file; expected "
            "the name of one, or its end"
        )


def _settings(file: TensorFile) -> dict:
    """PEFT's settings of a file, from its metadata or from adapter_config.json beside it; {}."""
    text = file.metadata.get("lora_adapter_metadata")
    try:
        if text is not None:
            settings = json.loads(text)
        elif file.path.stem == "adapter_model":
            settings = read_json(file.path.parent / "adapter_config.json")
        else:
            settings = {}
        for name in settings:
            if name.endswith("lora_alpha"):
                field(settings, name, float)
            elif name.endswith("use_rslora"):
                field(settings, name, bool)
            elif name.endswith("alpha_pattern"):
                alphas = field(settings, name, dict, {})
                if not all(fits(alpha, float) for alpha in alphas.values()):
                    raise ValueError("an alpha that is no number")
        return {name: value for name, value in settings.items() if value is not None}
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise ValueError(
            f"{file.path}: PEFT's settings that belong to it are not readable ({e})"
        ) from e
