"""The small files beside the tensors: config.json of each part, the scheduler's, the list of parts;
and what a minidiff file says of itself. `plans.py` reads the same fields.

    config("unet", {"channels": (320, 640, 1280, 1280), "heads": 8, ...}, {})  ->
    {"block_out_channels": ..., ...}

Public format: diffusers' and transformers' own. In a UNet's config `attention_head_dim` is the
NUMBER of heads.
"""

from minidiff.formats.family import Family
from minidiff.formats.fields import field

FOLDERS = {"unet": "unet", "dit": "transformer", "vae": "vae", "text": "text_encoder"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
SD = dict(
    _class_name="DDIMScheduler",
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    steps_offset=1,
    set_alpha_to_one=False,
    clip_sample=False,
    timestep_spacing="leading",
)
DIT = SD | dict(
    beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, set_alpha_to_one=True
)


def scheduler_config(own: dict, family: Family, prediction: str | None) -> dict:
    """The scheduler's config: the model's `own`, else that of the released models. {} without a
    denoiser, and for a flow without a config of its own.
    """
    flow = str(own.get("_class_name")).startswith("FlowMatch")
    if prediction == "flow":
        return own if flow else {}
    base = (
        own
        if own and not flow
        else SD
        if "unet" in family.parts
        else DIT
        if "dit" in family.parts
        else {}
    )
    kind = next((theirs for theirs, ours in PREDICTIONS.items() if ours == prediction), None)
    return base | {"prediction_type": kind} if base and kind else base


def facts(
    family: Family, args: dict[str, dict], scheduler: dict, prediction: str | None, unet: dict
) -> dict:
    """What a minidiff file says of itself. `schedule` names a builder in `core/schedule.py`, None
    without a denoiser; `side` is that of the latents trained on, if the `unet`'s config has it.
    """
    name = "flow" if prediction == "flow" else SCHEDULES.get(field(scheduler, "beta_schedule", str))
    scheduler = scheduler if prediction else None  # whose prediction would otherwise be read as eps
    return dict(
        kind=family.kind,
        args=args,
        schedule=name,
        prediction=prediction,
        scheduler=scheduler,
        side=unet.get("sample_size"),
    )


def model_index(configs: dict[str, dict], tokenizer: bool, scheduler: dict) -> dict:
    """The list of parts, each with the library and
    class by which the diffusers package loads it.
    """
    kinds = {5: "Depth2Img", 8: "InstructPix2Pix", 9: "Inpaint"}
    kind = (
        f"StableDiffusion{kinds.get(configs['unet']['in_channels'], '')}"
        if "unet" in configs
        else "DiT"
    )
    rows = {
        FOLDERS[part]: ["transformers", c["architectures"][0]]
        if part == "text"
        else ["diffusers", c["_class_name"]]
        for part, c in configs.items()
    }
    rows |= {"tokenizer": ["transformers", "CLIPTokenizer"]} if tokenizer else {}
    rows |= (
        {"scheduler": ["diffusers", scheduler.get("_class_name", SD["_class_name"])]}
        if scheduler
        else {}
    )
    rows |= (
        dict(
            safety_checker=[None, None],
            feature_extractor=[None, None],
            requires_safety_checker=False,
        )
        if "unet" in configs
        else {}
    )
    return {"_class_name": kind + "Pipeline", **rows}


def config(part: str, args: dict, old: dict, side: int = 64) -> dict:
    """The config.json of a part: what `args` say over what the source's own had. `side` of the
    latents trained on, which is diffusers' default size. ValueError: its class in diffusers or
    transformers cannot be told to compute this.
    """
    size = {"unet": {"sample_size": side}, "vae": {"sample_size": 8 * side}}.get(part, {})
    return size | old.get("text_config", old) | CONFIGS[part](args)


def _unet(a: dict) -> dict:
    down = ["CrossAttnDownBlock2D" if kind == "cross" else "DownBlock2D" for kind in a["attention"]]
    if {*a["attention"], a["mid"]} - {"cross", None} or a["mid"] is None or a.get("classes"):
        raise ValueError(
            f"this UNet (attention {a['attention']}, middle {a['mid']}, classes "
            f"{a.get('classes')}) has no place in the diffusers layout, whose UNet reads text at "
            "the bottleneck; convert to minidiff"
        )
    shared = dict(
        in_channels=a["in_channels"],
        block_out_channels=a["channels"],
        layers_per_block=a["layers"],
        cross_attention_dim=a["context"],
        attention_head_dim=a["heads"],
        use_linear_projection=a["linear"],
        norm_num_groups=a["groups"],
        norm_eps=a["eps"],
        down_block_types=down,
        flip_sin_to_cos=True,
        freq_shift=0,
        downsample_padding=1,
        mid_block_scale_factor=1,
        act_fn="silu",
    )
    if "hint_channels" in a:
        return dict(
            _class_name="ControlNetModel",
            conditioning_embedding_out_channels=a["hint_channels"],
            **shared,
        )
    return dict(
        _class_name="UNet2DConditionModel",
        out_channels=a["out_channels"],
        **shared,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)],
    )


def _vae(a: dict) -> dict:
    n = len(a["channels"])
    return dict(
        _class_name="AutoencoderKL",
        in_channels=a["in_channels"],
        out_channels=a["in_channels"],
        latent_channels=a["latent"],
        block_out_channels=a["channels"],
        layers_per_block=a["layers"],
        norm_num_groups=a["groups"],
        scaling_factor=a["scale"],
        act_fn="silu",
        down_block_types=["DownEncoderBlock2D"] * n,
        up_block_types=["UpDecoderBlock2D"] * n,
    )


def _text(a: dict) -> dict:
    name = "CLIPTextModelWithProjection" if "project_dim" in a else "CLIPTextModel"
    return dict(
        architectures=[name],
        model_type="clip_text_model",
        vocab_size=a["vocab_size"],
        hidden_size=a["width"],
        intermediate_size=a["mlp_ratio"] * a["width"],
        num_hidden_layers=a["layers"],
        hidden_act=a["act"],
        num_attention_heads=a["heads"],
        max_position_embeddings=a["context"],
        layer_norm_eps=1e-5,
        eos_token_id=a["eos_id"],
        bos_token_id=a["eos_id"] - 1,
        pad_token_id=1,
        projection_dim=a.get("project_dim", a["width"]),
    )


def _t2i(a: dict) -> dict:
    return dict(
        _class_name="T2IAdapter",
        in_channels=a["in_channels"],
        num_res_blocks=a["layers"],
        channels=a["channels"][:-1] if a["light"] else a["channels"],
        downscale_factor=a["factor"],
        adapter_type="light_adapter" if a["light"] else "full_adapter",
    )


def _dit(a: dict) -> dict:
    if not a["classes"] or a["context"]:
        raise ValueError(
            "a DiT that reads text, or knows no classes, has no place in the diffusers layout; "
            "convert to minidiff"
        )
    return dict(
        _class_name="DiTTransformer2DModel",
        in_channels=a["in_channels"],
        num_layers=a["depth"],
        out_channels=a["in_channels"] * (1 + a["learn_sigma"]),
        patch_size=a["patch"],
        sample_size=a["size"],
        num_attention_heads=a["heads"],
        attention_head_dim=a["dim"] // a["heads"],
        num_embeds_ada_norm=a["classes"],
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_type="ada_norm_zero",
        norm_eps=1e-6,
        norm_elementwise_affine=False,
    )


CONFIGS = {"unet": _unet, "controlnet": _unet, "vae": _vae, "text": _text, "t2i": _t2i, "dit": _dit}
