"""The promise of SECURITY.md on files that nobody imagined: random programs, and random damage to
real checkpoints. Each is read, or refused in one line that names it, in little time and memory.
"""

import io
import json
import pickletools
import struct
import time
import tracemalloc
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from minidiff.formats.files import load_pickle, open_tensors
from minidiff.formats.inspect import inspect

CALM = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SECONDS = 5.0  # of computing, for a file of a few kilobytes
MEMORY = 30e6
NAMES = ("os system", "builtins exec", "torch._utils _rebuild_tensor_v2", "torch FloatStorage")


def judged(path):
    """Read a file in every way there is: an answer, or one line with its name, at little cost."""
    start, answers = time.process_time(), 0
    tracemalloc.start()
    try:
        for read in (touch, load_pickle, inspect):
            if read is load_pickle and path.suffix != ".ckpt":
                continue
            try:
                read(path)
                answers += 1
            except (ValueError, FileNotFoundError) as e:
                text = str(e)
                assert str(path) in text and "\n" not in text and len(text) < 1000, text
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY and time.process_time() - start < SECONDS
    return answers


def touch(path):
    """Open a file and look at every number in it."""
    file = open_tensors(path)
    for name in file:
        file.tensor(name).numpy(force=True) if file[name].dtype.itemsize > 2 else file.tensor(name)


# ---- programs that are no checkpoints ------------------------------------------------------------


def instruction(code):
    """Bytes of one instruction with any argument of its kind."""
    kind = code.arg.name if code.arg else None
    raw = code.code.encode("latin-1")
    small = st.binary(max_size=12)
    by_kind = {
        None: st.just(b""),
        "uint1": st.binary(min_size=1, max_size=1),
        "uint2": st.binary(min_size=2, max_size=2),
        "int4": st.binary(min_size=4, max_size=4),
        "uint4": st.binary(min_size=4, max_size=4),
        "uint8": st.binary(min_size=8, max_size=8),
        "float8": st.binary(min_size=8, max_size=8),
        "stringnl_noescape_pair": st.sampled_from(NAMES).map(
            lambda text: text.replace(" ", "\n").encode() + b"\n"
        ),
        "decimalnl_short": st.integers(-9, 300).map(lambda n: f"{n}\n".encode()),
        "decimalnl_long": st.integers().map(lambda n: f"{n}L\n".encode()),
        "stringnl": st.just(b"'a'\n"),
        "unicodestringnl": st.just(b"a\n"),
        "floatnl": st.just(b"1.5\n"),
        "string1": small.map(lambda b: bytes([len(b)]) + b),
        "bytes1": small.map(lambda b: bytes([len(b)]) + b),
        "unicodestring1": st.just(b"\x01a"),
        "string4": small.map(lambda b: struct.pack("<i", len(b)) + b),
        "bytes4": small.map(lambda b: struct.pack("<I", len(b)) + b),
        "unicodestring4": st.just(b"\x01\x00\x00\x00a"),
        "long1": small.map(lambda b: bytes([len(b)]) + b),
        "long4": small.map(lambda b: struct.pack("<i", len(b)) + b),
    }
    return by_kind.get(kind, small).map(lambda argument: raw + argument)


PROGRAMS = st.lists(st.one_of([instruction(code) for code in pickletools.opcodes]), max_size=40)


@CALM
@given(PROGRAMS)
def test_no_program_does_anything_but_end_in_an_answer_or_a_line(tmp_path_factory, program):
    path = tmp_path_factory.getbasetemp() / "program.ckpt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a/data.pkl", b"\x80\x02}" + b"".join(program) + b".")
        z.writestr("a/data/0", bytes(24))
    judged(path)


# ---- damage to real files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """{suffix: bytes} of a small training checkpoint in the three containers."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    step = torch.optim.Adam(net.parameters()).state_dict()
    whole = {"state_dict": net.state_dict(), "optimizer": step, "global_step": 7, "lr": 1e-4}
    zipped, old = io.BytesIO(), io.BytesIO()
    torch.save(whole, zipped)
    torch.save(whole, old, _use_new_zipfile_serialization=False)
    path = tmp_path_factory.mktemp("real") / "a.safetensors"
    save_file(net.state_dict(), path, {"minidiff": json.dumps({"args": {}})})
    return {
        "zip.ckpt": zipped.getvalue(),
        "old.ckpt": old.getvalue(),
        "a.safetensors": path.read_bytes(),
    }


DAMAGE = st.tuples(
    st.sampled_from(["change", "cut out", "put in", "end"]),
    st.floats(0, 1),  # where
    st.binary(min_size=1, max_size=6),
)


def damaged(raw, changes):
    for kind, where, new in changes:
        # half of all damage is done where the header or the program is
        at = int(where * 2 * min(len(raw), 800)) if where < 0.5 else int(where * len(raw))
        if kind == "end":
            raw = raw[:at]
        else:
            rest = raw[at:] if kind == "put in" else raw[at + len(new) :]
            raw = raw[:at] + (b"" if kind == "cut out" else new) + rest
    return raw


@pytest.mark.parametrize("name", ["zip.ckpt", "old.ckpt", "a.safetensors"])
def test_no_damage_to_a_real_file_ends_in_anything_but_an_answer_or_a_line(
    checkpoints, tmp_path, name
):
    path, answers = tmp_path / name, 0
    path.write_bytes(checkpoints[name])
    assert judged(path)

    @CALM
    @given(st.lists(DAMAGE, min_size=1, max_size=3))
    def check(changes):
        nonlocal answers
        path.write_bytes(damaged(checkpoints[name], changes))
        answers += judged(path)

    check()
    assert answers
