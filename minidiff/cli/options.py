"""Command-line options from a function's own signature, so that neither can drift from the other.

    def sdedit(pipe: Pipe, image: Tensor, prompt: str, *, strength: float = .6, steps: int = 50,
    ...): ...
    arguments(parser, sdedit)  # --image FILE --prompt STR ...; the rest is argparse

Types: bool (--flag, --no-flag), int, float, str, Path, Literal, tuple, list, dict[str, float]
(word=2), each also as `X | None`; a Tensor is the path of a picture. A parameter without a default
becomes a required option. What no command line can give (a pipe, a function, `progress`) is left
out, and must then have a default or be passed by the caller.
"""

import argparse
import inspect
import re
import types
from pathlib import Path
from typing import Literal, NoReturn, Union, get_args, get_origin

OWN_SCALE = "guidance, 1 is none; default: the model's own"
SCALARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


class Picture(str):
    """The path of a picture, given for a parameter that is a Tensor."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a ValueError (one line,
    told by `main`), and options are never abbreviated.
    """

    def __init__(self, *args, **kw):
        super().__init__(*args, allow_abbrev=False, **kw)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def arguments(parser: argparse.ArgumentParser, fn, skip: tuple[str, ...] = ()) -> list[str]:
    """Give `parser` one option for every parameter of
    `fn` that is not in `skip`; returns their names.

    Help texts are the lines `name   what it does` of the docstring (`described`). TypeError for a
    required parameter of a type that cannot be typed in.
    """
    doc = inspect.getdoc(fn) or ""
    texts = described(doc)
    names = []
    parser.description = parser.description or doc.split("\n\n")[0]
    for p in inspect.signature(fn, eval_str=True).parameters.values():
        if p.name in skip or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        required = p.default is p.empty
        how = spelling(
            type(p.default) if p.annotation is p.empty and not required else p.annotation
        )
        if how is None:
            if required:
                raise TypeError(
                    f"{fn.__name__}: parameter {p.name} has no default and a type no option can "
                    "give"
                )
            continue
        plain = isinstance(p.default, bool) or p.default in (None, "", ())
        shown = "required" if required else "" if plain else f"default {p.default}"
        told = texts.get(p.name, OWN_SCALE if p.name == "scale" and p.default is None else "")
        text = "; ".join(t for t in (told, shown) if t).replace("%", "%%")
        parser.add_argument(
            flag(p.name),
            dest=p.name,
            required=required,
            help=text,
            default=None if required else p.default,
            **how,
        )
        names.append(p.name)
    return names


def described(doc: str) -> dict[str, str]:
    """{name: what it does} of the lines `name   what it does` of a docstring; lines indented as far
    as the text above go on with it.
    """
    found = {}
    name = ""
    column = 0
    for line in doc.splitlines():
        begins = re.match(r"^( *(\w+) {2,})\S", line)
        if begins and len(begins[1]) != column:
            name = begins[2]
            column = len(begins[1])
            found[name] = line[column:]
        elif begins and not line.startswith(" " * column):
            name = begins[2]
            found[name] = line[column:]
        elif name and line.strip() and line.startswith(" " * column):
            found[name] += " " + line.strip()
        else:
            name = ""
            column = 0
    return found


def flag(name: str) -> str:
    """`self_` -> --self, `fixed_point` -> --fixed-point."""
    return "--" + name.strip("_").replace("_", "-")


def spelling(kind) -> dict | None:
    """How argparse should read a value of that type; None if it cannot."""
    origin = get_origin(kind)
    args = get_args(kind)
    if origin in (Union, types.UnionType):  # X | None; float holds every int
        kinds = [a for a in args if a is not type(None)]
        return spelling(float if float in kinds else kinds[0])
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind in SCALARS:
        return {"type": kind, "metavar": SCALARS[kind]}
    if origin is Literal:
        return {"choices": args, "type": type(args[0])}
    if getattr(kind, "__name__", "") == "Tensor":  # without importing torch
        return {"type": Picture, "metavar": "PICTURE"}
    if origin is dict and args == (str, float):
        return {"type": pair, "nargs": "+", "metavar": "WORD=FLOAT", "action": _Dict}
    if origin in (tuple, list) and args and args[0] in SCALARS:
        fixed = origin is tuple and Ellipsis not in args
        return {
            "type": args[0],
            "nargs": len(args) if fixed else "+",
            "metavar": SCALARS[args[0]],
            "action": _Tuple,
        }
    return None


def pair(text: str) -> tuple[str, float]:
    """`red=2` -> ("red", 2.0)."""
    word, _, number = text.rpartition("=")
    if not word:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form word=number")
    return word, float(number)


class _Dict(argparse.Action):
    def __call__(self, parser, namespace, values, option=None):
        setattr(namespace, self.dest, dict(values))


class _Tuple(argparse.Action):
    def __call__(self, parser, namespace, values, option=None):
        setattr(namespace, self.dest, tuple(values))
