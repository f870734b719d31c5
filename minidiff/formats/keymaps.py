"""What a tensor is called elsewhere: our names -> the names in public checkpoint files, as tables.

Rombach et al. 2021, arXiv 2112.10752 (UNet and autoencoder, whose authors' code named the
"original" layout); Radford et al. 2021, arXiv 2103.00020 (text tower, names of OpenAI's CLIP and of
OpenCLIP); Zhang et al. 2023, arXiv 2302.05543 (ControlNet); Mou et al. 2023, arXiv 2302.08453
(T2I-Adapter); Peebles & Xie 2022, arXiv 2212.09748 (DiT).

Our names of UNet, VAE, ControlNet and adapter are those of the diffusers layout, of the text tower
Hugging Face's, of DiT the official ones. So one direction is written down, ours -> theirs; reading
and writing both follow from it. A row holds for every name that begins with it: what stands behind
(`.weight`, the inside of a block) is carried over. With R ResBlocks a level and L levels the
placeholders are

    {b} level or block   {l} ResBlock in it (R where the row has none)   {q} one of q k v   {side}
    encoder or decoder
    {down} = 1 + b (R+1) + l     {up} = b (R+1) + l     {flip} = L-1-b     {hint} = 2 b + 2
    {flat} = b R + l             {first} = b R
    {last} = 2 where up level b has attention, else 1: the upsampler stands behind whatever else is
    in its block

A row may end in an op, when the numbers are stored in another form (`ops.py` has what each does):

    same   squeeze (theirs is a 1x1 convolution, ours linear)   transpose   third (ours is that
           third of their rows)
    join (ours is their rows, one below the other)   copies (they repeat what we store once)
    computed (not stored)
"""

import re
from collections.abc import Iterable
from functools import cache

Theirs = str | tuple[str, ...]  # one name, or the several that make ours

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

ENCODER = {  # what a ControlNet copies from the UNet
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.{b}.resnets.{l}.{resnet}": "input_blocks.{down}.0.{resnet}",
    "down_blocks.{b}.attentions.{l}": "input_blocks.{down}.1",
    "down_blocks.{b}.downsamplers.0.conv": "input_blocks.{down}.0.op",
    "mid_block.resnets.0.{resnet}": "middle_block.0.{resnet}",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1.{resnet}": "middle_block.2.{resnet}",
}
UNET = {
    **ENCODER,
    "up_blocks.{b}.resnets.{l}.{resnet}": "output_blocks.{up}.0.{resnet}",
    "up_blocks.{b}.attentions.{l}": "output_blocks.{up}.1",
    "up_blocks.{b}.upsamplers.0.conv": "output_blocks.{up}.{last}.conv",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CONTROLNET = {
    **ENCODER,
    "controlnet_down_blocks.{b}": "zero_convs.{b}.0",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.blocks.{b}": "input_hint_block.{hint}",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
VAE = {
    "encoder.down_blocks.{b}.resnets.{l}.conv_shortcut": "encoder.down.{b}.block.{l}.nin_shortcut",
    "encoder.down_blocks.{b}.resnets.{l}": "encoder.down.{b}.block.{l}",
    "encoder.down_blocks.{b}.downsamplers.0.conv": "encoder.down.{b}.downsample.conv",
    "decoder.up_blocks.{b}.resnets.{l}.conv_shortcut": "decoder.up.{flip}.block.{l}.nin_shortcut",
    "decoder.up_blocks.{b}.resnets.{l}": "decoder.up.{flip}.block.{l}",
    "decoder.up_blocks.{b}.upsamplers.0.conv": "decoder.up.{flip}.upsample.conv",
    "{side}.mid_block.resnets.0": "{side}.mid.block_1",
    "{side}.mid_block.resnets.1": "{side}.mid.block_2",
    "{side}.mid_block.attentions.0.group_norm": "{side}.mid.attn_1.norm",
    "{side}.mid_block.attentions.0.to_{q}.weight": ("{side}.mid.attn_1.{q}.weight", "squeeze"),
    "{side}.mid_block.attentions.0.to_{q}.bias": "{side}.mid.attn_1.{q}.bias",
    "{side}.mid_block.attentions.0.to_out.0.weight": (
        "{side}.mid.attn_1.proj_out.weight",
        "squeeze",
    ),
    "{side}.mid_block.attentions.0.to_out.0.bias": "{side}.mid.attn_1.proj_out.bias",
    "{side}.conv_norm_out": "{side}.norm_out",
    "{side}.conv_in": "{side}.conv_in",
    "{side}.conv_out": "{side}.conv_out",
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
}
TEXT = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.{b}.layer_norm1": "transformer.resblocks.{b}.ln_1",
    "encoder.layers.{b}.layer_norm2": "transformer.resblocks.{b}.ln_2",
    "encoder.layers.{b}.self_attn.{q}_proj.weight": (
        "transformer.resblocks.{b}.attn.in_proj_weight",
        "third",
    ),
    "encoder.layers.{b}.self_attn.{q}_proj.bias": (
        "transformer.resblocks.{b}.attn.in_proj_bias",
        "third",
    ),
    "encoder.layers.{b}.self_attn.out_proj": "transformer.resblocks.{b}.attn.out_proj",
    "encoder.layers.{b}.mlp.fc1": "transformer.resblocks.{b}.mlp.c_fc",
    "encoder.layers.{b}.mlp.fc2": "transformer.resblocks.{b}.mlp.c_proj",
    "final_layer_norm": "ln_final",
    "text_projection.weight": ("text_projection", "transpose"),
}
T2I = {
    "conv_in": "conv_in",
    "body.{b}.resnets.{l}": "body.{flat}",
    "body.{b}.in_conv": "body.{first}.in_conv",
}
T2I_LIGHT = {
    "body.{b}.resnets.{l}": "body.{b}.body.{l}",
    "body.{b}.in_conv": "body.{b}.in_conv",
    "body.{b}.out_conv": "body.{b}.out_conv",
}
DIT = {  # to diffusers; {each}: q k v, or every block
    "x_embedder.proj": "pos_embed.proj",
    "pos_embed": ("", "computed"),
    "t_embedder.mlp.0": (
        "transformer_blocks.{each}.norm1.emb.timestep_embedder.linear_1",
        "copies",
    ),
    "t_embedder.mlp.2": (
        "transformer_blocks.{each}.norm1.emb.timestep_embedder.linear_2",
        "copies",
    ),
    "y_embedder": ("transformer_blocks.{each}.norm1.emb.class_embedder", "copies"),
    "blocks.{b}.attn.qkv": ("transformer_blocks.{b}.attn1.to_{each}", "join"),
    "blocks.{b}.attn.proj": "transformer_blocks.{b}.attn1.to_out.0",
    "blocks.{b}.mlp.fc1": "transformer_blocks.{b}.ff.net.0.proj",
    "blocks.{b}.mlp.fc2": "transformer_blocks.{b}.ff.net.2",
    "blocks.{b}.adaLN_modulation.1": "transformer_blocks.{b}.norm1.linear",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
SAME = {"{any}": "{any}"}
TABLES = {  # (part, layout of the file)
    ("unet", "original"): UNET,
    ("unet", "diffusers"): SAME,
    ("vae", "original"): VAE,
    ("vae", "diffusers"): {
        "{any}.attentions.0.to_{q}.weight": ("{any}.attentions.0.to_{q}.weight", "flat"),
        "{any}.attentions.0.to_out.0.weight": ("{any}.attentions.0.to_out.0.weight", "flat"),
        **SAME,
    },
    ("text", "original"): TEXT,
    ("text", "diffusers"): {"text_projection": "text_projection", "{any}": "text_model.{any}"},
    ("controlnet", "original"): CONTROLNET,
    ("controlnet", "diffusers"): SAME,
    ("t2i", "original"): T2I,
    ("t2i-light", "original"): T2I_LIGHT,
    ("t2i", "diffusers"): {"{any}": "adapter.{any}"},
    ("t2i-light", "diffusers"): {"{any}": "adapter.{any}"},
    ("dit", "original"): SAME,
    ("dit", "diffusers"): DIT,
}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAMES = re.compile(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")
LEADING = re.compile(r"^(module\.|adapter\.|text_model\.)+")
EACH = {"join": "qkv", "copies": None, "computed": ()}  # None: every block
WORDS = {
    "b": r"\d+",
    "l": r"\d+",
    "q": "[qkv]",
    "side": "encoder|decoder",
    "any": ".+?",
    "resnet": "|".join(RESNET),
}


@cache
def _pattern(row: str) -> re.Pattern:
    named = re.escape(row)
    for word, look in WORDS.items():
        named = named.replace(re.escape("{" + word + "}"), f"(?P<{word}>{look})")
    return re.compile(named + r"(?P<rest>\..+)?")


def _first_row(key: str, table: dict) -> tuple[dict[str, str | None], str | tuple[str, str]]:
    """(the words of a name, what stands in the first row that fits it)."""
    for ours, row in table.items():
        found = _pattern(ours).fullmatch(key)
        if found:
            return found.groupdict(), row
    raise ValueError(f"{key} is no name that this layout has a place for")


def rename(
    key: str, table: dict, layers: int, levels: int, attention: tuple[bool, ...] | None = None
) -> tuple[Theirs, str]:
    """(their name or names, op) of one of our names, by the first row of a table that fits.

    layers, levels   R and L above; for DiT, layers is the number of blocks
    attention        which levels have it, finest first (default: all but the last, as in Stable
                     Diffusion)

    ValueError: no row fits, or the name lies outside a network of that many levels and layers.
    """
    words, row = _first_row(key, table)
    theirs, op = row if isinstance(row, tuple) else (row, "same")
    rest = words.pop("rest") or ""
    b = int(words.get("b") or 0)
    l = int(words.get("l") or layers)
    most = layers - 1 if "l" in words else layers
    if re.search(r"\{(up|flip)\}", theirs):  # one more on the way up
        most = layers
    if re.search(r"\{(down|up|flip|flat|first)\}", theirs) and (b >= levels or l > most):
        raise ValueError(
            f"{key} is outside a network of {levels} levels with {layers} ResBlocks each"
        )
    words.update(
        resnet=RESNET.get(words.get("resnet")),
        down=1 + b * (layers + 1) + l,
        up=b * (layers + 1) + l,
        flip=levels - 1 - b,
        hint=2 * b + 2,
        flat=b * layers + l,
        first=b * layers,
    )
    if "{last}" in theirs:
        having = attention or (True,) * (levels - 1) + (False,)
        words["last"] = 2 if having[levels - 1 - b] else 1
    if op in EACH:
        each = range(layers) if EACH[op] is None else EACH[op]
        return tuple(theirs.format(**words, each=e) + rest for e in each), op
    if op == "third":
        op += str("qkv".index(words["q"]))
    return theirs.format(**words) + rest, op


def unet_original(
    key: str, layers: int = 2, levels: int = 4, attention: tuple[bool, ...] | None = None
) -> tuple[str, str]:
    """Our UNet -> CompVis and Stability files, behind `model.diffusion_model.`."""
    return rename(key, UNET, layers, levels, attention)


def controlnet_original(key: str, layers: int = 2, levels: int = 4) -> tuple[str, str]:
    """Our ControlNet -> the authors' files, behind `control_model.`."""
    return rename(key, CONTROLNET, layers, levels)


def vae_original(key: str, layers: int = 2, levels: int = 4) -> tuple[str, str]:
    """Our VAE -> CompVis files, behind `first_stage_model.`."""
    return rename(key, VAE, layers, levels)


def text_openclip(key: str, layers: int = 2, levels: int = 4) -> tuple[str, str]:
    """Our text tower -> OpenAI's CLIP and OpenCLIP; SD 2 keeps it behind
    `cond_stage_model.model.`.
    """
    return rename(key, TEXT, layers, levels)


def t2i_original(
    key: str, layers: int = 2, levels: int = 4, light: bool = False
) -> tuple[str, str]:
    """Our T2I-Adapter -> the authors' files; `light` is their small adapter (colour)."""
    return rename(key, T2I_LIGHT if light else T2I, layers, levels)


def dit_diffusers(key: str, layers: int = 28, levels: int = 1) -> tuple[Theirs, str]:
    """Our (the official) DiT -> diffusers; `layers` is the
    number of blocks. Several names for "join" and "copies".
    """
    return rename(key, DIT, layers, levels)


def source_names(
    part: str,
    keys: Iterable[str],
    layers: int | None = None,
    levels: int | None = None,
    *,
    layout: str = "original",
    attention: tuple[bool, ...] | None = None,
) -> dict[str, tuple[Theirs, str]]:
    """{our name: (their name or names, op)} for all keys of one part, in a layout of TABLES.

    The plan of blocks is read off the keys (`plan_of`) unless it is given. ValueError: no such
    table, or a name has no place in it.
    """
    keys = list(keys)
    if part == "t2i" and any("out_conv" in k for k in keys):
        part = "t2i-light"
    if (part, layout) not in TABLES:
        raise ValueError(
            f"no names of {part!r} in layout {layout!r}; there are: "
            f"{', '.join(map(' '.join, TABLES))}"
        )
    if layers is None or levels is None:
        plan = plan_of(keys)
        layers = plan["layers"] if layers is None else layers
        levels = plan["levels"] if levels is None else levels
        attention = attention or plan["attention"]
    return {k: rename(k, TABLES[part, layout], layers, levels, attention) for k in keys}


def plan_of(keys: Iterable[str]) -> dict:
    """{"layers", "levels", "attention"} of a network (see
    `rename`), from its names in any layout, without prefix.
    """
    keys = list(keys)

    def seen(*patterns: str) -> list[tuple[int, ...]]:
        """The numbers in the names that begin like the first pattern to match any."""
        for look in map(re.compile, patterns):
            hits = [m for m in map(look.match, keys) if m]
            if hits:
                return sorted({tuple(map(int, m.groups())) for m in hits})
        return []

    if blocks := seen(r"input_blocks\.(\d+)\.(\d+)\."):
        rows = sorted({i for i, _ in blocks})
        downs = seen(r"input_blocks\.(\d+)\.0\.op\.")
        layers = (rows.index(downs[0][0]) if downs else len(rows)) - 1
        levels = len(downs) + 1
        having = [b for b in range(levels) if (1 + b * (layers + 1), 1) in blocks]
    elif blocks := seen(
        r"(?:encoder\.)?down_blocks\.(\d+)\.resnets\.(\d+)\.",
        r"encoder\.down\.(\d+)\.block\.(\d+)\.",
        r"(?:adapter\.)?body\.(\d+)\.(?:resnets|body)\.(\d+)\.",
    ):
        # counts: a file may hold any number
        layers = len({l for _, l in blocks})
        levels = len({b for b, _ in blocks})
        having = [b for (b,) in seen(r"down_blocks\.(\d+)\.attentions\.")]
    elif blocks := seen(r"(?:adapter\.)?body\.(\d+)\.block1\."):
        # a full adapter: two ResBlocks a level in all files
        layers = 2
        levels = len(blocks) // 2
        having = []
    else:
        layers = len(seen(r"(?:transformer_)?blocks\.(\d+)\.")) or 2
        levels = 1
        having = []
    return dict(layers=layers, levels=levels, attention=tuple(b in having for b in range(levels)))


def alias(name: str) -> str:
    """A name without the prefixes that come and go between
    writers, in the present spelling of old diffusers files.

    Compare two names by their aliases. (`position_ids`, which some text towers store, names nothing
    of ours: see `family.DROPPED`.)
    """
    name = LEADING.sub("", name)
    return OLD_NAMES.sub(lambda m: OLD[m[1]], name)


def ema_name(name: str) -> str:
    """Where the running average of a parameter lies in a
    training checkpoint: its name with every dot taken out.

    `model.diffusion_model.out.2.bias` -> `model_ema.diffusion_modelout2bias`. Dots cannot be put
    back, so averages are always looked up from the plain names.
    """
    return "model_ema." + name.removeprefix("model.").replace(".", "")
