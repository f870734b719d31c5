"""An assignment: what its file may say, and what is handed out for it."""

import inspect
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minidiff.cli.main import main
from minidiff.learn.assignment import (
    NEEDS,
    Assignment,
    export,
    instructor_files,
    read_assignment,
    student_files,
)
from minidiff.learn.exercises import exercises, find
from minidiff.learn.stub import source

ROOT = Path(__file__).parents[2]
GOOD = {
    "title": "Homework 1",
    "due": "Friday",
    "attempts": 3,
    "seed": 5,
    "exercises": {"q_sample": 10, "ddim_step": 20.5},
    "figures": [
        {
            "name": "Your model",
            "file": "evaluate.json",
            "figure": "sets/one seen/joint/mean",
            "bands": [[50, 3], [90, 10]],
        }
    ],
}
TOML = """\
title = "Homework 1"
due = "Friday"
attempts = 3
seed = 5
[exercises]
q_sample = 10
ddim_step = 20.5
[[figures]]
name = "Your model"
file = "evaluate.json"
figure = "sets/one seen/joint/mean"
bands = [[50, 3], [90, 10]]
"""


@pytest.fixture
def write(tmp_path):
    def write(table, name="hw1.json"):
        path = tmp_path / name
        path.write_text(table if isinstance(table, str) else json.dumps(table))
        return path

    return write


# ---- the file ------------------------------------------------------------------------------------


def test_an_assignment_is_read(write):
    asked = read_assignment(write(GOOD))
    assert (asked.name, asked.title, asked.due) == ("hw1", "Homework 1", "Friday")
    assert asked.exercises == {"q_sample": 10, "ddim_step": 20.5}
    assert asked.figures[0].bands == ((90, 10), (50, 3))  # the best first
    assert asked.points == 40.5


def test_toml_says_the_same_where_python_can_read_it(write):
    file = write(TOML, "hw1.toml")
    if sys.version_info < (3, 11):
        with pytest.raises(ValueError, match="write the same tables as JSON"):
            read_assignment(file)
    else:
        assert read_assignment(file) == read_assignment(write(GOOD))


def test_every_student_has_cases_of_his_own_and_has_them_again():
    one = Assignment("hw", "Title", {"q_sample": 1}, seed=5)
    other = Assignment("hw", "Title", {"q_sample": 1}, seed=6)
    shifts = [one.shift("ada"), one.shift("bob"), one.shift(), other.shift("ada")]
    assert len(set(shifts)) == 4
    assert one.shift(" Ada") == one.shift("ada")


FIGURE = GOOD["figures"][0]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"exercises": {"dim_step": 1}}, "no exercise is called 'dim_step'; some .* ddim_step"),
        ({"exercises": {"q_sample": -1}}, "points of q_sample: expected a number from 0, got -1"),
        ({"exercises": {"q_sample": "ten"}}, "points of q_sample: .* got 'ten'"),
        ({"exercises": {"q_sample": True}}, "points of q_sample"),
        ({"exercises": {"q_sample": float("inf")}}, "points of q_sample"),
        ({"exercises": ["q_sample"]}, "has lines such as q_sample = 10"),
        ({"exercises": {}, "figures": []}, "asks for nothing"),
        ({"deadline": "x"}, "'deadline' is no key of an assignment; its keys are title, due"),
        ({"title": " "}, "title: expected a text"),
        ({"title": None}, "title: expected a text, got nothing"),
        ({"due": 3}, "due: expected a text, got 3"),
        ({"attempts": -1}, "attempts: expected a whole number from 0"),
        ({"attempts": 1.5}, "attempts: expected a whole number"),
        ({"seconds": 0}, "seconds: expected a number from 1, got 0"),
        ({"figures": {}}, r"begin with \[\[figures\]\]"),
        ({"figures": [FIGURE | {"bands": []}]}, "bands are pairs"),
        ({"figures": [FIGURE | {"bands": [[1, 2, 3]]}]}, "bands are pairs"),
        ({"figures": [FIGURE | {"bands": [[90, -1]]}]}, "points of a band"),
        ({"figures": [FIGURE | {"file": "../x.json"}]}, "without a folder"),
        ({"figures": [FIGURE | {"weight": 1}]}, "'weight' is no key of"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(write, change, says):
    file = write(GOOD | change)
    with pytest.raises(ValueError, match=says) as refusal:
        read_assignment(file)
    assert "\n" not in str(refusal.value) and str(file) in str(refusal.value)


def test_a_seed_must_be_chosen(write):
    """Without one every student could draw the hidden cases from a name."""
    with pytest.raises(ValueError, match="seed is missing"):
        read_assignment(write({key: value for key, value in GOOD.items() if key != "seed"}))


def test_a_name_that_no_script_could_hold_is_refused(write):
    with pytest.raises(ValueError, match="call the file by letters"):
        read_assignment(write(GOOD, "hw 1; x.json"))


@pytest.mark.parametrize("text, says", [("{", "is no JSON"), ("[]", "expected keys")])
def test_what_is_no_table_is_refused(write, text, says):
    with pytest.raises(ValueError, match=says):
        read_assignment(write(text))


def test_the_command_refuses_before_any_work(write, tmp_path, capsys):
    file = write(GOOD | {"exercises": {"nonsense": 1}})
    for command in (f"export --out {tmp_path}/new", "grade nowhere.py"):
        assert main(f"learn {command} --assignment {file}".split()) == 2
        told = capsys.readouterr().err
        assert "no exercise is called" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    assert main(f"learn export --assignment {tmp_path}/no.toml".split()) == 2
    assert "no assignment at" in capsys.readouterr().err


# ---- what is handed out --------------------------------------------------------------------------


def solution_lines(name: str) -> set[str]:
    """The lines of a reference's body that say something, without its docstring."""
    fn = inspect.unwrap(find(name).reference)
    lines = source(fn).split('"""')[-1].splitlines()
    return {line.strip() for line in lines if len(line.strip()) > 12}


def test_no_solution_of_any_exercise_is_in_what_students_get():
    asked = Assignment("hw", "All of them", dict.fromkeys(exercises(), 1.0), seed=918273645)
    files = student_files(asked)
    assert set(files) == {"README.md", "submission.py"}
    given = {line.strip() for text in files.values() for line in text.splitlines()}
    assert not any("918273645" in line for line in given)
    for name in exercises():
        last = source(inspect.unwrap(find(name).reference)).rstrip().splitlines()[-1].strip()
        assert last not in given, name
        body = solution_lines(name)
        assert not body & given, (name, body & given)
        assert f'raise NotImplementedError("write {name}")' in given
    space = {}
    exec(files["submission.py"], space)  # all stubs are one file that runs
    assert exercises().keys() <= space.keys()


def test_the_zips_are_written_once(write, tmp_path, capsys):
    file = write(GOOD)
    line = f"learn export --assignment {file} --out {tmp_path}/out".split()
    assert main(line) == 0
    student = zipfile.ZipFile(tmp_path / "out/hw1-student.zip")
    assert student.namelist() == ["README.md", "submission.py"]
    page = student.read("README.md").decode()
    assert "| `q_sample` (warm-up) | 10 |" in page and "| **all** | 40.5 |" in page
    assert main(line) == 2
    assert "exists" in capsys.readouterr().err


def test_the_instructor_s_zip_is_an_autograder_of_gradescope(write):
    files = instructor_files(read_assignment(write(GOOD)))
    for name in ("setup.sh", "run_autograder"):
        assert files[name].startswith("#!/usr/bin/env bash\n")
        subprocess.run(["bash", "-n"], input=files[name], text=True, check=True)
    assert '"torch==2.' in files["setup.sh"] and "+cpu" not in files["setup.sh"]
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{needed}"' in declared for needed in NEEDS.split())
    assert "source/hw1.json" in files["run_autograder"]
    assert "results/results.json" in files["run_autograder"]
    assert "def ddim_step(" in files["solutions.py"]
    assert "package/minidiff/learn/worker.py" in files
    again = json.loads(files["hw1.json"])
    assert again["seed"] == 5 and again["exercises"] == GOOD["exercises"]


def test_the_instructor_s_assignment_reads_as_the_one_it_was_made_from(write):
    asked = read_assignment(write(GOOD))
    again = write(instructor_files(asked)["hw1.json"], "again.json")
    assert read_assignment(again).shift("ada") == asked.shift("ada")
    assert read_assignment(again).figures == asked.figures


def test_scripts_in_a_zip_may_be_executed(tmp_path, write):
    asked = Assignment("hw", "Title", {"q_sample": 1.0})
    _, path = export(asked, tmp_path)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        modes = {i.filename: i.external_attr >> 16 for i in archive.infolist()}
    assert modes["run_autograder"] == 0o755 and modes["solutions.py"] == 0o644
