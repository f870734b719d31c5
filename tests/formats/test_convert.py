"""Weights into networks, and from layout to layout: equal to the bit, complete, atomic, in little
memory.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minidiff.control.controlnet import ControlNet
from minidiff.control.t2i_adapter import T2IAdapter
from minidiff.core.cond import Cond
from minidiff.formats.convert import build, convert, coverage, read, report
from minidiff.formats.family import detect
from minidiff.formats.files import memory_file, open_tensors
from minidiff.formats.keymaps import ema_name
from minidiff.formats.layouts import destination, open_model
from minidiff.formats.ops import scatter
from minidiff.models.dit import DiT
from minidiff.models.text import CLIPText
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE

THIN = dict(channels=(32, 64, 96, 96), context=24)  # Stable Diffusion's plan of blocks, narrow
TEXT = dict(vocab_size=99, width=24, layers=2, context=16, eos_id=98)
MODELS = {
    "sd1": {
        "unet": (UNet, THIN | dict(heads=4)),
        "vae": (VAE, dict(channels=(32, 64, 96, 96))),
        "text": (CLIPText, TEXT | dict(heads=4, act="quick_gelu")),
    },
    "sd2": {
        "unet": (UNet, THIN | dict(heads=(1, 2, 4, 4), linear=True)),
        "vae": (VAE, dict(channels=(32, 64, 96, 96))),
        "text": (CLIPText, TEXT | dict(heads=2, act="gelu")),
    },
    "dit": {"dit": (DiT, dict(size=8, dim=32, depth=3, heads=4, classes=7))},
    "controlnet": {"controlnet": (ControlNet, THIN | dict(heads=4))},
    "t2i": {"t2i": (T2IAdapter, dict(channels=(32, 64, 96, 96)))},
    "t2i light": {"t2i": (T2IAdapter, dict(channels=(32, 64, 96, 96), light=True))},
    "vae": {"vae": (VAE, dict(channels=(32, 64, 96, 96)))},
    "text 1": {"text": (CLIPText, TEXT | dict(heads=4, act="quick_gelu", project_dim=8))},
    "text 2": {"text": (CLIPText, TEXT | dict(heads=2, act="gelu", project_dim=8))},
}


def heads(name):
    return {part: args["heads"] for part, (_, args) in MODELS[name].items() if "heads" in args}


@cache
def network(name, part):
    """A network whose norms and biases are random too."""
    cls, args = MODELS[name][part]
    g, net = torch.Generator().manual_seed(len(name)), cls(**args).eval().requires_grad_(False)
    own = {k: torch.randn(v.shape, generator=g) * 0.2 for k, v in net.state_dict().items()}
    # a formula
    net.load_state_dict(own | {k: v for k, v in net.state_dict().items() if k == "pos_embed"})
    return net


def tensors(name, to="original", dtype=torch.float32):
    """{name in a file of that layout: tensor}."""
    found = {}
    for part, (_, args) in MODELS[name].items():
        own = {k: v.to(dtype) for k, v in network(name, part).state_dict().items()}
        rows = destination(part, own, to, args, len(MODELS[name]) == 1)
        found |= scatter(rows, own)
    return {k: v.contiguous() for k, v in found.items()}


def saved(path, name="sd1", extra=(), dtype=torch.float32, metadata=None):
    save_file(tensors(name, dtype=dtype) | dict(extra), path, metadata)
    return path


def equal(a, b):
    """Two files or folders hold the same tensors, to the bit, under the same names."""
    a, b = open_model(a).file, open_model(b).file
    return set(a) == set(b) and all(
        a[n].dtype == b[n].dtype and torch.equal(a.tensor(n), b.tensor(n)) for n in a
    )


def close(got, want):
    """Equal up to rounding in float32, relative to the spread."""
    return (got - want).abs().max() <= 2e-5 * want.std()


def snapshot(folder: Path) -> dict:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, dtype",
    [
        *((name, torch.float32) for name in MODELS),
        ("dit", torch.float16),
    ],
    ids=str,
)
def test_every_way_around_the_layouts_ends_at_the_same_bits(tmp_path, name, dtype):
    first = saved(tmp_path / "first.safetensors", name, dtype=dtype)
    convert(first, tmp_path / "folder", to="diffusers", heads=heads(name))
    convert(tmp_path / "folder", tmp_path / "mini.safetensors", to="minidiff")
    convert(tmp_path / "mini.safetensors", tmp_path / "again.safetensors", to="original")
    assert equal(first, tmp_path / "again.safetensors")
    convert(tmp_path / "mini.safetensors", tmp_path / "folder2", to="diffusers")
    assert equal(tmp_path / "folder", tmp_path / "folder2")
    convert(first, tmp_path / "mini2.safetensors", heads=heads(name))
    for part, (_, args) in MODELS[name].items():  # what no tensor shows came along
        here = open_model(tmp_path / "folder2").args()[part]
        assert here == open_model(tmp_path / "mini2.safetensors").args()[part]
        assert all(here[k] == v for k, v in args.items())


def test_tensors_of_several_dtypes_keep_theirs(tmp_path):
    mixed = {
        k: v.half() if "attn" in k else v.bfloat16() if "norm" in k else v
        for k, v in tensors("sd1").items()
    }
    save_file(mixed, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b", to="diffusers", heads=heads("sd1"))
    convert(tmp_path / "b", tmp_path / "c.safetensors", to="original")
    assert equal(tmp_path / "a.safetensors", tmp_path / "c.safetensors")


@pytest.mark.parametrize("to", ["original", "minidiff", "diffusers"])
def test_a_dtype_is_that_of_every_tensor_written(tmp_path, to):
    a, b = (
        saved(tmp_path / "a.safetensors", "text 2"),
        tmp_path / ("b" if to == "diffusers" else "b.safetensors"),
    )
    convert(a, b, to=to, dtype="float16", heads=heads("text 2"))
    file = open_model(b)
    assert {e.dtype for e in file.file.values()} == {torch.float16}
    net = build("text", file.args(heads("text 2"))["text"])
    read(file.file, file.family, "text", net)
    want = network("text 2", "text").state_dict()
    assert all(torch.equal(v, want[k].half().float()) for k, v in net.state_dict().items())


def test_what_is_written_is_read_by_the_safetensors_package(tmp_path):
    a = saved(tmp_path / "a.safetensors", "sd2", dtype=torch.float16)
    convert(a, tmp_path / "b.safetensors", to="original", heads=heads("sd2"))
    ours = load_file(tmp_path / "b.safetensors")
    assert ours.keys() == tensors("sd2").keys() and all(
        torch.equal(v.half(), ours[k]) for k, v in tensors("sd2").items()
    )


def test_old_pickles_and_shards_are_sources_too(tmp_path):
    torch.save(
        {"state_dict": tensors("sd1"), "global_step": 5, "optimizer_states": [1]},
        tmp_path / "a.ckpt",
    )
    facts = convert(
        tmp_path / "a.ckpt", tmp_path / "a.safetensors", to="original", heads=heads("sd1")
    )
    assert equal(tmp_path / "a.safetensors", saved(tmp_path / "b.safetensors"))
    assert "optimizer_states" in " ".join(facts["notes"])
    convert(tmp_path / "a.ckpt", tmp_path / "sd", to="diffusers", heads=heads("sd1"))
    whole = tmp_path / "sd/unet/diffusion_pytorch_model.safetensors"
    unet = load_file(whole)
    whole.unlink()
    halves = {
        f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": sorted(unet)[i::2]
        for i in range(2)
    }
    for shard, mine in halves.items():
        save_file({n: unet[n] for n in mine}, tmp_path / "sd/unet" / shard)
    (tmp_path / "sd/unet/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {n: shard for shard, mine in halves.items() for n in mine}})
    )
    convert(tmp_path / "sd", tmp_path / "c.safetensors", to="original")
    assert equal(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    (tmp_path / "sd/unet" / next(iter(halves))).unlink()
    with pytest.raises(FileNotFoundError, match=r"00001-of-00002.*is missing"):
        convert(tmp_path / "sd", tmp_path / "d.safetensors")


def test_the_running_average_is_taken_when_asked_for(tmp_path):
    average = {
        ema_name(n): v + 1
        for n, v in tensors("sd1").items()
        if n.startswith("model.diffusion_model.")
    }
    a = saved(tmp_path / "a.safetensors", extra=average | {"model_ema.decay": torch.tensor(0.5)})
    plain = convert(a, tmp_path / "plain.safetensors", heads=heads("sd1"))
    facts = convert(a, tmp_path / "ema.safetensors", heads=heads("sd1"), ema=True)
    plain, ema = (load_file(tmp_path / f"{n}.safetensors") for n in ("plain", "ema"))
    for k in plain:
        assert torch.equal(ema[k], plain[k] + 1 if k.startswith("unet.") else plain[k])
    assert (
        next(
            row["tensors"]
            for why, row in facts["dropped"].items()
            if why.startswith("the plain weights")
        )
        == 686
    )
    with pytest.raises(ValueError, match=r"plain.safetensors holds no running average"):
        convert(tmp_path / "plain.safetensors", tmp_path / "b.safetensors", ema=True)


# ---- what goes along -----------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["original", "minidiff", "diffusers"])
def test_the_prediction_that_was_said_is_read_back(tmp_path, to):
    a, b = (
        saved(tmp_path / "a.safetensors", "sd2"),
        tmp_path / ("b" if to == "diffusers" else "b.safetensors"),
    )
    assert open_model(a).prediction()[0] is None
    convert(a, b, to=to, heads=heads("sd2"), prediction="v")
    assert open_model(b).prediction()[0] == "v"


def test_an_unknown_prediction_stays_unknown(tmp_path):
    a = saved(tmp_path / "a.safetensors", "sd2")
    facts = convert(a, tmp_path / "b", to="diffusers", heads=heads("sd2"))
    assert facts["prediction"] is None and any(
        "no scheduler is written" in n for n in facts["notes"]
    )
    assert not (tmp_path / "b/scheduler").exists()
    convert(tmp_path / "b", tmp_path / "c.safetensors")
    convert(tmp_path / "c.safetensors", tmp_path / "d", to="diffusers")
    assert open_model(tmp_path / "d").prediction()[0] is None


def test_scheduler_tokenizer_and_what_else_configs_say_go_along(tmp_path):
    a = saved(tmp_path / "a.safetensors")
    convert(a, tmp_path / "b", to="diffusers", heads=heads("sd1"), prediction="eps")
    scheduler = dict(
        _class_name="PNDMScheduler",
        beta_schedule="linear",
        beta_start=0.001,
        prediction_type="v_prediction",
    )
    (tmp_path / "b/scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    unet = json.loads((tmp_path / "b/unet/config.json").read_text())
    (tmp_path / "b/unet/config.json").write_text(json.dumps(unet | dict(sample_size=24)))
    config = json.loads((tmp_path / "b/vae/config.json").read_text())
    (tmp_path / "b/vae/config.json").write_text(
        json.dumps(config | dict(scaling_factor=0.5, sample_size=123))
    )
    (tmp_path / "b/tokenizer").mkdir()
    (tmp_path / "b/tokenizer/vocab.json").write_text("{}")
    (tmp_path / "b/safety_checker").mkdir()
    facts = convert(tmp_path / "b", tmp_path / "c", to="diffusers")
    assert json.loads((tmp_path / "c/scheduler/scheduler_config.json").read_text()) == scheduler
    assert json.loads((tmp_path / "c/vae/config.json").read_text()) == config | dict(
        scaling_factor=0.5, sample_size=123
    )
    assert (tmp_path / "c/tokenizer/vocab.json").read_text() == "{}" and facts["notes"] == [
        "not read: safety_checker/"
    ]
    assert "tokenizer" in json.loads((tmp_path / "c/model_index.json").read_text())
    convert(tmp_path / "b", tmp_path / "d.safetensors")
    source = open_model(tmp_path / "d.safetensors")
    assert (
        source.scheduler == scheduler
        and source.facts["schedule"] == "linear"
        and source.args()["vae"]["scale"] == 0.5
    )
    assert source.configs["unet"]["sample_size"] == 24
    facts = convert(tmp_path / "b", tmp_path / "e.safetensors", to="original")
    assert any("scale of the vae is 0.5; this layout cannot say so" in n for n in facts["notes"])


def test_the_account_names_every_part_and_what_was_dropped(tmp_path):
    extra = {
        "betas": torch.ones(9),
        "alphas_cumprod": torch.ones(9),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
    }
    facts = convert(
        saved(tmp_path / "a.safetensors", extra=extra),
        tmp_path / "b.safetensors",
        heads=heads("sd1"),
    )
    assert {part: (p["read"], p["filled"], p["written"]) for part, p in facts["parts"].items()} == {
        "unet": (686,) * 3,
        "vae": (248,) * 3,
        "text": (36,) * 3,
    }
    assert facts["parts"]["unet"]["parameters"] == sum(
        v.numel() for v in network("sd1", "unet").state_dict().values()
    )
    assert sorted(row["tensors"] for row in facts["dropped"].values()) == [1, 2]
    text = report(facts)
    assert "2 such as 'alphas_cumprod': a table of the noise schedule" in text and text.endswith(
        "b.safetensors"
    )
    json.dumps(facts)


def test_the_tower_of_stable_diffusion_2_comes_without_its_last_block_and_projection(tmp_path):
    block = {
        k.replace("resblocks.1", "resblocks.2"): v + 1
        for k, v in tensors("sd2").items()
        if "resblocks.1." in k
    }
    extra = block | {
        "cond_stage_model.model.text_projection": torch.zeros(24, 8),
        "cond_stage_model.model.logit_scale": torch.ones(()),
    }
    a = saved(tmp_path / "a.safetensors", "sd2", extra)
    convert(a, tmp_path / "b", to="diffusers", heads=heads("sd2"))
    convert(tmp_path / "b", tmp_path / "c.safetensors", to="original")
    assert equal(tmp_path / "c.safetensors", saved(tmp_path / "d.safetensors", "sd2"))


def test_what_the_original_layout_would_lose_is_refused(tmp_path):
    # read again, it would be taken for SD 2's whole tower
    net = CLIPText(**TEXT | dict(layers=24, heads=2))
    flat = tensors("sd2", "minidiff") | {f"text.{k}": v for k, v in net.state_dict().items()}
    save_file(flat, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b", to="diffusers", heads=heads("sd2"))
    text = tmp_path / "b/text_encoder/config.json"
    text.write_text(json.dumps(json.loads(text.read_text()) | {"hidden_act": "gelu"}))
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"no place for 12 tensor.*the last block of OpenCLIP"):
        convert(tmp_path / "b", tmp_path / "c.safetensors", to="original")
    assert snapshot(tmp_path) == before


# ---- into networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("to", ["original", "diffusers", "minidiff"])
def test_networks_that_were_read_compute_what_the_saved_ones_do(tmp_path, name, to):
    path = saved(tmp_path / "a.safetensors", name)
    convert(
        path,
        path := tmp_path / ("b" if to == "diffusers" else "b.safetensors"),
        to=to,
        heads=heads(name),
    )
    source = open_model(path)
    nets = {part: build(part, args) for part, args in source.args(heads(name)).items()}
    for part, net in nets.items():
        assert len(read(source.file, source.family, part, net).filled) == len(net.state_dict())
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        want = network(name, part).state_dict()
        assert all(torch.equal(v, want[k]) for k, v in net.state_dict().items())
    # equal weights at other addresses: kernels round by alignment
    g = torch.Generator().manual_seed(0)
    z, cond = torch.randn(1, 4, 8, 8, generator=g), Cond(text=torch.randn(1, 16, 24, generator=g))
    with torch.no_grad():
        t, ids = torch.tensor([7]), torch.tensor([[97, 5, 98]])
        assert close(nets["unet"](z, t, cond), network(name, "unet")(z, t, cond))
        assert close(nets["vae"].decode(z), network(name, "vae").decode(z))
        assert close(nets["text"](ids), network(name, "text")(ids))


def test_tensors_of_the_right_dtype_are_mapped_and_others_are_cast(tmp_path):
    path = saved(tmp_path / "a.safetensors", "vae", dtype=torch.float16)
    source = open_model(path)
    half, full = (build("vae", source.args()["vae"]) for _ in range(2))
    read(source.file, source.family, "vae", half, torch.float16)
    read(source.file, source.family, "vae", full)  # None: float32
    for ours, theirs in (
        ("encoder.conv_in.weight",) * 2,
        ("encoder.mid_block.attentions.0.to_q.weight", "encoder.mid.attn_1.q.weight"),
    ):
        mapped, h, f = (
            source.file.tensor(theirs),
            half.get_parameter(ours),
            full.get_parameter(ours),
        )
        assert (
            h.data_ptr() == mapped.data_ptr()
            and f.dtype == torch.float32
            and torch.equal(f, h.float())
        )


def test_a_network_is_built_without_memory_and_without_touching_the_random_state():
    before = torch.get_rng_state()
    net = build("unet", {})
    assert (
        all(p.is_meta for p in net.parameters())
        and sum(p.numel() for p in net.parameters()) == 859_520_964
    )
    assert torch.equal(torch.get_rng_state(), before)


def spoil(**changes):
    """A memory file of a VAE with some tensors replaced (None: removed)."""
    names = {
        "bias": "decoder.conv_out.bias",
        "q": "encoder.mid.attn_1.q.weight",
        "more": "encoder.more",
    }
    found = tensors("vae") | {names[k]: v for k, v in changes.items()}
    return memory_file({k: v for k, v in found.items() if v is not None})


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(bias=None), r"1 tensor\(s\) of the vae missing: 'decoder.conv_out.bias'"),
        (dict(bias=torch.zeros(4)), r"'decoder.conv_out.bias' gives \(4,\), expected \(3,\)"),
        (dict(q=torch.zeros(7)), r"'encoder.mid.attn_1.q.weight'"),
        (dict(bias=torch.zeros(3, dtype=torch.int64)), "is torch.int64, expected floating-point"),
        (
            dict(bias=torch.tensor([1.0, float("nan"), 2.0])),
            r"holds NaN or infinite numbers \(1 of 3\)",
        ),
        (dict(bias=torch.tensor([1.0, -float("inf"), 2.0])), "holds NaN or infinite"),
        (
            dict(bias=torch.tensor([1.0, 1e300, 2.0], dtype=torch.float64)),
            r"reaches 1e\+300, more than torch.float32 can hold",
        ),
    ],
)
def test_a_tensor_that_is_not_right_is_refused_by_name_and_the_network_left_alone(changes, words):
    file, net = spoil(**changes), build("vae", MODELS["vae"]["vae"][1])
    with pytest.raises(ValueError, match=words) as e:
        read(file, detect(file), "vae", net)
    assert str(e.value).startswith("<memory>: ") and "\n" not in str(e.value)
    assert all(p.is_meta for p in net.parameters())


def test_names_without_a_place_are_refused_and_listed():
    file = spoil(more=torch.zeros(1))
    with pytest.raises(
        ValueError,
        match=r"<memory>: 1 of 249 tensor\(s\) have no place .* family vae: 'encoder.more'",
    ):
        coverage(file, detect(file), {"vae": build("vae", MODELS["vae"]["vae"][1])})


def test_every_tensor_is_used_or_dropped_for_a_reason():
    file = memory_file(tensors("sd1") | {"betas": torch.ones(3)})
    family, unet = detect(file), build("unet", MODELS["sd1"]["unet"][1])
    seen = coverage(file, family, {"unet": unet})
    assert len(seen.used) == len(seen.filled) == 686 and seen.unknown == ()
    assert (
        set(seen.used) | seen.dropped.keys() == set(file)
        and not set(seen.used) & seen.dropped.keys()
    )
    assert (
        seen.dropped["first_stage_model.quant_conv.weight"]
        == "part of the vae, which is not wanted here"
    )
    assert set(seen.filled) == {f"unet.{k}" for k in unet.state_dict()}


def test_positions_of_a_transformer_that_no_formula_gives_are_not_lost_silently(tmp_path):
    save_file(tensors("dit") | {"pos_embed": torch.ones(1, 16, 32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: pos_embed is not what the formula gives"):
        convert(tmp_path / "a.safetensors", tmp_path / "b", to="diffusers", heads=heads("dit"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", heads=heads("dit"))
    assert (load_file(tmp_path / "b.safetensors")["dit.pos_embed"] == 1).all()


# ---- whole or not at all -------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["minidiff", "diffusers"])
def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, to):
    last = {"first_stage_model.post_quant_conv.bias": torch.full((4,), float("nan"))}
    a = saved(tmp_path / "a.safetensors", extra=last)
    convert(
        saved(tmp_path / "good.safetensors"),
        old := tmp_path / ("b" if to == "diffusers" else "b.safetensors"),
        to=to,
        heads=heads("sd1"),
    )
    before = snapshot(tmp_path)
    for dst in (tmp_path / "new/folder" / old.name, old):  # neither a new place nor the old file
        with pytest.raises(
            ValueError, match=r"a.safetensors: tensor '.*post_quant_conv.bias' holds NaN"
        ):
            convert(a, dst, to=to, heads=heads("sd1"), force=True)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("to", ["minidiff", "diffusers"])
def test_what_exists_is_overwritten_only_by_force(tmp_path, to):
    a, dst = (
        saved(tmp_path / "a.safetensors", "vae"),
        tmp_path / ("b" if to == "diffusers" else "b.safetensors"),
    )
    convert(a, dst, to=to)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"b.* exists; .*--force"):
        convert(a, dst, to=to)
    assert snapshot(tmp_path) == before
    convert(a, dst, to=to, dtype="float16", force=True)
    assert {e.dtype for e in open_model(dst).file.values()} == {torch.float16}
    assert len(list(tmp_path.iterdir())) == 2
    convert(dst, dst, to=to, dtype="float32", force=True)  # a file may take its own place
    assert {e.dtype for e in open_model(dst).file.values()} == {torch.float32}


def test_a_folder_of_other_things_is_never_emptied(tmp_path):
    a = saved(tmp_path / "a.safetensors", "vae")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    for dst, words in (
        ("home", "other things than weights"),
        (".", "is inside it"),
        ("a.safetensors", "no folder"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(a, tmp_path / dst, to="diffusers", force=True)
    with pytest.raises(ValueError, match="is a folder, where a file"):
        (tmp_path / "x.safetensors").mkdir()
        convert(a, tmp_path / "x.safetensors", force=True)
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        convert(a, tmp_path / "b.ckpt")
    assert (tmp_path / "home/letter.txt").read_text() == "dear" and a.is_file()


def test_a_link_stays_a_link(tmp_path):
    a = saved(tmp_path / "a.safetensors", "vae")
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk/real.safetensors", tmp_path / "link.safetensors")
    convert(a, tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink() and (
        tmp_path / "disk/real.safetensors"
    ).is_file()


# ---- bad input -----------------------------------------------------------------------------------


def contradiction(path):
    saved(path.with_suffix(".old.safetensors"), "vae")
    convert(path.with_suffix(".old.safetensors"), path)
    held = open_tensors(path)
    facts = json.loads(held.metadata["minidiff"])
    facts["args"]["vae"]["layers"] = 3
    save_file(load_file(path), path, {"minidiff": json.dumps(facts)})


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda p: save_file({"lora_unet_a.lora_down.weight": torch.ones(1, 2)}, p),
            "is a file of kind lora, no network",
        ),
        (lambda p: save_file({"conditioner.embedders.1.x": torch.ones(1)}, p), "sdxl"),
        (lambda p: save_file({"what.ever": torch.ones(1, 2, 3)}, p), "no known family"),
        (lambda p: p.write_text("<!DOCTYPE html><p>404"), "HTML page"),
        (lambda p: saved(p), r"number of heads of this UNet of width 32"),
        (lambda p: saved(p, "vae", metadata={"minidiff": "{"}), "no readable minidiff file"),
        (
            lambda p: saved(
                p,
                "vae",
                metadata={
                    "minidiff": '{"args": {"vae": 3}, "scheduler": null, "prediction": null}'
                },
            ),
            "not those that minidiff writes",
        ),
        (contradiction, r"metadata say that layers of the vae is 3, its tensors show 2"),
        (lambda p: saved(p, extra={"first_stage_model.encoder.more": torch.ones(1)}), "heads"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line_that_names_the_file(tmp_path, make, words):
    make(tmp_path / "bad.safetensors")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=words) as e:
        convert(tmp_path / "bad.safetensors", tmp_path / "b.safetensors")
    assert (
        "bad.safetensors" in str(e.value)
        and "\n" not in str(e.value)
        and snapshot(tmp_path) == before
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(to="onnx"), "to='onnx' is unknown; choose one of: minidiff, original, diffusers"),
        (dict(dtype="int8"), "dtype='int8'"),
        (dict(prediction="noise"), "prediction='noise'"),
        (dict(heads={"unett": 4.0}), "heads: unett is no part of"),
        (dict(heads={"vae": 2.5}), "vae is 2.5, expected a whole number above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        convert(saved(tmp_path / "a.safetensors", "vae"), tmp_path / "b.safetensors", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_lacks_a_part_it_names_is_refused(tmp_path):
    convert(saved(tmp_path / "a.safetensors"), tmp_path / "b", to="diffusers", heads=heads("sd1"))
    (tmp_path / "b/vae").rename(tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match=r"b/vae is missing, which model_index.json names"):
        open_model(tmp_path / "b")
    (tmp_path / "b/vae").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no weights file in .*vae"):
        open_model(tmp_path / "b")
    (tmp_path / "b/model_index.json").write_text("[")
    with pytest.raises(ValueError, match=r"model_index.json is no readable JSON file"):
        open_model(tmp_path / "b")


# ---- memory and other packages -------------------------------------------------------------------

MEMORY = """
import resource, sys
from minidiff.formats.convert import build, convert
from minidiff.formats.mapped import Entry
from minidiff.formats.writer import header
entries = {name: Entry(tuple(x.shape), x.dtype) for name, x in build("vae", {}).state_dict().items()}
head, _ = header(entries, {})
total = sum(e.nbytes for e in entries.values())
with open("vae.safetensors", "wb") as f:
    f.write(head)
    f.truncate(len(head) + total)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert("vae.safetensors", "half.safetensors", to="original", dtype="float16")
print(total, peak() - before, "torch._dynamo" in sys.modules)
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="sparse files and ru_maxrss in kB are Linux's; no other place to test",
)
def test_converting_takes_the_memory_of_a_few_tensors_and_no_compiler(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    total, grown, compiler = done.stdout.split()
    # the largest tensor: 9 MB
    assert int(total) > 3.3e8 and int(grown) < 8e7 and compiler == "False", done.stdout


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_diffusers_loads_the_folder_and_computes_the_same(tmp_path, name):
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers (the development extra) is missing"
    )
    convert(
        saved(tmp_path / "a.safetensors", name),
        tmp_path / "b",
        to="diffusers",
        heads=heads(name),
        prediction="v",
    )
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "b", tokenizer=None)
    assert (
        pipe.scheduler.config.prediction_type == "v_prediction"
        and pipe.scheduler.config.beta_end == 0.012
    )
    g = torch.Generator().manual_seed(0)
    z, text, ids = (
        torch.randn(1, 4, 8, 8, generator=g),
        torch.randn(1, 16, 24, generator=g),
        torch.tensor([[97, 5, 98]]),
    )
    with torch.no_grad():
        theirs = pipe.unet(z, 7, text).sample, pipe.vae.decode(z).sample, pipe.text_encoder(ids)[0]
        ours = (
            network(name, "unet")(z, torch.tensor([7]), Cond(text=text)),
            network(name, "vae").decode(z),
            network(name, "text")(ids),
        )
    for a, b in zip(ours, theirs):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1), (a - b).abs().max()


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name, cls",
    [
        ("dit", "DiTTransformer2DModel"),
        ("controlnet", "ControlNetModel"),
        ("t2i", "T2IAdapter"),
        ("t2i light", "T2IAdapter"),
        ("vae", "AutoencoderKL"),
    ],
)
def test_diffusers_finds_every_tensor_of_a_single_part(tmp_path, name, cls):
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers (the development extra) is missing"
    )
    convert(
        saved(tmp_path / "a.safetensors", name), tmp_path / "b", to="diffusers", heads=heads(name)
    )
    folder = tmp_path / "b/transformer" if name == "dit" else tmp_path / "b"
    net, info = getattr(diffusers, cls).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and len(net.state_dict()) == len(open_model(tmp_path / "b").file)


@pytest.mark.oracle
def test_the_folder_that_diffusers_saves_is_read_and_written_back_the_same(tmp_path):
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers (the development extra) is missing"
    )
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 96, 96), cross_attention_dim=24, attention_head_dim=4
    )
    net.save_pretrained(tmp_path / "a/unet")
    convert(tmp_path / "a", tmp_path / "b.safetensors", to="original")
    convert(tmp_path / "b.safetensors", tmp_path / "c", to="diffusers", heads={"unet": 4})
    assert equal(tmp_path / "a", tmp_path / "c")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "c/unet")
    same = {k: v for k, v in net.config.items() if not k.startswith("_") and k != "sample_size"}
    assert all(again.config[k] == v or list(again.config[k]) == list(v) for k, v in same.items())
