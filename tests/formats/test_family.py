"""What a file is told to be from names and shapes, what of it is dropped, and the networks that it
asks for.
"""

import inspect
from functools import cache

import pytest
import torch

from minidiff.control.controlnet import ControlNet
from minidiff.control.t2i_adapter import T2IAdapter
from minidiff.formats.family import (
    DROPPED,
    FOREIGN,
    Family,
    detect,
    dropped,
    part_names,
    unsupported,
)
from minidiff.formats.keymaps import alias, ema_name, source_names
from minidiff.formats.mapped import Entry, memory_file
from minidiff.formats.ops import gather, scatter
from minidiff.formats.plans import network_args, networks
from minidiff.models.dit import DiT
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE

CLASSES = {
    "unet": UNet,
    "vae": VAE,
    "text": CLIPText,
    "dit": DiT,
    "controlnet": ControlNet,
    "t2i": T2IAdapter,
}
LDM = "model.diffusion_model."
CLIP_H24 = {**SIZES["sd21"]["text"], "layers": 24, "project_dim": 1024}
BUILDS = {
    "unet 1": dict(),
    "unet 2": SIZES["sd21"]["unet"],
    "unet depth": {**SIZES["sd21"]["unet"], "in_channels": 5},
    "unet inpaint": dict(in_channels=9),
    "unet ip2p": dict(in_channels=8),
    "unet 12": dict(in_channels=12),
    "unet x4": {**SIZES["sd21"]["unet"], "in_channels": 7},
    "unet xl": dict(context=2048, linear=True),
    "unet thin": dict(channels=(32, 64, 128, 128), context=24),
    "unet two": dict(channels=(32, 32), context=768, layers=1, attention=("cross", "cross")),
    "vae": {},
    "text 1": SIZES["sd15"]["text"],
    "text 24": CLIP_H24,
    "text 23": SIZES["sd21"]["text"],
    "text thin": dict(vocab_size=99, width=24, layers=2, heads=3, context=16),
    "text l": {**SIZES["sd15"]["text"], "project_dim": 768},
    "dit": {},
    "controlnet": {},
    "t2i": {},
    "t2i light": dict(light=True),
    "t2i grey": dict(in_channels=1),
}


@cache
def stored(name, layout, prefix=""):
    """{name in a file: Entry} of a full-size network of ours in a public layout."""
    part = name.split()[0]
    with torch.device("meta"):
        ours = CLASSES[part](**BUILDS[name]).state_dict()
    theirs = scatter(source_names(part, ours, layout=layout), ours)
    return {prefix + k: Entry(tuple(v.shape), torch.float16) for k, v in theirs.items()}


def entries(**shapes):
    return {k: Entry(v, torch.float32) for k, v in shapes.items()}


def sd(unet="unet 1", text="text 1", **extra):
    """An original single file."""
    layout, prefix = (
        ("diffusers", "transformer.") if text in ("text 1", "text thin") else ("original", "model.")
    )
    return {
        **stored(unet, "original", LDM),
        **stored("vae", "original", "first_stage_model."),
        **stored(text, layout, "cond_stage_model." + prefix),
        **extra,
    }


PLAIN = entries(
    betas=(1000,),
    alphas_cumprod=(1000,),
    alphas_cumprod_prev=(1000,),
    sqrt_one_minus_alphas_cumprod=(1000,),
    posterior_mean_coef1=(1000,),
    logvar=(1000,),
    scale_factor=(),
)
POSITIONS = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids": Entry((1, 77), torch.int64)
}
CLIP_REST = entries(
    **{"cond_stage_model.model.logit_scale": (), "cond_stage_model.model.attn_mask": (77, 77)}
)
EMA = {ema_name(k): e for k, e in stored("unet 1", "original", LDM).items()} | {
    "model_ema.decay": Entry((), torch.float32),
    "model_ema.num_updates": Entry((), torch.int32),
}


# ---- families ------------------------------------------------------------------------------------


def test_an_original_sd1_file_is_told_with_all_its_parts_and_says_why():
    found = detect(sd(**PLAIN, **POSITIONS))
    assert (found.kind, found.layout, found.variant) == ("sd1", "original", "text-to-image")
    assert (found.in_channels, found.context) == (4, 768)
    assert found.parts == {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text": "cond_stage_model.transformer.",
    }
    assert found.names == {"unet": "original", "vae": "original", "text": "diffusers"}
    assert found.prediction == "eps" and not found.has_ema and unsupported(found) is None
    assert (
        "'model.diffusion_model.input_blocks.0.0.weight' is (320, 4, 3, 3)" in found.why
        and "768 wide" in found.why
    )


def test_an_original_sd2_file_is_told_and_its_prediction_is_left_open():
    found = detect(sd("unet 2", "text 24", **CLIP_REST))
    assert (found.kind, found.context) == ("sd2", 1024)
    assert (found.names["text"], found.parts["text"]) == ("original", "cond_stage_model.model.")
    assert found.prediction is None and all(
        w in found.prediction_why for w in ("prediction=", "875000", "110000")
    )
    assert "linear projections" in found.why


@pytest.mark.parametrize(
    "unet, variant, channels",
    [
        ("unet inpaint", "inpainting", 9),
        ("unet ip2p", "instruct-pix2pix", 8),
        ("unet depth", "depth", 5),
        ("unet 12", None, 12),
    ],
)
def test_the_first_convolution_tells_the_variant(unet, variant, channels):
    found = detect(sd(unet, "text 1"))
    assert (found.variant, found.in_channels) == (variant, channels)
    assert (unsupported(found) is None) == (variant is not None)


@pytest.mark.parametrize(
    "name, layout, prefix, kind, context, prediction",
    [
        ("unet 1", "diffusers", "", "unet", 768, "eps"),
        ("unet 2", "diffusers", "", "unet", 1024, None),
        ("unet 1", "original", "model.diffusion_model.", "unet", 768, "eps"),
        ("unet thin", "diffusers", "", "unet", 24, None),
        ("vae", "original", "first_stage_model.", "vae", None, None),
        ("vae", "original", "", "vae", None, None),
        ("vae", "diffusers", "", "vae", None, None),
        ("text 1", "diffusers", "", "clip-text", 768, None),
        ("text l", "original", "", "openclip-text", 768, None),
        ("text 24", "original", "", "openclip-text", 1024, None),
        ("dit", "original", "", "dit", None, "eps"),
        ("dit", "diffusers", "", "dit", None, "eps"),
        ("controlnet", "original", "control_model.", "controlnet", 768, None),
        ("controlnet", "diffusers", "", "controlnet", 768, None),
        ("controlnet", "original", "", "controlnet", 768, None),
        ("t2i", "diffusers", "", "t2i", None, None),
        ("t2i", "original", "module.", "t2i", None, None),
        ("t2i light", "original", "", "t2i", None, None),
        ("t2i light", "diffusers", "", "t2i", None, None),
        ("t2i grey", "original", "", "t2i", None, None),
    ],
)
def test_files_of_one_network_are_told_in_every_layout(
    name, layout, prefix, kind, context, prediction
):
    file = stored(name, layout, prefix)
    found, part = detect(file), name.split()[0]
    assert (found.kind, found.context, found.prediction) == (kind, context, prediction)
    assert found.names == {part: layout} and found.layout == layout and unsupported(found) is None
    assert set(part_names(file, found, part).values()) == set(file)  # nothing of it is lost
    # `alias` takes that one away
    assert found.parts[part] == ("" if prefix == "module." else prefix)
    if part == "t2i":
        assert (found.variant, found.in_channels) == (
            "light" if "light" in name else "full",
            1 if "grey" in name else 3,
        )


def test_a_whole_clip_of_openai_gives_its_text_tower_and_drops_the_rest():
    rest = entries(
        input_resolution=(),
        context_length=(),
        vocab_size=(),
        logit_scale=(),
        **{"visual.proj": (1024, 768)},
    )
    file = stored("text l", "original") | rest
    assert detect(file).kind == "openai-clip" and dropped(file).keys() == rest.keys()
    assert networks(file, detect(file))["text"] == {
        **SIZES["sd15"]["text"],
        "mlp_ratio": 4,
        "project_dim": 768,
    }


def test_a_text_tower_with_and_without_its_prefix_is_the_same():
    file = stored("text 1", "diffusers", "cond_stage_model.transformer.")
    bare = {k.replace("text_model.", ""): e for k, e in file.items()}
    names = [part_names(f, detect(f), "text") for f in (file, bare)]
    assert names[0].keys() == names[1].keys() and "encoder.layers.0.mlp.fc1.bias" in names[0]
    assert [list(n.values()) for n in names] == [list(file), list(bare)]


def test_a_controlnet_that_brings_its_base_model_along_is_a_controlnet():
    file = sd() | stored("controlnet", "original", "control_model.")
    found = detect(file)
    assert found.kind == "controlnet" and set(found.parts) == {"controlnet", "unet", "vae", "text"}
    assert len(part_names(file, found, "controlnet")) == 340 and found.prediction is None


def test_averages_are_noticed_and_dropped_with_their_reason():
    file = sd(**EMA)
    assert detect(file).has_ema and not detect(sd()).has_ema
    gone = dropped(file)
    assert (
        gone.keys() == EMA.keys()
        and "running average" in gone[ema_name("model.diffusion_model.out.2.bias")]
    )


@pytest.mark.parametrize(
    "names, kind, variant, context",
    [
        (
            {
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (
                    4,
                    768,
                ),
                "lora_unet_mid_block_attentions_0_proj_in.alpha": (),
            },
            "lora",
            "kohya",
            768,
        ),
        (
            {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (3072, 4)},
            "lora",
            "kohya",
            None,
        ),
        (
            {
                "lora_unet_x_attn2_to_k.hada_w1_a": (320, 4),
                "lora_unet_x_attn2_to_k.hada_w1_b": (4, 1024),
            },
            "lora",
            "loha",
            1024,
        ),
        ({"lora_unet_x.lokr_w1": (8, 8), "lora_unet_x.lokr_w2_a": (40, 4)}, "lora", "lokr", None),
        (
            {
                "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (
                    4,
                    1024,
                )
            },
            "lora",
            "peft",
            1024,
        ),
        ({"base_model.model.x.attn2.to_k.lora_B.default.weight": (320, 4)}, "lora", "peft", None),
        (
            {
                "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (
                    4,
                    768,
                )
            },
            "lora",
            "diffusers",
            768,
        ),
        (
            {"text_encoder.x.q_proj.lora_linear_layer.up.weight": (768, 4)},
            "lora",
            "diffusers",
            None,
        ),
        ({"unet.x.to_q.lora.down.weight": (4, 320)}, "lora", "diffusers", None),
        ({"<cat>": (768,)}, "embedding", "diffusers", 768),
        ({"my.cat-toy": (3, 1024)}, "embedding", "diffusers", 1024),
        ({"emb_params": (8, 768)}, "embedding", "a1111", 768),
        ({"string_to_param.*": (2, 768)}, "embedding", "a1111", 768),
        ({"string_to_token.*": (), "string_to_param.*": (2, 768)}, "embedding", "a1111", 768),
    ],
)
def test_adapters_are_told_by_dialect_and_width(names, kind, variant, context):
    found = detect(entries(**names))
    assert (found.kind, found.variant, found.context) == (kind, variant, context) and unsupported(
        found
    ) is None


@pytest.mark.parametrize(
    "kind, file",
    [
        (
            "sdxl",
            entries(**{"conditioner.embedders.1.model.ln_final.weight": (1280,)})
            | stored("unet xl", "original", LDM),
        ),
        ("sdxl", stored("unet xl", "original")),
        ("sdxl", stored("unet xl", "diffusers")),
        ("sdxl", entries(**{"add_embedding.linear_1.weight": (1280, 2816)})),
        ("sdxl", entries(clip_g=(1, 1280), clip_l=(1, 768))),
        (
            "sd3",
            entries(
                **{"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}
            ),
        ),
        ("sd3", entries(**{"transformer_blocks.0.norm1_context.linear.weight": (1536, 1536)})),
        ("flux", entries(**{"double_blocks.0.img_attn.qkv.weight": (9216, 3072)})),
        (
            "flux",
            entries(
                **{
                    "transformer_blocks.0.norm1_context.linear.weight": (9, 3),
                    "single_transformer_blocks.0.norm.linear.bias": (9,),
                }
            ),
        ),
        (
            "pixart",
            entries(
                **{
                    "y_embedder.y_proj.fc1.weight": (1152, 4096),
                    "blocks.0.attn.qkv.weight": (3456, 1152),
                }
            ),
        ),
        ("pixart", entries(**{"adaln_single.linear.weight": (6912, 1152)})),
        (
            "unclip",
            sd("unet 2", "text 24") | entries(**{LDM + "label_emb.0.0.weight": (1280, 2048)}),
        ),
        (
            "motion",
            entries(**{"down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": (320,)}),
        ),
        ("ip-adapter", entries(**{"image_proj.proj.weight": (3072, 1024)})),
        (
            "gligen",
            stored("unet 1", "original", LDM)
            | entries(**{LDM + "position_net.linears.0.weight": (512, 832)}),
        ),
        ("vq", entries(**{"first_stage_model.quantize.embedding.weight": (8192, 4)})),
    ],
)
def test_families_we_do_not_load_are_recognised_and_refused_in_one_line(kind, file):
    found = detect(file)
    reason = unsupported(found)
    assert (
        found.kind == kind
        and reason
        and "\n" not in reason
        and FOREIGN[kind][1] in reason
        and "SD 1 and 2" in reason
    )


@pytest.mark.parametrize(
    "file, words",
    [
        (sd("unet x4", "text 24"), "x4 upscaler"),
        (sd("unet 12"), "12 input channels is not supported; known are 4 (text-to-image), 5"),
        (
            entries(**{"lora_unet_x_attn2_to_k.lora_down.weight": (4, 2048)}),
            "lora is for SDXL (width 2048)",
        ),
        (entries(**{"<cat>": (1, 1280)}), "embedding is for SDXL (width 1280)"),
        (entries(**{"unet:0:up": (320, 4), "unet:0:down": (4, 320)}), "layers are numbered"),
        (
            entries(**{"model_ema.diffusion_modelout2bias": (4,), "model_ema.decay": ()}),
            "only the running average of a UNet",
        ),
        (
            stored("controlnet", "original") | entries(difference=()),
            "stored as its difference from a base model",
        ),
    ],
)
def test_variants_we_do_not_load_are_refused_in_one_line(file, words):
    assert words in unsupported(detect(file)) and "\n" not in unsupported(detect(file))


@pytest.mark.parametrize(
    "file",
    [
        {},
        entries(weight=(3, 4)),
        entries(**{"layer.0.weight": (2,), "layer.0.bias": (3,)}),
        entries(a=(2, 3), b=(2, 4)),
        entries(betas=(1000,)),
        entries(scalar=()),
    ],
)
def test_a_file_of_no_known_family_is_refused(file):
    with pytest.raises(
        ValueError, match=rf"^this file is of no known family: {len(file)} tensor\(s\)"
    ):
        detect(file)


def test_the_refusal_names_the_file_and_keeps_a_hostile_name_short_and_on_one_line():
    with pytest.raises(ValueError, match=r"^<memory> is of no known") as e:
        detect(memory_file({"evil\n\x1b[2J" * 1000: torch.zeros(2, 2, 2)}))
    assert len(str(e.value)) < 400 and "\n" not in str(e.value) and "\x1b" not in str(e.value)


@pytest.mark.parametrize(
    "name, layout",
    [
        ("unet 1", "original"),
        ("dit", "original"),
        ("dit", "diffusers"),
        ("vae", "diffusers"),
        ("t2i", "original"),
        ("controlnet", "diffusers"),
        ("text 1", "diffusers"),
    ],
)
def test_shapes_that_no_network_has_crash_nothing(name, layout):
    """Every tensor a scalar: the family may be told, the networks are refused with a ValueError."""
    file = {k: Entry((), torch.float32) for k in stored(name, layout)}
    with pytest.raises(ValueError, match=r"expected [24] dimensions"):
        networks(file, detect(file))


# ---- what is dropped -----------------------------------------------------------------------------


def leftovers(file):
    """Names of a file that no part uses and no reason drops."""
    found = detect(file)
    left = set(file) - dropped(file).keys()
    for part, args in networks(file, found).items():
        with torch.device("meta"):
            ours = CLASSES[part](**args).state_dict()
        names = part_names(file, found, part)
        for key, (theirs, op) in source_names(part, ours, layout=found.names[part]).items():
            full = [names[alias(n)] for n in ([theirs] if isinstance(theirs, str) else theirs)]
            shape = gather(
                tuple(full), op, lambda n: torch.empty(file[n].shape, device="meta")
            ).shape
            assert shape == ours[key].shape, key
            left -= set(full)
    return left


@pytest.mark.parametrize(
    "file",
    [
        sd(**PLAIN, **POSITIONS, **EMA),
        sd("unet 2", "text 24", **CLIP_REST),
        sd("unet 2", "text 23"),
        sd("unet inpaint"),
    ],
    ids=["sd1", "sd2", "sd2 of 23 blocks", "inpainting"],
)
def test_every_tensor_of_a_release_is_used_or_dropped_with_a_reason(file):
    assert leftovers(file) == set()
    assert leftovers(file | entries(**{LDM + "extra.weight": (3,)})) == {LDM + "extra.weight"}


@pytest.mark.parametrize(
    "name, text, inner", [("1", "text 1", "transformer."), ("2", "text 24", "model.")]
)
def test_newer_names_of_the_text_tower_are_read_like_the_older(name, text, inner):
    older = sd(f"unet {name}", text) | entries(**{"denoiser.sigmas": (1000,)})
    newer = {
        k.replace("cond_stage_model.", "conditioner.embedders.0."): v for k, v in older.items()
    }
    found = detect(newer)
    assert (found.kind, found.parts["text"]) == (f"sd{name}", f"conditioner.embedders.0.{inner}")
    assert networks(newer, found) == networks(older, detect(older))
    assert sorted(dropped(newer).values()) == sorted(dropped(older).values())


def test_what_is_dropped_is_the_callers_own():
    names = list(entries(**{"denoiser.sigmas": (1000,)}))
    dropped(names).clear()
    assert list(dropped(names)) == names


def test_a_mark_in_the_file_says_that_it_predicts_v():
    found = detect(sd("unet 1") | entries(v_pred=(0,)))
    assert found.prediction == "v" and "v_pred" in found.prediction_why


def test_the_last_block_of_sd2s_tower_is_dropped_only_where_it_is_the_unused_24th():
    last = "cond_stage_model.model.transformer.resblocks.{}.ln_1.bias"
    whole, short = dropped(sd("unet 2", "text 24")), dropped(sd("unet 2", "text 23"))
    assert "never runs" in whole[last.format(23)] and last.format(22) not in whole
    assert "cond_stage_model.model.text_projection" in whole and short == {}
    assert dropped(stored("text 24", "original")) == {}  # a tower of its own keeps all


def test_every_reason_is_one_line_and_every_pattern_catches_something():
    assert all(why and "\n" not in why for why in DROPPED.values())
    for pattern in DROPPED:
        name = pattern.replace("{last}", "0").replace(
            "*", "x.position_ids" if pattern == "*position_ids" else "x"
        )
        tower = {"cond_stage_model.model.text_projection": 0} if "{last}" in pattern else {}
        assert name in dropped([name, *tower])


# ---- the networks a file asks for ----------------------------------------------------------------


def test_sd15_and_sd21_files_ask_for_the_networks_of_our_table():
    for size, file in (("sd15", sd(**PLAIN)), ("sd21", sd("unet 2", "text 24", **CLIP_REST))):
        args, spec = networks(file, detect(file)), SIZES[size]
        default = {k: p.default for k, p in inspect.signature(UNet).parameters.items()}
        assert {**default, **args["unet"]} == {**default, **spec["unet"]}
        assert args["vae"] == {k: v for k, v in spec["vae"].items() if k != "patch"} | dict(
            in_channels=3, latent=4
        )
        assert args["text"] == {**spec["text"], "mlp_ratio": 4}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize(
    "name", [n for n in BUILDS if n not in ("unet thin", "unet two", "text thin")]
)
def test_shapes_alone_rebuild_the_network(name, layout):
    part, config = name.split()[0], dict(sample_size=32) if name == "dit" else None
    args = network_args(
        part, stored(name, layout), layout, config, heads=8 if name == "unet x4" else None
    )
    with torch.device("meta"):
        again, ours = CLASSES[part](**args).state_dict(), CLASSES[part](**BUILDS[name]).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize(
    "name, plan",
    [
        ("unet thin", dict(layers=2, attention=("cross", "cross", "cross", None))),
        ("unet two", dict(layers=1, attention=("cross", "cross"))),
    ],
)
def test_a_width_that_was_never_released_needs_its_heads_and_keeps_its_plan(name, plan, layout):
    with pytest.raises(
        ValueError,
        match="number of heads of this UNet of width 32: give heads= \\(--heads\\) or a config",
    ):
        network_args("unet", stored(name, layout), layout)
    args = network_args("unet", stored(name, layout), layout, heads=4)
    assert args["heads"] == 4 and {k: args[k] for k in plan} == plan


def test_a_narrow_model_of_sds_plan_is_sd_but_says_neither_heads_nor_prediction():
    file = sd("unet thin", "text thin")
    found = detect(file)
    assert (found.kind, found.context, found.prediction) == ("sd1", 24, None)
    assert "no released model" in found.prediction_why
    with pytest.raises(ValueError, match="heads="):
        networks(file, found)
    args = networks(file, found, {"vae": dict(scaling_factor=0.5)}, heads={"unet": 8, "text": 3})
    assert (
        args["unet"]["heads"],
        args["text"]["heads"],
        args["text"]["layers"],
        args["vae"]["scale"],
    ) == (8, 3, 2, 0.5)


def test_text_towers_of_both_kinds_get_their_activation():
    def act(name, layout, **more):
        return network_args("text", stored(name, layout), layout, **more)["act"]

    assert act("text 1", "diffusers") == "quick_gelu" and act("text 23", "original") == "gelu"
    assert act("text 1", "diffusers", config=dict(hidden_act="gelu")) == "gelu"
    assert act("text l", "original", act="quick_gelu") == "quick_gelu"


def asked(name, **config):
    """The arguments for a file of the diffusers layout with its config."""
    return network_args(name.split()[0], stored(name, "diffusers"), "diffusers", config)


def test_attention_head_dim_is_the_number_of_heads():
    assert asked("unet 2", attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)[
        "heads"
    ] == (5, 10, 20, 20)
    assert asked("unet 1", attention_head_dim=4)["heads"] == 4
    # the default of diffusers, where it is left out
    assert asked("unet 2", sample_size=64)["heads"] == 8


def test_configs_give_what_no_tensor_shows():
    vae, unet = (
        asked("vae", scaling_factor=0.13025, norm_num_groups=16),
        asked("unet 1", norm_eps=1e-6, norm_num_groups=8),
    )
    assert (vae["scale"], vae["groups"]) == (0.13025, 16) and (unet["eps"], unet["groups"]) == (
        1e-6,
        8,
    )
    text = dict(num_attention_heads=6, eos_token_id=7, hidden_act="gelu", hidden_size=768)
    # in a whole CLIP
    for args in (asked("text 1", **text), asked("text 1", model_type="clip", text_config=text)):
        assert (args["heads"], args["eos_id"], args["act"]) == (6, 7, "gelu")
    assert asked("text 1", eos_token_id=2)["eos_id"] == 49407
    dit = asked("dit", num_attention_heads=8, attention_head_dim=144, sample_size=64)
    assert (dit["heads"], dit["size"]) == (8, 64)


@pytest.mark.parametrize(
    "name, config, words",
    [
        (
            "unet 1",
            dict(cross_attention_dim=1024),
            "cross_attention_dim is 1024, but the tensors have 768",
        ),
        ("unet 1", dict(block_out_channels=[320, 640, 1280]), "block_out_channels"),
        ("unet 1", dict(block_out_channels=[]), r"block_out_channels is \[\], but"),
        ("unet 1", dict(in_channels=9), "in_channels is 9, but the tensors have 4"),
        ("unet 1", dict(use_linear_projection=True), "use_linear_projection"),
        (
            "unet 1",
            dict(flip_sin_to_cos=False),
            "flip_sin_to_cos is False, which is not implemented; expected True",
        ),
        (
            "unet 1",
            dict(dual_cross_attention=True),
            "dual_cross_attention is True, which is not implemented; expected none",
        ),
        ("unet 1", dict(quantization_config={"bits": 4}), "quantization_config"),
        ("unet 1", dict(_class_name="UNet2DModel"), "_class_name is 'UNet2DModel'"),
        ("unet 1", dict(attention_head_dim="8"), "attention_head_dim is '8', expected"),
        ("unet 1", dict(attention_head_dim=[8, 8, None, 8]), "attention_head_dim is"),
        ("dit", dict(sample_size=32, num_attention_heads=0), "num_attention_heads is 0"),
        ("vae", dict(scaling_factor="big"), "scaling_factor is 'big', expected a number above 0"),
        (
            "unet 1",
            dict(attention_head_dim=[8, 8]),
            r"heads are \(8, 8\), but the UNet has 4 levels",
        ),
        ("unet 1", dict(down_block_types=["DownBlock2D"] * 4), "down_block_types"),
        ("vae", dict(latent_channels=16), "latent_channels is 16, but the tensors have 4"),
        ("vae", dict(shift_factor=0.1), "shift_factor is 0.1"),
        ("vae", dict(latents_mean=[0.0] * 4), "latents_mean"),
        ("vae", dict(use_quant_conv=False), "use_quant_conv"),
        ("text 1", dict(hidden_act="relu"), "hidden_act is 'relu'"),
        ("text 1", dict(layer_norm_eps=1e-6), "layer_norm_eps"),
        ("text 1", dict(num_hidden_layers=24), "num_hidden_layers is 24"),
        ("dit", dict(sample_size=32, norm_type="ada_norm"), "norm_type"),
        ("dit", dict(sample_size=32, num_layers=12), "num_layers is 12"),
        ("controlnet", dict(controlnet_conditioning_channel_order="bgr"), "channel_order is 'bgr'"),
        ("controlnet", dict(global_pool_conditions=True), "global_pool_conditions is True"),
        ("t2i", dict(adapter_type="full_adapter_xl"), "adapter_type"),
        ("t2i", dict(downscale_factor=16), "folded 16 x 16"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_its_field(name, config, words):
    with pytest.raises(ValueError, match=words) as e:
        asked(name, **config)
    assert "\n" not in str(e.value)


def test_a_missing_tensor_is_named():
    file = {
        k: e
        for k, e in stored("unet 1", "original").items()
        if k != "input_blocks.7.0.in_layers.2.weight"
    }
    with pytest.raises(
        ValueError,
        match=r"down_blocks\.2\.resnets\.0\.conv1\.weight is missing; expected 4 dimensions",
    ):
        network_args("unet", file, "original")


def test_a_diffusers_dit_without_its_config_does_not_know_its_size():
    with pytest.raises(ValueError, match="size of this DiT's latents"):
        network_args("dit", stored("dit", "diffusers"), "diffusers")


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="'safety'; there are: unet, controlnet, vae, text, t2i, dit"
    ):
        network_args("safety", {}, "diffusers")


SAME_AS_FILE = {
    "unet 1": dict(cross_attention_dim=768),
    "controlnet": dict(cross_attention_dim=768),
    "dit": dict(out_channels=8),
    "t2i": {},
    "vae": dict(
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ),
}
FIRST_DIT = dict(
    attention_head_dim=72,
    in_channels=4,
    num_layers=28,
    patch_size=2,
    sample_size=32,
    attention_bias=True,
    activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000,
    norm_type="ada_norm_zero",
    norm_elementwise_affine=False,
)
NO_EFFECT = {
    "dropout",
    "sample_size",
    "upcast_attention",
    "force_upcast",
    "addition_embed_type_num_heads",
}


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name, cls",
    [
        ("unet 1", "UNet2DConditionModel"),
        ("controlnet", "ControlNetModel"),
        ("vae", "AutoencoderKL"),
        ("t2i", "T2IAdapter"),
        ("dit", "DiTTransformer2DModel"),
        ("dit", "Transformer2DModel"),
    ],
)
def test_no_field_of_a_diffusers_config_is_ignored_unless_it_has_no_effect(name, cls):
    """What diffusers writes by default passes; with any one field changed it is refused, or asks
    for another network.
    """
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers (the development extra) is missing"
    )
    fields = {
        k: p.default
        for k, p in inspect.signature(getattr(diffusers, cls).__init__).parameters.items()
    }
    fields.pop("self")
    config = {
        **fields,
        **SAME_AS_FILE[name],
        **(FIRST_DIT if cls == "Transformer2DModel" else {}),
        "_class_name": cls,
        "_diffusers_version": "0.30.0",
    }
    want = asked(name, **config)
    # a DiT has no GroupNorm
    for field in fields.keys() - NO_EFFECT - ({"norm_num_groups"} if name == "dit" else set()):
        value = config[field]
        other = (
            not value
            if isinstance(value, bool)
            else 2 * value
            if value and isinstance(value, (int, float))
            else "else"
        )
        try:
            assert asked(name, **{**config, field: other}) != want, field
        except ValueError as e:
            assert field in str(e) or field in (
                "num_attention_heads",
                "attention_head_dim",
                "downscale_factor",
            ), e


def test_a_family_is_frozen():
    with pytest.raises(AttributeError):
        Family("sd1", "because").kind = "sd2"
