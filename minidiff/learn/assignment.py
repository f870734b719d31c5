"""An assignment of a course: a file that names exercises and points, and what is handed out for it.

    title = "Homework 1: noise and back"
    due = "Friday of week 3, 23:59"      # any text; nothing is computed from it
    attempts = 5                         # 0, the default: as many as they like
    seed = 4127                          # with a student's name: which cases the student is asked

    [exercises]                          # what to write, and what it is worth
    q_sample = 10
    ddim_step = 20

    [[figures]]                          # a trained model or a folder of edits, measured
    name = "Your own tiny model"
    file = "evaluate.json"               # written by `minidiff evaluate FOLDER --json`
    figure = "sets/one held out/joint/mean"
    bands = [[90, 10], [75, 6], [50, 3]] # at least so much: so many points

`seconds` (60) and `memory` (2000 MB) are what one exercise of a submission may take. The same
tables as JSON do as well: Python 3.10 cannot read TOML.

    export(read_assignment("hw1.toml"), "out")   # hw1-student.zip and hw1-instructor.zip
"""

import contextlib
import io
import json
import math
import re
import sys
import zipfile
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch

import minidiff
from minidiff.io import write_bytes
from minidiff.learn import tasks
from minidiff.learn.exercises import exercises, find
from minidiff.learn.stub import imports, source

KEYS = ("title", "due", "attempts", "seed", "seconds", "memory", "exercises", "figures")
FIGURE_KEYS = ("name", "file", "figure", "bands")
# what the package needs beside torch, as pyproject.toml has it
NEEDS = "numpy>=1.26 einops>=0.8 matplotlib>=3.8 tqdm>=4.66 safetensors>=0.4.5 pillow>=10"


@dataclass(frozen=True)
class Figure:
    """A measured number and what it is worth: `bands` are (at least, points), the best first."""

    name: str
    file: str
    figure: str
    bands: tuple[tuple[float, float], ...]

    @property
    def points(self) -> float:
        """The most that can be had."""
        return max(points for _, points in self.bands)


@dataclass(frozen=True)
class Assignment:
    """What `read_assignment` reads; `name` is the name of its file."""

    name: str
    title: str
    exercises: dict[str, float]
    figures: tuple[Figure, ...] = ()
    due: str = ""
    attempts: int = 0
    seed: int = 0
    seconds: float = 60
    memory: float = 2000

    @property
    def points(self) -> float:
        """The most that can be had in all."""
        return sum(self.exercises.values()) + sum(figure.points for figure in self.figures)

    def shift(self, student: str = "") -> int:
        """What a student's cases are drawn from: another number for each, the same each time."""
        text = f"{self.seed} {student.strip().lower()}"
        return int.from_bytes(sha256(text.encode()).digest()[:6], "big")


# ---- reading -------------------------------------------------------------------------------------


def read_assignment(path: str | Path) -> Assignment:
    """The assignment in a .toml or .json file. FileNotFoundError; ValueError, one sentence, for the
    first thing in it that cannot be meant.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no assignment at {path}: give a .toml file")
    if not re.fullmatch(r"[\w.-]+", path.stem):
        raise ValueError(f"{path}: call the file by letters, digits, . _ or -, such as hw1.toml")
    table = _tables(path)
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected keys such as title and exercises")
    try:
        return _assignment(path.stem, table)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def _tables(path: Path) -> dict:
    if path.suffix == ".json":
        try:
            return json.loads(path.read_text())
        except ValueError as e:
            raise ValueError(f"{path} is no JSON: {e}") from None
    if sys.version_info < (3, 11):
        raise ValueError(
            f"{path}: Python 3.10 has no reader of TOML; write the same tables as JSON, or take "
            "Python 3.11"
        )
    import tomllib

    try:
        return tomllib.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is no TOML: {e}") from None


def _assignment(name: str, table: dict) -> Assignment:
    _only(table, KEYS, "an assignment")
    title = _text(table, "title")
    points = table.get("exercises", {})
    if not isinstance(points, dict):
        raise ValueError("[exercises] has lines such as q_sample = 10")
    for exercise, worth in points.items():
        if exercise not in exercises():
            try:
                find(exercise)
            except KeyError as e:
                raise ValueError(e.args[0]) from None
        _number(f"the points of {exercise}", worth)
    figures = table.get("figures", [])
    if not isinstance(figures, list) or not all(isinstance(row, dict) for row in figures):
        raise ValueError("figures begin with [[figures]], one such table each")
    made = tuple(_figure(row) for row in figures)
    if not points and not made:
        raise ValueError("it asks for nothing: name exercises under [exercises]")
    return Assignment(
        name,
        title,
        {exercise: float(worth) for exercise, worth in points.items()},
        made,
        due=_text(table, "due", ""),
        attempts=_whole(table, "attempts"),
        seed=_seed(table),
        seconds=_number("seconds", table.get("seconds", 60), least=1),
        memory=_number("memory", table.get("memory", 2000), least=100),
    )


def _seed(table: dict) -> int:
    if "seed" not in table:
        raise ValueError("seed is missing: choose a number that nobody can guess, as seed = 4127")
    return _whole(table, "seed")


def _figure(row: dict) -> Figure:
    _only(row, FIGURE_KEYS, "[[figures]]")
    file = _text(row, "file")
    if Path(file).name != file or not file.endswith(".json"):
        raise ValueError(f"file {file!r}: expected the name of a .json file, without a folder")
    bands = row.get("bands")
    pairs = isinstance(bands, list) and bands and all(isinstance(b, list) for b in bands)
    if not pairs or not all(len(band) == 2 for band in bands):
        raise ValueError("bands are pairs such as [[90, 10], [75, 6]]: at least 90, 10 points")
    made = []
    for least, points in bands:
        _number("the threshold of a band", least, least=-math.inf)
        _number("the points of a band", points)
        made.append((float(least), float(points)))
    best_first = tuple(sorted(made, reverse=True))
    return Figure(_text(row, "name"), file, _text(row, "figure"), best_first)


def _only(table: dict, keys: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in keys:
            raise ValueError(f"{key!r} is no key of {what}; its keys are {', '.join(keys)}")


def _text(table: dict, key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        came = "nothing" if value is None else repr(value)
        raise ValueError(f"{key}: expected a text, got {came}")
    return value


def _whole(table: dict, key: str) -> int:
    value = table.get(key, 0)
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{key}: expected a whole number from 0, got {value!r}")
    return value


def _number(what: str, value, least: float = 0) -> float:
    right = type(value) in (int, float) and math.isfinite(value) and value >= least
    if not right:
        from_where = f" from {least:g}" if math.isfinite(least) else ""
        raise ValueError(f"{what}: expected a number{from_where}, got {value!r}")
    return value


# ---- what is handed out --------------------------------------------------------------------------


def export(assignment: Assignment, folder: str | Path) -> tuple[Path, Path]:
    """Write NAME-student.zip and NAME-instructor.zip into a folder; returns their paths. ValueError
    if one of them is there.
    """
    folder = Path(folder)
    targets = [folder / f"{assignment.name}-{who}.zip" for who in ("student", "instructor")]
    for target in targets:
        if target.exists():
            raise ValueError(f"{target} exists; choose another --out, or delete it")
    for target, files in zip(targets, (student_files(assignment), instructor_files(assignment))):
        write_bytes(zipped(files), target)
    return targets[0], targets[1]


def zipped(files: dict[str, str | bytes]) -> bytes:
    """A zip of {name: content}; scripts may be executed, weights are stored as they are."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            script = isinstance(content, str) and content.startswith("#!")
            info.external_attr = (0o755 if script else 0o644) << 16
            dense = name.endswith(".safetensors")
            info.compress_type = zipfile.ZIP_STORED if dense else zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return data.getvalue()


def student_files(assignment: Assignment) -> dict[str, str | bytes]:
    """What a student gets: the page, and one file to fill in. No body of a reference is in it."""
    parts = []
    for name in assignment.exercises:
        with contextlib.redirect_stdout(io.StringIO()):
            parts.append(tasks.task(name))
    files: dict[str, str | bytes] = {"README.md": page(assignment)}
    if parts:
        files["submission.py"] = "\n\n".join(parts)
    return files


def page(assignment: Assignment) -> str:
    """The page that a student reads first."""
    lines = [f"# {assignment.title}", ""]
    if assignment.due:
        lines += [f"Due: {assignment.due}", ""]
    if assignment.attempts:
        lines += [f"Attempts: {assignment.attempts}. After them the best one counts.", ""]
    lines += ["| what | points |", "| --- | --- |"]
    for name, points in assignment.exercises.items():
        lines.append(f"| `{name}` ({find(name).ladder}) | {points:g} |")
    for figure in assignment.figures:
        bands = ", ".join(f"{points:g} from {least:g}" for least, points in figure.bands)
        lines.append(f"| {figure.name}: `{figure.figure}` of `{figure.file}` | {bands} |")
    lines += [f"| **all** | {assignment.points:g} |", ""]
    if assignment.exercises:
        lines += [STUDENT]
    return "\n".join(lines)


STUDENT = """\
Write the bodies in `submission.py` and hand in that one file. While you write:

    python -m minidiff learn check submission.py    what is right, and what is wrong with the rest
    python -m minidiff learn hint NAME              three hints, one at a time

You are graded on other numbers than those that `learn check` draws, and on the same questions. Your
file runs in a process of its own, without network and without the project's own function of that
name; printing, files and other programs are not needed.
"""


def solutions(assignment: Assignment) -> str:
    """The project's own functions under the exercises' names, as a file that can be graded."""
    lines: set[str] = set()
    functions = []
    for name in assignment.exercises:
        reference = find(name).reference
        lines |= set(imports(reference))
        functions.append(source(reference).replace(f"def {reference.__name__}(", f"def {name}(", 1))
    ours_last = sorted(lines, key=lambda line: (line.startswith("from"), "minidiff" in line, line))
    return "\n\n\n".join(["\n".join(ours_last), *[text.rstrip() for text in functions]]) + "\n"


def instructor_files(assignment: Assignment) -> dict[str, str | bytes]:
    """What the instructor keeps: the assignment, the solutions, and an autograder for Gradescope
    with this version of the package, so that grades are those of the machine it was tried on.
    """
    needed = " ".join(f'"{package}"' for package in NEEDS.split())
    table = asdict(assignment)
    del table["name"]
    files: dict[str, str | bytes] = {
        "README.md": INSTRUCTOR.format(name=assignment.name, version=minidiff.__version__),
        f"{assignment.name}.json": json.dumps(table, indent=1),
        "solutions.py": solutions(assignment),
        "setup.sh": SETUP.format(torch=torch.__version__.partition("+")[0], needs=needed),
        "run_autograder": RUN.format(name=assignment.name),
    }
    root = Path(minidiff.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[f"package/minidiff/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return files


INSTRUCTOR = """\
# {name}: for the instructor

Do not hand this on: it holds the solutions and the seed.

- `{name}.json`: the assignment, as `minidiff learn grade --assignment` reads it.
- `solutions.py`: the project's own functions.
- `setup.sh`, `run_autograder`, `package/`: upload this whole zip as the autograder of a Gradescope
  assignment; students hand in `submission.py`. The package is minidiff {version}, as it was
  installed where this was exported.

By hand, with as many `--student` and `--csv` as there are students (rows are added):

    minidiff learn grade submission.py --assignment {name}.json --student NAME \\
        --json results.json --csv grades.csv

What a submission can and cannot do while it is graded: tutorials/course.md of the project.
"""

SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this once, as root, when the image is built.
set -e
apt-get install -y python3 python3-venv
python3 -m venv /opt/python
/opt/python/bin/pip install --index-url https://download.pytorch.org/whl/cpu "torch=={torch}"
/opt/python/bin/pip install {needs}
mkdir -p /opt/course
cp -r /autograder/source/package/minidiff /opt/course/
# A submission runs as another user: these lines keep it from reading the solutions and the seed.
chmod -R go-rwx /opt/course /autograder/source
"""

RUN = """\
#!/usr/bin/env bash
# Gradescope runs this for every submission, in /autograder.
cd /autograder
if [ ! -f submission/submission.py ]; then
  echo '{{"score": 0, "output": "Hand in one file called submission.py."}}' > results/results.json
  exit 0
fi
export PYTHONPATH=/opt/course
/opt/python/bin/python -m minidiff learn grade submission/submission.py \\
  --assignment source/{name}.json --metadata submission_metadata.json \\
  --json results/results.json
"""
