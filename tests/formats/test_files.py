"""Any file of weights opens by its header alone, or is refused in one line that names it and says
what is wrong.
"""

import hashlib
import json
import struct
import subprocess
import sys
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from minidiff.formats import mapped
from minidiff.formats.files import Entry, TensorFile, memory_file, open_tensors

KINDS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        f"t.{i}": (torch.randn(3, i, 2, generator=g) * 50).to(dtype)
        for i, dtype in enumerate(KINDS)
    } | {"scalar": torch.tensor(2.5), "row": torch.randn(5, generator=g)}


def write(path, header, data=b"", length=None):
    """A safetensors file with any header: a dictionary, or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def row(shape=(2, 3), begin=0, end=24, dtype="F32"):
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [begin, end],
    }


def refused(path, *words, kind=ValueError, **options):
    """Opening fails in one line with the file's name and these words; it costs little time and
    memory.
    """
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(kind) as e:
        open_tensors(path, **options)
    spent, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    text = str(e.value)
    assert "\n" not in text and len(text) < 600 and all(w in text for w in (str(path), *words)), (
        text
    )
    assert spent < 2 and peak < 64e6, (spent, peak)


# ---- safetensors: what the package writes, we read -----------------------------------------------


def test_every_dtype_and_shape_is_read_as_the_package_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path, metadata={"ss_network_dim": "4", "author": "é"})
    file, theirs = open_tensors(path), load_file(path)
    assert (
        isinstance(file, TensorFile)
        and file.kind == "safetensors"
        and file.path == path
        and file.ignored == ()
    )
    assert (
        file.metadata == {"ss_network_dim": "4", "author": "é"}
        and set(file) == set(theirs)
        and len(file) == 12
    )
    for name, t in theirs.items():
        ours = file.tensor(name)
        assert (
            (file[name].shape, file[name].dtype)
            == (tuple(t.shape), t.dtype)
            == (tuple(ours.shape), ours.dtype)
        )
        assert torch.equal(ours, t) and torch.equal(file.tensor(name, copy=True), t)


def test_unaligned_numbers_are_read_right(tmp_path):
    """Writers without padding leave float32 numbers at odd bytes."""
    x = torch.randn(2, 3)
    for pad in range(8):
        header = json.dumps({"w": row()}).encode() + b" " * pad
        assert torch.equal(
            open_tensors(write(tmp_path / "x.safetensors", header, x.numpy().tobytes())).tensor(
                "w"
            ),
            x,
        )


def test_writing_into_a_tensor_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    raw, file = path.read_bytes(), open_tensors(path)
    file.tensor("row").zero_()
    assert file.tensor("row").abs().sum() == 0  # two looks at one tensor are views of one mapping
    assert path.read_bytes() == raw and torch.equal(
        open_tensors(path).tensor("row"), tensors()["row"]
    )


def test_a_copy_maps_nothing_and_stands_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    file = open_tensors(path)
    file.tensor("row", copy=True).zero_()
    assert not file.maps and torch.equal(file.tensor("row"), tensors()["row"]) and file.maps


def test_a_tensor_that_is_not_there_and_a_file_that_shrank_are_told(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    file = open_tensors(path)
    with pytest.raises(ValueError, match=r"x\.safetensors holds no tensor 'weight'$"):
        file.tensor("weight")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="became shorter"):
        [file.tensor(name) for name in file]


@pytest.mark.parametrize(
    "header, data, words",
    [
        (
            {"w": row(end=28)},
            28,
            "'w' of shape (2, 3) in F32 takes 24 bytes, its data_offsets say 28",
        ),
        ({"w": row(end=20)}, 20, "its data_offsets say 20"),
        ({"w": row(begin=24, end=0)}, 24, "its data_offsets say -24"),
        ({"w": row(begin=-4, end=20)}, 24, "data_offsets [-4, 20]"),
        ({"w": row(begin=0.0, end=24.0)}, 24, "data_offsets [0.0, 24.0]"),
        ({"w": row((2, -3))}, 24, "has shape [2, -3]"),
        ({"w": row((2, 3.0))}, 24, "has shape [2, 3.0]"),
        ({"w": row((True, 6))}, 24, "has shape [True, 6]"),
        ({"w": row((1 << 60, 1 << 60))}, 24, "has shape"),
        ({"w": row((2,) * 5_000)}, 24, "expected up to 8 whole numbers"),
        ({"w": row("6")}, 24, "has shape '6'"),
        ({"w": row(dtype="F8_E8M0")}, 24, "'w' is of dtype 'F8_E8M0'; known are F64, F32"),
        ({"w": row(dtype=["F32"])}, 24, "is of dtype"),
        ({"w": {"dtype": "F32", "shape": [6]}}, 24, "'w' lacks dtype, shape or data_offsets"),
        ({"w": [1, 2]}, 24, "'w' lacks"),
        ({"a": row(), "b": row((2,), 20, 28)}, 28, "'b' overlaps another one"),
        ({"a": row(), "b": row()}, 24, "overlaps another one"),
        ({"a": row(), "b": row((2,), 28, 36)}, 36, "'b' comes after a gap"),
        ({"a": row()}, 23, "end at byte"),
        ({"a": row()}, 25, "end at byte"),
        (b'{"a": %b, "a": %b}' % ((json.dumps(row()).encode(),) * 2), 24, "key 'a' occurs twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', 24, "key 'dtype' occurs twice"),
        ({"__metadata__": {"step": 4}}, 0, "its metadata are not texts"),
        ({"__metadata__": "4"}, 0, "no readable"),
        ({"a\nb" * 400: [1]}, 0, "lacks dtype"),
        (b"{" + b" " * 50, 0, "no readable safetensors file"),
        (b"\xff\xfe{}", 0, "no readable safetensors file"),
        (b"[1, 2]", 0, "its JSON is no object"),
        (b"[" * 300_000, 0, "no readable"),
        (b"[" * 500_000, 0, "more than 400,000 values"),
        (b'{"a":' + b"9" * 5000 + b"}", 0, "no readable safetensors file"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, words):
    refused(
        write(tmp_path / "x.safetensors", header, bytes(data)),
        "no readable safetensors file",
        words,
    )


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "is empty (0 bytes)"),
        (b"\x10\0\0", "no readable safetensors file"),
        (b"{}", "no readable safetensors file"),
        (
            b"<!DOCTYPE html>\n<html><body>403</body></html>",
            "is an HTML page, not weights: the download failed",
        ),
        (b"\n <HTML>", "is an HTML page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is an HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "is a git-lfs pointer",
        ),
        (b"Entry not found, and more of it", "cut off, or another format"),
    ],
)
def test_what_is_left_by_a_failed_download_is_recognised(tmp_path, raw, words):
    for suffix in (
        "safetensors",
        *(["ckpt", "bin"] if "readable" not in words and "cut off" not in words else []),
    ):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(raw)
        refused(path, words)


def test_a_header_longer_than_the_file_or_than_reason_is_never_read(tmp_path):
    refused(write(tmp_path / "a.safetensors", {"w": row()}, length=1 << 40), "cut off")
    path = write(tmp_path / "b.safetensors", {"w": row()}, length=99_000_000)
    with open(path, "r+b") as f:
        f.truncate(100_000_000)  # sparse: takes no room on the disk
    refused(path, "a header of 99000000 bytes; at most 8388608 are read")


def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    raw = path.read_bytes()
    for keep in (1, 8, 9, 200, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:keep])
        refused(path, "no readable safetensors file")


def test_no_flipped_bit_of_the_header_ends_in_anything_but_an_answer_or_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    raw, g = path.read_bytes(), torch.Generator().manual_seed(0)
    n = 8 + int.from_bytes(raw[:8], "little")
    for at in torch.randint(n, (300,), generator=g).tolist():
        damaged = bytearray(raw)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            file = open_tensors(path)
            assert all(file.tensor(name).numel() >= 0 for name in file)
        except ValueError as e:
            assert str(path) in str(e) and "\n" not in str(e)


def test_a_pickle_and_a_safetensors_file_under_each_others_names_are_told(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "another format (torch's: .ckpt)")
    save_file({"w": torch.ones(2)}, tmp_path / "x.ckpt")
    refused(tmp_path / "x.ckpt", "it looks like a safetensors file")
    (tmp_path / "x.onnx").write_bytes(b"weights")
    refused(tmp_path / "x.onnx", "expected one ending in .safetensors, .sft, .bin, .ckpt")
    refused(tmp_path / "none.ckpt", "no weights file at", kind=FileNotFoundError)


@pytest.mark.parametrize("name", ["x.SAFETENSORS", "x.sft", "x.CKPT"])
def test_names_end_as_people_write_them(tmp_path, name):
    path = tmp_path / name
    weights = {"w": torch.ones(2)}
    torch.save(weights, path) if name.endswith("CKPT") else save_file(weights, path)
    assert open_tensors(path).tensor("w").tolist() == [1, 1]
    assert list(open_tensors(tmp_path)) == ["w"]


def test_names_are_those_of_the_network_that_was_compiled_or_trained_in_parallel(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"module._orig_mod.a.w": torch.ones(1), "module.b._orig_mod.w": torch.ones(1)}, path)
    assert sorted(open_tensors(path)) == ["a.w", "b.w"]
    save_file({"_orig_mod.w": torch.ones(1), "w": torch.ones(1)}, path)
    refused(path, "'w' occurs twice")
    save_file({"module.w": torch.ones(1), "b": torch.ones(1)}, path)
    assert sorted(open_tensors(path)) == ["b", "module.w"]  # not what parallel training writes


def test_tensors_are_left_out_by_pattern(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(1), "w.scaled_fp8": torch.ones(1), "v_pred": torch.ones(1)}, path)
    file = open_tensors(path).without(["*.scaled_fp8", "v_p*", "no such name"])
    assert list(file) == ["w"] and sorted(file.ignored) == ["v_pred", "w.scaled_fp8"]


# ---- nothing is read until it is looked at -------------------------------------------------------

LEAN = """
import sys, torch, json, struct
from pathlib import Path
from minidiff.formats.files import open_tensors
folder, rss = Path(sys.argv[1]), lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
n, w = 3 << 28, torch.empty(1 << 28)                                            # 3 GB and 1 GB, all holes
raw = json.dumps({"w": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}).encode()
raw += b" " * (-len(raw) % 8)
with open(folder / "a.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(raw)) + raw); f.truncate(8 + len(raw) + 4 * n)
with torch.serialization.skip_data():
    torch.save({"state_dict": {"w": w}}, folder / "b.ckpt")
torch.save({"w": torch.zeros(5)}, folder / "c.pt", _use_new_zipfile_serialization=False)
for path in sorted(folder.iterdir()):
    before = rss()
    file = open_tensors(path)
    shape, opened = file["w"].shape, rss()
    x = file.tensor("w")
    assert x[:5].abs().sum() == 0 and x[-5:].abs().sum() == 0 and x.numel() == shape[0]
    print(json.dumps([path.name, shape[0], opened - before, rss() - before]))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads resident memory as Linux tells it"
)
def test_opening_gigabytes_reads_the_header_and_the_pages_that_are_touched(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", LEAN, tmp_path], capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(name, n) for name, n, *_ in rows] == [
        ("a.safetensors", 3 << 28),
        ("b.ckpt", 1 << 28),
        ("c.pt", 5),
    ]
    assert all(opened < 20e6 and touched < 20e6 for *_, opened, touched in rows), rows


# ---- shards and folders --------------------------------------------------------------------------


def sharded(folder, suffix="safetensors", variant=""):
    """Two shards and their index, named as diffusers and transformers name them."""
    save = save_file if suffix == "safetensors" else torch.save
    names = [f"model{variant}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(tensors())}
    for name in names:
        save({k: v for k, v in tensors().items() if where[k] == name}, folder / name)
    index = folder / f"model.{suffix}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize(
    "suffix, variant", [("safetensors", ""), ("safetensors", ".fp16"), ("bin", "")]
)
def test_shards_read_like_one_file(tmp_path, suffix, variant):
    index = sharded(tmp_path, suffix, variant)
    for path in (tmp_path, index):
        file = open_tensors(path)
        assert file.kind == "shards" and file.path == index and list(file) == list(tensors())
        assert all(
            torch.equal(file.tensor(k), v) and file[k].shape == tuple(v.shape)
            for k, v in tensors().items()
        )


def test_a_missing_shard_and_a_tensor_its_shard_lacks_are_named(tmp_path):
    index = sharded(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    kept = {k: v for k, v in load_file(second).items() if k != "t.3"}
    save_file(kept | {"spare": torch.ones(1)}, second)
    refused(tmp_path, str(second), "lacks tensor 't.3'", index.name, "(1 such tensor(s))")
    second.unlink()
    refused(
        tmp_path, str(second), "is missing (1 of the 2 shards", index.name, kind=FileNotFoundError
    )


def test_tensors_of_a_shard_that_the_index_does_not_list_are_ignored_by_name(tmp_path):
    index = sharded(tmp_path)
    found = json.loads(index.read_text())
    del found["weight_map"]["t.3"]
    index.write_text(json.dumps(found))
    file = open_tensors(tmp_path)
    assert file.ignored == ("t.3",) and "t.3" not in file


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "no readable index"),
        ("[]", "its JSON is no object"),
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "names no shards"),
        ('{"weight_map": {"w": "a", "w": "b"}}', "occurs twice"),
        ('{"weight_map": {"w": "../../secret.safetensors"}}', "expected a file beside it"),
        ('{"weight_map": {"w": "/etc/passwd"}}', "expected a file beside it"),
        ('{"weight_map": {"w": 3}}', "expected a file beside it"),
        ('{"weight_map": {"w": "a.json"}}', "expected a file beside it"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path, text, words):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(ValueError) as e:
        open_tensors(tmp_path)
    assert str(path) in str(e.value) and words in str(e.value) and "\n" not in str(e.value)


def shelf(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        (save_file if path.suffix == ".safetensors" else torch.save)(
            {"w": torch.full((2,), float(i))}, path
        )


@pytest.mark.parametrize(
    "names, variant, chosen",
    [
        (["m.safetensors"], None, 0),
        (["m.bin", "m.safetensors"], None, 1),
        (["m.ckpt", "m.bin"], None, 1),
        (["m.fp16.safetensors", "m.safetensors"], None, 1),
        (["m.fp16.safetensors", "m.safetensors"], "fp16", 0),
        (["m.fp16.safetensors"], None, 0),
        (["m.fp16.bin", "m.fp16.safetensors"], "fp16", 1),
        (["m.fp16.safetensors", "m.bin"], None, 1),
        (["v1.5-pruned.safetensors"], None, 0),
        (["optimizer.bin", "m.safetensors"], None, 1),
    ],
)
def test_a_folder_gives_its_one_file_plain_before_variants_and_safetensors_before_pickles(
    tmp_path, names, variant, chosen
):
    shelf(tmp_path, *names)
    (tmp_path / "config.json").write_text("{}")
    file = open_tensors(tmp_path, variant=variant)
    assert file.path.name == names[chosen] and file.tensor("w").tolist() == [chosen, chosen]


def test_a_single_file_is_taken_before_shards_of_the_same(tmp_path):
    sharded(tmp_path)
    shelf(tmp_path, "model.safetensors")
    assert list(open_tensors(tmp_path)) == ["w"]


@pytest.mark.parametrize(
    "names, options, kind, words",
    [
        ([], {}, FileNotFoundError, "expected a file ending in .safetensors"),
        (["m-00001-of-00002.safetensors"], {}, FileNotFoundError, "no weights file in"),
        (
            ["a.safetensors", "b.safetensors"],
            {},
            ValueError,
            "2 files of weights (a.safetensors, b.safetensors)",
        ),
        (["m.safetensors"], {"variant": "fp16"}, FileNotFoundError, "no fp16 weights in"),
        (
            ["m.fp16.safetensors", "m.bf16.safetensors"],
            {},
            ValueError,
            "only variants (bf16, fp16); choose one",
        ),
    ],
)
def test_a_folder_without_one_clear_choice_says_what_there_is(
    tmp_path, names, options, kind, words
):
    shelf(tmp_path, *names)
    refused(tmp_path, words, kind=kind, **options)


def test_a_whole_pipeline_folder_is_recognised(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    refused(
        tmp_path, "a whole pipeline; open its unet, vae or text_encoder", kind=FileNotFoundError
    )


# ---- small things --------------------------------------------------------------------------------


def test_memory_has_the_same_face():
    file = memory_file(tensors(), {"a": "b"})
    assert file.kind == "memory" and file.metadata == {"a": "b"} and len(file) == 12
    assert file["row"] == Entry((5,), torch.float32) and file.tensor("row").equal(tensors()["row"])
    file.tensor("row", copy=True).zero_()
    assert file.tensor("row").equal(tensors()["row"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_none_is_found_anywhere(dtype, bad):
    for at in (0, 77, 999):
        x = torch.randn(10, 100, generator=torch.Generator().manual_seed(at)).to(dtype)
        assert mapped.finite(x, "a.weight", "f.ckpt") is x
        x.view(-1)[at] = bad
        with pytest.raises(
            ValueError,
            match=r"^f.ckpt: tensor 'a.weight' holds NaN or infinite numbers \(1 of 1000\)$",
        ):
            mapped.finite(x, "a.weight", "f.ckpt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_whose_sum_overflows_are_finite_and_two_infinities_do_not_cancel(dtype):
    x = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert not x.sum().isfinite() and mapped.all_finite(x) and mapped.all_finite(-x)
    x[3] = -x[3]
    assert mapped.all_finite(x)
    for bad in ([torch.inf], [-torch.inf], [torch.inf, -torch.inf], [torch.nan]):
        y = torch.zeros(1000, dtype=dtype)
        y[: len(bad)] = torch.tensor(bad)
        assert not mapped.all_finite(y)


def test_whole_numbers_and_empty_tensors_are_finite():
    for x in (torch.arange(4), torch.zeros(0), torch.tensor([True])):
        assert mapped.finite(x, "x", "f") is x


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 1_000_001)
    assert mapped.sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_001).hexdigest()
