"""Names and storage of public checkpoints: complete, one to one, and what the public converters
make of them.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from minidiff.control.controlnet import ControlNet
from minidiff.control.t2i_adapter import T2IAdapter
from minidiff.core.cond import Cond
from minidiff.formats import keymaps
from minidiff.formats.keymaps import (
    TABLES,
    alias,
    ema_name,
    plan_of,
    source_names,
    unet_original,
    vae_original,
)
from minidiff.formats.ops import READ, gather, scatter
from minidiff.models.dit import DiT
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE

MISSING = "diffusers (the development extra) is missing"
GOLDEN = Path(__file__).parents[2] / "../shared/cards/golden"
THIN = dict(channels=(32, 64, 128, 128), context=24)  # Stable Diffusion's plan of blocks, narrow
TEXT = dict(vocab_size=99, width=64, layers=3, heads=4, context=16, project_dim=24)
PARTS = {  # name: (part, network)
    "unet 1": ("unet", lambda: UNet(**THIN)),
    "unet 2": ("unet", lambda: UNet(**THIN, heads=(1, 2, 4, 4), linear=True)),
    "vae": ("vae", lambda: VAE(channels=(32, 64, 128, 128))),
    "text": ("text", lambda: CLIPText(**TEXT)),
    "controlnet": ("controlnet", lambda: ControlNet(**THIN)),
    "t2i": ("t2i", lambda: T2IAdapter(channels=(32, 64, 128, 128))),
    "t2i light": ("t2i", lambda: T2IAdapter(channels=(32, 64, 128, 128), light=True)),
    "dit": ("dit", lambda: DiT(size=8, dim=32, depth=3, heads=4, classes=7)),
}


def random(name, seed=0):
    """(part, {our name: tensor}), norms and biases random too."""
    part, make = PARTS[name]
    g, net = torch.Generator().manual_seed(seed), make()
    return part, {k: torch.randn(v.shape, generator=g) * 0.3 for k, v in net.state_dict().items()}


@cache
def public(name):
    """{name: shape} of our full-size networks."""
    with torch.device("meta"):
        net = {
            "unet 1": lambda: UNet(**SIZES["sd15"]["unet"]),
            "unet 2": lambda: UNet(**SIZES["sd21"]["unet"]),
            "vae": lambda: VAE(**SIZES["sd15"]["vae"]),
            "controlnet": ControlNet,
            "t2i": T2IAdapter,
        }[name]()
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


def theirs(part, ours, layout="original"):
    """{their name: shape} of {our name: shape}."""
    plan = source_names(part, ours, layout=layout)
    found = scatter(plan, {k: torch.empty(s, device="meta") for k, s in ours.items()})
    return {k: tuple(v.shape) for k, v in found.items()}


def digest(shapes):
    return hashlib.sha256(
        "\n".join(sorted(f"{k} {v}" for k, v in shapes.items())).encode()
    ).hexdigest()[:16]


def golden(name):
    path = GOLDEN / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"the list {path.name} of public names is not part of the repository")
    return {k: tuple(v) for k, v in json.loads(path.read_text()).items()}


# ---- full size -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, tensors, names",
    [
        ("unet 1", 686, "2489855b740ba326"),
        ("unet 2", 686, "50e424db2fb788a2"),
        ("vae", 248, "50f3b11a29b71571"),
        ("controlnet", 340, "d8dbf080c4eab591"),
    ],
)
def test_every_tensor_gets_the_name_and_the_shape_of_the_original_release(name, tensors, names):
    found = theirs(name.split()[0], public(name))
    assert (len(found), digest(found)) == (tensors, names)


def test_the_full_adapter_has_the_names_of_its_diffusers_release():
    assert digest(theirs("t2i", public("t2i"), "diffusers")) == "8d15e738595ba7eb"


@pytest.mark.parametrize(
    "ours, public_names, part, layout",
    [
        ("sd1_unet_diff", "sd1_unet_orig", "unet", "original"),
        ("sd2_unet_diff", "sd2_unet_orig", "unet", "original"),
        ("sd_vae_diff", "sd_vae_orig", "vae", "original"),
        ("sd1_controlnet_diff", "sd1_controlnet_orig", "controlnet", "original"),
        ("sd1_unet_diff", "sd1_unet_diff", "unet", "diffusers"),
        ("sd_vae_diff", "sd_vae_diff", "vae", "diffusers"),
        ("t2i_full_diff", "t2i_full_diff", "t2i", "diffusers"),
        ("dit_xl2_256_orig", "dit_xl2_256_orig", "dit", "original"),
    ],
)
def test_golden_lists_map_both_ways_with_nothing_left_and_every_shape_right(
    ours, public_names, part, layout
):
    ours, public_names = {alias(k): s for k, s in golden(ours).items()}, golden(public_names)
    plan = source_names(part, ours, layout=layout)
    for name, (source, op) in plan.items():  # forward: every one of ours is found there
        assert (
            tuple(gather(source, op, lambda n: torch.empty(public_names[n], device="meta")).shape)
            == ours[name]
        )
    assert theirs(part, ours, layout) == public_names  # back: every one of theirs, and no other


@pytest.mark.parametrize("ours", ["clip_l_diff", "sd2_clip_h_diff"])
def test_text_towers_map_to_openclips_names_without_a_collision(ours):
    ours = golden(ours)
    found, layers = (
        theirs("text", ours),
        len({k.split(".")[2] for k in ours if k.startswith("encoder.layers.")}),
    )
    # q, k, v of 6 tensors are 2
    assert len(found) == 12 * layers + 4 and len(ours) == 16 * layers + 4
    assert found[f"transformer.resblocks.{layers - 1}.attn.in_proj_weight"] == (
        3 * ours["final_layer_norm.bias"][0],
        ours["final_layer_norm.bias"][0],
    )
    assert theirs("text", ours, "diffusers") == {f"text_model.{k}": s for k, s in ours.items()}


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("name", PARTS)
def test_there_and_back_is_bit_equal(name, layout):
    part, ours = random(name)
    plan = source_names(part, ours, layout=layout)
    there = scatter(plan, ours)
    back = {
        k: gather(source, op, there.__getitem__)
        for k, (source, op) in plan.items()
        if op != "computed"
    }
    assert back.keys() == ours.keys() - (
        {"pos_embed"} if (part, layout) == ("dit", "diffusers") else set()
    )
    assert all(torch.equal(v, ours[k]) and v.is_contiguous() for k, v in back.items())
    assert all(v.is_contiguous() for v in there.values())


@pytest.mark.parametrize("name", ["unet 1", "vae", "text"])
def test_reading_makes_views_not_copies(name):
    part, ours = random(name)
    plan = source_names(part, ours)
    there = scatter(plan, ours)
    owned = {t.untyped_storage().data_ptr() for t in there.values()}
    copied = {
        k
        for k, (source, op) in plan.items()
        if gather(source, op, there.__getitem__).untyped_storage().data_ptr() not in owned
    }
    assert copied == ({"text_projection.weight"} if name == "text" else set())


def compvis(layers, attention):
    """The modules of the original UNet in the order its constructor makes them: {our site:
    theirs}.
    """
    out, i, levels = {"conv_in": "input_blocks.0.0"}, 1, len(attention)
    for b in range(levels):
        for l in range(layers):
            out[f"down_blocks.{b}.resnets.{l}.conv1"] = f"input_blocks.{i}.0.in_layers.2"
            if attention[b]:
                out[f"down_blocks.{b}.attentions.{l}.norm"] = f"input_blocks.{i}.1.norm"
            i += 1
        if b < levels - 1:
            out[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{i}.0.op"
            i += 1
    i = 0
    for b in reversed(range(levels)):
        for l in range(layers + 1):
            block, up = 1, f"up_blocks.{levels - 1 - b}"
            out[f"{up}.resnets.{l}.conv1"] = f"output_blocks.{i}.0.in_layers.2"
            if attention[b]:
                out[f"{up}.attentions.{l}.norm"] = f"output_blocks.{i}.1.norm"
                block += 1
            if b and l == layers:
                out[f"{up}.upsamplers.0.conv"] = f"output_blocks.{i}.{block}.conv"
            i += 1
    return out


@pytest.mark.parametrize(
    "layers, attention",
    [
        (2, (True, True, True, False)),
        (1, (False, True)),
        (3, (True, False, True)),
        (2, (True,)),
        (1, (False, False, True, True, False)),
    ],
)
def test_any_plan_of_blocks_is_numbered_as_the_original_constructor_numbers_it(layers, attention):
    want = compvis(layers, attention)
    assert {k: unet_original(k, layers, len(attention), attention)[0] for k in want} == want
    assert plan_of(f"{k}.weight" for k in want) == dict(
        layers=layers, levels=len(attention), attention=attention
    )
    assert plan_of(f"{v}.weight" for v in want.values()) == dict(
        layers=layers, levels=len(attention), attention=attention
    )
    net = UNet(
        channels=(32,) * len(attention),
        layers=layers,
        context=8,
        attention=["cross" if a else None for a in attention],
    )
    plan = source_names("unet", net.state_dict())  # found from our keys alone
    assert len({source for source, _ in plan.values()}) == len(plan)
    assert all(plan[f"{k}.weight"][0] == f"{v}.weight" for k, v in want.items())


@pytest.mark.parametrize(
    "key",
    [
        "input_blocks.{}.0.op.weight",
        "down_blocks.{}.resnets.0.conv1.weight",
        "down_blocks.0.resnets.{}.conv1.weight",
        "body.{}.block1.weight",
        "input_blocks.{}.0.weight",
        "blocks.{}.attn.proj.bias",
    ],
)
def test_a_hostile_number_in_a_name_plans_no_giant_network(key):
    plan = plan_of([key.format(10**12)])
    assert plan["layers"] <= 2 and plan["levels"] <= 2


def test_the_upsampler_stands_behind_the_attention_if_there_is_any():
    found = [unet_original(f"up_blocks.{b}.upsamplers.0.conv.weight")[0] for b in range(3)]
    assert found == [f"output_blocks.{name}.conv.weight" for name in ("2.1", "5.2", "8.2")]


def test_the_decoder_counts_its_levels_from_the_other_end():
    assert (
        vae_original("decoder.up_blocks.0.resnets.2.conv1.bias")[0]
        == "decoder.up.3.block.2.conv1.bias"
    )
    assert (
        vae_original("decoder.up_blocks.2.resnets.0.conv_shortcut.bias")[0]
        == "decoder.up.1.block.0.nin_shortcut.bias"
    )
    assert (
        vae_original("encoder.down_blocks.2.resnets.0.conv1.bias")[0]
        == "encoder.down.2.block.0.conv1.bias"
    )
    # two levels: the one that is doubled is number 1
    small = source_names("vae", VAE(channels=(32, 32)).state_dict())
    assert {k.split(".")[2] for k, _ in small.values() if ".upsample." in k} == {"1"}


@pytest.mark.parametrize(
    "key",
    [
        "down_blocks.4.resnets.0.conv1.weight",
        "down_blocks.0.resnets.2.conv1.weight",
        "up_blocks.0.resnets.3.conv1.weight",
        "up_blocks.4.upsamplers.0.conv.weight",
    ],
)
def test_a_name_outside_the_plan_is_refused_instead_of_taking_a_neighbours_place(key):
    with pytest.raises(ValueError, match="outside a network of 4 levels with 2 ResBlocks"):
        unet_original(key)


@pytest.mark.parametrize(
    "key",
    ["class_embedding.weight", "conv_inn.weight", "mid_block.resnets.2.conv1.bias", "bias", ""],
)
def test_a_name_without_a_place_is_refused_by_name(key):
    with pytest.raises(ValueError, match=f"^{key} is no name that this layout has a place for"):
        source_names("unet", [key])


def test_an_unknown_part_or_layout_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'unet' in layout 'webui'.*unet original"):
        source_names("unet", ["conv_in.weight"], layout="webui")


def test_no_row_of_a_table_is_hidden_behind_another():
    """Every row is the first to match for at least one tensor of a real network."""
    used = set()
    for name in PARTS:
        part, ours = random(name)
        for layout in ("original", "diffusers"):
            rows = TABLES["t2i-light" if name == "t2i light" else part, layout]
            for key in ours:
                used.add(
                    (id(rows), next(row for row in rows if keymaps._pattern(row).fullmatch(key)))
                )
    assert used >= {(id(rows), row) for rows in TABLES.values() for row in rows}


# ---- spelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, meant",
    [
        ("text_model.encoder.layers.0.mlp.fc1.bias", "encoder.layers.0.mlp.fc1.bias"),
        ("module.adapter.conv_in.weight", "conv_in.weight"),
        ("adapter.body.0.in_conv.bias", "body.0.in_conv.bias"),
        (
            "encoder.mid_block.attentions.0.query.weight",
            "encoder.mid_block.attentions.0.to_q.weight",
        ),
        (
            "decoder.mid_block.attentions.0.proj_attn.bias",
            "decoder.mid_block.attentions.0.to_out.0.bias",
        ),
        (
            "encoder.mid_block.attentions.0.to_q.weight",
            "encoder.mid_block.attentions.0.to_q.weight",
        ),
        ("down_blocks.0.adapter.value.weight", "down_blocks.0.adapter.value.weight"),
    ],
)
def test_old_and_wrapped_names_have_one_alias(written, meant):
    assert alias(written) == meant and alias(meant) == meant


@pytest.mark.parametrize("dims", [2, 4])
def test_old_autoencoder_files_read_with_flat_and_with_1x1_attention(dims):
    _, ours = random("vae")
    plan = source_names("vae", ours, layout="diffusers")
    assert sorted(op for _, op in plan.values() if op != "same") == ["flat"] * 8
    stored = {
        k: v[:, :, None, None] if dims == 4 and plan[k][1] == "flat" else v for k, v in ours.items()
    }
    assert all(
        torch.equal(gather(s, op, stored.__getitem__), ours[k]) for k, (s, op) in plan.items()
    )
    # written as they are today
    assert all(v.shape == ours[k].shape for k, v in scatter(plan, ours).items())


def test_averages_are_found_under_the_name_without_dots():
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert ema_name(name) == "model_ema.diffusion_modelinput_blocks00weight"
    names = {
        ema_name("model.diffusion_model." + s)
        for s, _ in source_names("unet", public("unet 1")).values()
    }
    assert len(names) == 686 and not any("." in n.removeprefix("model_ema.") for n in names)


# ---- the ops -------------------------------------------------------------------------------------


def test_a_third_that_is_missing_is_refused_by_name():
    part, ours = random("text")
    plan = source_names(part, ours)
    gone = "encoder.layers.1.self_attn.k_proj.bias"
    with pytest.raises(
        ValueError, match=r"resblocks\.1\.attn\.in_proj_bias is made of q, k and v.*third0, third2"
    ):
        scatter({k: v for k, v in plan.items() if k != gone}, ours)


def test_rows_that_are_no_three_thirds_are_refused():
    with pytest.raises(ValueError, match="8 rows do not divide"):
        gather("in_proj_weight", "third1", lambda n: torch.zeros(8, 4))


def test_a_3x3_convolution_is_not_squeezed_to_a_linear_layer():
    # so its shape will not fit
    assert READ["squeeze"]([torch.zeros(4, 4, 3, 3)]).shape == (4, 4, 3, 3)


def test_the_embedders_of_a_diffusers_dit_are_written_to_every_block_and_read_if_all_are_equal():
    part, ours = random("dit")
    plan = source_names(part, ours, layout="diffusers")
    there, (copies, op) = scatter(plan, ours), plan["t_embedder.mlp.2.weight"]
    assert op == "copies" and [c.split(".")[1] for c in copies] == ["0", "1", "2"]
    assert len({there[c].data_ptr() for c in copies}) == 3  # files allow no shared memory
    there[copies[2]][0, 0] += 1
    with pytest.raises(ValueError, match="different copies"):
        gather(copies, op, there.__getitem__)


def test_the_positions_of_a_diffusers_dit_are_computed_not_read():
    assert keymaps.dit_diffusers("pos_embed") == ((), "computed")
    with pytest.raises(ValueError, match="not stored there"):
        gather((), "computed", {}.__getitem__)


# ---- other implementations -----------------------------------------------------------------------


class OpenAIBlock(nn.Module):
    """The block of the original CLIP, by torch's own attention, with its names."""

    def __init__(self, d, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d), "c_proj": nn.Linear(4 * d, d)})

    def forward(self, x):
        n = x.shape[1]
        h, mask = self.ln_1(x), torch.full((n, n), -torch.inf).triu(1)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))


class OpenAIText(nn.Module):
    def __init__(self, vocab_size, width, layers, heads, context, project_dim):
        super().__init__()
        self.token_embedding, self.ln_final = nn.Embedding(vocab_size, width), nn.LayerNorm(width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.text_projection = nn.Parameter(torch.empty(width, project_dim))
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(OpenAIBlock(width, heads) for _ in range(layers))}
        )

    def forward(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer["resblocks"]:
            x = block(x)
        x = self.ln_final(x)
        return x, x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


def test_a_text_tower_under_openais_names_computes_the_same():
    part, ours = random("text")
    reference, tower = OpenAIText(**TEXT), CLIPText(**TEXT, eos_id=98)
    # strict: no name missing, none left
    reference.load_state_dict(scatter(source_names(part, ours), ours))
    tower.load_state_dict(ours)
    ids = torch.randint(0, 98, (2, 16), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 98
    with torch.no_grad():
        states, pooled = reference(ids)
        assert (tower(ids) - states).abs().max() < 1e-5 * states.std()
        assert (tower.pooled(tower(ids), ids) - pooled).abs().max() < 1e-5 * pooled.std()


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name, average",
    [("unet 1", False), ("unet 2", False), ("unet 1", True), ("vae", False), ("controlnet", False)],
)
def test_the_public_converter_reads_what_we_write(name, average):
    """diffusers' own reader of original files gives our tensors back, bit by bit."""
    single = pytest.importorskip("diffusers.loaders.single_file_utils", reason=MISSING)
    part, ours = random(name)
    prefix = {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "controlnet": "control_model.",
    }[part]
    there = {prefix + k: v for k, v in scatter(source_names(part, ours), ours).items()}
    config = dict(layers_per_block=2, down_block_types=[None] * 4, up_block_types=[None] * 4)
    if part == "unet":
        if average:
            there |= {ema_name(k): v for k, v in there.items()} | {
                k: torch.zeros_like(v) for k, v in there.items()
            }
        back = single.convert_ldm_unet_checkpoint(there, config, extract_ema=average)
    else:
        back = (
            single.convert_ldm_vae_checkpoint
            if part == "vae"
            else single.convert_controlnet_checkpoint
        )(there, config)
    assert back.keys() == ours.keys() and all(torch.equal(v, ours[k]) for k, v in back.items())


@pytest.mark.oracle
@pytest.mark.parametrize("light", [False, True])
def test_the_public_adapter_takes_the_names_we_write(light):
    diffusers = pytest.importorskip("diffusers", reason=MISSING)
    part, ours = random("t2i light" if light else "t2i")
    net = diffusers.T2IAdapter(
        channels=[32, 64, 128] if light else [32, 64, 128, 128],
        num_res_blocks=4 if light else 2,
        adapter_type="light_adapter" if light else "full_adapter",
    )
    net.load_state_dict(scatter(source_names(part, ours, layout="diffusers"), ours))


@pytest.mark.oracle
def test_a_dit_under_diffusers_names_computes_the_same():
    diffusers = pytest.importorskip("diffusers", reason=MISSING)
    part, ours = random("dit")
    net = DiT(size=8, dim=32, depth=3, heads=4, classes=7)
    ours["pos_embed"] = net.pos_embed.detach()  # fixed: theirs computes it too
    net.load_state_dict(ours)
    reference = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=7,
        norm_eps=1e-6,
    ).eval()
    reference.load_state_dict(scatter(source_names(part, ours, layout="diffusers"), ours))
    for block in reference.transformer_blocks:
        # theirs is 1, the official network's is 0
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    g = torch.Generator().manual_seed(2)
    x, t, label = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([7, 912]), torch.tensor([3, 6])
    with torch.no_grad():
        want = reference(x, timestep=t, class_labels=label).sample
        assert (net(x, t, Cond(label=label)) - want).abs().max() < 1e-5 * want.std()
