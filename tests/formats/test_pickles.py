"""Torch's files are read as torch reads them; nothing in them runs, reaches outside its storage or
fills the memory.
"""

import contextlib
import io
import os
import pickle
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from minidiff.formats import pickle_machine as machine
from minidiff.formats.files import load_pickle, open_tensors
from minidiff.formats.pickle_machine import Inert
from minidiff.formats.pickles import MAGIC

LAYOUTS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


@pytest.fixture(params=list(LAYOUTS))
def layout(request):
    return request.param


def save(obj, path, layout):
    torch.save(obj, path, **LAYOUTS[layout])
    return path


def write(path, layout, program, data=b"", key="0", itemsize=4):
    """A torch file with any program: the zip, or the five pickles, around it. Storage `key` holds
    `data`.
    """
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("archive/data.pkl", program)
            z.writestr(f"archive/data/{key}", data)
    else:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        around = [pickle.dumps(x, 2) for x in (MAGIC, 1001, system)]
        run = (
            [pickle.dumps([key], 2), struct.pack("<q", len(data) // itemsize), data]
            if data
            else [pickle.dumps([], 2)]
        )
        path.write_bytes(b"".join([*around, program, *run]))
    return path


class Call:
    """Pickles as a call of `fn(*args)`, whatever that is."""

    def __init__(self, fn, *args):
        self.made = fn, args

    def __reduce__(self):
        return self.made


class Ref:
    """Pickles as a reference to a storage, whatever it claims."""

    def __init__(self, *ident):
        self.ident = ident


class Writer(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.ident if isinstance(obj, Ref) else None


def program(obj, protocol=2):
    out = io.BytesIO()
    Writer(out, protocol).dump(obj)
    return out.getvalue()


def claim(
    offset,
    size,
    stride,
    ident=("storage", torch.FloatStorage, "0", "cpu", 6),
    fn=torch._utils._rebuild_tensor_v2,
):
    """A tensor as torch describes it, with any numbers."""
    rest = {"_rebuild_tensor": (), "_rebuild_tensor_v2": (False, {})}.get(
        fn.__name__, (False, {}, torch.float32)
    )
    return Call(fn, Ref(*ident), offset, size, stride, *rest)


def refused(path, *words, read=open_tensors, traced=True):
    """Reading fails in one line with the file's name and these words; it costs little memory, or it
    ends: within the time of 2,000 plain loops over as many steps as a pickle may have, where a bomb
    that goes off takes hours.
    """
    start = time.process_time()
    for _ in range(400_000):
        pass
    floor, start = time.process_time() - start, time.process_time()
    if traced:
        tracemalloc.start()
    with pytest.raises(ValueError) as e:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    text = str(e.value)
    assert "\n" not in text and len(text) < 700 and all(w in text for w in (str(path), *words)), (
        text
    )
    spent = time.process_time() - start
    assert peak < 30e6 and (traced or spent < 2_000 * floor), (peak, spent, floor)


# ---- honest files: what torch reads --------------------------------------------------------------


def zoo():
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    x = {
        f"d{i}": (torch.randn(2, 3) * 40).to(d)
        for i, d in enumerate(
            (
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
            )
        )
    }
    attributed = torch.randn(3)
    attributed.note = "kept by torch in the tensor"
    parameter = nn.Parameter(torch.randn(2, 2))
    parameter.note = "and in a parameter"
    return x | {
        "base": base,
        "transposed": base.T,
        "gaps": base[::2, 1:3],
        "row": base[3],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "parameter": parameter,
        "plain": nn.Parameter(base),
        "note": attributed,
        "one": torch.randn(1, 5, 1).as_strided((1, 5, 1), (9, 1, 7)),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


def test_every_tensor_is_read_as_torch_reads_it(tmp_path, layout):
    path = save(zoo(), tmp_path / "x.pt", layout)
    file, theirs = open_tensors(path), torch.load(path, weights_only=True)
    assert (
        file.kind == "pickle"
        and list(file) == list(theirs)
        and file.ignored == ()
        and file.metadata == {}
    )
    for name, t in theirs.items():
        ours = file.tensor(name)
        assert (
            (file[name].shape, file[name].dtype)
            == (tuple(t.shape), t.dtype)
            == (tuple(ours.shape), ours.dtype)
        )
        assert torch.equal(ours, t) and torch.equal(file.tensor(name, copy=True), t), name
    assert (
        not file.tensor("transposed").is_contiguous()
        and file["base"].stride is None
        and file["one"].stride is None
    )


def test_tensors_of_one_storage_share_it(tmp_path):
    file = open_tensors(save(zoo(), tmp_path / "x.pt", "zip"))
    file.tensor("base")[3] = 7
    assert (file.tensor("row") == 7).all() and (file.tensor("transposed")[:, 3] == 7).all()
    assert not (open_tensors(tmp_path / "x.pt").tensor("row") == 7).any()


def test_the_state_of_modules_with_their_metadata_is_read(tmp_path, layout):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = save(net.state_dict(), tmp_path / "x.pt", layout)
    loaded = load_pickle(path)
    assert list(loaded) == list(net.state_dict()) and all(
        torch.equal(loaded[k], v) for k, v in net.state_dict().items()
    )


def test_lists_sets_and_bare_tensors_come_out_of_load_pickle(tmp_path, layout):
    loaded = load_pickle(
        save(
            [torch.arange(3.0), {"s": {1, "a"}, 2: (None, True, 1 << 40)}],
            tmp_path / "x.pt",
            layout,
        )
    )
    assert loaded[0].tolist() == [0, 1, 2] and loaded[1] == {
        "s": {1, "a"},
        2: (None, True, 1 << 40),
    }
    assert load_pickle(save(torch.ones(2, 2), tmp_path / "y.pt", layout)).equal(torch.ones(2, 2))


def test_a_parameter_dict_is_a_dictionary(tmp_path, layout):
    """Textual inversion as its authors save it, which torch's guarded reader refuses."""
    parameters = nn.ParameterDict({"*": torch.randn(2, 768)})
    embedding = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}
    path = save(embedding, tmp_path / "x.pt", layout)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    loaded = load_pickle(path)
    assert (
        loaded["string_to_param"]["*"].equal(embedding["string_to_param"]["*"])
        and loaded["string_to_token"]["*"] == 265
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path, protocol):
    x = {
        "w": torch.randn(3),
        "n": [{"a": 1.5, "c": "é" * 300, "d": (1, 2, 3, -70_000, 1 << 70)}, {1, 2}, [], (), {}],
    }
    # before, torch wrote calls for these
    x["n"] += [b"raw", b"raw" * 100, frozenset("ab")] if protocol > 3 else []
    torch.save({"model": x}, tmp_path / "x.pt", pickle_protocol=protocol)
    loaded = load_pickle(tmp_path / "x.pt")
    assert loaded["w"].equal(x["w"]) and loaded["n"] == x["n"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_objects_come_out_as_they_went_in(tmp_path, protocol, layout):
    x = {
        "a": [1, 2.5, -3, 1 << 80, True, False, None, "text\n", ("t", ()), {"k": {"l": []}}],
        "d": defaultdict(int, z=1),
        "o": OrderedDict(p=1),
        "f": {1, 2},
    }
    assert load_pickle(write(tmp_path / "x.pt", layout, pickle.dumps(x, protocol))) == x


def test_a_view_of_a_storage_in_the_oldest_files_is_read_as_torch_reads_it(tmp_path):
    data = struct.pack("<6f", *range(6))
    obj = {"v": claim(1, (2,), (1,), ("storage", torch.FloatStorage, "0", "cpu", 6, ("0v", 2, 4)))}
    path = write(tmp_path / "x.pt", "legacy", program(obj), data)
    assert (
        torch.load(path, weights_only=True)["v"].tolist()
        == open_tensors(path).tensor("v").tolist()
        == [3, 4]
    )


# ---- honest files: what torch refuses ------------------------------------------------------------


class ModelCheckpoint:
    """Stands for a class of a training framework."""

    def __init__(self):
        self.best, self.score = "last.ckpt", torch.tensor(0.5)


class Config(dict):
    pass


class Listing(list):
    pass


def lightning():
    weights = {"model.w": torch.randn(3, 2), "first_stage.b": torch.randn(4).half()}
    return weights, {
        "epoch": 3,
        "global_step": 875000,
        "pytorch-lightning_version": "1.4.2",
        "lr": 1e-4,
        "state_dict": OrderedDict(weights),
        "callbacks": {ModelCheckpoint: {"best": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(3)}}}],
        "hyper": Config(a=1, b=Listing([1])),
        "checkpoint": ModelCheckpoint(),
        ("a", "tuple"): 1,
        "seen": {ModelCheckpoint, "x"},
    }


def test_a_training_checkpoint_full_of_foreign_classes_is_read_and_tells_its_step(tmp_path, layout):
    weights, obj = lightning()
    path = save(obj, tmp_path / "x.ckpt", layout)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    file = open_tensors(path)
    assert list(file) == list(weights) and all(
        torch.equal(file.tensor(k), v) for k, v in weights.items()
    )
    assert file.metadata == {
        "epoch": "3",
        "global_step": "875000",
        "pytorch-lightning_version": "1.4.2",
        "lr": "0.0001",
        "unwrapped": "state_dict",
    }
    assert file.ignored == ("callbacks", "checkpoint", "hyper", "optimizer_states", "seen", "tuple")


def test_classes_are_never_imported(tmp_path, monkeypatch, layout):
    (tmp_path / "foreign_framework.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    raw = b"\x80\x02}(X\x01\x00\x00\x00ac" + b"foreign_framework\nTrainer\n)\x81u."
    loaded = load_pickle(write(tmp_path / "x.pt", layout, raw))
    assert isinstance(loaded["a"], Inert) and loaded["a"].name == "foreign_framework.Trainer"
    assert "foreign_framework" not in sys.modules
    with pytest.raises(SystemExit, match="imported"):  # the file would have
        pickle.loads(raw)


def test_the_average_is_taken_of_a_checkpoint_that_has_one(tmp_path, layout):
    """DiT's train.py saves {"model", "ema", "opt", "args"}."""
    obj = {
        "model": {"w": torch.zeros(2)},
        "ema": {"w": torch.ones(2)},
        "opt": {"state": {}, "param_groups": [{"lr": 1.0}]},
        "args": Namespace(model="DiT-XL/2"),
    }
    path = save(obj, tmp_path / "x.pt", layout)
    file = open_tensors(path)
    assert file.tensor("w").tolist() == [1, 1] == load_pickle(path)[
        "w"
    ].tolist() and file.metadata == {"unwrapped": "ema"}
    assert file.ignored == ("args", "model", "opt")


@pytest.mark.parametrize(
    "obj, way",
    [
        ({"state_dict": {"state_dict": {"w": torch.ones(2)}}}, "state_dict.state_dict"),
        ({"model": {"w": torch.ones(2)}}, "model"),
        (
            {"model": {"state_dict": {"w": torch.ones(2)}}, "ema": {"decay": 0.9}},
            "model.state_dict",
        ),
        ({"state_dict": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}, "state_dict"),
    ],
)
def test_nested_wrappings_are_taken_off_and_told(tmp_path, obj, way):
    file = open_tensors(save(obj, tmp_path / "x.pt", "zip"))
    assert file.metadata["unwrapped"] == way and file.tensor("w").tolist() == [1, 1]


def test_what_is_no_tensor_is_ignored_by_name(tmp_path, layout):
    obj = {"w": torch.ones(2), "step": 3, "decay": 0.9, 7: torch.ones(1), "n": None}
    file = open_tensors(save(obj, tmp_path / "x.pt", layout))
    assert list(file) == ["w"] and file.ignored == ("step", "decay", "7", "n")


@pytest.mark.parametrize(
    "obj, words",
    [
        ([torch.ones(2)], "an object of type list"),
        (3, "an object of type int"),
        (ModelCheckpoint(), "ModelCheckpoint', whose code is not run: save its state_dict()"),
        ({}, "only: nothing"),
        ({"a": 1, "b": {"c": {"d": torch.ones(1)}}}, "no tensors at its top level, only: 'a', 'b'"),
        (
            {"model": {"w": torch.ones(1)}, "autoencoder": {"w": torch.ones(1)}},
            "several networks ('model', 'autoencoder')",
        ),
    ],
)
def test_a_file_without_one_dictionary_of_tensors_says_what_it_holds(tmp_path, obj, words, layout):
    refused(save(obj, tmp_path / "x.pt", layout), words)


def test_dictionaries_of_tensors_in_a_dictionary_are_one_table(tmp_path, layout):
    obj = {"unet": {"w": torch.ones(2)}, "vae": {"w": torch.zeros(3)}, "step": 5, "rest": {"a": 1}}
    file = open_tensors(save(obj, tmp_path / "x.pt", layout))
    assert list(file) == ["unet.w", "vae.w"] and file.tensor("vae.w").tolist() == [0, 0, 0]
    assert file.metadata["step"] == "5" and "rest" in file.ignored
    assert list(open_tensors(save(torch.ones(2), tmp_path / "y.pt", layout))) == ["(no name)"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.inner = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("steps", torch.arange(3))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.conv(x) * self.scale


def test_a_scripted_module_gives_its_state_without_running_its_program(tmp_path):
    torch.manual_seed(0)
    net = Block().half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(tmp_path / "x.pt")
    file, state = open_tensors(tmp_path / "x.pt"), net.state_dict()
    assert set(file) == set(state) and all(torch.equal(file.tensor(k), v) for k, v in state.items())
    assert "training" in file.ignored


# ---- hostile files -------------------------------------------------------------------------------


def marked(kind, marker):
    """A call that makes a file called `marker`."""
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch '{marker}'"),
        "exec": Call(exec, touch),
        "eval": Call(eval, touch),
        "open": Call(open, str(marker), "w"),
        "rebuilt": Call(torch._tensor._rebuild_from_type_v2, exec, torch.Tensor, (touch,), {}),
        "parameter": Call(torch._utils._rebuild_parameter, Call(exec, touch), False, OrderedDict()),
        "ordered": Call(OrderedDict, [("w", Call(exec, touch))]),
        "set": Call(set, [Call(exec, touch)]),
    }[kind]


KINDS = ["os.system", "exec", "eval", "open", "rebuilt", "parameter", "ordered", "set"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_in_a_pickle_leaves_no_trace(tmp_path, layout, kind):
    marker, honest = tmp_path / "marker", {"w": torch.ones(2)}
    evil = marked(kind, marker)
    places = (
        {**honest, "x": evil},
        {"state_dict": honest, "x": [{evil: 1}]},
        {"state_dict": {**honest, "x": evil}},
    )
    for i, obj in enumerate(places):
        path = save(obj, tmp_path / f"{i}.ckpt", layout)
        assert open_tensors(path).tensor("w").tolist() == [1, 1] == load_pickle(path)["w"].tolist()
    assert not marker.exists()
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(evil))
    assert marker.exists()  # Python's own unpickler runs it


@pytest.mark.parametrize("protocol", range(6))
def test_no_protocol_has_a_way_to_call(tmp_path, layout, protocol):
    marker = tmp_path / "marker"
    raw = pickle.dumps({"a": marked("os.system", marker)}, protocol)
    loaded = load_pickle(write(tmp_path / "x.pt", layout, raw))
    assert (
        isinstance(loaded["a"], Inert)
        and loaded["a"].name.endswith(".system")
        and not marker.exists()
    )
    pickle.loads(raw)
    assert marker.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"(ios\nsystem\n.",
        b"(cos\nsystem\nS'touch MARK'\no.",
        b"cos\nsystem\n(S'touch MARK'\ntR.",
        b"(S'touch MARK'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\nX\x0a\x00\x00\x00touch MARK\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85}\x92.",
        b"\x80\x02cbuiltins\n__import__\nX\x02\x00\x00\x00os\x85R.",
        b"\x80\x02}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    ],
)
def test_no_instruction_has_a_way_to_call(tmp_path, monkeypatch, layout, raw):
    monkeypatch.chdir(tmp_path)
    before = set(vars(Inert))
    try:
        load_pickle(write(tmp_path / "x.pt", layout, raw))
    except ValueError as e:
        assert "x.pt" in str(e)
    assert not (tmp_path / "MARK").exists() and set(vars(Inert)) == before


@pytest.mark.parametrize(
    "offset, size, stride, ident",
    [
        (0, (7,), (1,), ()),
        (1, (6,), (1,), ()),
        (0, (2, 3), (4, 1), ()),
        (6, (1,), (1,), ()),
        (-1, (2,), (1,), ()),
        (0, (2,), (-1,), ()),
        (0, (-1,), (1,), ()),
        (0, (1 << 40,), (0,), ()),
        (0, (1 << 30, 1 << 30), (0, 0), ()),
        (0, (2, 3), (1,), ()),
        (0, (1,) * 9, (1,) * 9, ()),
        (0, (2.0,), (1,), ()),
        (True, (2,), (1,), ()),
        (0, (1 << 62,), (1,), ()),
        (0, (2,), (1 << 62,), ()),
        (0, "ab", "cd", ()),
        (0, (6,), (1,), (torch.FloatStorage, "0", "cpu", 1 << 40)),
        (0, (6,), (1,), (torch.DoubleStorage, "0", "cpu", 6)),
        (0, (6,), (1,), (torch.FloatStorage, "1", "cpu", 6)),
        (0, (6,), (1,), (torch.FloatStorage, "0", "cpu", -6)),
        (0, (6,), (1,), (torch.FloatStorage, "../0", "cpu", 6)),
        (0, (6,), (1,), (torch.ComplexFloatStorage, "0", "cpu", 3)),
        (0, (6,), (1,), (os.system, "0", "cpu", 6)),
        (0, (6,), (1,), ("FloatStorage", "0", "cpu", 6)),
        (0, (6,), (1,), (torch.FloatStorage, 0, "cpu", 6)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, layout, offset, size, stride, ident):
    ident = (
        "storage",
        *(ident or (torch.FloatStorage, "0", "cpu", 6)),
        *([None] if layout == "legacy" else []),
    )
    obj = {"w": claim(offset, size, stride, ident)}
    path = write(tmp_path / "x.pt", layout, program(obj), struct.pack("<6f", *range(6)))
    refused(path, "no readable torch file")
    refused(path, "no readable torch file", read=load_pickle)


@pytest.mark.parametrize(
    "fn",
    [
        torch._utils._rebuild_tensor,
        torch._utils._rebuild_tensor_v2,
        torch._utils._rebuild_tensor_v3,
    ],
)
def test_the_same_tensor_inside_its_storage_is_read(tmp_path, layout, fn):
    ident = ("storage", torch.FloatStorage, "0", "cpu", 6, *([None] if layout == "legacy" else []))
    raw = program({"w": claim(1, (2, 2), (3, 1), ident, fn)})
    path = write(tmp_path / "x.pt", layout, raw, struct.pack("<6f", *range(6)))
    assert open_tensors(path).tensor("w").tolist() == [[1, 2], [4, 5]]


def test_a_storage_without_type_takes_the_tensors(tmp_path):
    ident = ("storage", torch.UntypedStorage, "0", "cpu", 24)
    path = write(
        tmp_path / "x.pt",
        "zip",
        program({"w": claim(1, (2, 2), (3, 1), ident, torch._utils._rebuild_tensor_v3)}),
        struct.pack("<6f", *range(6)),
    )
    assert open_tensors(path).tensor("w").tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    "obj",
    [
        Call(torch._utils._rebuild_tensor_v2),
        Call(torch._utils._rebuild_tensor_v2, 1, 2, 3, 4),
        Call(torch._utils._rebuild_tensor_v2, torch.ones, 0, (2,), (1,)),
        Call(torch._utils._rebuild_parameter),
        Call(torch._tensor._rebuild_from_type_v2, torch._utils._rebuild_tensor_v2, 1, ()),
        Call(OrderedDict, [1, 2]),
        Call(torch._utils._rebuild_tensor_v3, *range(7)),
        Ref("storage"),
        Ref("storage", 1, 2, 3, 4, 5, 6),
        Ref("module"),
        Ref([]),
    ],
)
def test_torchs_own_functions_called_oddly_are_refused(tmp_path, layout, obj):
    refused(write(tmp_path / "x.pt", layout, program({"w": obj})), "no readable torch file")


N, STEPS = 300_000, 20_000  # a small machine: the bombs are small, too
BOMBS = {
    "sets": (b"\x80\x04" + b"\x8f" * N, "more than 400,000 steps"),
    "tuples": (b"\x80\x02)" + b"\x85" * N, "more than 400,000 steps"),
    "copies": (
        b"\x80\x02]q\x00(" + b"N" * 5_000 + b"e" + b"cbuiltins\nset\nh\x00\x85R" * 2_000,
        "more than 400,000 steps",
    ),
    # Python's unpickler: 32 GB of memory
    "slot": (b"\x80\x02}r\xff\xff\xff\x7f.", "only: nothing"),
    "bytes": (b"\x80\x03B\xff\xff\xff\xff.", "no readable torch file"),
    "bytes8": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.", "no readable torch file"),
    "bytearray8": (b"\x80\x05\x96" + b"\xff" * 5 + b"\x00" * 3 + b".", "no readable torch file"),
    "frame": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x00}.", "only: nothing"),
    "number": (b"\x80\x02L" + b"9" * N + b"L\n.", "no readable torch file"),
    "name": (
        b"\x80\x04X"
        + struct.pack("<I", N)
        + b"a" * N
        + b"q\x00h\x00"
        + b"h\x00h\x00\x93" * 4_000
        + b".",
        "is no name",
    ),
    "reference": (
        b"\x80\x02(" + b"N" * 5_000 + b"tq\x00" + b"h\x00Q0" * 4_000 + b".",
        "no readable torch file",
    ),
    # to hash it takes 2 ** 8000 steps
    "key": (b"\x80\x02})" + b"2\x86" * 8_000 + b"K\x01s.", "only: 'tuple'"),
    "deep": (b"\x80\x02]" + b"]" * 9_000 + b"a" * 9_000 + b".", "of type list"),
    "cycle": (
        b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00sX\x05\x00\x00\x00modelh\x00s.",
        "no tensors",
    ),
    "script": (
        b"\x80\x02c__torch__\nM\n)Rq\x00}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub.",
        "nested without end",
    ),
    "rebuild": (
        b"\x80\x02"
        + b"(ctorch._tensor\n_rebuild_from_type_v2\nN" * 3_000
        + b")"
        + b"t" * 3_000
        + b"R.",
        "torch file",
    ),
    "bytearray": (
        b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85Rs.",
        "no tensors",
    ),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_pickle_made_to_exhaust_memory_or_time_is_refused(tmp_path, monkeypatch, layout, name):
    monkeypatch.setattr(machine, "STEPS", STEPS)
    raw, words = BOMBS[name]
    refused(write(tmp_path / "x.pt", layout, raw), words.replace("400,000", "20,000"))


@pytest.mark.parametrize("name", ["sets", "tuples"])
def test_the_largest_bombs_cost_little_time(tmp_path, name):
    path = write(tmp_path / "x.pt", "zip", BOMBS[name][0][:3] + BOMBS[name][0][3:4] * 8_000_000)
    refused(path, "more than 400,000 steps", traced=False)


def test_one_storage_claimed_many_times_is_mapped_or_refused_but_never_copied_many_times(tmp_path):
    data, outcomes = bytes(1_000_000), []
    ident = ("storage", torch.FloatStorage, "0", "cpu", 250_000, None)
    for pad in range(4):  # one of four lies where it can be mapped
        raw = program(
            {"pad": "x" * pad, "w": [claim(0, (250_000,), (1,), ident) for _ in range(100)]}
        )
        path = write(tmp_path / "x.pt", "legacy", raw, data)
        try:
            outcomes.append(len(load_pickle(path)["w"]))
        except ValueError:
            refused(path, "larger than the file", read=load_pickle)
            outcomes.append("refused")
    assert sorted(outcomes, key=str) == [100, "refused", "refused", "refused"]


@pytest.mark.filterwarnings("ignore")
def test_torchs_guarded_reader_refuses_files_that_people_have(tmp_path):
    """The other reason: a pickle of a newer protocol, a scripted module, a number of numpy's."""
    weights = {"w": torch.ones(2)}
    torch.save(weights, tmp_path / "newer.pt", pickle_protocol=4)
    torch.jit.save(torch.jit.script(Block()), tmp_path / "script.pt")
    torch.save(weights | {"best": np.float64(3.5)}, tmp_path / "numpy.pt")
    for path in tmp_path.iterdir():
        with pytest.raises((pickle.UnpicklingError, ValueError, RuntimeError)):
            torch.load(path, weights_only=True)
        assert len(open_tensors(path))


def test_torchs_guarded_reader_would_grant_the_memory(tmp_path):
    """The reason it is not used: calling bytearray is allowed there."""
    # 65,536 bytes
    raw = BOMBS["bytearray"][0].replace(
        b"\x8a\x06\x00\x00\x00\x00\x00\x01", b"\x8a\x03\x00\x00\x01"
    )
    path = write(tmp_path / "x.pt", "legacy", raw)
    assert torch.load(path, weights_only=True)["a"] == bytearray(65_536)
    assert load_pickle(path)["a"].name == "builtins.bytearray"


def test_a_pickle_longer_than_reason_is_never_read(tmp_path):
    refused(
        write(tmp_path / "x.pt", "zip", b"\x80\x02" + b"N" * 9_000_000 + b"."),
        "at most 8388608 are read",
    )


@pytest.mark.parametrize(
    "damage, words",
    [
        ("compressed", "is compressed"),
        ("twice", "no part twice"),
        ("none", "0 data.pkl"),
        ("two", "2 data.pkl"),
        ("big", "-endian, expected little"),
        ("outside", "no readable torch file"),
        ("short", "no readable torch file"),
    ],
)
def test_a_zip_that_torch_would_not_write_is_refused(tmp_path, damage, words):
    path, raw = tmp_path / "x.pt", program({"w": claim(0, (6,), (1,))})
    kind = zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", kind) as z:
        warnings.simplefilter("ignore")
        z.writestr("a/data.pkl" if damage != "none" else "a/b/data.pkl", raw)
        z.writestr("a/data/0", bytes(20 if damage == "short" else 24))
        if damage in ("twice", "two"):
            z.writestr("a/data/0" if damage == "twice" else "b/data.pkl", bytes(24))
        if damage == "big":
            z.writestr("a/byteorder", "big")
    if damage == "outside":
        whole = bytearray(path.read_bytes())
        at = whole.rindex(b"PK\1\2")
        # both sizes in the list of contents
        whole[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
        path.write_bytes(whole)
    refused(path, words)


@pytest.mark.parametrize(
    "magic, version, system",
    [
        (MAGIC + 1, 1001, {"little_endian": True}),
        (MAGIC, 1000, {"little_endian": True}),
        (MAGIC, 1001, {"little_endian": False}),
        (MAGIC, 1001, []),
    ],
)
def test_five_pickles_that_torch_did_not_write_are_refused(tmp_path, magic, version, system):
    path = tmp_path / "x.pt"
    path.write_bytes(b"".join(pickle.dumps(x, 2) for x in (magic, version, system, {}, [])))
    refused(path, "no readable torch file")


@pytest.mark.parametrize(
    "keys, numel",
    [(["0"], 7), (["0"], -1), (["0", "0"], 6), (["1"], 6), ([[]], 6), (3, 6), ([], 6)],
)
def test_an_old_file_whose_list_of_storages_lies_is_refused(tmp_path, keys, numel):
    system = {"little_endian": True}
    obj = program({"w": claim(0, (6,), (1,), ("storage", torch.FloatStorage, "0", "cpu", 6, None))})
    raw = b"".join(pickle.dumps(x, 2) for x in (MAGIC, 1001, system)) + obj + pickle.dumps(keys, 2)
    (tmp_path / "x.pt").write_bytes(raw + struct.pack("<q", numel) + bytes(24))
    refused(tmp_path / "x.pt", "no readable torch file")


def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path, layout):
    path = save(zoo(), tmp_path / "x.ckpt", layout)
    raw = path.read_bytes()
    for keep in (1, 4, 30, 300, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:keep])
        refused(path, "no readable torch file")


def test_no_flipped_bit_ends_in_anything_but_an_answer_or_one_line(tmp_path, layout):
    path = save(lightning()[1], tmp_path / "x.ckpt", layout)
    raw, g = path.read_bytes(), torch.Generator().manual_seed(0)
    start = raw.index(b"\x80\x02}")
    answers = 0
    for at in (start + torch.randint(1000, (400,), generator=g)).tolist():
        damaged = bytearray(raw)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            file = open_tensors(path)
            answers += all(file.tensor(name).numel() >= 0 for name in file)
        except ValueError as e:
            assert str(path) in str(e) and "\n" not in str(e)
    assert 0 < answers < 400
