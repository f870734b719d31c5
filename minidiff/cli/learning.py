"""The command for learners: learn."""

from minidiff.cli.common import parse, parser


def learn(rest: list[str]) -> int:
    """exercises: tasks, hints, and what is right or wrong about your own functions"""
    if rest and rest[0] in COURSE:
        return COURSE[rest[0]](rest[1:])
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
    p.epilog = "For a course: minidiff learn export --help, minidiff learn grade --help."
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


# ---- for a course --------------------------------------------------------------------------------


def learn_export(rest: list[str]) -> int:
    """the zips of an assignment: one for students, without solutions, and one for the instructor"""
    from minidiff.learn import assignment

    p = parser("learn export", model="")
    p.description = learn_export.__doc__
    p.add_argument("--assignment", required=True, metavar="TOML", help="title, exercises, points")
    p.add_argument("--out", default="out", metavar="DIR", help="where the zips go (default out)")
    args = p.parse_args(rest)
    asked = assignment.read_assignment(args.assignment)
    for path in assignment.export(asked, args.out):
        print(path)
    return 0


def learn_grade(rest: list[str]) -> int:
    """the points of a submission for an assignment; the submission runs in processes of its own"""
    from pathlib import Path

    from minidiff.io import check_target, write_json
    from minidiff.learn import grading
    from minidiff.learn.assignment import read_assignment

    p = parser("learn grade", model="", json=True)
    p.description = learn_grade.__doc__
    p.add_argument("file", nargs="?", metavar="FILE", help="the submission")
    p.add_argument("--assignment", required=True, metavar="TOML", help="as for learn export")
    p.add_argument("--student", default="", help="whose it is; cases are drawn for each")
    p.add_argument("--attempt", type=int, default=1, metavar="INT", help="counted from 1")
    p.add_argument("--metadata", metavar="FILE", help="Gradescope's, for both of these")
    p.add_argument("--figures", metavar="DIR", help="folder of measured figures, as JSON")
    p.add_argument("--csv", metavar="FILE", help="add a line to a table as nbgrader exports it")
    args = parse(p, rest)
    if args.attempt < 1:
        raise ValueError(f"attempt {args.attempt}: expected 1 or more")
    if args.csv:
        check_target(args.csv, kinds=(".csv",))
    asked = read_assignment(args.assignment)
    if args.csv:
        grading.check_columns(asked, Path(args.csv))
    student, attempt, best = args.student, args.attempt, None
    if args.metadata:
        student, attempt, best = grading.read_metadata(args.metadata)
    graded = grading.grade_submission(
        args.file,
        asked,
        student=student,
        attempt=attempt,
        best=best,
        figures=args.figures,
        progress=lambda part: print(f"{part.score:g}/{part.most:g}  {part.says}", flush=True),
    )
    if args.json:
        write_json(graded.results(), args.json)
    if args.csv:
        grading.add_row(graded, args.csv)
    print(graded.says(), *[f"note: {note}" for note in graded.notes], sep="\n")
    return 0


COURSE = {"export": learn_export, "grade": learn_grade}
