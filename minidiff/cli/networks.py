"""Commands about networks and their files: trace, inspect, convert, export."""

import sys

from minidiff.cli.common import choose, given, heads_option, parse, parser, write_facts
from minidiff.cli.options import arguments


def trace(rest: list[str]) -> int:
    """every block of a network with its output shape and parameters, at no cost"""
    from minidiff.analysis.trace import table
    from minidiff.analysis.trace import trace as walk

    p = parser("trace", model="", json=True)
    p.add_argument("model", metavar="MODEL", help="a size, such as tiny, sd15, dit-xl-2")
    names = arguments(p, walk, skip=("size",))
    args = parse(p, rest)
    rows = walk(args.model, **given(args, names))
    write_facts(rows, args.json)
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
    write_facts(facts, args.json)
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
    write_facts(facts, args.json)
    print(words(facts))
    return 0


def export(rest: list[str]) -> int:
    """write a model as files for other programs: onnx"""
    from minidiff.weights.export import export_onnx
    from minidiff.weights.store import load

    choose("kind of file to export", ("onnx",), rest)
    p = parser("export onnx", model="", json=True)
    p.add_argument("model", metavar="MODEL", help="a shipped model, or the path of one")
    names = arguments(p, export_onnx, skip=("pipe",))
    args = parse(p, rest[1:], pictures=())
    written = export_onnx(load(args.model), **given(args, names))
    write_facts(written, args.json)
    for part, path in written.items():
        print(f"{part:10} {path}")
    return 0
