"""The command for learners: learn."""

from minidiff.cli.common import parse, parser


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
