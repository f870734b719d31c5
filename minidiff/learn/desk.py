"""What a learner may ask for besides a verdict: the task, a hint, the solution, how far one is."""

from minidiff.learn import home
from minidiff.learn.exercise import LADDERS
from minidiff.learn.exercises import exercises, find
from minidiff.learn.stub import source, stub


def task(name: str) -> str:
    """What to write, and the stub to start from."""
    e = find(name)
    page = f"\n\nExplained in {e.page}." if e.page else ""
    text = f"{e.name} ({e.ladder}, {LADDERS[e.ladder]})\n\n{e.task.strip()}{page}\n\n{stub(e)}"
    print(text)
    return text


def hint(name: str, level: int | None = None) -> str:
    """The next hint of three, or the one of that level (1 to 3)."""
    e = find(name)
    if level is not None and level not in (1, 2, 3):
        raise ValueError(f"level={level}: there are three hints, 1 to 3")
    n = level or min(home.of(name)["hints"] + 1, 3)
    home.remember(name, hints=int(n > home.of(name)["hints"]))
    text = f"{name}, hint {n} of 3: {e.hints[n - 1]}"
    print(text)
    return text


def reveal(name: str, anyway: bool = False) -> str:
    """The project's own function. Before yours passes, only with `anyway=True`."""
    e = find(name)
    if not anyway and not home.of(name)["passed"]:
        raise ValueError(
            f"{name} is not solved yet: ask for hint({name!r}), or reveal({name!r}, anyway=True)"
        )
    text = source(e.reference)
    print(text)
    return text


def progress() -> dict[str, dict]:
    """Every exercise with tries, hints taken and whether it was solved, as a table; returns {name:
    {...}}.
    """
    rows = {n: home.of(n) for n in exercises()}
    for ladder, time in LADDERS.items():
        names = [n for n, e in exercises().items() if e.ladder == ladder]
        solved = sum(rows[n]["passed"] for n in names)
        print(f"{ladder} ({time} each): {solved} of {len(names)}")
        for n in names:
            r = rows[n]
            state = "solved" if r["passed"] else f"{r['tries']} tries" if r["tries"] else ""
            print(f"  {n:28} {state:10}{'*' * r['hints']}")
    return rows
