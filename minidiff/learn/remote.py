"""A function of a submission, run in a process of its own, as if it were one of ours.

    with Submission(Path("submission.py"), find("q_sample")) as remote:
        verdict = judge(exercise, remote.guarded, remote=True)

The grader keeps specification, facts, mistakes and targets; the other process (`worker.py`) gets
the arguments of one call after the other and sends its answers as plain numbers (`wire.py`). Its
copy of the package lacks `learn/`, and in it the body of the exercise's own function is one line
that raises. Functions among the arguments stay here, and the other side asks for their values.

What is kept by the system, whoever runs it: time, memory, size of files, no new processes. On Linux
with Landlock (`landlock.py`) also: no reading of the installed package, no writing outside a folder
of its own. Run by root, as Gradescope does, the process becomes another user besides, who can
change nothing, and who cannot read the package once its folder is closed to others. Everywhere a
fence inside Python refuses the same acts, programs and the network with a sentence
(`worker.guard`); alone, as on macOS, it does not see what libraries in C do.

Weakness: nothing keeps a student from pasting in the lines of a public project; `copied` says where
that seems so.
"""

import ast
import inspect
import io
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from functools import partial
from pathlib import Path

import minidiff
from minidiff.learn import wire
from minidiff.learn.exercise import Exercise
from minidiff.learn.grader import LIMIT, Wrong
from minidiff.learn.stub import source
from minidiff.learn.values import clone, difference

PACKAGE = Path(minidiff.__file__).resolve().parent
START = 120.0  # seconds for Python and torch to start
PRINTED = 10_000  # characters kept of what a submission prints
NOBODY = 65534
FUNCTIONS = (types.FunctionType, types.MethodType, partial)


class Submission:
    """One exercise of one submission; a context manager, for its process and folder end with it.

    seconds   for running the file and for all calls together
    memory    bytes beyond what Python and torch take
    """

    def __init__(
        self, path: Path, exercise: Exercise, seconds: float = 60, memory: int = 2 * 2**30
    ):
        if os.name != "posix":
            raise ValueError("a submission is graded on Linux or macOS: its limits are theirs")
        self.path = Path(path)
        self.exercise = exercise
        self.seconds = seconds
        self.memory = memory
        self.printed = ""
        self.cut = False
        self.walled = False
        self.functions: list = []

    def __enter__(self) -> "Submission":
        self.root = Path(tempfile.mkdtemp(prefix="minidiff-grade-"))
        self.root.chmod(0o755)
        self.end = time.monotonic() + START
        self._start()
        return self

    def __exit__(self, *_) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass
        self._read_what_is_printed()
        self.process.wait()
        self.process.stdout.close()
        os.close(self.to)
        os.close(self.back)
        shutil.rmtree(self.root, ignore_errors=True)

    def _start(self) -> None:
        """The other process, with its copy of the package and a folder of its own."""
        make_copy(self.root / "package", self.exercise)
        for name in ("wire.py", "worker.py", "landlock.py"):
            shutil.copy(Path(__file__).with_name(name), self.root)
        folder = self.root / "own"
        folder.mkdir()
        shutil.copy(self.path, self.root / "submission.py")
        user = another_user()
        if user is not None:
            os.chown(folder, user, user)
        their_reads, self.to = os.pipe()
        self.back, their_writes = os.pipe()
        settings = {
            "package": str(self.root / "package"),
            "submission": str(self.root / "submission.py"),
            "folder": str(folder),
            "name": self.exercise.name,
            "hidden": hidden_folders(),
            "readable": [sys.prefix, sys.base_prefix, str(self.root / "submission.py")],
            "libraries": [path for path in sys.path if path],
            "reads": their_reads,
            "writes": their_writes,
            "seconds": int(self.seconds),
            "memory": self.memory,
            "user": user,
        }
        file = self.root / "settings.json"
        file.write_text(json.dumps(settings))
        for path in self.root.iterdir():
            path.chmod(0o755 if path.is_dir() else 0o644)
        clean = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
        clean |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        if "LD_LIBRARY_PATH" in os.environ:
            clean["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-u", self.root / "worker.py", file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=(their_reads, their_writes),
            start_new_session=True,
            cwd=folder,
            env=clean,
        )
        os.close(their_reads)
        os.close(their_writes)
        for pipe in (self.process.stdout.fileno(), self.to):
            os.set_blocking(pipe, False)
        self.ready = False

    def guarded(self, *args):
        """The submission's answer to these arguments. `Wrong` for everything that goes amiss."""
        if not self.ready:
            self._expect_ready()
        self.functions = []
        self._send(("call", clone(args)))
        told = self._served(min(LIMIT, self._left()))
        if told["kind"] == "raised":
            raise Wrong(_raised(told))
        if told["kind"] != "answer" or not isinstance(told.get("args"), list):
            raise Wrong("Its process sent something that is no answer.")
        changed, _ = difference(tuple(told["args"]), _as_sent(args))
        if changed > 0:
            raise Wrong(
                "It changes its input in place: work on a new tensor, such as x = x + y and not "
                "x += y."
            )
        return told["value"]

    def _expect_ready(self) -> None:
        """Wait until the file has been run. `Wrong` says why it could not be."""
        told = self._receive(self._left())
        if told["kind"] == "begin":
            self.walled = told.get("walled") is True
            self.end = time.monotonic() + self.seconds
            told = self._receive(self._left())
        if told["kind"] == "fault":
            raise Wrong(str(told.get("says")))
        if told["kind"] != "ready":
            raise Wrong("Its process sent something that is no answer.")
        self.ready = True

    def _served(self, limit: float) -> dict:
        """The answer to a call; on the way, the values of functions that the other side asks
        for.
        """
        end = time.monotonic() + limit
        while True:
            told = self._receive(end - time.monotonic(), limit)
            if told["kind"] != "ask":
                return told
            self._send(self._value_of(told))

    def _value_of(self, told: dict) -> tuple:
        """What one of our functions gives for the other side's arguments."""
        number = told.get("fn")
        if type(number) is not int or not 0 <= number < len(self.functions):
            return "raised", "there is no such function"
        try:
            return "value", self.functions[number](*told["args"], **told["named"])
        except Exception as e:
            return "raised", f"{type(e).__name__}: {e}"

    def _left(self) -> float:
        return self.end - time.monotonic()

    # ---- messages --------------------------------------------------------------------------------

    def _send(self, message) -> None:
        data = io.BytesIO()
        _Pickler(data, self.functions).dump(message)
        content = memoryview(wire.HEAD.pack(data.tell()) + data.getvalue())
        while content:
            ready = select.select([], [self.to], [], max(self._left(), 0))[1]
            if not ready:
                raise Wrong(self._too_slow(None))
            try:
                content = content[os.write(self.to, content) :]
            except OSError:
                raise Wrong(self._how_it_ended()) from None

    def _receive(self, seconds: float, limit: float | None = None) -> dict:
        """The next message. `Wrong` if none comes in time, or if it is none."""
        end = time.monotonic() + seconds
        head = self._exactly(wire.HEAD.size, end, limit)
        (length,) = wire.HEAD.unpack(head)
        if length > wire.MOST:
            raise Wrong(f"Its answer is larger than {wire.MOST >> 20} MB.")
        try:
            told = wire.unpack(self._exactly(length, end, limit))
        except ValueError:
            told = None
        if not isinstance(told, dict) or not isinstance(told.get("kind"), str):
            raise Wrong("Its process sent something that is no answer.")
        return told

    def _exactly(self, count: int, end: float, limit: float | None) -> bytes:
        data = bytearray()
        output = self.process.stdout.fileno()
        listened = [self.back, output]
        while len(data) < count:
            left = end - time.monotonic()
            ready = select.select(listened, [], [], max(left, 0))[0] if left > 0 else []
            if not ready:
                raise Wrong(self._too_slow(limit))
            if output in ready and not self._read_what_is_printed():
                listened = [self.back]
            if self.back in ready:
                part = os.read(self.back, min(count - len(data), 2**20))
                if not part:
                    raise Wrong(self._how_it_ended())
                data += part
        return bytes(data)

    def _too_slow(self, limit: float | None) -> str:
        if limit is None or self._left() <= 0:
            return f"It took longer than {self.seconds:.0f} seconds in all."
        return f"It did not return within {limit:.0f} seconds: is there a loop that never ends?"

    def _read_what_is_printed(self) -> bool:
        """Take a piece of the output, of which the beginning is kept; False at its end."""
        try:
            part = os.read(self.process.stdout.fileno(), 2**16)
        except BlockingIOError:
            return True
        room = PRINTED - len(self.printed)
        self.cut = self.cut or len(part) > room
        self.printed += part.decode("utf-8", "replace")[:room]
        return bool(part)

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "Its process closed its pipe before it answered."
        if code == -signal.SIGXCPU:
            return f"It took longer than {self.seconds:.0f} seconds in all."
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"Its process ended {how} before it answered."


class _Pickler(pickle.Pickler):
    """The grader's own values; functions stay here, and go out as numbers."""

    def __init__(self, file, functions: list):
        super().__init__(file)
        self.functions = functions

    def persistent_id(self, value):
        if not _stays(value):
            return None
        self.functions.append(value)
        return len(self.functions) - 1


def _stays(value) -> bool:
    """Is it a function of this project, or one without a name that the other side could import?"""
    if not isinstance(value, FUNCTIONS):
        return callable(value) and type(value).__module__.startswith("minidiff.learn")
    module = getattr(value, "__module__", None) or "minidiff"
    name = getattr(value, "__qualname__", "<partial>")
    return module.split(".")[0] == "minidiff" or "<" in name or isinstance(value, types.MethodType)


def _as_sent(args: tuple) -> tuple:
    """Arguments as they look when they come back: what is no number is one empty object."""
    return tuple(wire.unpack(wire.pack(list(args))))


def _raised(told: dict) -> str:
    """The sentence about an error of the submission."""
    kind = str(told.get("type"))
    if kind == "NotImplementedError":
        return "It is not written yet: it raises NotImplementedError."
    if kind == "RecursionError":
        return "It calls itself without end."
    place = f" in line {told.get('line')}, `{told.get('text')}`" if told.get("text") else ""
    lines = str(told.get("message") or "without a message").splitlines()
    return f"It raised {kind}{place}: {lines[0]}"


# ---- what the other process may see --------------------------------------------------------------


def make_copy(folder: Path, exercise: Exercise) -> None:
    """The package without `learn/` and the commands, and without the body of the exercise's own
    function.
    """
    skipped = shutil.ignore_patterns("__pycache__", "learn", "cli", "proofs", "*.log.jsonl")
    shutil.copytree(PACKAGE, folder / "minidiff", ignore=skipped)
    for path in (folder, *folder.rglob("*")):  # the original may be closed to others
        path.chmod(0o755 if path.is_dir() else 0o644)
    fn = inspect.unwrap(exercise.reference)
    if fn.__module__.startswith("minidiff.learn"):
        return
    file = Path(inspect.getfile(fn)).resolve().relative_to(PACKAGE)
    path = folder / "minidiff" / file
    path.write_text(without_body(path.read_text(), fn.__qualname__))


def without_body(text: str, qualname: str) -> str:
    """A module's text in which one function (or method, "Class.method") only raises. ValueError if
    the module has no such function.
    """
    node = ast.parse(text)
    for name in qualname.split("."):
        inner = [n for n in node.body if getattr(n, "name", None) == name]
        if not inner:
            raise ValueError(f"there is no function {qualname} in this file")
        node = inner[-1]
    lines = text.splitlines(keepends=True)
    first = node.body[0]
    says = f"{qualname} is what this exercise asks for: its body is not here"
    raises = f"{' ' * first.col_offset}raise RuntimeError({says!r})\n"
    return "".join([*lines[: first.lineno - 1], raises, *lines[node.end_lineno :]])


def hidden_folders() -> list[str]:
    """Where the project's own answers lie: the package, and the rest of a checkout."""
    others = [
        PACKAGE.parent / name for name in ("notebooks", "tests", "tutorials", ".git", "build")
    ]
    checkout = (PACKAGE.parent / "pyproject.toml").exists()
    return [str(PACKAGE), *(str(path) for path in others if checkout and path.exists())]


def another_user() -> int | None:
    """The user that a submission runs as, where we may choose: root may, if that user can read
    Python and torch. None: it runs as we do.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    needed = (sys.base_prefix, os.__file__, sys.modules["torch"].__file__)
    return NOBODY if all(_open_to_all(Path(path)) for path in needed) else None


def as_root() -> bool:
    """Does a submission run as root, for want of a user that can read Python?"""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and another_user() is None


def _open_to_all(path: Path) -> bool:
    """May every user of this machine read a file or folder?"""
    path = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in path.parents) and bool(
        path.stat().st_mode & 0o004
    )


def readable_by_others() -> bool:
    """May the user that a submission runs as read the installed package?"""
    return another_user() is None or _open_to_all(PACKAGE)


def copied(text: str, exercise: Exercise) -> bool:
    """Is the submission's function the project's own, statement by statement? Functions of one or
    two statements are not asked: there is one way to write those.
    """
    try:
        bodies = [n for n in ast.parse(text).body if getattr(n, "name", None) == exercise.name]
        ours = ast.parse(source(exercise.reference)).body[0]
    except (SyntaxError, ValueError, RecursionError):
        return False
    mine = _statements(ours)
    return len(mine) > 2 and any(_statements(body) == mine for body in bodies)


def _statements(node) -> list[str]:
    body = [n for n in getattr(node, "body", []) if not _is_text(n)]
    return [ast.dump(n) for n in body]


def _is_text(node) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
