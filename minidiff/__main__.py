"""The command line: `minidiff COMMAND` or `python -m minidiff COMMAND`.

Options are read from the signature of the function a command calls (`cli.py`), and only once that
command is asked for, so `minidiff --help` does not wait for torch. Every mistake is one line on
stderr and exit code 2, with nothing written; 1 means that a claim failed (doctor, evaluate), 130
that Ctrl-C was pressed. `--debug` shows the whole traceback.
"""

import importlib
import os
import sys
from argparse import ArgumentTypeError
from contextlib import contextmanager
from pathlib import Path

from minidiff import __version__
from minidiff.cli.options import Parser, Picture, arguments
from minidiff.techniques import EDITS

RECIPES = {
    "tiny": "minidiff.shipped.recipes:train_tiny",
    "tiny-dit": "minidiff.shipped.recipes:train_tiny_dit",
    "tiny-pixel": "minidiff.shipped.recipes:train_tiny_pixel",
}
BAD_INPUT = (ValueError, KeyError, OSError)  # FileNotFoundError is an OSError


# ---- what commands share -------------------------------------------------------------------------


def find(address: str):
    """The function at "module:name", imported now."""
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)


def choose(kind: str, table: dict, rest: list[str]) -> str:
    """The first word of a command that has kinds; ValueError names them all."""
    if not rest or rest[0] not in table:
        said = (
            f"unknown {kind} {rest[0]!r}"
            if rest and not rest[0].startswith("-")
            else f"a {kind} is missing"
        )
        raise ValueError(f"{said}; choose one of: {', '.join(table)}")
    return rest[0]


def parser(
    command: str, *, model: str = "--model", out: str | None = None, json: bool = False
) -> Parser:
    """A parser with the options that commands have in common; `model`: "--model" (default tiny),
    "model" or "".
    """
    p = Parser(prog=f"minidiff {command}")
    if model:
        p.add_argument(
            model,
            metavar="MODEL",
            **({"default": "tiny"} if model.startswith("-") else {}),
            help=(
                "tiny, tiny-dit, tiny-pixel, a folder that `train` made, or a public model's "
                "file or folder"
            ),
        )
        p.add_argument(
            "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default auto"
        )
        p.add_argument(
            "--dtype",
            default="float32",
            choices=("float32", "float16", "bfloat16"),
            help="default float32",
        )
        of = p.add_argument_group("a model from a file or folder")
        of.add_argument(
            "--prediction",
            choices=("eps", "v", "x0", "flow"),
            help="what it predicts, if no file can tell",
        )
        of.add_argument(
            "--vae", metavar="PATH", help="its autoencoder, from another file or folder"
        )
        of.add_argument(
            "--text", metavar="PATH", help="its text tower, from another file or folder"
        )
        of.add_argument("--ema", action="store_true", help="the running average of its UNet")
        heads_option(of)
        of.add_argument(
            "--drop",
            nargs="+",
            metavar="PATTERN",
            help="names of tensors to leave out, such as '*.scaled_fp8'",
        )
        of.add_argument(
            "--tokenizer", metavar="PATH", help="a tokenizer/ folder or CLIP's merge list"
        )
    if out:
        p.add_argument(
            "--out", default=out, metavar="PNG", help=f"where the picture goes (default {out})"
        )
    if json:
        p.add_argument("--json", metavar="FILE", help="write what was measured as JSON")
    return p


def heads_option(group) -> None:
    group.add_argument(
        "--heads",
        nargs="+",
        type=part_heads,
        metavar="PART=INT[,INT]",
        help="number of heads, if no file can tell: unet=8, or one for each level: unet=5,10,20,20",
    )


def part_heads(text: str) -> tuple[str, int | tuple[int, ...]]:
    """`unet=8` -> ("unet", 8); `unet=5,10` -> ("unet", (5, 10))."""
    part, _, numbers = text.partition("=")
    try:
        several = tuple(int(n) for n in numbers.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not of the form unet=8 or unet=5,10,20,20") from None
    return part, several if len(several) > 1 else several[0]


def given(args, names: list[str]) -> dict:
    return {n: getattr(args, n) for n in names}


def parse(p: Parser, rest: list[str], pictures: tuple[str, ...] = ("out", "sheet")):
    """Parsed options; seeds and every place to write are checked here, before any work is done."""
    args = p.parse_args(rest)
    if not 0 <= getattr(args, "seed", 0) < 2**62:
        raise ValueError(f"seed {args.seed} is outside 0..2**62")
    from minidiff.io import FORMATS, check_target  # late: imports torch

    for name in (*pictures, "json"):
        if path := getattr(args, name, None):
            check_target(path, kinds=FORMATS if name in pictures else (".json",))
    return args


def device(name: str) -> str:
    """cuda, mps or cpu; "auto" takes the first that works. ValueError if the one asked for is
    absent.
    """
    import torch

    works = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name != "auto" and not works[name]:
        raise ValueError(f"device {name} is not available here; use --device cpu")
    return next(d for d in works if works[d]) if name == "auto" else name


def load(args):
    import torch

    import minidiff

    said = {
        name: value
        for name in ("prediction", "vae", "text", "tokenizer", "drop")
        if (value := getattr(args, name)) is not None
    }
    if args.heads:
        said["heads"] = dict(args.heads)
    if args.ema:
        said["ema"] = True
    return minidiff.load(
        args.model, device=device(args.device), dtype=getattr(torch, args.dtype), **said
    )


def show(pictures, titles: list[str], out: str) -> None:
    """One picture as it is, so that it can be edited next; several as a labelled sheet."""
    from minidiff.io import grid, write_image

    path = write_image(pictures, out) if len(pictures) == 1 else grid(pictures, titles, path=out)
    print(path)


def report(facts: dict, path: str | None) -> None:
    """Print measured facts, and write them if asked."""
    from minidiff.io import write_json

    if path:
        write_json(facts, path)
    for key, value in facts.items():
        print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")


# ---- commands ------------------------------------------------------------------------------------


def generate(rest: list[str]) -> int:
    """pictures for one or more prompts"""
    from minidiff.pipe.pipe import Pipe

    p = parser("generate", out="out/generate.png")
    p.add_argument("prompt", nargs="+", help="what to draw, quoted; a class name for tiny-pixel")
    p.add_argument(
        "--n",
        type=int,
        default=1,
        metavar="INT",
        help="pictures of each prompt; picture i has seed SEED+i",
    )
    names = arguments(
        p, Pipe.generate, skip=("self", "prompts", "noise", "denoise", "decode", "progress")
    )
    of = p.add_argument_group("files that go with a model")
    of.add_argument(
        "--lora",
        nargs="+",
        default=[],
        metavar="FILE[=FLOAT]",
        help="LoRA files, each with its strength",
    )
    of.add_argument(
        "--embedding",
        nargs="+",
        default=[],
        metavar="FILE[=WORD]",
        help="textual inversion: new words; WORD names the one of a file without its own",
    )
    of.add_argument(
        "--control", metavar="PATH", help="a ControlNet or T2I-Adapter, which needs a --hint"
    )
    of.add_argument("--hint", metavar="PICTURE", help="what steers it: edges, depth, poses, ...")
    of.add_argument("--control-scale", type=float, default=1.0, metavar="FLOAT", help="default 1.0")
    of.add_argument(
        "--offload", action="store_true", help="one layer at a time: slower, in little memory"
    )
    args = parse(p, rest)
    if (args.control is None) != (args.hint is None):
        raise ValueError(
            "--control and --hint go together: a file of weights, and the picture that steers it"
        )
    if not 1 <= args.n * len(args.prompt) <= 256:
        raise ValueError(
            f"{args.n * len(args.prompt)} pictures were asked for; 1 to 256 can be drawn at once"
        )
    prompts = [q for q in args.prompt for _ in range(args.n)]
    pipe, options = load(args), given(args, names)
    with dressed(pipe, args):
        if args.control:
            options["denoise"] = steered(pipe, args)
        images = pipe.generate(prompts, **options, progress=sys.stderr.isatty())
    titles = [f"{q} #{args.seed + i}" if args.n > 1 else q for i, q in enumerate(prompts)]
    show(images, titles, args.out)
    return 0


@contextmanager
def dressed(pipe, args):
    """The pipe with what --embedding, --lora and --offload say, for the length of the block."""
    from contextlib import ExitStack

    from minidiff.formats.lora import lora
    from minidiff.formats.textual_inversion import load_embedding
    from minidiff.pipe.offload import offload

    for text in args.embedding:
        path, _, word = (text, "", "") if Path(text).exists() else text.partition("=")
        print("new words:", *load_embedding(path, pipe, word or None), file=sys.stderr)
    with ExitStack() as stack:
        for text in args.lora:
            path, _, strength = text.rpartition("=") if "=" in text else (text, "", "1")
            try:
                strength = float(strength)
            except ValueError:
                raise ValueError(f"--lora {text}: expected FILE or FILE=STRENGTH") from None
            stack.enter_context(lora(pipe, path, strength=strength, drop=args.drop or ()))
        if args.offload:
            stack.enter_context(offload(pipe))
        yield


def steered(pipe, args):
    """The pipe's denoiser under the ControlNet or adapter of --control, looking at --hint."""
    from minidiff.control.controlnet import ControlNet, controlled
    from minidiff.control.t2i_adapter import adapted
    from minidiff.io import read_image
    from minidiff.weights.real import load_control

    control = load_control(
        args.control,
        dtype=pipe.dtype,
        heads=dict(args.heads or ()),
        drop=tuple(args.drop or ()),
    ).to(pipe.device)
    height, width = pipe.image_size
    hint = (read_image(args.hint, (args.height or height, args.width or width)) + 1) / 2
    channels = 3 if isinstance(control, ControlNet) else control.in_channels
    hint = hint.mean(1, keepdim=True) if channels == 1 else hint
    return (controlled if isinstance(control, ControlNet) else adapted)(
        pipe, control, hint, args.control_scale
    )


def edit(rest: list[str]) -> int:
    """change a picture with one of the editing techniques"""
    name = choose("technique", EDITS, rest)
    technique = find(EDITS[name])
    p = parser(f"edit {name}", out="out/edit.png")
    p.add_argument(
        "--sheet",
        metavar="PNG",
        help="also write a labelled sheet: the picture, and what became of it",
    )
    p.add_argument(
        "--resize",
        action="store_true",
        help="cut and scale pictures of another size to the model's",
    )
    names = arguments(p, technique, skip=("pipe", "progress"))
    args = parse(p, rest[1:])
    options = given(args, names)
    pipe = load(args)
    for key, value in options.items():
        options[key] = read(key, value, pipe.image_size, args.resize)
    result = technique(pipe, **options, progress=sys.stderr.isatty())
    before = result[:-1] if len(result) > 1 else options["image"]
    write_edit(
        before, result[-1:], args, str(options.get("target") or options.get("prompt") or name)
    )
    return 0


def read(name: str, value, size: tuple[int, int], resize: bool):
    """A picture or mask in place of its path; every other value as it is."""
    from minidiff.io import read_image, read_mask

    if not isinstance(value, Picture):
        return value
    return read_mask(value, size) if "mask" in name else read_image(value, size, resize=resize)


def write_edit(before, after, args, title: str) -> None:
    from minidiff.io import grid, to_pil, write_image

    to_pil(after)  # a NaN picture ends here, nothing written
    if args.sheet:
        grid([*before.cpu(), *after.cpu()], [*["before"] * len(before), title], path=args.sheet)
        print(args.sheet)
    print(write_image(after, args.out))


def invert(rest: list[str]) -> int:
    """the noise of a picture (DDIM inversion), and how well it leads back"""
    import minidiff.inversion.ddim as ddim
    from minidiff.io import grid, read_image
    from minidiff.shipped.autoencoder import psnr

    p = parser("invert", out="out/invert.png", json=True)
    p.add_argument(
        "--resize",
        action="store_true",
        help="cut and scale a picture of another size to the model's",
    )
    names = arguments(p, ddim.invert, skip=("pipe", "image", "progress"))
    p.add_argument("--image", required=True, type=Path, metavar="PICTURE", help="required")
    args = parse(p, rest)
    pipe = load(args)
    image = read_image(args.image, pipe.image_size, resize=args.resize)
    states = ddim.invert(pipe, image, **given(args, names), progress=sys.stderr.isatty())
    back = ddim.replay(pipe, states[-1], args.prompt, steps=args.steps).cpu()
    copy = pipe.decode(states[0]).cpu()
    facts = {
        "psnr": psnr(back, image).item(),
        "psnr_of_autoencoder": psnr(copy, image).item(),
        "psnr_to_copy": psnr(back, copy).item(),
        "noise_std": states[-1].std().item(),
        "steps": args.steps,
    }
    titles = [
        "picture",
        "autoencoder, {psnr_of_autoencoder:.1f} dB",
        "there and back, {psnr:.1f} dB",
    ]
    print(grid([image[0], copy[0], back[0]], [t.format(**facts) for t in titles], path=args.out))
    report(facts, args.json)
    return 0


def train(rest: list[str]) -> int:
    """train a shipped model again, resumable at any moment"""
    name = choose("model to train", RECIPES, rest)
    recipe = find(RECIPES[name])
    p = parser(f"train {name}", model="")
    p.add_argument(
        "--out", type=Path, default=Path("runs/tiny"), metavar="FOLDER", help="default runs/tiny"
    )
    names = arguments(p, recipe, skip=("out",))
    args = parse(p, rest[1:], pictures=())
    told = given(args, names)
    recipe(args.out, **told)
    folder = args.out / (
        name if told.get("data", "shapes") == "shapes" else f"{name}-{told['data']}"
    )
    print(f"{folder}: try it with --model {folder}")
    return 0


def evaluate(rest: list[str]) -> int:
    """score a model against the right answers of the toy world"""
    score = find("minidiff.evaluate.evaluate:evaluate")
    p = parser("evaluate", model="model", json=True)
    names = arguments(p, score, skip=("pipe_or_name", "json", "progress"))
    args = parse(p, rest)
    facts = score(load(args), **given(args, names), json=args.json, progress=sys.stderr.isatty())
    return 1 if facts.get("passed") is False else 0


def prove(rest: list[str]) -> int:
    """the toy proofs: what each technique claims, measured against known answers"""
    run = find("minidiff.proofs.prove:prove")
    p = parser("prove", json=True)
    p.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    names = arguments(p, run, skip=("pipe", "names"))
    args = parse(p, rest)
    facts = run(load(args), names=tuple(args.names), **given(args, names))
    if args.json:
        from minidiff.io import write_json

        write_json(facts, args.json)
    return 0 if facts["passed"] else 1


def bench(rest: list[str]) -> int:
    """every editing method against the true edited pictures: ShapesEditBench"""
    score = find("minidiff.bench.bench:bench")
    p = parser("bench", json=True)
    names = arguments(p, score, skip=("pipe", "progress"))
    args = parse(p, rest, pictures=())
    facts = score(None if args.report else load(args), **given(args, names))
    if args.json:
        from minidiff.io import write_json

        write_json(facts, args.json)
    if args.fit:
        print(args.fit, facts)
        return 0
    folder = args.report or args.out
    print(
        (folder / "leaderboard.md").read_text(),
        *[folder / f for f in ("leaderboard.md", "bench.json", "grid.png")],
        sep="\n",
    )
    return 0 if facts["passed"] else 1


def trace(rest: list[str]) -> int:
    """every block of a network with its output shape and parameters, at no cost"""
    from minidiff.analysis.trace import table
    from minidiff.analysis.trace import trace as walk

    p = parser("trace", model="", json=True)
    p.add_argument("model", metavar="MODEL", help="a size, such as tiny, sd15, dit-xl-2")
    names = arguments(p, walk, skip=("size",))
    args = parse(p, rest)
    rows = walk(args.model, **given(args, names))
    if args.json:
        from minidiff.io import write_json

        write_json(rows, args.json)
    print(table(rows))
    return 0


def inspect(rest: list[str]) -> int:
    """what a file or folder of weights is, and whether it can be loaded"""
    from minidiff.formats.inspect import inspect as look
    from minidiff.formats.inspect import table

    p = parser("inspect", model="", json=True)
    p.add_argument("path", metavar="FILE", help="a file, or a folder in the diffusers layout")
    names = arguments(p, look, skip=("path",))
    args = parse(p, rest)
    facts = look(args.path, **given(args, names))
    if args.json:
        from minidiff.io import write_json

        write_json(facts, args.json)
    print(table(facts))
    return 0


def convert(rest: list[str]) -> int:
    """write a model in another layout: original, diffusers or minidiff"""
    from minidiff.formats.convert import convert as rewrite
    from minidiff.formats.convert import report as words

    p = parser("convert", model="", json=True)
    p.add_argument("src", metavar="SRC", help="a file, or a folder in the diffusers layout")
    p.add_argument("dst", metavar="DST", help="a .safetensors file; with --to diffusers a folder")
    names = arguments(p, rewrite, skip=("src", "dst", "progress", "heads"))
    heads_option(p)
    args = parse(p, rest)
    heads = dict(args.heads or ())
    progress = sys.stderr.isatty()
    facts = rewrite(args.src, args.dst, **given(args, names), heads=heads, progress=progress)
    if args.json:
        from minidiff.io import write_json

        write_json(facts, args.json)
    print(words(facts))
    return 0


def doctor(rest: list[str]) -> int:
    """check this installation: versions, device, weights, and one step against stored numbers"""
    from argparse import SUPPRESS

    from minidiff.cli import doctor as clinic

    p = parser("doctor", json=True)
    p.add_argument("--store", action="store_true", help=SUPPRESS)  # for who ships new weights
    args = parse(p, rest)
    if args.store:
        print(clinic.store())
        return 0
    facts = clinic.examine(device(args.device))
    report(facts, args.json)
    return 0 if facts["passed"] else 1


def demo(rest: list[str]) -> int:
    """one scene, generated and edited three ways, each beside the true answer"""
    from minidiff.cli.demo import demo as run

    p = parser("demo", out="out/demo.png", json=True)
    names = arguments(p, run, skip=("pipe", "out", "progress"))
    args = parse(p, rest)
    report(
        run(args.out, pipe=load(args), **given(args, names), progress=sys.stderr.isatty()),
        args.json,
    )
    return 0


def learn(rest: list[str]) -> int:
    """exercises: tasks, hints, and what is right or wrong about your own functions"""
    from minidiff.learn import desk, solutions

    p = parser("learn", model="")
    p.add_argument(
        "what",
        choices=("list", "task", "hint", "reveal", "check"),
        help="list: all, and how far you are",
    )
    p.add_argument(
        "name", nargs="?", metavar="NAME", help="an exercise; for check a file of functions"
    )
    p.add_argument("--anyway", action="store_true", help="reveal a solution before yours is right")
    args = parse(p, rest)
    if (args.name is None) != (args.what == "list"):
        raise ValueError(
            f"learn {args.what} "
            f"{'takes no name' if args.name else 'needs the name of an exercise or a file'}"
        )
    if args.what == "check":
        return 0 if all(v.passed for v in solutions.check_file(args.name)) else 1
    if args.what == "list":
        desk.progress()
    else:
        getattr(desk, args.what)(
            args.name, **{"anyway": True} if args.anyway and args.what == "reveal" else {}
        )
    return 0


COMMANDS = {
    f.__name__: f
    for f in (
        generate,
        edit,
        invert,
        train,
        evaluate,
        prove,
        bench,
        learn,
        trace,
        inspect,
        convert,
        doctor,
        demo,
    )
}
KINDS = {"edit": EDITS, "train": RECIPES}


def usage(command: str | None = None) -> str:
    if command:
        kinds = "\n".join(f"  minidiff {command} {kind} --help" for kind in KINDS[command])
        return (
            f"usage: minidiff {command} NAME [options]\n\n{COMMANDS[command].__doc__}. What "
            f"there is:\n{kinds}"
        )
    lines = "\n".join(f"  {name:10} {fn.__doc__}" for name, fn in COMMANDS.items())
    return (
        "usage: minidiff COMMAND [options]      (minidiff COMMAND --help lists "
        f"them)\n\n{lines}\n\n"
        "Exit codes: 0 done, 1 a claim failed, 2 bad input. --debug shows the traceback of an "
        "error."
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
        raise ValueError(f"unknown command {argv[0]!r}; choose one of: {', '.join(COMMANDS)}")
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
        code = run(argv)
        sys.stdout.flush()
        return code
    except SystemExit as e:  # argparse, after --help
        return int(e.code or 0)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
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


if __name__ == "__main__":
    sys.exit(main())
