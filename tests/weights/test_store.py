"""Shipped weights: nothing damaged, incomplete or foreign is ever loaded, and every message is one
line that helps.
"""

import errno
import json
import os
import pickle
import shutil

import pytest
import torch
from torch import nn

import minidiff
from minidiff.models.sizes import SIZES
from minidiff.models.unet import UNet
from minidiff.weights import store
from minidiff.weights.store import (
    PARTS,
    TINY,
    build,
    fill,
    load_weights,
    manifest,
    read_safetensors,
    sha256,
    ship,
)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def state(seed=0):
    return {k: v.clone() for k, v in net(seed).state_dict().items()}


@pytest.fixture
def shelf(tmp_path):
    """A folder as it ships: two files and their manifest."""
    for i, name in enumerate(("small", "other")):
        ship(name, net(i), folder=tmp_path, recipe="by.hand", seed=i)
    return tmp_path


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(w in text for w in words), text


# ---- reading -------------------------------------------------------------------------------------


def test_what_is_shipped_comes_back_as_half_precision(shelf):
    found = load_weights("small", shelf)
    assert {v.dtype for v in found.values()} == {torch.float16}
    loaded = fill(net(5), found, "small")
    assert all(torch.equal(v, state()[k].half().float()) for k, v in loaded.state_dict().items())
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


@pytest.mark.parametrize("place", ["header", "first number", "last number"])
def test_one_flipped_bit_anywhere_is_refused(shelf, place):
    path = shelf / "small.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[{"header": 8 + raw[8:].index(b"F16"), "first number": start, "last number": -1}[place]] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError) as e:
        load_weights("small", shelf)
    one_line(e, str(path))
    if place != "header":
        one_line(e, "SHA-256 differs from manifest.json")
    assert load_weights("other", shelf)


def test_a_file_in_the_place_of_another_is_refused(shelf):
    shutil.copy(shelf / "other.safetensors", shelf / "small.safetensors")
    with pytest.raises(ValueError, match="not the file that was shipped"):
        load_weights("small", shelf)


@pytest.mark.parametrize(
    "keep, words",
    [
        (0, "is empty (0 bytes)"),
        (5, "no readable safetensors file"),
        (100, "no readable safetensors file"),
        (-1, "no readable safetensors file"),
    ],
)
def test_a_file_cut_off_anywhere_is_refused(shelf, keep, words):
    path = shelf / "small.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError) as e:
        load_weights("small", shelf)
    one_line(e, str(path), words)


def test_missing_files_folders_and_pickles_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        read_safetensors(tmp_path / "no.safetensors")
    one_line(e, "no.safetensors")
    with pytest.raises(FileNotFoundError) as e:
        read_safetensors(tmp_path)
    one_line(e, "it is a folder")
    torch.save(state(), tmp_path / "pickle.safetensors")
    with pytest.raises(ValueError) as e:
        read_safetensors(tmp_path / "pickle.safetensors")
    one_line(e, "pickle.safetensors", "no readable safetensors file")


def test_a_pickle_under_a_false_name_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="no readable safetensors file"):
        read_safetensors(path)
    assert not (tmp_path / "marker").exists()


def test_an_unknown_name_lists_the_known_ones(shelf):
    with pytest.raises(
        ValueError, match="no shipped weights called 'huge'; there are: other, small"
    ):
        load_weights("huge", shelf)


# ---- filling -------------------------------------------------------------------------------------


def test_every_number_arrives_in_the_dtype_of_the_network():
    double = fill(net(5).double(), state())
    assert all(
        v.dtype == torch.float64 and torch.equal(v.float(), state()[k])
        for k, v in double.state_dict().items()
    )


def damaged(how):
    s = state()
    if how == "missing":
        del s["1.bias"]
    if how == "extra":
        s["2.weight"] = torch.zeros(1)
    if how == "shape":
        s["0.weight"] = s["0.weight"].T.contiguous()
    if how in ("nan", "inf"):
        s["1.weight"][1, 2] = float(how)
    return s


@pytest.mark.parametrize(
    "how, words",
    [
        ("missing", ("1 tensor(s) missing: 1.bias",)),
        ("extra", ("1 tensor(s) not of this network: 2.weight",)),
        ("shape", ("of another shape", "0.weight is (3, 4), expected (4, 3)")),
        ("nan", ("tensor 1.weight holds NaN or infinite",)),
        ("inf", ("tensor 1.weight holds NaN or infinite",)),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_half_filled(how, words):
    target = net(5)
    with pytest.raises(ValueError) as e:
        fill(target, damaged(how), "small")
    one_line(e, "small: ", *words)
    assert all(torch.equal(v, state(5)[k]) for k, v in target.state_dict().items())


def test_a_network_without_memory_is_given_its_weights_and_keeps_what_is_trainable():
    with torch.device("meta"):
        blank = net().requires_grad_(False)
    filled = fill(blank, state())
    assert all(torch.equal(v, state()[k]) for k, v in filled.state_dict().items())
    assert not any(p.requires_grad for p in filled.parameters())


@pytest.mark.parametrize("name", PARTS)
def test_a_shipped_model_is_built_without_memory_and_nothing_stays_so(name, monkeypatch):
    asked = []
    real = store.build
    monkeypatch.setattr(
        store, "build", lambda size, **more: (asked.append(more), real(size, **more))[1]
    )
    pipe = minidiff.load(name)
    assert [str(more.get("device")) for more in asked] == ["meta"]
    for part in PARTS[name]:
        module = getattr(pipe, part)
        assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def test_a_long_list_of_missing_tensors_is_cut():
    with pytest.raises(
        ValueError, match=r"4 tensor\(s\) missing: 0.bias, 0.weight, 1.bias \.\.\.$"
    ):
        fill(net(), {})


def test_a_number_too_large_for_half_precision_is_noticed_when_it_is_read_back():
    big = state()
    big["0.bias"][0] = 70_000.0
    with pytest.raises(ValueError, match=r"0\.bias holds NaN or infinite"):
        fill(net(), {k: v.half() for k, v in big.items()})


# ---- writing -------------------------------------------------------------------------------------


def test_shipping_records_hash_size_and_facts(shelf):
    rows = manifest(shelf)
    assert list(rows) == ["other", "small"]
    for name, row in rows.items():
        path = shelf / f"{name}.safetensors"
        assert row == {
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
            "recipe": "by.hand",
            "seed": {"small": 0, "other": 1}[name],
        }
    assert sorted(p.name for p in shelf.iterdir()) == [
        "manifest.json",
        "other.safetensors",
        "small.safetensors",
    ]
    assert (shelf / "small.safetensors").stat().st_mode & 0o777 == 0o644  # readable for others, too


def test_shipping_again_replaces_the_row_and_keeps_the_others(shelf):
    before = manifest(shelf)
    path = ship("small", state(7), dtype=torch.float32, folder=shelf, seed=7)
    after = manifest(shelf)
    assert (
        path == shelf / "small.safetensors"
        and after["other"] == before["other"]
        and after["small"]["seed"] == 7
    )
    assert "recipe" not in after["small"] and after["small"]["sha256"] != before["small"]["sha256"]
    assert all(torch.equal(v, state(7)[k]) for k, v in load_weights("small", shelf).items())


def test_the_same_weights_give_the_same_file(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        ship("x", net(), folder=folder)
    assert (a / "x.safetensors").read_bytes() == (b / "x.safetensors").read_bytes()


def test_a_write_that_fails_leaves_file_and_manifest_as_they_were(shelf, monkeypatch):
    files = {p.name: p.read_bytes() for p in shelf.iterdir()}

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            ship("small", net(9), folder=shelf)
    assert {p.name: p.read_bytes() for p in shelf.iterdir()} == files
    assert load_weights("small", shelf)


def test_views_and_shared_tensors_are_written_whole(tmp_path):
    x = torch.arange(12.0)
    ship("views", {"a": x.view(3, 4).T, "b": x[::2], "c": x}, dtype=torch.float32, folder=tmp_path)
    found = load_weights("views", tmp_path)
    assert (
        torch.equal(found["a"], x.view(3, 4).T)
        and torch.equal(found["b"], x[::2])
        and torch.equal(found["c"], x)
    )


# ---- building ------------------------------------------------------------------------------------


def test_unknown_sizes_and_models_list_the_choices():
    with pytest.raises(
        ValueError, match=r"size 'sdxl' is unknown; choose one of: tiny, tiny-dit, .*sd15"
    ):
        build("sdxl")
    with pytest.raises(
        ValueError,
        match=r"model 'sd15' is unknown: neither one of the shipped ones .tiny, tiny-dit",
    ):
        minidiff.load("sd15")


@pytest.mark.parametrize(
    "change, told",
    [
        ({"size": "huge"}, "names 0 denoisers"),
        ({"schedule": "no"}, "is not known"),
        ({"prediction": None}, "is not known"),
        ({"classes": ["a"]}, "of another shape"),
        ({"sha256": "0" * 64}, "train it again"),
    ],
)
def test_the_folder_of_a_trained_model_is_checked_before_it_is_used(tmp_path, change, told):
    store.keep(build("tiny-pixel"), tmp_path)
    assert minidiff.load(tmp_path).classes == store.PIXEL_CLASSES
    rows = manifest(tmp_path)
    rows["pixel"] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=told) as e:
        minidiff.load(tmp_path)
    one_line(e)


def test_a_trained_model_of_other_classes_comes_back(tmp_path):
    pipe = build("tiny-pixel")
    pipe.net, pipe.classes = (
        UNet(**SIZES["tiny-pixel"]["unet"] | {"classes": 2}).eval(),
        ("cat", "dog"),
    )
    image = pipe.generate("dog", steps=1)
    again = minidiff.load(store.keep(pipe, tmp_path))
    assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in pipe.net.state_dict().items())
    assert (again.generate("dog", steps=1) - image).abs().max() <= 1e-4


def test_a_model_keeps_the_guidance_it_is_sampled_with(tmp_path):
    pipe = build("tiny-pixel")
    assert pipe.scale == SIZES["tiny-pixel"]["scale"]
    pipe.scale = 1.75
    folder = store.keep(pipe, tmp_path)
    assert minidiff.load(folder).scale == 1.75
    index = folder / "manifest.json"
    for bad, said in ((-1.0, "negative"), ("3", "scale")):
        rows = json.loads(index.read_text())
        rows["pixel"]["scale"] = bad
        index.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=said):
            minidiff.load(folder)


def test_a_seed_decides_every_weight():
    def weights(seed):
        pipe = build("tiny-dit", seed=seed)
        return torch.cat(
            [p.flatten() for m in (pipe.net, pipe.vae, pipe.text) for p in m.parameters()]
        )

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_networks_are_built_frozen_in_eval_mode_in_the_dtype_asked_for():
    pipe = build("tiny-pixel", dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16 and not pipe.net.training
    assert (
        not any(p.requires_grad for p in pipe.net.parameters())
        and pipe.vae is None
        and pipe.text is None
    )
    assert build("tiny-pixel", device="meta").net.conv_in.weight.is_meta


@pytest.mark.parametrize("size", list(PARTS))
def test_a_size_has_the_schedule_and_prediction_of_its_entry(size):
    pipe, spec = build(size, device="meta"), SIZES[size]
    assert (pipe.schedule.name, pipe.prediction, pipe.shape) == (
        spec["schedule"],
        spec["prediction"],
        spec["shape"],
    )
    assert (pipe.tokenizer is None) == (pipe.text is None) and pipe.name == size
    assert set(PARTS[size]) == {k for k in ("net", "vae", "text") if getattr(pipe, k) is not None}


@pytest.mark.parametrize("size", list(PARTS))
def test_a_pipe_loads_from_the_files_of_its_parts(size, tmp_path, monkeypatch):
    trained = build(size, seed=3)
    for part, name in PARTS[size].items():
        ship(name, getattr(trained, part), folder=tmp_path)
    monkeypatch.setattr(store, "load_weights", lambda name, folder: load_weights(name, tmp_path))
    pipe = minidiff.load(size, dtype=torch.float64)
    for part in PARTS[size]:
        ours, theirs = getattr(pipe, part).state_dict(), getattr(trained, part).state_dict()
        assert all(torch.equal(v, theirs[k].half().double()) for k, v in ours.items())
        assert not getattr(pipe, part).training and not any(
            p.requires_grad for p in getattr(pipe, part).parameters()
        )
    (tmp_path / f"{PARTS[size]['net']}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights file"):
        minidiff.load(size)


# ---- what is shipped -----------------------------------------------------------------------------


def test_every_file_on_the_shelf_is_in_the_manifest_with_its_hash_and_how_it_was_made():
    if not (TINY / "manifest.json").exists():
        pytest.skip("the shipped weights are not in minidiff/weights/tiny")
    rows = json.loads((TINY / "manifest.json").read_text())
    assert {p.stem for p in TINY.glob("*.safetensors")} == set(rows)
    for name, row in rows.items():
        path = TINY / f"{name}.safetensors"
        assert row["sha256"] == sha256(path) and row["bytes"] == path.stat().st_size < 20e6
        assert row["recipe"].startswith("minidiff.") and isinstance(row["seed"], int)


@pytest.mark.weights
@pytest.mark.parametrize("name", list(PARTS))
def test_shipped_models_load(name):
    if not all((TINY / f"{f}.safetensors").exists() for f in PARTS[name].values()):
        pytest.skip("the shipped weights are not in minidiff/weights/tiny")
    pipe = minidiff.load(name)
    other = build(name, seed=1)
    assert all(
        not torch.equal(p, q)
        for p, q in zip(pipe.net.parameters(), other.net.parameters())
        if p.requires_grad
    )
    assert sum(v.abs().sum() for v in pipe.net.parameters()).isfinite()


@pytest.mark.weights
def test_a_copy_of_the_shelf_with_one_flipped_byte_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    path = tmp_path / "tiny" / "vae.safetensors"
    assert load_weights("vae", tmp_path / "tiny")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 16
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        load_weights("vae", tmp_path / "tiny")


@pytest.mark.weights
def test_the_shipped_clip_is_causal_and_the_text_tower_that_was_taught_after_it_reads_both_ways():
    clip, pipe = minidiff.load_clip(), minidiff.load("tiny")
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())
    ids = pipe.tokenizer(
        [
            "a red circle left of a blue star on a white background",
            "a red circle right of a blue star on a white background",
        ]
    )

    def moved(tower):  # the first noun, when its place changes
        h = tower(ids)[:, 3]
        return ((h[0] - h[1]).norm() / h.norm(dim=-1).mean()).item()

    with torch.no_grad():
        assert moved(clip.text) < 1e-5 < 0.2 < moved(pipe.text)


def test_building_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    build("tiny-pixel", seed=9)
    assert torch.equal(torch.rand(1), want)
