"""The dialects of LoRA files: which tensor belongs to which of our weights. The mathematics is in
`lora.py`.

A file says two things with each name, which layer and which factor. The layer is found by walking
OUR network and spelling every layer in every dialect; nobody ever turns `to_out_0` back into
`to_out.0`, which underscores do not allow.

| dialect | a layer | down, up and the others | | --- | --- | --- | | kohya, LyCORIS |
`lora_unet_down_blocks_0_...`, or originally `lora_unet_input_blocks_1_1_...`; | `.lora_down.weight`
| | | `lora_te_text_model_encoder_layers_0_self_attn_q_proj` | and `.lora_mid.weight`, `.alpha`,
`.hada_...`, `.lokr_...` | | diffusers, old | `[unet.]...attn1.processor.to_q`,
`text_encoder....self_attn.to_q` | `_lora.down.weight` | | diffusers | `unet....to_q`,
`text_encoder....q_proj` | `.lora.down.weight`, `.lora_linear_layer.down.weight` | | PEFT |
`[unet.][base_model.model.]....to_q`, `text_encoder....q_proj` | `.lora_A.weight` (down),
`.lora_B.weight` | | cloneofsimo | `unet:17`: number 17 in the order of diffusers' own modules;
`.pt`: a bare list in that order | `:down` |

PEFT and diffusers write alpha beside the tensors: in `adapter_config.json` or in the metadata entry
`lora_adapter_metadata`. "Rank-stabilised" files (Kalajdzievski 2023, arXiv 2312.03732) divide alpha
by sqrt(r), not r.

Try: `homes(minidiff.build("sd15", device="meta"))`, and look for two of our layers with one kohya
name (there are none).
"""

import json
import re
from itertools import product
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from minidiff.formats.files import load_pickle, memory_file, open_tensors
from minidiff.formats.keymaps import source_names
from minidiff.formats.mapped import TensorFile, finite, short
from minidiff.models.attention import GEGLU, Attention
from minidiff.models.blocks import ResBlock
from minidiff.models.text import SelfAttention
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
TARGETS = {
    "CrossAttention": Attention,
    "Attention": Attention,
    "GEGLU": GEGLU,
    "ResnetBlock2D": ResBlock,
    "CLIPAttention": SelfAttention,
}  # cloneofsimo: their class -> ours
KVQO = ["k_proj", "v_proj", "q_proj", "out_proj"]  # transformers' order
DEFAULTS = {"net": ["CrossAttention", "Attention", "GEGLU"], "text": ["CLIPAttention"]}
NOTES = (  # of names without a home: what they suggest
    (
        r"lora_te[12]_|text_encoder_2\.|.*down_blocks.*transformer_blocks[._][1-9]|.*input_blocks.*transformer_blocks_[1-9]",
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
    source: str | Path | TensorFile, pipe: Pipe
) -> tuple[Path, dict[str, Factors], list[str]]:
    """(path, {our layer: its factors}, the names in the file that belong to no layer of ours).

    ValueError: no LoRA in it, a factor given twice, NaN or infinite numbers, DoRA, words of its own
    not yet loaded.
    """
    file = source if isinstance(source, TensorFile) else _open(Path(source))
    found, homeless = {}, []
    if any(re.fullmatch(r"\w+:\d+:(up|down)", k) for k in file):
        named, homeless = _numbered(file, pipe)
    else:
        named, where = [], homes(pipe)
        for key in [*file, *(k for k in file.ignored if FACTOR.fullmatch(k))]:
            hit = FACTOR.fullmatch(key)
            layer = where.get(hit["layer"].replace("base_model.model.", "", 1)) if hit else None
            if hit and hit["dora"] is not None:
                raise ValueError(
                    f"{file.path}: {short(key)} belongs to DoRA, which is not implemented; "
                    "take a plain LoRA"
                )
            if layer is None or key not in file:
                homeless.append(key)
            else:
                role = PEFT.get(hit["peft"]) or next(
                    hit[g] for g in ("kohya", "diffusers", "alpha", "lycoris") if hit[g]
                )
                named.append((key, layer, role))
    for key, layer, role in named:
        if role in found.setdefault(layer, {}):
            raise ValueError(
                f"{file.path}: {short(key)} is a second {role!r} for {layer}; expected one "
                "LoRA in a file"
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
    """{a layer's name in some dialect: our name "net...." or "text...."}, for every linear and
    convolution.
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
                        f"{table[spelled]} and {part}.{name} are both called {spelled!r} in "
                        "LoRA files"
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
    kohya = "lora_unet_" if part == "net" else "lora_te_"
    return {p + n for p, n in product(prefixes, own | old)} | {
        kohya + n.replace(".", "_") for n in (*own, *([original] if original else []))
    }


# ---- layers by number (cloneofsimo) --------------------------------------------------------------


def _open(path: Path) -> TensorFile:
    """A file by `open_tensors`; a bare list [up, down, up, down, ...] as if it had been saved with
    its numbers.
    """
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt") or not isinstance(
        pairs := load_pickle(path), list
    ):
        return open_tensors(path)
    if (
        len(pairs) % 2
        or not pairs
        or not all(isinstance(x, Tensor) and x.dim() in (2, 4) for x in pairs)
    ):
        raise ValueError(
            f"{path} is a list of {len(pairs)} things; expected matrices up, down, up, down, ..."
        )
    file = memory_file(
        {f"list:{i // 2}:{'down' if i % 2 else 'up'}": x for i, x in enumerate(pairs)}
    )
    file.path = path
    return file


def _numbered(file: TensorFile, pipe: Pipe) -> tuple[list[tuple[str, str, str]], list[str]]:
    """[(name in the file, our layer, "up" or "down")], and the names that are of another kind."""
    words = [k for k in file if file.metadata.get(k) == "<embed>"]
    special = getattr(getattr(pipe.tokenizer, "speller", None), "special", ())
    if missing := [short(w) for w in words if w.lower() not in special]:
        raise ValueError(
            f"{file.path} brings words of its own ({', '.join(missing)}); load_embedding() it first"
        )
    rows = []
    for name in ("unet", "text_encoder", "list"):
        shapes = []
        while {
            up := f"{name}:{len(shapes)}:up",
            down := f"{name}:{len(shapes)}:down",
        } <= file.keys():
            shapes.append(file[up].shape[:1] + file[down].shape[1:2])
        for i, layer in enumerate(_match(file, name, shapes, pipe) if shapes else ()):
            rows += [(f"{name}:{i}:{role}", layer, role) for role in ("up", "down")]
    return rows, sorted(set(file) - set(words) - {r[0] for r in rows})


def _match(file: TensorFile, name: str, shapes: list[tuple[int, ...]], pipe: Pipe) -> list[str]:
    """Our layers in the order of the file: of the possible orders, the one whose (rows, columns)
    are those of the file.
    """
    seen = []
    for part in {"unet": ("net",), "text_encoder": ("text",)}.get(name, ("net", "text")):
        if (module := getattr(pipe, part)) is None:
            continue
        try:
            classes = json.loads(file.metadata[name]) if name in file.metadata else DEFAULTS[part]
            types = tuple(TARGETS[c] for c in classes)
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(
                f"{file.path}: metadata {name!r} is {short(file.metadata[name])}; expected a list "
                "of "
                f"some of: {', '.join(TARGETS)}"
            ) from e
        for feed_last in (True, False):
            layers = layer_order(module, types, feed_last)
            if [tuple(module.get_submodule(n).weight.shape[:2]) for n in layers] == shapes:
                return [f"{part}.{n}" for n in layers]
        seen.append(f"{len(layers)} in its {'UNet' if part == 'net' else 'text tower'}")
    raise ValueError(
        f"{file.path} has numbered pairs for {len(shapes)} layers, which do not fit those of "
        f"{pipe.name or 'this model'} in number or shape: "
        f"{', '.join(seen) or 'it has no such part'}"
    )


def layer_order(module: nn.Module, types: tuple[type, ...], feed_last: bool = True) -> list[str]:
    """Names of the layers inside modules of some types, in the order in which diffusers and
    transformers register them.

    The middle block comes last, attentions before ResBlocks, keys and values of the text tower
    before queries. Before 2023 the feed-forward layer stood between self- and cross-attention
    (`feed_last=False`).
    """

    def place(name: str) -> list:
        # the alphabet's order, but for these
        stand = {"mid_block": "~", "ff": "ff" if feed_last else "attn1 ff"}
        return [int(w) if w.isdigit() else stand.get(w, w) for w in name.split(".")]

    found = []
    for name in sorted((n for n, m in module.named_modules() if isinstance(m, types)), key=place):
        inner = [n for n, m in module.get_submodule(name).named_modules() if isinstance(m, LAYERS)]
        found += [f"{name}.{n}" for n in (KVQO if "q_proj" in inner else inner)]
    return found


# ---- alpha beside the tensors (PEFT) -------------------------------------------------------------


def _configure(file: TensorFile, found: dict[str, Factors]) -> None:
    """Add the alphas of PEFT's settings to factors that have none of their own."""
    settings, matched = _settings(file), set()
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
                f"{file.path}: PEFT's "
                f"{'DoRA' if own.get('use_dora') else short(own['peft_type'])} is not "
                "implemented; take a plain LoRA"
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
            "the name of "
            "one, or its end"
        )


def _settings(file: TensorFile) -> dict:
    beside = file.path.parent / "adapter_config.json"
    text = file.metadata.get("lora_adapter_metadata")
    if text is None and file.path.stem == "adapter_model" and beside.is_file():
        text = beside.read_text()
    try:
        settings = {k: v for k, v in json.loads(text or "{}").items() if v is not None}
        alphas = [settings[k] for k in settings if k.endswith("lora_alpha")]
        alphas += [a for k in settings if k.endswith("alpha_pattern") for a in settings[k].values()]
        if not all(isinstance(a, (int, float)) and isfinite(a) for a in alphas):
            raise ValueError("an alpha that is no number")
    except (ValueError, AttributeError, RecursionError) as e:
        raise ValueError(
            f"{file.path}: PEFT's settings that belong to it are not readable ({e})"
        ) from e
    return settings
