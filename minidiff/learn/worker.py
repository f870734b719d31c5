"""The process in which a submission runs: it answers calls, and holds nothing worth stealing.

    python -I worker.py SETTINGS.json        # started by `remote.py`, never by hand

It has a copy of the package in which the body of the exercise's own function is missing, a folder
of its own, limits that the system keeps, and no access to the grader: calls come in through one
pipe and answers go out through another. Targets, facts and mistakes stay in the grader. So a
submission may change here whatever it likes: the worst that it can reach is a wrong answer.

The file stands alone, as `wire.py` and `landlock.py` do: the rest of this room is not in the copy.
"""

import io
import json
import os
import pickle
import resource
import struct
import sys
import traceback
import types

HEAD = struct.Struct(">Q")
NEVER = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "os.killpg",
    "os.putenv",
    "pty.spawn",
    "sqlite3.connect",
    "signal.pthread_kill",
)
CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "shutil.rmtree",
    "shutil.move",
)
# what libraries read when they are used
SYSTEM = (
    "/lib",
    "/lib64",
    "/usr",
    "/etc",
    "/nix",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self",
    "/sys/devices/system",
)
READS = ("open", "os.listdir", "os.scandir")


# ---- pipes ---------------------------------------------------------------------------------------


class Pipes:
    """Messages to and from the grader. What comes is the grader's own pickle; what goes is `pack`'s
    bytes.
    """

    def __init__(self, reads: int, writes: int, pack):
        self.reads = reads
        self.writes = writes
        self.pack = pack

    def send(self, **message) -> None:
        data = self.pack(message)
        data = HEAD.pack(len(data)) + data
        while data:
            data = data[os.write(self.writes, data) :]

    def receive(self):
        (length,) = HEAD.unpack(self._exactly(HEAD.size))
        return Unpickler(self, self._exactly(length)).load()

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = os.read(self.reads, min(count - len(data), 2**20))
            if not part:
                os._exit(0)  # the grader is gone
            data += part
        return bytes(data)


class Unpickler(pickle.Unpickler):
    """A function of the grader arrives as one that asks the grader."""

    def __init__(self, pipes: Pipes, data: bytes):
        super().__init__(io.BytesIO(data))
        self.pipes = pipes

    def persistent_load(self, number):
        pipes = self.pipes

        def asks(*args, **named):
            pipes.send(kind="ask", fn=number, args=list(args), named=named)
            kind, value = pipes.receive()
            if kind == "raised":
                raise RuntimeError(value)
            return value

        return asks


# ---- what a submission may do --------------------------------------------------------------------


def limit(settings: dict) -> None:
    """Limits that the system keeps, for the rest of this process."""
    memory = settings["memory"] + used_memory()
    used = resource.getrusage(resource.RUSAGE_SELF)
    numbers = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": int(used.ru_utime + used.ru_stime) + settings["seconds"] + 2,
        "RLIMIT_FSIZE": 2**20,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,  # neither processes nor threads
    }
    if settings["user"] is not None:
        os.setgroups([])
        os.setgid(settings["user"])
        os.setuid(settings["user"])
    for name, number in numbers.items():
        if hasattr(resource, name):
            _, most = resource.getrlimit(getattr(resource, name))
            number = number if most == resource.RLIM_INFINITY else min(number, most)
            try:
                resource.setrlimit(getattr(resource, name), (number, number))
            except (ValueError, OSError):  # macOS knows some names and refuses them
                pass


def used_memory() -> int:
    """The address space that is taken already, in bytes; 4 GB where the system does not say."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 4 * 2**30


def guard(settings: dict) -> None:
    """Refuse what an exercise never needs. Python tells of these acts before it does them; a
    library in C does not, so this is a fence and no wall.
    """
    own = os.path.realpath(settings["folder"]) + os.sep
    hidden = tuple(os.path.realpath(path) + os.sep for path in settings["hidden"])
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def inside(path, folders) -> bool:
        return (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(folders)

    def refuse(what: str):
        raise PermissionError(f"a submission may not {what}")

    def watch(event: str, args: tuple) -> None:
        if event in NEVER or event.startswith(("ctypes.", "socket.")):
            refuse(f"start or reach other programs ({event})")
        if event in READS and args and isinstance(args[0], (str, bytes, os.PathLike)):
            if inside(args[0], hidden):
                refuse("read the project's own code")
            parts = os.path.realpath(os.fsdecode(args[0])).split(os.sep)
            if parts[1:2] == ["proc"] and len(parts) > 2 and parts[2].isdigit():
                if int(parts[2]) != os.getpid():
                    refuse("look into other processes")
            if event == "open" and (args[2] or 0) & writing:
                if not inside(args[0], (own, os.devnull)):
                    refuse("write outside its own folder")
        if event in CHANGES:
            for path in args[:2]:
                if isinstance(path, (str, bytes, os.PathLike)) and not inside(path, (own,)):
                    refuse("change files outside its own folder")

    sys.addaudithook(watch)


# ---- the submission ------------------------------------------------------------------------------


def no_checks() -> None:
    """A submission may end with the `check(...)` of a notebook: here it does nothing."""
    learn = types.ModuleType("minidiff.learn")
    for name in ("check", "hint", "progress", "reveal", "task"):
        setattr(learn, name, lambda *args, **named: None)
    sys.modules["minidiff.learn"] = learn


def answer_of(path: str, name: str):
    """The submission's function of that name; ValueError says why there is none."""
    module = types.ModuleType("submission")
    module.__file__ = path
    sys.modules["submission"] = module
    with open(path) as f:
        text = f.read()
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except BaseException as e:
        raise ValueError(f"The file cannot be run: {type(e).__name__}: {e}") from None
    value = getattr(module, name, None)
    if value is None:
        raise ValueError("The file has no function of that name.")
    if not callable(value):
        raise ValueError(f"A function was expected, got a {type(value).__name__}.")
    origin = getattr(value, "__module__", None) or ""
    if origin.split(".")[0] == "minidiff":
        raise ValueError("It is imported from minidiff: write it yourself.")
    return value


def what_it_raised(error: BaseException, path: str) -> dict:
    """The name of the error, its message, and the last line of the submission on the way to it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    line = frames[-1].lineno if frames else 0
    with open(path) as f:
        lines = f.read().splitlines()
    shown = lines[line - 1].strip() if line and line <= len(lines) else ""
    return {
        "type": type(error).__name__,
        "message": str(error)[:500],
        "line": line,
        "text": shown[:200],
    }


def serve(pipes: Pipes, fn, path: str) -> None:
    """Answer calls until the grader closes its end."""
    while True:
        _, args = pipes.receive()
        try:
            value = fn(*args)
            message = {"kind": "answer", "value": value, "args": list(args)}
            pipes.send(**message)
        except BaseException as e:
            pipes.send(kind="raised", **what_it_raised(e, path))


def main(file: str) -> None:
    with open(file) as f:
        settings = json.load(f)
    sys.dont_write_bytecode = True
    libraries = [path for path in settings["libraries"] if path not in sys.path]
    sys.path[:] = [settings["package"], os.path.dirname(os.path.abspath(__file__)), *sys.path]
    sys.path += libraries
    import landlock  # these two are the copies beside this file
    import torch
    import wire

    torch.set_num_threads(1)
    import einops  # noqa: F401  before limits: it may start no threads, and reads many files

    import minidiff.pipe.pipe  # noqa: F401

    pipes = Pipes(settings["reads"], settings["writes"], wire.pack)
    os.chdir(settings["folder"])
    limit(settings)
    no_checks()
    readable = [*SYSTEM, *settings["readable"], settings["package"], *sys.path]
    walled = landlock.keep_only(readable, settings["hidden"], settings["folder"])
    guard(settings)
    pipes.send(kind="begin", walled=walled)
    try:
        fn = answer_of(settings["submission"], settings["name"])
    except ValueError as e:
        pipes.send(kind="fault", says=str(e)[:500])
        return
    pipes.send(kind="ready")
    serve(pipes, fn, settings["submission"])


if __name__ == "__main__":
    main(sys.argv[1])
