"""Grade a submission for an assignment: points, and a reason for every point that is missing.

    graded = grade_submission("submission.py", read_assignment("hw1.toml"), student="ada")
    write_json(graded.results(), "results.json")     # as Gradescope reads it
    add_row(graded, "grades.csv")                    # as nbgrader exports it

The submission is a stranger's program, and never runs in this process: see `remote.py`.
"""

import csv
import io
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from minidiff.io import write_bytes
from minidiff.learn.assignment import Assignment, Figure
from minidiff.learn.exercises import find
from minidiff.learn.grader import Verdict, judge
from minidiff.learn.remote import Submission, as_root, copied, readable_by_others

LARGEST = 2**20  # bytes of a submission
# the columns of `nbgrader export`; then one for each exercise, as Otter's final_grades.csv has them
COLUMNS = (
    "assignment",
    "duedate",
    "timestamp",
    "student_id",
    "last_name",
    "first_name",
    "email",
    "raw_score",
    "late_submission_penalty",
    "score",
    "max_score",
)


@dataclass(frozen=True)
class Part:
    """One line of a grade. `copied`: its lines are the project's own."""

    name: str
    score: float
    most: float
    says: str
    copied: bool = False


@dataclass(frozen=True)
class Graded:
    """A graded submission. `attempt` counts from 1; `best`: the best earlier score, or None."""

    assignment: Assignment
    student: str
    parts: tuple[Part, ...]
    seconds: float
    attempt: int = 1
    best: float | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def late(self) -> bool:
        """Is this one attempt too many?"""
        return 0 < self.assignment.attempts < self.attempt

    @property
    def raw(self) -> float:
        """The points of this submission alone."""
        return sum(part.score for part in self.parts)

    @property
    def score(self) -> float:
        """What counts: an attempt too many adds nothing to the best one before."""
        return (self.best or 0.0) if self.late else self.raw

    def says(self) -> str:
        """A sentence about the whole."""
        text = f"{self.score:g} of {self.assignment.points:g} points."
        if self.assignment.attempts:
            text += f" Attempt {self.attempt} of {self.assignment.attempts}."
        if self.late:
            text += " This one does not count: the best one before does."
        return text

    def results(self) -> dict:
        """What Gradescope reads as results.json."""
        tests = []
        for number, part in enumerate(self.parts, start=1):
            tests.append(
                {
                    "name": part.name,
                    "number": str(number),
                    "score": part.score,
                    "max_score": part.most,
                    "status": "passed" if part.score >= part.most else "failed",
                    "output": part.says,
                }
            )
        solved = sum(part.score >= part.most for part in self.parts)
        return {
            "score": self.score,
            "execution_time": round(self.seconds, 1),
            "output": self.says(),
            "stdout_visibility": "hidden",
            "tests": tests,
            "leaderboard": [
                {"name": "points", "value": self.score, "order": "desc"},
                {"name": "solved", "value": solved, "order": "desc"},
            ],
            "extra_data": {
                "assignment": self.assignment.name,
                "student": self.student,
                "attempt": self.attempt,
                "word_for_word": [part.name for part in self.parts if part.copied],
                "notes": list(self.notes),
            },
        }


# ---- grading -------------------------------------------------------------------------------------


def grade_submission(
    path: str | Path | None,
    assignment: Assignment,
    *,
    student: str = "",
    attempt: int = 1,
    best: float | None = None,
    figures: str | Path | None = None,
    progress=None,
) -> Graded:
    """Grade a file of functions, and the measured figures in a folder, for an assignment.

    student    whose it is: the cases are drawn from that name and the assignment's seed
    attempt    the how manieth this is, and `best` the best score before
    figures    a folder with the JSON files that the assignment names
    progress   called with every `Part` as soon as it is known

    FileNotFoundError, or ValueError for what is no text of Python's size, before any work. A
    submission that fails in whatever way gets no points and a sentence; it raises nothing here.
    """
    if figures is not None and not Path(figures).is_dir():
        raise ValueError(f"figures: there is no folder {figures}")
    begun = time.monotonic()
    text = _text_of(path, assignment)
    given = {figure.file: read_figures(figures, figure.file) for figure in assignment.figures}
    parts = []
    notes: set[str] = set()
    for name, points in assignment.exercises.items():
        parts.append(_exercise(Path(path), text, name, points, assignment, student, notes))
        if progress:
            progress(parts[-1])
    for figure in assignment.figures:
        parts.append(_figure(figure, given[figure.file]))
        if progress:
            progress(parts[-1])
    spent = time.monotonic() - begun
    return Graded(assignment, student, tuple(parts), spent, attempt, best, tuple(sorted(notes)))


def _text_of(path, assignment: Assignment) -> str:
    """The submission, read and not run."""
    if not assignment.exercises:
        return ""
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"no submission at {path}: give a Python file")
    size = Path(path).stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size} bytes; a submission has at most {LARGEST}")
    try:
        return Path(path).read_text()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: expected a Python file") from None


def _exercise(
    path: Path,
    text: str,
    name: str,
    points: float,
    assignment: Assignment,
    student: str,
    notes: set[str],
) -> Part:
    """One exercise; `notes` is added to."""
    exercise = find(name)
    memory = int(assignment.memory * 2**20)
    with Submission(path, exercise, assignment.seconds, memory) as remote:
        try:
            verdict = judge(exercise, remote.guarded, shift=assignment.shift(student), remote=True)
        except Exception as e:  # an answer of a kind that one of our facts cannot work with
            says = (
                f"Its answers cannot be worked with ({type(e).__name__}): is one of another kind?"
            )
            verdict = Verdict(name, False, "contract", says)
    if not remote.walled and readable_by_others():
        notes.add("between the submission and this machine's files there was Python's fence alone")
    if as_root():
        notes.add("the submission ran as root: another user could not have read Python here")
    says = str(verdict)
    if not verdict.passed and remote.printed:
        more = " ... (cut)" if remote.cut or len(remote.printed) > 1000 else ""
        says += f"\n  It printed: {remote.printed[:1000]}{more}"
    says = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in says)
    score = points if verdict.passed else 0.0
    return Part(name, score, points, says, verdict.passed and copied(text, exercise))


# ---- measured figures ----------------------------------------------------------------------------


def read_figures(folder: str | Path | None, file: str) -> dict | None:
    """The measured figures in a file, or None where there is none. ValueError if it is no JSON."""
    path = Path(folder or ".") / file
    if folder is None or not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is no JSON: {e}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: expected what a command wrote with --json")
    return facts


def figure_of(facts: dict, path: str) -> float | None:
    """The number at a path such as "sets/one held out/joint/mean"; None if there is none."""
    value = facts
    for key in path.split("/"):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return float(value) if type(value) in (int, float) else None


def _figure(figure: Figure, facts: dict | None) -> Part:
    """The points of a measured number: those of the highest band that it reaches."""
    if facts is None:
        return Part(
            figure.name, 0.0, figure.points, f"There is no {figure.file} for {figure.name!r}."
        )
    value = figure_of(facts, figure.figure)
    if value is None:
        says = f"{figure.file} has no number at {figure.figure}."
        return Part(figure.name, 0.0, figure.points, says)
    for least, points in figure.bands:
        if value >= least:
            says = f"{figure.figure} is {value:.4g}, at least {least:g}."
            return Part(figure.name, points, figure.points, says)
    lowest = figure.bands[-1][0]
    says = f"{figure.figure} is {value:.4g}; points begin at {lowest:g}."
    return Part(figure.name, 0.0, figure.points, says)


# ---- what others tell us, and what we write ------------------------------------------------------


def read_metadata(path: str | Path) -> tuple[str, int, float | None]:
    """(student, attempt, best earlier score) of Gradescope's submission_metadata.json. ValueError
    if it is none.
    """
    try:
        table = json.loads(Path(path).read_text())
        students = [str(user.get("email") or user["id"]) for user in table["users"]]
        before = [row.get("score") for row in table.get("previous_submissions", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no submission_metadata.json of Gradescope") from None
    scores = [float(score) for score in before if score is not None]
    return " ".join(sorted(students)), len(before) + 1, max(scores, default=None)


def check_columns(assignment: Assignment, path: Path) -> list[str]:
    """The columns of an assignment's table. ValueError if the file has others."""
    names = [*COLUMNS, *assignment.exercises, *[figure.name for figure in assignment.figures]]
    old = path.read_text() if path.is_file() else ""
    if old and next(csv.reader([old.splitlines()[0]])) != names:
        raise ValueError(f"{path} has other columns than this assignment: choose another file")
    return names


def add_row(graded: Graded, path: str | Path, timestamp: str = "") -> None:
    """Add a line to a CSV with nbgrader's columns, and one column for each part. ValueError if the
    file has other columns.
    """
    path = Path(path)
    names = check_columns(graded.assignment, path)
    old = path.read_text() if path.is_file() else ""
    row = dict.fromkeys(names, "") | {
        "assignment": graded.assignment.name,
        "duedate": graded.assignment.due,
        "timestamp": timestamp or time.strftime("%Y-%m-%d %H:%M:%S"),
        "student_id": graded.student,
        "raw_score": graded.raw,
        "late_submission_penalty": graded.raw - graded.score,
        "score": graded.score,
        "max_score": graded.assignment.points,
    }
    row |= {part.name: part.score for part in graded.parts}
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if not old:
        writer.writeheader()
    writer.writerow(row)
    write_bytes((old + text.getvalue()).encode(), path)
