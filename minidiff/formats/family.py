"""What a weights file is, from its names and shapes alone:
which family, which layout, which parts, which variant.

Rombach et al. 2021, arXiv 2112.10752 (SD 1); Brooks et al. 2022, arXiv 2211.09800
(InstructPix2Pix); Peebles & Xie 2022, arXiv 2212.09748 (DiT); Zhang et al. 2023, arXiv 2302.05543
(ControlNet); Hu et al. 2021, arXiv 2106.09685 (LoRA).

A part is there if one telling name stands behind one of the prefixes it is stored under (PLACES).
The first convolution's channels tell the variant; the projections around attention tell SD 1
(convolutions) from SD 2 (linear layers).

Try: `detect(open_tensors(path)).why`, and the same after renaming one tensor. Weakness: some things
no tensor shows. SD 2's base model predicts noise, its 768-pixel model velocity, under equal names
and shapes; so `prediction` is None there, and whoever loads it must say. SDXL's autoencoder equals
SD's but for its scale (0.13025), SiT equals DiT but predicts a flow, and OpenAI's text tower, saved
anew, equals one of OpenCLIP's.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache

from minidiff.formats.keymaps import alias, source_names
from minidiff.formats.mapped import Entry, short

PLACES = {  # part: (prefixes, {layout: telling names}); first find counts
    "controlnet": (
        ("control_model.", ""),
        {
            "original": ["input_hint_block.0.weight"],
            "diffusers": ["controlnet_cond_embedding.conv_in.weight"],
        },
    ),
    "t2i": (
        ("",),
        {
            "original": ["body.0.block1.weight", "body.0.body.0.block1.weight"],
            "diffusers": ["body.0.resnets.0.block1.weight"],
        },
    ),
    "unet": (
        ("model.diffusion_model.", "unet.", ""),
        {"original": ["out.2.weight"], "diffusers": ["conv_norm_out.weight"]},
    ),
    "dit": (
        ("dit.", "transformer.", ""),
        {
            "original": ["final_layer.adaLN_modulation.1.weight"],
            "diffusers": ["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"],
        },
    ),
    "vae": (
        ("first_stage_model.", "vae.", ""),
        {
            "original": ["decoder.mid.block_1.norm1.weight"],
            "diffusers": ["decoder.mid_block.resnets.0.norm1.weight"],
        },
    ),
    "text": (
        (
            "cond_stage_model.transformer.",
            "cond_stage_model.model.",
            "conditioner.embedders.0.transformer.",
            "conditioner.embedders.0.model.",
            "text_encoder.",
            "text.",
            "",
        ),
        {
            "diffusers": ["embeddings.token_embedding.weight"],
            "original": ["token_embedding.weight"],
        },
    ),
}
LEADS = ("", "text_model.", "adapter.", "module.", "module.adapter.")  # what `alias` takes away
# the text tower of SD 1 and 2 in files that newer training code wrote: the older name
RENAMED = ("conditioner.embedders.0.", "cond_stage_model.")
VARIANTS = {4: "text-to-image", 5: "depth", 7: "upscaler", 8: "instruct-pix2pix", 9: "inpainting"}
LORA = {  # dialect: how its names look
    "loha": r".*\.hada_w1_[ab]$",
    "lokr": r".*\.lokr_w[12](_[ab])?$",
    "kohya": r"lora_(unet|te\d?)_.*\.lora_(up|down)\.weight$",
    "peft": r".*\.lora_[AB]\.",
    "diffusers": r".*(\.lora|_lora|\.lora_linear_layer)\.(up|down)\.weight$",
    "numbered": r"(unet|text_encoder):\d+:(up|down)$",
}
FOREIGN = {  # kind: (how its names look, why it is refused)
    "flux": (
        r"(.*\.)?(double_blocks|single_transformer_blocks)\.0\.",
        "Flux is a transformer of two streams",
    ),
    "sd3": (
        r"(.*\.)?(joint_blocks\.0|transformer_blocks\.0\.norm1_context)\.",
        "SD 3 is a transformer of two streams",
    ),
    "sdxl": (
        r"conditioner\.embedders\.[1-9]|(.*\.)?add_embedding\.linear_1\.|lora_te2_|clip_g$",
        "SDXL reads two text towers and the picture's size",
    ),
    "pixart": (
        r"(.*\.)?(y_embedder\.y_proj|adaln_single)\.",
        "PixArt shares one modulation among its blocks",
    ),
    "unclip": (
        r"noise_augmentor\.|(.*\.)?class_embedding\.linear_1\.",
        "unCLIP is conditioned on an image vector",
    ),
    "motion": (r".*motion_modules\.", "motion modules are an addition for video"),
    "ip-adapter": (r"(ip_adapter|image_proj)\.", "IP-Adapter needs an image encoder"),
    "gligen": (r"(.*\.)?position_net\.", "GLIGEN adds layers that read boxes"),
    "vq": (
        r"(.*\.)?quantize\.embedding\.",
        "this autoencoder has a codebook, ours has a Gaussian posterior",
    ),
    "difference": (
        r"difference$",
        "this ControlNet is stored as its difference from a base model, which must be added first",
    ),
}
SUPPORTED = "minidiff loads SD 1 and 2, DiT, their autoencoders, text towers and adapters"
SCHEDULE = """
    betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod
    posterior_variance posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2
"""
DROPPED = {  # names known and not needed (shell patterns): why
    **dict.fromkeys(SCHEDULE.split(), "a table of the noise schedule, which a formula gives"),
    "denoiser.sigmas": "a table of the noise schedule, which a formula gives",
    "v_pred": "a mark that the model predicts v, which is read",
    "scale_factor": "the scale of latents, 0.18215 in every SD 1 and 2",
    "logvar": "a training weight for each time, constant",
    "model_ema.decay": "bookkeeping of the running average",
    "model_ema.num_updates": "bookkeeping of the running average",
    "model_ema.*": "the running average of the UNet, where the plain weights are taken",
    "*position_ids": "0, 1, 2, ...: the position itself",
    "first_stage_model.loss.*": "the autoencoder's training losses",
    "loss.*": "the autoencoder's training losses",
    "cond_stage_model.model.transformer.resblocks.{last}.*": (
        "the last block of OpenCLIP's tower, which SD 2 never runs"
    ),
    "cond_stage_model.*text_projection*": (
        "maps text to the space of pictures; the UNet reads the states before it"
    ),
    "cond_stage_model.*logit_scale": "CLIP's temperature",
    "logit_scale": "CLIP's temperature",
    "cond_stage_model.model.attn_mask": "the causal mask",
    "attn_mask": "the causal mask",
    **dict.fromkeys(
        ("input_resolution", "context_length", "vocab_size"), "a size, which the shapes tell"
    ),
    **dict.fromkeys(
        ("visual.*", "vision_model.*", "visual_projection.weight"), "CLIP's image tower, not loaded"
    ),
    "depth_model.*": "the depth estimator, a network of its own",
    "pos_embed.pos_embed": "fixed sinusoids, which a formula gives",
}
NOTHING = "a file of this kind predicts nothing by itself"
PREDICTS = {
    "sd1": (
        "eps",
        (
            "every release of SD 1 predicts noise; a model retrained otherwise needs prediction= "
            "(--prediction)"
        ),
    ),
    "sd2": (
        None,
        "SD 2's base model (eps) and its 768-pixel model (v) have the same names and shapes: give "
        "its scheduler config or prediction= (--prediction; a .ckpt's global_step is a hint: "
        "875000 for 2.0 base, 110000 for 2.1 at 768)",
    ),
    "other": (
        None,
        "no released model has this width: give its scheduler config or prediction= (--prediction)",
    ),
    "dit": (
        "eps",
        (
            "the released DiT predicts noise and its variance; a SiT of the same shapes needs "
            'prediction="flow" (--prediction flow)'
        ),
    ),
}


@dataclass(frozen=True)
class Family:
    """What `detect` found.

    kind         sd1 sd2 (several parts) unet vae clip-text openclip-text openai-clip dit controlnet
                 t2i lora embedding, or
                 one of FOREIGN, which `unsupported` explains
    why          the names and shapes it was told by
    layout       "original" or "diffusers", of the main part; `names` has it for each part, `parts`
                 the prefix of its names
    variant      what a UNet is for (VARIANTS); the dialect of a LoRA or embedding; a "full" or
                 "light" adapter
    context      width of the text states that are read, or of the vectors that an embedding or a
                 tower gives
    prediction   None where the file cannot tell or predicts nothing: `prediction_why` says which
    """

    kind: str
    why: str
    layout: str = "original"
    parts: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    in_channels: int | None = None
    variant: str | None = None
    context: int | None = None
    has_ema: bool = False
    prediction: str | None = None
    prediction_why: str = NOTHING


def detect(file: Mapping[str, Entry]) -> Family:
    """The family of a file (names -> shapes). ValueError,
    naming the file, if it is of none that is known.
    """
    if hit := _match(file, {kind: look for kind, (look, _) in FOREIGN.items()}):
        return Family(hit[0], f"it holds {short(hit[1])}")
    if hit := _match(file, LORA):
        down = next(
            (
                e.shape[1]
                for n, e in file.items()
                if re.search(r"attn2[._].*to_k.*(down|lora_A|w1_b)", n) and len(e.shape) > 1
            ),
            None,
        )
        return Family(
            "lora", f"it holds {short(hit[1])}", "diffusers", variant=hit[0], context=down
        )
    found = {part: place for part in PLACES if (place := _place(file, part))}
    average = _match(file, {"ema": r"model_ema\.diffusion_model"})
    if average and "unet" not in found:
        return Family("ema", f"it holds {short(average[1])} and no plain weights")
    if found:
        main = next(iter(found))
        return TELL[main](
            file,
            main,
            dict(
                parts={p: prefix for p, (prefix, _) in found.items()},
                layout=found[main][1],
                names={p: layout for p, (_, layout) in found.items()},
            ),
        )
    vectors = [n for n in file if not n.startswith("string_to_token")]
    tables = {
        n: file[n]
        for n in vectors
        if len(file[n].shape) in (1, 2) and not re.search(r"(^|\.)(weight|bias)$", n)
    }
    widths = {e.shape[-1] for e in tables.values()}
    if len(widths) == 1 and len(tables) == len(vectors) <= 16 and not dropped(vectors):
        name = vectors[0]
        style = "a1111" if name.startswith(("emb_params", "string_to_param")) else "diffusers"
        return Family(
            "embedding",
            f"nothing but vectors: {short(name)} is {tuple(file[name].shape)}",
            "diffusers",
            variant=style,
            context=widths.pop(),
        )
    raise ValueError(
        f"{getattr(file, 'path', 'this file')} is of no known family: {len(file)} tensor(s) such "
        f"as {', '.join(short(n, 60) for n in list(file)[:3]) or 'none'}; {SUPPORTED}"
    )


def _unet(file: Mapping[str, Entry], part: str, found: dict) -> Family:
    """A UNet with what surrounds it, or a ControlNet, which is built like one."""
    first, name = _shape(file, part, "conv_in.weight", found)
    key, _ = _shape(
        file, part, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", found
    )
    proj, _ = _shape(file, part, "mid_block.attentions.0.proj_in.weight", found)
    channels = first[1] if len(first) == 4 else None
    context = key[1] if len(key) == 2 else None
    base = "sd2" if len(proj) == 2 else "sd1"
    if f"{found['parts'][part]}label_emb.0.0.weight" in file:
        base = "unclip"
    if context in (1280, 2048):
        base = "sdxl"
    kind = (
        base
        if base in FOREIGN
        else part
        if part == "controlnet" or found["parts"].keys() == {"unet"}
        else base
    )
    what = f"{short(name)} is {first}, so it takes {channels} channels" + (
        f"; its attention reads text states {context} wide behind "
        f"{'linear' if len(proj) == 2 else 'convolutional'} projections, as {base} does"
        if context
        else "; no attention reads text"
    )
    known = base if context == {"sd1": 768, "sd2": 1024}.get(base) else "other"
    prediction, why = PREDICTS[known] if part == "unet" and base not in FOREIGN else (None, NOTHING)
    if part == "unet" and "v_pred" in file:
        prediction = "v"
        why = "the file holds the mark v_pred"
    return Family(
        kind,
        what,
        in_channels=channels,
        context=context,
        prediction=prediction,
        prediction_why=why,
        variant=VARIANTS.get(channels) if part == "unet" else None,
        has_ema=any(n.startswith("model_ema.diffusion_model") for n in file),
        **found,
    )


def _dit(file: Mapping[str, Entry], part: str, found: dict) -> Family:
    first, name = _shape(file, part, "x_embedder.proj.weight", found)
    last, _ = _shape(file, part, "final_layer.linear.weight", found)
    table, _ = _shape(file, part, "y_embedder.embedding_table.weight", found)
    channels = first[1] if len(first) == 4 else None
    # classes, and a learned variance
    released = table and last and channels and last[0] == 2 * channels * first[2] ** 2
    prediction, why = (
        PREDICTS["dit"]
        if released
        else (None, "this is not the released DiT; say prediction= (--prediction)")
    )
    what = f"{short(name)} is {first}, so patches have {channels} channels" + (
        f"; {table[0] - 1} classes" if table else ""
    )
    return Family(
        "dit",
        what,
        in_channels=channels,
        variant="class-conditional" if table else None,
        prediction=prediction,
        prediction_why=why,
        **found,
    )


def _t2i(file: Mapping[str, Entry], part: str, found: dict) -> Family:
    light = any("out_conv" in n for n in file)
    shape, name = _shape(file, part, "body.0.in_conv.weight" if light else "conv_in.weight", found)
    channels = shape[1] // 64 if len(shape) == 4 else None  # folded 8 x 8
    return Family(
        "t2i",
        f"{short(name)} is {shape}, so hints have {channels} channel(s), folded 8 x 8",
        in_channels=channels,
        variant="light" if light else "full",
        **found,
    )


def _tower(file: Mapping[str, Entry], part: str, found: dict) -> Family:
    """A file with an autoencoder or a text tower, and no denoiser."""
    if part == "vae":
        shape, name = _shape(file, part, "encoder.conv_in.weight", found)
        return Family(
            "vae",
            f"an autoencoder alone: {short(name)} is {shape}",
            in_channels=shape[1] if len(shape) == 4 else None,
            **found,
        )
    shape, name = _shape(file, part, "embeddings.token_embedding.weight", found)
    openai = "openai-clip" if "input_resolution" in file else "openclip-text"
    return Family(
        "clip-text" if found["layout"] == "diffusers" else openai,
        f"a text tower: {short(name)} is {shape}",
        context=shape[-1] if shape else None,
        **found,
    )


TELL = {"controlnet": _unet, "t2i": _t2i, "unet": _unet, "dit": _dit, "vae": _tower, "text": _tower}


def unsupported(family: Family) -> str | None:
    """Why a file that was recognised cannot be loaded, in one line; None if it can."""
    if family.kind == "ema":
        return (
            "only the running average of a UNet is in it, under names without dots; take a file "
            "that has the plain weights too"
        )
    if family.kind in FOREIGN:
        return f"{family.kind} is not supported: {FOREIGN[family.kind][1]}; {SUPPORTED}"
    if family.kind in ("lora", "embedding") and family.context in (1280, 2048):
        return (
            f"this {family.kind} is for SDXL (width {family.context}), which is not supported; "
            f"{SUPPORTED}"
        )
    if family.variant == "numbered":
        return "a LoRA whose layers are numbered, as in files of early 2023, is not supported"
    if family.variant == "upscaler":
        return (
            "the x4 upscaler is not supported: its UNet reads a noise level and its autoencoder "
            "has a factor of 4"
        )
    if (
        family.kind in ("sd1", "sd2", "unet")
        and family.context
        and family.in_channels not in VARIANTS
    ):
        known = ", ".join(f"{n} ({what})" for n, what in VARIANTS.items() if what != "upscaler")
        return f"a UNet of {family.in_channels} input channels is not supported; known are {known}"
    return None


def dropped(names: Iterable[str]) -> dict[str, str]:
    """{name: reason} of all names in a file that are known and not needed."""
    return dict(_dropped(tuple(names)))


@lru_cache(maxsize=8)  # loading asks it of one file for every part
def _dropped(names: tuple[str, ...]) -> dict[str, str]:
    newer, older = RENAMED
    known = {n: older + n[len(newer) :] if n.startswith(newer) else n for n in names}
    tower = "cond_stage_model.model."
    block = re.compile(re.escape(tower) + r"transformer\.resblocks\.(\d+)\.")
    blocks = {int(m[1]) for m in map(block.match, known.values()) if m}
    # some writers leave the unused block out already
    whole = len(blocks) == 24 or tower + "text_projection" in known.values()
    rows = {
        re.compile(translate(p.format(last=max(blocks, default=0)))): why
        for p, why in DROPPED.items()
        if whole or "{last}" not in p
    }
    # most names match none: asked once, not 40 times
    every = re.compile("|".join(row.pattern for row in rows))
    gone = {}
    for name, plain in known.items():
        if every.match(plain):
            gone[name] = next(why for row, why in rows.items() if row.match(plain))
    return gone


def part_names(file: Mapping[str, Entry], family: Family, part: str) -> dict[str, str]:
    """{name without prefix, as `alias` spells it: name
    in the file} of one part, without what is dropped.

    Parts may share the empty prefix (a whole CLIP): then other parts' names are in it too.
    """
    prefix = family.parts[part]
    gone = dropped(file)
    return {
        alias(n.removeprefix(prefix)): n for n in file if n.startswith(prefix) and n not in gone
    }


def _match(file: Iterable[str], looks: dict[str, str]) -> tuple[str, str] | None:
    """The first kind whose look some name has, and that name."""
    for kind, look in looks.items():
        match = re.compile(look).match
        for name in file:
            if match(name):
                return kind, name
    return None


def _place(file: Mapping[str, Entry], part: str) -> tuple[str, str] | None:
    """(prefix, layout) of a part, if the file has it."""
    prefixes, signs = PLACES[part]
    return next(
        (
            (prefix, layout)
            for prefix in prefixes
            for layout, names in signs.items()
            for name in names
            if any(prefix + lead + name in file for lead in LEADS)
        ),
        None,
    )


def _shape(
    file: Mapping[str, Entry], part: str, ours: str, found: dict
) -> tuple[tuple[int, ...], str]:
    """(shape, name in the file) of one of our tensors; ((), its expected name) if it is absent."""
    prefix = found["parts"][part]
    theirs, _ = source_names(part, [ours], 1, 1, layout=found["layout"])[ours]
    theirs = theirs if isinstance(theirs, str) else theirs[0]  # a copy in every block
    full = next((n for lead in LEADS if (n := prefix + lead + alias(theirs)) in file), None)
    return (tuple(file[full].shape), full) if full else ((), prefix + theirs)
