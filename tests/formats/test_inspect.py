"""What files are, from headers alone."""

import hashlib
import json
import re
import resource
import sys
import time
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from minidiff.formats.fill import build
from minidiff.formats.inspect import inspect, size, table
from minidiff.formats.keymaps import ema_name
from minidiff.formats.layouts import destination
from minidiff.formats.mapped import Entry
from minidiff.formats.ops import scatter
from minidiff.formats.writer import header
from minidiff.models.sizes import SIZES

PARTS = {"unet": {}, "vae": SIZES["sd15"]["vae"], "text": SIZES["sd15"]["text"]}


def shapes(part, to="original", alone=False, **args):
    """{name in a file: Entry} of a full-size network, without a number."""
    own = build(part, args).state_dict()
    rows = destination(part, own, to, {"act": "quick_gelu"} | args, alone)
    return {n: Entry(tuple(x.shape), x.dtype) for n, x in scatter(rows, own).items()}


def sparse(path, entries, metadata=None):
    """A valid file whose numbers are a hole: gigabytes that take no room on the disk."""
    head, _ = header(entries, metadata or {})
    with open(path, "wb") as f:
        f.write(head)
        f.truncate(len(head) + sum(e.nbytes for e in entries.values()))
    return path


def stable_diffusion():
    return dict(whole())


@cache
def whole():
    found = {n: e for part, args in PARTS.items() for n, e in shapes(part, **args).items()}
    return found | {
        "betas": Entry((1000,), torch.float32),
        "model_ema.decay": Entry((), torch.float32),
    }


def peak():
    """Bytes; in kB on Linux, as such on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def test_four_gigabytes_answer_within_a_second_of_computing(tmp_path):
    path = sparse(tmp_path / "sd1.safetensors", stable_diffusion())
    before, start = peak(), time.process_time()
    r = inspect(path)
    assert time.process_time() - start < 1 and peak() - before < 60e6
    assert (
        r["bytes"] > 4.2e9
        and r["family"] == "sd1"
        and r["layout"] == "original"
        and r["container"] == "safetensors"
    )
    assert {p: (x["tensors"], x["parameters"], x["dtypes"]) for p, x in r["parts"].items()} == {
        "unet": (686, 859_520_964, {"float32": 686}),
        "vae": (248, 83_653_863, {"float32": 248}),
        "text": (196, 123_060_480, {"float32": 196}),
    }
    assert (r["variant"], r["context"], r["base"], r["in_channels"]) == (
        "text-to-image",
        768,
        "Stable Diffusion 1",
        4,
    )
    assert r["prediction"] == "eps" and "every release of SD 1" in r["prediction_why"]
    assert r["unsupported"] is None and r["problem"] is None
    assert sorted(row["like"] for row in r["dropped"].values()) == ["'betas'", "'model_ema.decay'"]


def test_the_account_of_a_training_checkpoint_says_what_would_be_left_out(tmp_path):
    entries = stable_diffusion()
    entries |= {
        ema_name(n): e for n, e in entries.items() if n.startswith("model.diffusion_model.")
    }
    r = inspect(sparse(tmp_path / "sd1.safetensors", entries))
    assert (
        next(
            row["tensors"]
            for why, row in r["dropped"].items()
            if "running average of the UNet" in why
        )
        == 686
    )
    assert "dropped      686 such as 'model_ema." in table(r)


def test_the_prediction_of_stable_diffusion_2_is_unknown_and_says_why(tmp_path):
    entries = shapes("unet", **SIZES["sd21"]["unet"])
    r = inspect(sparse(tmp_path / "a.safetensors", entries))
    assert (
        r["prediction"] is None
        and "768-pixel" in r["prediction_why"]
        and "prediction   unknown: " in table(r)
    )
    r = inspect(sparse(tmp_path / "a.safetensors", entries, {"modelspec.prediction_type": "v"}))
    assert r["prediction"] == "v" and r["metadata"] == {"modelspec.prediction_type": "v"}


@pytest.mark.parametrize(
    "name, shape, words",
    [
        (
            "model.diffusion_model.out.2.bias",
            None,
            r"1 tensor\(s\) of the unet missing: 'model.diffusion_model.out.2.bias'",
        ),
        ("stranger", (1,), "1 of 1133 tensor.* have no place .*'stranger'"),
        ("first_stage_model.quant_conv.bias", (9,), r"gives \(9,\), expected \(8,\)"),
    ],
)
def test_what_would_keep_it_from_being_loaded_is_told(tmp_path, name, shape, words):
    entries = stable_diffusion() | {name: Entry(shape or (), torch.float32)}
    if shape is None:
        del entries[name]
    r = inspect(sparse(tmp_path / "a.safetensors", entries))
    assert r["family"] == "sd1" and re.search(words, r["problem"]) and "\nproblem " in table(r)


def test_a_width_that_was_never_released_is_a_problem_only_for_want_of_heads(tmp_path):
    r = inspect(
        sparse(tmp_path / "a.safetensors", shapes("unet", channels=(32, 32, 64, 64), context=24))
    )
    assert "number of heads" in r["problem"] and r["prediction"] is None


def test_a_controlnet_is_told_from_the_model_it_is_for(tmp_path):
    own = build("controlnet", {}).state_dict()
    rows = destination("controlnet", own, "original", {}, True)
    entries = {n: Entry(tuple(x.shape), torch.float16) for n, x in scatter(rows, own).items()}
    r = inspect(sparse(tmp_path / "c.safetensors", entries))
    assert (
        r["family"] == "controlnet" and r["problem"] is None and r["parts"].keys() == {"controlnet"}
    )
    assert r["dtypes"] == {"float16": len(own)}
    r = inspect(sparse(tmp_path / "whole.safetensors", entries | stable_diffusion()))
    assert r["family"] == "controlnet" and r["parts"].keys() == {
        "controlnet",
        "unet",
        "vae",
        "text",
    }
    assert r["problem"] is None and r["parts"]["unet"]["tensors"] == 686


def test_what_is_dropped_on_request_is_no_problem_any_more(tmp_path):
    stray = stable_diffusion() | {"ztsnr": Entry((1,), torch.float32)}
    path = sparse(tmp_path / "a.safetensors", stray)
    assert "ztsnr" in inspect(path)["problem"]
    r = inspect(path, drop=("zt*",))
    assert r["problem"] is None and r["ignored"] == ["'ztsnr'"]


def test_a_lora_tells_rank_alpha_and_base(tmp_path):
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {
        f"{name}.lora_down.weight": torch.ones(4, 768),
        f"{name}.lora_up.weight": torch.ones(320, 4),
        f"{name}.alpha": torch.tensor(2.0),
    }
    metadata = {"ss_network_dim": "4", "ss_base_model_version": "sd_v1"}
    save_file(lora, tmp_path / "l.safetensors", metadata | {"ss_tag_frequency": "x" * 999})
    r = inspect(tmp_path / "l.safetensors")
    assert (r["family"], r["variant"], r["rank"], r["alpha"], r["context"]) == (
        "lora",
        "kohya",
        [4],
        [2.0],
        768,
    )
    assert r["metadata"] == metadata
    text = table(r)
    assert (
        "\nrank         4\n" in text
        and "\nwidth        768 (Stable Diffusion 1)" in text
        and "prediction" not in text
    )


def test_an_embedding_tells_the_width_of_its_vectors(tmp_path):
    save_file({"<cat>": torch.ones(2, 1024)}, tmp_path / "e.safetensors")
    r = inspect(tmp_path / "e.safetensors")
    assert (r["family"], r["context"], r["base"]) == ("embedding", 1024, "Stable Diffusion 2")
    torch.save(
        {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": {"*": torch.ones(3, 768)},
            "name": "cat",
            "step": 5,
        },
        tmp_path / "e.pt",
    )
    r = inspect(tmp_path / "e.pt")
    assert (r["family"], r["variant"], r["context"]) == ("embedding", "a1111", 768)
    assert r["metadata"] == {"name": "cat", "step": "5"}


@pytest.mark.parametrize(
    "names, kind",
    [
        (["conditioner.embedders.1.model.x", "model.diffusion_model.out.2.weight"], "sdxl"),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "sd3"),
        (["double_blocks.0.img_attn.qkv.weight"], "flux"),
    ],
)
def test_what_is_not_supported_is_an_answer(tmp_path, names, kind):
    r = inspect(
        sparse(tmp_path / "x.safetensors", {n: Entry((8, 8), torch.float16) for n in names})
    )
    assert r["family"] == kind and "is not supported" in r["unsupported"] and r["problem"] is None
    assert f"unsupported  {kind} is not supported" in table(r)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"<!DOCTYPE html><html>404", "x.safetensors is an HTML page"),
        (b"", r"x.safetensors is empty \(0 bytes\)"),
        (b"\x08\0\0\0\0\0\0\0{}      junk", "it was cut off or damaged"),
        (b"\xff" * 64, "cannot hold the header it claims"),
    ],
)
def test_what_is_no_weights_file_is_refused_by_name(tmp_path, data, words):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        inspect(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors"):
        inspect(tmp_path / "nothing.safetensors")


def test_an_unknown_family_is_refused_by_name(tmp_path):
    torch.save(
        {"model": {"layer.weight": torch.ones(2, 2), "layer.bias": torch.ones(2)}},
        tmp_path / "x.pt",
    )
    with pytest.raises(ValueError, match=r"x.pt is of no known family"):
        inspect(tmp_path / "x.pt")


def test_the_hash_is_that_of_every_file(tmp_path):
    for sub in ("unet", "vae"):
        (tmp_path / sub).mkdir()
    for sub, args in (("unet", {"context": 8}), ("vae", {})):
        entries = shapes(sub, "diffusers", channels=(32,) * 4, **args)
        sparse(tmp_path / sub / "diffusion_pytorch_model.safetensors", entries)
    (tmp_path / "vae/config.json").write_text(
        json.dumps({"scaling_factor": 0.5, "block_out_channels": [32] * 4})
    )
    assert "sha256" not in inspect(tmp_path)
    r = inspect(tmp_path, sha256=True)
    assert r["layout"] == "diffusers" and r["container"] == "folder" and len(r["sha256"]) == 2
    for path, hashed in r["sha256"].items():
        assert hashed == hashlib.sha256(open(path, "rb").read()).hexdigest() and hashed in table(r)


def test_names_of_a_hostile_file_cannot_write_to_the_terminal(tmp_path):
    save_file({"<cat>\x1b[2J\n": torch.ones(768)}, tmp_path / "e.safetensors", {"name": "\x1b[2J"})
    assert "\x1b" not in table(inspect(tmp_path / "e.safetensors"))


def test_sizes_are_told_as_people_say_them():
    assert [size(n) for n in (0, 999, 1000, 4_265_146_304)] == [
        "0 bytes",
        "999 bytes",
        "1.00 kB",
        "4.27 GB",
    ]
