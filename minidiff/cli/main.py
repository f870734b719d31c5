"""The command line: `minidiff COMMAND` or `python -m minidiff COMMAND`.

Options are read from the signature of the function a command calls (`options.py`), and only once
that command is asked for, so `minidiff --help` does not wait for torch. Every mistake is one line
on stderr and exit code 2, with nothing written; 1 means that a claim failed (doctor, evaluate), 130
that Ctrl-C was pressed. `--debug` shows the whole traceback.
"""

import os
import sys

from minidiff import __version__
from minidiff.cli import learning, measuring, networks, pictures, training
from minidiff.techniques import TECHNIQUES, names

BAD_INPUT = (ValueError, KeyError, OSError)  # FileNotFoundError is an OSError
COMMANDS = {
    command.__name__: command
    for command in (
        pictures.generate,
        pictures.edit,
        pictures.invert,
        training.train,
        measuring.evaluate,
        measuring.samplers,
        measuring.guides,
        measuring.backbones,
        measuring.prove,
        measuring.bench,
        learning.learn,
        networks.trace,
        networks.inspect,
        networks.convert,
        networks.export,
        measuring.doctor,
        pictures.demo,
    )
}
KINDS = {
    "edit": {name: technique.about for name, technique in TECHNIQUES.items()},
    "train": {name: "" for name in training.RECIPES},
    "export": {"onnx": "network, text tower and autoencoder, and the tables to sample with"},
}


def usage(command: str | None = None) -> str:
    if command:
        kinds = "\n".join(f"  {kind:20} {about}".rstrip() for kind, about in KINDS[command].items())
        return (
            f"usage: minidiff {command} NAME [options]      (minidiff {command} NAME --help lists "
            f"them)\n\n{COMMANDS[command].__doc__}. What there is:\n\n{kinds}"
        )
    lines = "\n".join(f"  {name:10} {command.__doc__}" for name, command in COMMANDS.items())
    return (
        "usage: minidiff COMMAND [options]      (minidiff COMMAND --help lists "
        f"them)\n\n{lines}\n\nExit codes: 0 done, 1 a claim failed, 2 bad input. --debug shows the "
        "traceback of an error."
    )


def run(argv: list[str]) -> int:
    """Find the command and run it; errors are raised."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"minidiff {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise ValueError(f"unknown command {argv[0]!r}; choose one of: {names(argv[0], COMMANDS)}")
    if argv[0] in KINDS and argv[1:2] in (["-h"], ["--help"]):
        print(usage(argv[0]))
        return 0
    return COMMANDS[argv[0]](argv[1:])


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code and turns every foreseeable error into one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        if sys.stdout is None:  # `minidiff trace tiny >&-`
            raise OSError("standard output is closed; there is nowhere to write to")
        code = run(argv)
        sys.stdout.flush()
        return code
    except SystemExit as e:  # argparse, after --help
        return int(e.code or 0)
    except KeyboardInterrupt as e:  # a command may say how to go on
        return fail(str(e) or "interrupted", 130)
    except BrokenPipeError:  # `minidiff trace sd15 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (*BAD_INPUT, FloatingPointError) as e:
        if debug:
            raise
        text = e.args[0] if isinstance(e, KeyError) and e.args else e
        return fail(text, 1 if isinstance(e, FloatingPointError) else 2)


def fail(text, code: int) -> int:
    print("minidiff:", " ".join(str(text).split()), file=sys.stderr)
    return code
