"""What the commands share: their options, the model they load, and how they say what they found."""

import importlib
from argparse import ArgumentTypeError

from minidiff.cli.options import Parser
from minidiff.techniques import names


def find(address: str):
    """The function at "module:name", imported now."""
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)


def choose(kind: str, table: dict, rest: list[str]) -> str:
    """The first word of a command that has kinds; ValueError names them all."""
    if not rest or rest[0] not in table:
        if not rest or rest[0].startswith("-"):
            raise ValueError(f"a {kind} is missing; choose one of: {', '.join(table)}")
        raise ValueError(f"unknown {kind} {rest[0]!r}; choose one of: {names(rest[0], table)}")
    return rest[0]


def parser(
    command: str, *, model: str = "--model", out: str | None = None, json: bool = False
) -> Parser:
    """A parser with the options that commands have in
    common; `model`: "--model" (default tiny), "model" or "".
    """
    p = Parser(prog=f"minidiff {command}")
    if model:
        p.add_argument(
            model,
            metavar="MODEL",
            **({"default": "tiny"} if model.startswith("-") else {}),
            help=(
                "tiny, tiny-dit, tiny-pixel, a folder that `train` made, or a public model's file "
                "or folder"
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
            "--text-tower", metavar="PATH", help="its text tower, from another file or folder"
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
    """cuda, mps or cpu; "auto" takes the first that
    works. ValueError if the one asked for is absent.
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

    names = ("prediction", "vae", "tokenizer", "drop")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.text_tower is not None:  # a technique may have an option of its own called text
        options["text"] = args.text_tower
    if args.heads:
        options["heads"] = dict(args.heads)
    if args.ema:
        options["ema"] = True
    return minidiff.load(
        args.model, device=device(args.device), dtype=getattr(torch, args.dtype), **options
    )


def show(pictures, titles: list[str], out: str) -> None:
    """One picture as it is, so that it can be edited next; several as a labelled sheet."""
    from minidiff.io import grid, write_image

    path = write_image(pictures, out) if len(pictures) == 1 else grid(pictures, titles, path=out)
    print(path)


def write_facts(facts, path: str | None) -> None:
    """As JSON, if a place was given."""
    from minidiff.io import write_json

    if path:
        write_json(facts, path)


def report(facts: dict, path: str | None) -> None:
    """Print measured facts, and write them if asked."""
    write_facts(facts, path)
    for key, value in facts.items():
        print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")
