"""Commands that measure: evaluate, samplers, guides, backbones, prove, bench, doctor. Their exit
code is 1 if a claim fails.
"""

import sys
from pathlib import Path

from minidiff.cli.common import device, find, given, load, parse, parser, report, write_facts
from minidiff.cli.options import arguments


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
    names = arguments(p, run, skip=("pipe", "names", "out"))
    p.add_argument(
        "--out",
        type=Path,
        default=Path("out/proofs"),
        metavar="FOLDER",
        help="one JSON file a proof; what was measured with the same settings, code and weights is "
        "not measured again (default out/proofs)",
    )
    args = parse(p, rest, pictures=())
    facts = run(load(args), names=tuple(args.names), out=args.out, **given(args, names))
    write_facts(facts, args.json)
    return 0 if facts["passed"] else 1


def samplers(rest: list[str]) -> int:
    """which sampler, in how many evaluations: errors where the answer is known, and pictures"""
    compare = find("minidiff.evaluate.solvers:solvers")
    p = parser("samplers", json=False)
    p.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    names = arguments(p, compare, skip=("pipe", "names", "progress"))
    args = parse(p, rest, pictures=())
    pipe = load(args) if args.pictures else None
    told = given(args, names)
    compare(pipe, names=tuple(args.names), **told, progress=sys.stderr.isatty())
    return 0


def guides(rest: list[str]) -> int:
    """guidances side by side: accuracy, variety at equal accuracy, colours, evaluations"""
    compare = find("minidiff.evaluate.guides:guides")
    p = parser("guides")
    p.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    names = arguments(p, compare, skip=("pipe", "names", "progress"))
    args = parse(p, rest, pictures=())
    told = given(args, names)
    compare(load(args), names=tuple(args.names), **told, progress=sys.stderr.isatty())
    return 0


def backbones(rest: list[str]) -> int:
    """networks side by side: each trains for the same CPU minutes on the same scenes"""
    compare = find("minidiff.evaluate.backbones:backbones")
    p = parser("backbones")
    p.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    names = arguments(p, compare, skip=("pipe", "names"))
    args = parse(p, rest, pictures=())
    compare(load(args), names=tuple(args.names), **given(args, names))
    return 0


def bench(rest: list[str]) -> int:
    """every editing method against the true edited pictures: ShapesEditBench"""
    if rest and rest[0] in EXCHANGE:
        return EXCHANGE[rest[0]](rest[1:])
    from minidiff.bench import leaderboard

    score = find("minidiff.bench.bench:bench")
    p = parser("bench", json=True)
    p.epilog = (
        "For programs in any language: minidiff bench export DIR writes the questions as files, "
        "minidiff bench score DIR/METHOD grades a folder of edits."
    )
    names = arguments(p, score, skip=("pipe", "progress"))
    args = parse(p, rest, pictures=())
    facts = score(None if args.report else load(args), **given(args, names))
    write_facts(facts, args.json)
    if args.fit:
        for name, line in facts.items():
            print(name, line)
        return 0
    folder = args.report or args.out
    files = {name: leaderboard.file_of(folder, name, args.split) for name in leaderboard.FILES}
    print(files["leaderboard.md"].read_text())
    for file in files.values():
        if file.exists():
            print(file)
    return 0 if facts["passed"] else 1


def bench_export(rest: list[str]) -> int:
    """the questions of the bench as files, for programs in any language"""
    export = find("minidiff.bench.exchange:export")
    p = parser("bench export", model="", json=True)
    p.add_argument("folder", metavar="DIR", help="a new folder")
    names = arguments(p, export, skip=("folder", "progress"))
    args = parse(p, rest, pictures=())
    facts = export(args.folder, **given(args, names), progress=sys.stderr.isatty())
    report(facts, args.json)
    return 0


def bench_score(rest: list[str]) -> int:
    """grade a folder of edits that any program made"""
    score = find("minidiff.bench.exchange:score")
    told = find("minidiff.bench.exchange:told")
    p = parser("bench score", json=True)
    p.add_argument("folder", metavar="DIR/METHOD", help="a picture for every item of the export")
    names = arguments(p, score, skip=("pipe", "folder", "progress"))
    args = parse(p, rest, pictures=())
    facts = score(load(args), args.folder, **given(args, names), progress=sys.stderr.isatty())
    write_facts(facts, args.json)
    print(told(facts))
    return 0


EXCHANGE = {"export": bench_export, "score": bench_score}


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
