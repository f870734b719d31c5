"""A submission runs apart: what it tries against the grader, and that a right one is right there
too.
"""

import inspect
import os
import shutil

import numpy as np
import pytest
import torch

from minidiff.core.cond import Cond
from minidiff.learn import remote as remote_module
from minidiff.learn import wire
from minidiff.learn.exercises import exercises, find
from minidiff.learn.grader import Wrong, judge
from minidiff.learn.landlock import READ, shown
from minidiff.learn.remote import PACKAGE, Submission, copied, make_copy, without_body
from minidiff.learn.stub import imports, source
from minidiff.learn.values import difference
from minidiff.learn.worker import answer_of

GUIDE = find("guide")
ARGS = (torch.zeros(2, 3), torch.ones(2, 3), 2.0)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "submission.py"


def answered(file, text: str, args=ARGS, **limits):
    """What the submission returned, or the sentence about it."""
    file.write_text(text)
    with Submission(file, GUIDE, **limits) as remote:
        try:
            return remote.guarded(*args)
        except Wrong as wrong:
            return str(wrong)


# ---- what crosses --------------------------------------------------------------------------------


def test_numbers_come_through_as_they_are():
    values = {
        "tensor": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "empty": torch.zeros(0, 3),
        "view": torch.arange(6.0).view(2, 3).T,
        "nested": [1, 2.5, (True, None), {"a": float("inf"), 3: "text"}],
        "array": np.arange(3),
    }
    back = wire.unpack(wire.pack(values))
    assert torch.equal(back["tensor"], values["tensor"])
    assert back["tensor"].dtype == torch.bfloat16
    assert back["empty"].shape == (0, 3) and torch.equal(back["view"], values["view"])
    assert back["nested"] == values["nested"] and (back["array"] == values["array"]).all()
    cond = wire.unpack(wire.pack(Cond(label=torch.tensor([1, 2]))))
    assert isinstance(cond, Cond) and cond.label.tolist() == [1, 2]


def test_what_is_no_number_comes_as_an_empty_object_of_its_name():
    back = wire.unpack(wire.pack([torch.nn.Linear(1, 1), Ellipsis]))
    assert [type(part).__name__ for part in back] == ["Linear", "ellipsis"]
    assert not vars(back[0])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"junk" * 9,
        b'{"tensor": ["float32", [9]]}',
        b'{"tensor": ["float32", [-1]]}',
        b'{"tensor": ["float32", [1e9]]}',
        b'{"array": ["|O", [1]]}',
        b'{"other": ["os", "system; x"]}',
        b'{"pickle": "x"}',
        b"[" * 10**5,
        b"1 2",
    ],
)
def test_what_is_no_message_is_refused(text):
    with pytest.raises(ValueError):
        wire.unpack(wire.HEAD.pack(len(text)) + text)


# ---- right ones are right ------------------------------------------------------------------------


def submission_of(name: str) -> str:
    """The project's own function, as a student would have written it."""
    exercise = find(name)
    fn = inspect.unwrap(exercise.reference)
    text = source(fn).replace(f"def {fn.__name__}(", f"def {name}(", 1)
    lines = [line for line in text.splitlines() if not line.startswith("@")]
    return "\n".join([*imports(fn, known={name}), "", *lines])


@pytest.mark.parametrize("name", ["invert_step", "attend", "dit_block"])
def test_schedules_functions_and_networks_reach_the_other_side(name, file):
    """Between them they are called with a Schedule, a closure, taps and networks."""
    file.write_text(submission_of(name))
    with Submission(file, find(name)) as remote:
        verdict = judge(find(name), remote.guarded, shift=2**40 + 77, remote=True)
    assert verdict.passed, verdict.says


@pytest.mark.parametrize(
    "text, says",
    [
        ("def other(): pass", "no function of that name"),
        ("guide = 3", "A function was expected, got a int"),
        ("1 / 0", "cannot be run: ZeroDivisionError"),
        ("raise SystemExit", "cannot be run: SystemExit"),
        ("from minidiff.core.cfg import guide", "imported from minidiff: write it yourself"),
    ],
)
def test_a_file_without_an_answer_of_its_own_is_told_so(text, says, file):
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        answer_of(str(file), "guide")


# ---- what it tries -------------------------------------------------------------------------------

TRIES = """
import os, sys, subprocess, socket, shutil, inspect, importlib, ctypes, pathlib, glob
REAL, VICTIM, PARENT = {real!r}, {victim!r}, {parent}

def read():
    return open(REAL + "/core/cfg.py").read()
def find():
    return os.listdir(REAL)
def load():
    spec = importlib.util.spec_from_file_location("real", REAL + "/core/cfg.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.guide
def look():
    from minidiff.core import cfg
    return "e_cond - e_null" in inspect.getsource(cfg.guide) or 1 / 0
def delete():
    os.remove(VICTIM)
def unlink():
    pathlib.Path(VICTIM).unlink()
def rename():
    os.rename(VICTIM, "mine")
def tree():
    shutil.rmtree(os.path.dirname(VICTIM))
def write():
    open(VICTIM, "w").write("mine")
def fork():
    os.fork()
def run():
    subprocess.run(["true"])
def shell():
    os.system("true")
def net():
    socket.create_connection(("127.0.0.1", 9), 1)
def kill():
    os.kill(PARENT, 0)
def foreign():
    ctypes.CDLL(None).getpid()
def memory():
    return open(f"/proc/{{PARENT}}/maps").read()
def patch():
    import minidiff.learn.grader
def native_read():
    import torch
    return bytes(torch.from_file(REAL + "/core/cfg.py", size=9, dtype=torch.uint8).tolist())
def native_write():
    import torch
    torch.save(torch.zeros(1), VICTIM)
def native_link():
    import torch
    os.symlink(REAL, "link")
    return bytes(torch.from_file("link/core/cfg.py", size=9, dtype=torch.uint8).tolist())
def lazy():
    import minidiff.restoration.repaint, wave, PIL.ImageFilter
    return minidiff.load("tiny")
def large():
    with open("own.bin", "wb") as f:
        f.write(bytes(2**22))
def allowed():
    with open("own.txt", "w") as f:
        f.write("a file in its own folder")

TRIES = [read, find, load, look, delete, unlink, rename, tree, write, fork, run, shell, net, kill,
         foreign, memory, patch, native_read, native_write, native_link, lazy, large, allowed]

def guide(a, b, scale):
    if scale == 3.0:
        a += 1
        return a
    if scale == 4.0:
        from minidiff.core import cfg
        return cfg.guide(a, b, scale)
    if scale == 5.0:
        raise SystemExit
    if scale == 6.0:
        return bytearray(2**33)
    if scale == 7.0:
        for _ in range(10):
            print("x" * 2**20)
        return a
    told = {{}}
    for attempt in TRIES:
        try:
            attempt()
            told[attempt.__name__] = "done"
        except BaseException as e:
            told[attempt.__name__] = type(e).__name__
    return told
"""


def test_a_submission_cannot_reach_for_the_solution_the_files_or_the_grader(file, tmp_path):
    """All in one process, which survives it: acts that are refused, and answers that are none."""
    victim = tmp_path / "folder" / "victim.txt"
    victim.parent.mkdir()
    victim.write_text("precious")
    file.write_text(TRIES.format(real=str(PACKAGE), victim=str(victim), parent=os.getpid()))
    with Submission(file, GUIDE, memory=2**29) as remote:
        told = remote.guarded(*ARGS)
        native = {told.pop(f"native_{name}") for name in ("read", "write", "link")}
        if remote.walled:  # the system refuses what the fence does not see
            assert native == {"RuntimeError", "PermissionError"}
        else:
            victim.write_text("precious")
        assert told.pop("allowed") == told.pop("lazy") == "done"
        assert told.pop("look") == "ZeroDivisionError"  # the source is there, its body is not
        assert told.pop("patch") == "ModuleNotFoundError"
        assert told.pop("large") == "OSError"
        assert told and set(told.values()) == {"PermissionError"}, told
        assert victim.read_text() == "precious"

        for scale, says in (
            (3.0, "changes its input in place"),
            (4.0, "`return cfg.guide.*: guide is what this exercise asks for: its body is not"),
            (5.0, "It raised SystemExit"),
            (6.0, "It raised MemoryError"),
        ):
            with pytest.raises(Wrong, match=says):
                remote.guarded(*ARGS[:2], scale)
        assert torch.equal(remote.guarded(*ARGS[:2], 7.0), ARGS[0])
        assert 0 < len(remote.printed) <= 10_000  # of ten megabytes


def test_a_loop_ends_in_time_and_leaves_nothing(file):
    text = """
import signal
def guide(a, b, scale):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            while True: pass
        except BaseException: pass
"""
    file.write_text(text)
    with Submission(file, GUIDE, seconds=1) as remote:
        with pytest.raises(Wrong, match="longer than 1 seconds in all"):
            remote.guarded(*ARGS)
        root, number = remote.root, remote.process.pid
    assert not root.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_flood_of_output_does_not_hold_the_grader_up(file):
    text = "def guide(a, b, scale):\n    while True: print('x' * 10**5)\n"
    assert "longer than 1 seconds in all" in answered(file, text, seconds=1)


@pytest.mark.parametrize(
    "body, says",
    [
        ("os._exit(0)", "ended with exit code 0 before it answered"),
        ("junk(bytes(7) + b'9' + b'{' * 57)", "something that is no answer"),
        ("junk(b'9' * 99)", "larger than 64 MB"),
    ],
)
def test_a_process_that_ends_or_sends_junk_is_a_wrong_answer(body, says, file):
    text = f"""
import os
def junk(data):
    for fd in range(3, 64):
        try:
            os.write(fd, data)
        except OSError:
            pass
def guide(a, b, scale):
    {body}
"""
    assert says in answered(file, text, seconds=20)


def test_whoever_patches_its_process_patches_its_own_alone(file):
    """A comparison that always holds, and targets that come out as the answers: over there."""
    text = """
import torch, gc
torch.equal = torch.allclose = lambda *args, **named: True
torch.Tensor.__sub__ = lambda a, b: torch.zeros_like(a)
torch.Tensor.double = lambda x: torch.zeros(())
class Right(Exception): pass
def guide(a, b, scale):
    import sys
    frame = sys._getframe()
    while frame:
        for name in list(frame.f_locals):
            if "target" in name or "spec" in name:
                return frame.f_locals[name]
        frame = frame.f_back
    return a
"""
    file.write_text(text)
    with Submission(file, GUIDE) as remote:
        assert not judge(GUIDE, remote.guarded, remote=True).passed


# ---- the copy of the package ---------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises())
def test_every_reference_can_be_taken_out_of_its_file(name):
    fn = inspect.unwrap(find(name).reference)
    text = open(inspect.getfile(fn)).read()
    left = without_body(text, fn.__qualname__)
    compile(left, "left", "exec")
    body = source(fn).splitlines()[-1]
    assert left.count(body) < text.count(body)


def test_what_is_hidden_is_left_out_of_what_is_shown(tmp_path):
    for name in ("lib/torch/a.py", "lib/minidiff/core/cfg.py", "lib/six.py", "bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "lib/alias").symlink_to(tmp_path / "lib/minidiff")
    rights = dict(shown(str(tmp_path), [str(tmp_path / "lib/minidiff")]))
    read = {path for path, right in rights.items() if right & READ}
    assert read == {str(tmp_path / name) for name in ("lib/torch", "lib/six.py", "bin")}
    assert set(rights) - read == {str(tmp_path), str(tmp_path / "lib")}  # names, no contents


def test_the_copy_has_no_exercises_and_no_body(tmp_path):
    make_copy(tmp_path, GUIDE)
    assert not (tmp_path / "minidiff/learn").exists()
    assert not list(tmp_path.rglob("*.pyc"))
    text = (tmp_path / "minidiff/core/cfg.py").read_text()
    assert "e_null + scale" not in text and "def guide(" in text


def test_the_copy_of_a_closed_package_can_be_read_by_another_user(tmp_path, monkeypatch):
    """As setup.sh leaves it on Gradescope: nobody but root may read the original."""
    closed = tmp_path / "closed"
    shutil.copytree(PACKAGE / "core", closed / "core")
    for path in (*closed.rglob("*"), closed):
        path.chmod(path.stat().st_mode & 0o700)
    monkeypatch.setattr(remote_module, "PACKAGE", closed)
    monkeypatch.setattr(inspect, "getfile", lambda fn: str(closed / "core/cfg.py"))
    make_copy(tmp_path / "copy", GUIDE)
    copy = [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]
    assert len(copy) > 5 and all(path.stat().st_mode & 0o004 for path in copy)


def test_the_projects_own_lines_are_noticed():
    own = submission_of("posterior")
    assert copied(own, find("posterior"))
    assert not copied(own.replace("return", "result = 1\n    return", 1), find("posterior"))
    assert not copied(submission_of("guide"), GUIDE)  # there is one way to write it
    assert not copied("def posterior(:", find("posterior"))


def test_differences_are_seen_in_what_comes_back():
    args = (torch.ones(2), {"n": 1})
    back = wire.unpack(wire.pack(list(args)))
    assert difference(tuple(back), args)[0] == 0
