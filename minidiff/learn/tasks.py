"""What a learner may ask for besides a verdict: the task, a hint, the solution, how far one is."""

import textwrap

from minidiff.learn import records
from minidiff.learn.exercise import LADDERS, Exercise
from minidiff.learn.exercises import TOPICS, exercises, find, notebooks_of, of_topic
from minidiff.learn.plain import plain
from minidiff.learn.records import Record
from minidiff.learn.stub import source, start

NEXT = """\
Write the body, and let this file be graded:

    python -m minidiff learn check FILE
    python -m minidiff learn hint {name}

or, in a notebook: check("{name}", {name})"""


def task(name: str) -> str:
    """What to write, and the stub to start from: all of it is one Python file that runs."""
    exercise = find(name)
    about = [
        f"{name}: {exercise.about} ({exercise.ladder}, {LADDERS[exercise.ladder]})",
        plain(exercise.task),
    ]
    if exercise.page:
        about.append(f"Explained in {exercise.page}.{_asked_in(name)}")
    about.append(NEXT.format(name=name))
    text = f"{_comment(about)}\n\n{start(exercise)}"
    print(text)
    return text


def _asked_in(name: str) -> str:
    numbers = notebooks_of(name)
    return f" Asked for in notebook {', '.join(numbers)}." if numbers else ""


def _comment(paragraphs: list[str]) -> str:
    """Paragraphs as lines of comment; one that has lines of its own keeps them."""
    lines = []
    for paragraph in paragraphs:
        if "\n" not in paragraph:
            paragraph = textwrap.fill(paragraph, 98, break_long_words=False, break_on_hyphens=False)
        lines += [*paragraph.splitlines(), ""]
    return "\n".join(f"# {line}".rstrip() for line in lines[:-1])


def hint(name: str, level: int | None = None) -> str:
    """The next hint of three, or the one of that level (1 to 3)."""
    exercise = find(name)
    if level is not None and level not in (1, 2, 3):
        raise ValueError(f"level={level}: there are three hints, 1 to 3")
    taken = records.record_of(name).hints
    number = level or min(taken + 1, 3)
    if number > taken:
        records.add_hint(name)
    text = f"{name}, hint {number} of 3: {exercise.hints[number - 1]}"
    print(text)
    return text


def reveal(name: str, anyway: bool = False) -> str:
    """The project's own function. Before yours passes, only with `anyway=True`."""
    exercise = find(name)
    if not anyway and not records.record_of(name).passed:
        raise ValueError(
            f"{name} is not solved yet: ask for a hint, or insist with anyway=True (in a shell: "
            "--anyway)"
        )
    text = source(exercise.reference)
    print(text)
    return text


def progress() -> dict[str, Record]:
    """Print every exercise by its topic: its ladder, what it is, the notebooks that ask for it, the
    tries, the hints taken (one star each) and whether it was solved; returns {name: its record}.
    """
    known = records.read_records()
    table = {name: known.get(name, Record()) for name in exercises()}
    for topic, title in TOPICS.items():
        print(title)
        for exercise in of_topic(topic):
            print(f"  {_line(exercise)} {_state(table[exercise.name])}".rstrip())
    counts = []
    for ladder, time in LADDERS.items():
        names = [name for name, exercise in exercises().items() if exercise.ladder == ladder]
        solved = sum(table[name].passed for name in names)
        counts.append(f"{solved} of {len(names)} {ladder} ({time} each)")
    print(f"solved: {', '.join(counts)}")
    mistakes = sum(len(exercise.mutants) for exercise in exercises().values())
    print(f"{len(exercises())} exercises, which know {mistakes} mistakes by name")
    print("nb: the notebooks that ask for it. learn task NAME: what to write, and a stub;")
    print("learn check FILE: grade what you wrote; learn watch FILE: grade it at every save")
    return table


def _line(exercise: Exercise) -> str:
    """An exercise in a list: name, ladder, what it is, notebooks."""
    numbers = notebooks_of(exercise.name)
    asked = f"nb {' '.join(numbers)}" if numbers else ""
    return f"{exercise.name:18} {exercise.ladder:7} {exercise.about:48} {asked:8}"


def _state(record: Record) -> str:
    tries = f"{record.tries} tries" if record.tries else ""
    return f"{'solved' if record.passed else tries} {'*' * record.hints}".strip()
