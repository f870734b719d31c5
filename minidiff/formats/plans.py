"""How to build the network that a file was made for: the
arguments of our classes, from its shapes and its config.

Widths, depths, kinds of attention and projections are read off the tensors, which cannot lie about
them. What no tensor shows (heads, groups, epsilons, the latent scale, the activation) comes from
the config.json if there is one, else from what the released models of that width have. A config
that contradicts the tensors, or asks for what our classes do not compute, is refused by the name of
its field.

    networks(file, detect(file))  ->  {"unet": {"channels": (320, 640, 1280, 1280), "heads": 8,
    ...}, "vae": ..., ...}

Public format: the config.json files of diffusers and transformers. In a UNet's,
`attention_head_dim` is, by an old mistake that had to stay, the NUMBER of heads; in a DiT's it is
the width of a head. Weakness: at a width that was never released nothing tells the number of heads,
and `heads=` must be given.
"""

from collections.abc import Callable, Mapping
from itertools import count, takewhile
from math import isqrt

import torch

from minidiff.formats.family import Family, part_names
from minidiff.formats.fields import field, numbers
from minidiff.formats.keymaps import alias, plan_of, source_names
from minidiff.formats.mapped import Entry, short
from minidiff.formats.ops import gather

MUST: dict[str, dict[str, tuple]] = {  # part: {config field: the values that our class computes}
    "unet": dict(
        _class_name=("UNet2DConditionModel",),
        flip_sin_to_cos=(True,),
        freq_shift=(0,),
        downsample_padding=(1,),
        mid_block_scale_factor=(1,),
        act_fn=("silu",),
        transformer_layers_per_block=(1,),
        conv_in_kernel=(3,),
        mid_block_type=("UNetMidBlock2DCrossAttn",),
        resnet_time_scale_shift=("default",),
        conv_out_kernel=(3,),
        resnet_out_scale_factor=(1,),
        time_embedding_type=("positional",),
        attention_type=("default",),
    ),
    "vae": dict(
        _class_name=("AutoencoderKL",),
        act_fn=("silu",),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        use_quant_conv=(True,),
        use_post_quant_conv=(True,),
        mid_block_add_attention=(True,),
    ),
    "text": dict(
        layer_norm_eps=(1e-5,),
        model_type=("clip_text_model", "clip"),
        hidden_act=("quick_gelu", "gelu"),
    ),
    "t2i": dict(_class_name=("T2IAdapter",)),
    "dit": dict(
        _class_name=("DiTTransformer2DModel", "Transformer2DModel"),
        activation_fn=("gelu-approximate",),
        attention_bias=(True,),
        norm_type=("ada_norm_zero",),
        attention_type=("default",),
        norm_eps=(1e-5, 1e-6),
    ),
}
MUST["controlnet"] = MUST["unet"] | dict(
    _class_name=("ControlNetModel",), controlnet_conditioning_channel_order=("rgb",)
)
# used below
READ_OFF = (
    "norm_num_groups",
    "norm_eps",
    "attention_head_dim",
    "num_attention_heads",
    "scaling_factor",
    "downscale_factor",
    "sample_size",
    # no effect
    "dropout",
    "upcast_attention",
    "force_upcast",
    "addition_embed_type_num_heads",
)
DIT_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # S, B, L, XL
TEXT_WIDTHS = (512, 640, 768, 1024, 1280)  # of released CLIPs, whose heads are all 64 wide

# our name -> the shape that tensor gets from the file, () if none
Shape = Callable[[str], tuple[int, ...]]


def networks(
    file: Mapping[str, Entry],
    family: Family,
    configs: Mapping[str, dict] | None = None,
    *,
    heads: Mapping[str, int | tuple[int, ...]] | None = None,
) -> dict[str, dict]:
    """{part: arguments of its class} for every part of a
    file; `configs` and `heads` by part, where they are known.
    """
    act = "quick_gelu" if family.kind == "openai-clip" else None
    return {
        part: network_args(
            part,
            {n: file[full] for n, full in part_names(file, family, part).items()},
            layout,
            (configs or {}).get(part),
            heads=(heads or {}).get(part),
            act=act,
        )
        for part, layout in family.names.items()
    }


def network_args(
    part: str,
    entries: Mapping[str, Entry],
    layout: str,
    config: Mapping | None = None,
    *,
    heads: int | tuple[int, ...] | None = None,
    act: str | None = None,
) -> dict:
    """Arguments of UNet, VAE, CLIPText and DiT (parts "unet" "vae" "text" "dit"), or of a
    "controlnet" or "t2i" adapter.

    entries   names in the file's layout, without prefix -> shapes
    config    the part's config.json
    heads     number of heads, where neither a config nor a released width tells
    act       the text tower's activation; by default the config's, else "quick_gelu" under Hugging
              Face's names (SD 1)
              and "gelu" under OpenCLIP's (SD 2)

    ValueError: a tensor that every such network has is missing, or the config does not fit (the
    field is named).
    """
    if part not in READERS:
        raise ValueError(f"no network is called {part!r}; there are: {', '.join(READERS)}")
    have = {alias(n): tuple(e.shape) for n, e in entries.items()}
    plan = plan_of(entries)
    table = "t2i-light" if part == "t2i" and any("out_conv" in n for n in have) else part

    def shape(ours: str) -> tuple[int, ...]:
        try:
            row = source_names(table, [ours], **plan, layout=layout)[ours]
            return tuple(gather(*row, lambda n: torch.empty(have[alias(n)], device="meta")).shape)
        except (KeyError, ValueError):  # not in the file, or no place in this layout
            return ()

    # a whole CLIP's config holds its text tower's
    config = config or {}
    config = field(config, "text_config", dict, config)
    usual = "quick_gelu" if layout == "diffusers" else "gelu"
    act = act or field(config, "hidden_act", str, usual)
    args, shown = READERS[part](shape, plan, config, heads, act)
    check(part, config, shown)
    return args


def check(part: str, config: Mapping, shown: dict) -> None:
    """Refuse a config that contradicts the tensors (`shown`:
    field -> what they show), or that our class cannot follow.
    """
    for name, value in config.items():
        values = value if isinstance(value, (list, tuple)) and value else [value]
        if value is None:
            continue
        if name in shown:
            if not (tuple(values) == shown[name] or all(same(v, shown[name]) for v in values)):
                raise ValueError(
                    f"{part} config: {name} is {short(value)}, but the tensors have {shown[name]!r}"
                )
        elif name in MUST[part]:
            if not all(any(same(v, known) for known in MUST[part][name]) for v in values):
                known = " or ".join(map(repr, MUST[part][name]))
                raise ValueError(
                    f"{part} config: {name} is {short(value)}, which is not implemented; expected "
                    f"{known}"
                )
        elif name.startswith("_") or name in READ_OFF or part == "text":
            continue
        elif not all(v is None or v is False for v in values):
            raise ValueError(
                f"{part} config: {name} is {short(value)}, which is not implemented; expected none"
            )


def same(a: object, b: object) -> bool:
    """Equal as JSON has it, where true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _need(shape: Shape, ours: str, dims: int) -> tuple[int, ...]:
    if len(found := shape(ours)) != dims:
        raise ValueError(
            f"{ours} is {f'of shape {found}' if found else 'missing'}; expected {dims} dimensions "
            "(is the file complete, and of this kind?)"
        )
    return found


def _heads(part: str, width: int, *choices) -> int | tuple[int, ...]:
    """The first choice that is known."""
    known = next((c for c in choices if c is not None), None)
    if known is None:
        raise ValueError(
            f"nothing tells the number of heads of this {part} of width {width}: give heads= "
            "(--heads) or a config.json"
        )
    try:
        return numbers({"heads": known}, "heads")
    except ValueError as e:
        raise ValueError(
            f"{part}: the number of heads is {short(known)}, expected a whole number above 0"
        ) from e


def _unet(shape: Shape, plan: dict, config: Mapping, heads, act) -> tuple[dict, dict]:
    levels = plan["levels"]
    sites = [*(f"down_blocks.{b}.attentions.0" for b in range(levels)), "mid_block.attentions.0"]
    kinds = [
        "cross"
        if shape(f"{s}.transformer_blocks.0.norm1.weight")
        else "self"
        if shape(f"{s}.to_q.weight")
        else None
        for s in sites
    ]
    cross = next((s for s, kind in zip(sites, kinds) if kind == "cross"), None)
    context = (
        _need(shape, f"{cross}.transformer_blocks.0.attn2.to_k.weight", 2)[1] if cross else None
    )
    linear = cross is not None and len(shape(f"{cross}.proj_in.weight")) == 2
    channels = tuple(
        _need(shape, f"down_blocks.{b}.resnets.0.conv1.weight", 4)[0] for b in range(levels)
    )
    released = None if channels[0] != 320 else tuple(c // 64 for c in channels) if linear else 8
    # two names of one thing; a config that has neither means 8
    named = numbers(config, "num_attention_heads") or numbers(config, "attention_head_dim")
    heads = _heads("UNet", channels[0], heads, named, 8 if config else None, released)
    if isinstance(heads, tuple) and len(heads) != levels:
        raise ValueError(
            f"heads are {heads}, but the UNet has {levels} levels; expected a number for each, or "
            "one for all"
        )
    args = dict(
        in_channels=_need(shape, "conv_in.weight", 4)[1],
        channels=channels,
        layers=plan["layers"],
        attention=tuple(kinds[:-1]),
        mid=kinds[-1],
        heads=heads,
        context=context,
        linear=linear,
        groups=field(config, "norm_num_groups", int, 32, above=0),
        eps=field(config, "norm_eps", float, 1e-5, above=0),
    )
    down = ["CrossAttnDownBlock2D" if kind == "cross" else "DownBlock2D" for kind in kinds[:-1]]
    shown = dict(
        in_channels=args["in_channels"],
        block_out_channels=channels,
        layers_per_block=plan["layers"],
        cross_attention_dim=context,
        use_linear_projection=linear,
        down_block_types=tuple(down),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
    )
    if hint := shape("controlnet_cond_embedding.conv_in.weight"):
        halving = (shape(f"controlnet_cond_embedding.blocks.{i}.weight") for i in count(1, 2))
        widths = (hint[0], *(s[0] for s in takewhile(bool, halving)))
        return args | dict(hint_channels=widths), shown | dict(
            conditioning_channels=hint[1], conditioning_embedding_out_channels=widths
        )
    args["out_channels"] = shown["out_channels"] = _need(shape, "conv_out.weight", 4)[0]
    if table := shape("class_embedding.weight"):
        args["classes"] = table[0] - 1
    return args, shown


def _vae(shape: Shape, plan: dict, config: Mapping, heads, act) -> tuple[dict, dict]:
    channels = tuple(
        _need(shape, f"encoder.down_blocks.{b}.resnets.0.conv1.weight", 4)[0]
        for b in range(plan["levels"])
    )
    colors = _need(shape, "encoder.conv_in.weight", 4)[1]
    latent = _need(shape, "decoder.conv_in.weight", 4)[1]
    args = dict(
        in_channels=colors,
        latent=latent,
        channels=channels,
        layers=plan["layers"],
        groups=field(config, "norm_num_groups", int, 32, above=0),
        scale=field(config, "scaling_factor", float, 0.18215, above=0),
    )
    shown = dict(
        in_channels=colors,
        out_channels=_need(shape, "decoder.conv_out.weight", 4)[0],
        latent_channels=latent,
    )
    return args, shown | dict(block_out_channels=channels, layers_per_block=plan["layers"])


def _text(shape: Shape, plan: dict, config: Mapping, heads, act) -> tuple[dict, dict]:
    vocabulary, width = _need(shape, "embeddings.token_embedding.weight", 2)
    inner = _need(shape, "encoder.layers.0.mlp.fc1.weight", 2)[0]
    layers = next(i for i in count(1) if not shape(f"encoder.layers.{i}.layer_norm1.weight"))
    context, _ = _need(shape, "embeddings.position_embedding.weight", 2)
    project = shape("text_projection.weight")
    end = field(config, "eos_token_id", int, None, above=-1)
    named = field(config, "num_attention_heads", int, None, above=0)
    released = width // 64 if width in TEXT_WIDTHS else None
    args = dict(
        vocab_size=vocabulary,
        width=width,
        layers=layers,
        context=context,
        mlp_ratio=inner // width,
        heads=_heads("text tower", width, heads, named, released),
        act=act,
        # 2: an old config's mistake
        eos_id=min(49407, vocabulary - 1) if end in (None, 2) else end,
    )
    if project:
        args["project_dim"] = project[0]
    return args, dict(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        max_position_embeddings=context,
    )


def _t2i(shape: Shape, plan: dict, config: Mapping, heads, act) -> tuple[dict, dict]:
    light = bool(shape("body.0.out_conv.weight"))
    levels = range(plan["levels"])
    last = "body.{}.out_conv.weight" if light else "body.{}.resnets.0.block1.weight"
    first = "body.0.in_conv.weight" if light else "conv_in.weight"
    factor = field(config, "downscale_factor", int, 8, above=0)
    folded = _need(shape, first, 4)[1]
    if folded % factor**2:
        raise ValueError(
            f"{first} takes {folded} channels, which are no pictures folded {factor} x {factor}"
        )
    args = dict(
        in_channels=folded // factor**2,
        channels=tuple(_need(shape, last.format(b), 4)[0] for b in levels),
        layers=plan["layers"],
        factor=factor,
        light=light,
    )
    # diffusers adds a light one's last level itself
    channels = args["channels"][:-1] if light else args["channels"]
    return args, dict(
        in_channels=args["in_channels"],
        channels=channels,
        num_res_blocks=plan["layers"],
        adapter_type="light_adapter" if light else "full_adapter",
    )


def _dit(shape: Shape, plan: dict, config: Mapping, heads, act) -> tuple[dict, dict]:
    dim, channels, patch, _ = _need(shape, "x_embedder.proj.weight", 4)
    table = shape("y_embedder.embedding_table.weight")
    text = shape("text_embedder.proj.weight")
    places = shape("pos_embed")
    out = _need(shape, "final_layer.linear.weight", 2)[0] // patch**2
    size = field(config, "sample_size", int, None, above=0)
    if len(places) == 3:
        size = isqrt(places[1]) * patch
    if size is None:
        raise ValueError(
            "nothing tells the size of this DiT's latents, its positions are not stored: give its "
            "config.json"
        )
    named = field(config, "num_attention_heads", int, None, above=0)
    heads = _heads("DiT", dim, heads, named, DIT_HEADS.get(dim))
    if not isinstance(heads, int) or dim % heads:
        raise ValueError(f"a DiT of width {dim} cannot have {heads} heads; expected a divisor")
    args = dict(
        size=size,
        patch=patch,
        in_channels=channels,
        dim=dim,
        depth=plan["layers"],
        heads=heads,
        classes=table[0] - 1 if table else None,
        context=text[1] if text else None,
        learn_sigma=out != channels,
    )
    return args, dict(
        in_channels=channels,
        out_channels=out,
        num_layers=plan["layers"],
        patch_size=patch,
        num_embeds_ada_norm=args["classes"],
        attention_head_dim=dim // heads,
        sample_size=size,
    )


READERS = {"unet": _unet, "controlnet": _unet, "vae": _vae, "text": _text, "t2i": _t2i, "dit": _dit}
