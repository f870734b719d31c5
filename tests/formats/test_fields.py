"""JSON of wrong types: every field of every config that is read, one sentence or an answer."""

import json
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from minidiff.formats.configs import SD, config
from minidiff.formats.fields import field, numbers
from minidiff.formats.fill import build
from minidiff.formats.keymaps import source_names
from minidiff.formats.layouts import open_model
from minidiff.formats.mapped import Entry
from minidiff.formats.ops import scatter
from minidiff.formats.plans import network_args
from minidiff.formats.schedulers import instead, sampling
from minidiff.models.vae import VAE
from minidiff.weights.real import _side

WRONG = (
    *(None, True, False, 0, -1, 3, 1.5, 10**30, float("nan"), float("inf")),
    *("", "x", "0.00085", [], [None], [8, 8], ["x"], [[1]], {}, {"a": 1}),
)
SHORT = dict(channels=(32, 32), layers=1, attention=("cross", None), heads=4, context=16)
NETWORKS = {
    "unet": SHORT,
    "controlnet": SHORT,
    "vae": dict(channels=(32, 32), layers=1),
    "text": dict(vocab_size=9, width=16, layers=1, heads=2, context=8, eos_id=8),
    "t2i": dict(channels=(32, 32)),
    "dit": dict(size=8, dim=32, depth=1, heads=4, classes=7),
}


@cache
def stored(part):
    """(names and shapes in the diffusers layout, config.json) of a small network."""
    args = NETWORKS[part]
    own = build(part, args).state_dict()
    theirs = scatter(source_names(part, own, layout="diffusers"), own)
    entries = {name: Entry(tuple(x.shape), torch.float32) for name, x in theirs.items()}
    full = network_args(part, entries, "diffusers", {"sample_size": 8}, heads=args.get("heads"))
    plain = json.loads(json.dumps(config(part, full | {"act": "quick_gelu"}, {})))
    return entries, plain


@pytest.mark.parametrize("part", NETWORKS)
def test_no_type_in_a_networks_config_ends_in_anything_but_a_sentence(part):
    entries, plain = stored(part)
    assert network_args(part, entries, "diffusers", plain)
    chance, answers, built = random.Random(0), 0, []
    for name in (*plain, "text_config", "num_attention_heads", "eos_token_id"):
        for value in chance.sample(WRONG, 5):
            try:
                args = network_args(part, entries, "diffusers", plain | {name: value})
            except ValueError as e:
                assert "\n" not in str(e)
                continue
            answers += 1
            for x in args.values():
                assert not (isinstance(x, float) and not 0 < x < 2**31), (name, value)
            if args in built:
                continue
            built.append(args)
            try:
                build(part, args)
            except ValueError as e:
                assert "\n" not in str(e), (name, value)
    assert answers >= 3


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A folder with a small UNet, opened."""
    folder = tmp_path_factory.mktemp("model") / "unet"
    folder.mkdir()
    entries, plain = stored("unet")
    tensors = {name: torch.zeros(e.shape) for name, e in entries.items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(plain))
    return open_model(folder.parent)


def test_no_type_in_a_schedulers_config_ends_in_anything_but_a_sentence(unet):
    answers = 0
    for name in (*SD, "prediction_type", "trained_betas", "rescale_betas_zero_snr"):
        for value in WRONG:
            source = replace(unet, scheduler=SD | {name: value})
            try:
                kind, _ = source.prediction()
                assert sampling(source, kind)["schedule"].T == 1000
                instead(source)
                answers += 1
            except ValueError as e:
                assert "\n" not in str(e)
    assert answers > 50


@pytest.mark.parametrize(
    "new, words",
    [
        (dict(beta_start="0.00085"), "beta_start is '0.00085', expected a number above 0"),
        (dict(beta_start=[1]), r"beta_start is \[1\], expected a number"),
        (dict(beta_schedule=[]), r"beta_schedule is \[\], expected a text"),
        (dict(_class_name=[]), r"_class_name is \[\], expected a text"),
    ],
)
def test_a_scheduler_field_of_the_wrong_type_is_told_by_name(unet, new, words):
    with pytest.raises(ValueError, match=words):
        sampling(replace(unet, scheduler=SD | new), "eps")


def test_no_type_in_what_a_file_says_of_itself_ends_in_anything_but_a_sentence(tmp_path):
    own = VAE(**NETWORKS["vae"]).state_dict()
    facts = {"args": {"vae": {"scale": 0.5, "groups": 32}}, "scheduler": None, "prediction": None}
    chance, answers = random.Random(0), 0
    for where in ((), ("args",), ("args", "vae")):
        names = {(): ["args", "scheduler", "prediction", "side"], ("args",): ["vae", "unet"]}
        for name in names.get(where, ["scale", "groups", "eps", "act", "heads", "layers"]):
            for value in chance.sample(WRONG, 5):
                told = json.loads(json.dumps(facts))
                inner = told
                for key in where:
                    inner = inner[key]
                inner[name] = value
                path = tmp_path / "a.safetensors"
                save_file(
                    {f"vae.{k}": v for k, v in own.items()}, path, {"minidiff": json.dumps(told)}
                )
                try:
                    source = open_model(path)
                    build("vae", source.args()["vae"])
                    answers += 1
                except ValueError as e:
                    assert str(path) in str(e) or "no vae can be built" in str(e), e
    assert answers >= 5


def test_null_is_the_default(unet):
    linear = replace(unet, scheduler=SD | dict(beta_start=None, beta_schedule="linear"))
    first = sampling(linear, "eps")["schedule"].alpha_bar[1].item()
    assert first == pytest.approx(1 - 1e-4)


def test_latents_need_not_be_square(unet):
    def side(size):
        return _side(replace(unet, configs={"unet": {"sample_size": size}}), "eps")

    assert (side([12, 8]), side(32), side(None)) == ((12, 8), (32, 32), (64, 64))
    for wrong in ([1, 2, 3], "64", [True, 8], 0):
        with pytest.raises(ValueError, match="sample_size is"):
            side(wrong)


def test_no_type_in_the_list_of_parts_ends_in_anything_but_a_sentence(unet):
    index = unet.path / "model_index.json"
    for value in WRONG:
        index.write_text(json.dumps({"unet": value, "vae": value}))
        try:
            open_model(unet.path)
        except (ValueError, FileNotFoundError) as e:
            assert "\n" not in str(e)
    index.write_text("[1]")
    with pytest.raises(ValueError, match=r"model_index\.json is no readable JSON file"):
        open_model(unet.path)
    index.unlink()


def test_a_field_has_the_type_asked_for_or_is_refused():
    config = {"n": 3, "x": 0.5, "yes": True, "name": "a", "huge": 10**400, "null": None}
    assert field(config, "n", int) == 3 and field(config, "n", float) == 3.0
    assert field(config, "null", int, 7) == field(config, "absent", int, 7) == 7
    assert numbers({"heads": [5, 10]}, "heads") == (5, 10)
    for name, kind in (("yes", int), ("x", int), ("n", str), ("huge", float), ("name", list)):
        with pytest.raises(ValueError, match=f"config: {name} is .*expected"):
            field(config, name, kind)
    with pytest.raises(ValueError, match="above 3"):
        field(config, "n", int, above=3)
