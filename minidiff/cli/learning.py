"""The command for learners: learn."""

from minidiff.cli.common import parse, parser


def learn(rest: list[str]) -> int:
    """exercises: tasks, hints, and what is right or wrong about your own functions"""
    from minidiff.learn import answers, tasks

    p = parser("learn", model="")
    p.add_argument(
        "what",
        choices=("list", "task", "check", "watch", "hint", "reveal"),
        help="list: all, and how far you are; task: what to write; check: grade a file of your "
        "functions; watch: grade it at every save; hint: three, one at a time; reveal: the "
        "project's lines, once yours are right",
    )
    p.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="an exercise; for check and watch a file of functions",
    )
    p.add_argument("--anyway", action="store_true", help="reveal a solution before yours is right")
    args = parse(p, rest)
    if args.what == "list":
        if args.name is not None:
            raise ValueError("learn list takes no name")
        tasks.progress()
        return 0
    if args.name is None:
        of_file = args.what in ("check", "watch")
        needed = "a file of functions" if of_file else "the name of an exercise"
        raise ValueError(f"learn {args.what} needs {needed}")
    if args.what == "check":
        verdicts = answers.check_file(args.name)
        return 0 if all(verdict.passed for verdict in verdicts) else 1
    if args.what == "watch":
        answers.watch(args.name)
    elif args.what == "task":
        tasks.task(args.name)
    elif args.what == "hint":
        tasks.hint(args.name)
    else:
        tasks.reveal(args.name, args.anyway)
    return 0
