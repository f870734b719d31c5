"""Points and their reasons: right and wrong submissions, attempts, figures, and the files that other
programs read.
"""

import csv
import json

import pytest

from minidiff.cli.main import main
from minidiff.learn.assignment import (
    Assignment,
    Figure,
    instructor_files,
    read_assignment,
    student_files,
)
from minidiff.learn.grading import (
    COLUMNS,
    Graded,
    Part,
    add_row,
    check_columns,
    grade_submission,
    read_metadata,
)

FIGURE = Figure("model", "evaluate.json", "sets/one/joint/mean", ((90, 10), (50, 3)))
ASKED = Assignment("hw1", "Homework", {"q_sample": 10, "guide": 5}, (FIGURE,), attempts=2, seed=3)
RIGHT = """\
def q_sample(sch, x0, t, eps):
    a, s = sch.at(t, x0)
    return a * x0 + s * eps

def guide(e_null, e_cond, scale):
    return e_null + scale * (e_cond - e_null)
"""
WRONG = RIGHT.replace("return e_null + scale", "print('tried'); return e_null - scale")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "submission.py"


def graded(parts=(), **more) -> Graded:
    return Graded(ASKED, "ada", tuple(parts) or (Part("q_sample", 10, 10, "right"),), 1.0, **more)


def test_an_assignment_is_graded_from_end_to_end(file, tmp_path, capsys):
    """A right and a wrong submission, from the command line, with measured figures beside them."""
    assignment = tmp_path / "hw1.json"
    table = {"title": "Homework", "exercises": {"guide": 5}, "seed": 3}
    bands = [[50, 3]]
    table["figures"] = [
        {"name": "model", "file": "evaluate.json", "figure": "sets/one/mean", "bands": bands}
    ]
    assignment.write_text(json.dumps(table))
    (tmp_path / "evaluate.json").write_text(json.dumps({"sets": {"one": {"mean": 61.5}}}))
    given = f"--assignment {assignment} --figures {tmp_path} --csv {tmp_path}/grades.csv"

    stub = student_files(read_assignment(assignment))["submission.py"]  # as it was handed out
    body = "return e_null + scale * (e_cond - e_null)"
    file.write_text(stub.replace('raise NotImplementedError("write guide")', body))
    line = f"learn grade {file} {given} --student ada --json {tmp_path}/right.json"
    assert main(line.split()) == 0
    assert "8 of 8 points" in capsys.readouterr().out
    right = json.loads((tmp_path / "right.json").read_text())
    assert right["score"] == 8 and [test["score"] for test in right["tests"]] == [5, 3]

    file.write_text(WRONG)
    line = f"learn grade {file} {given} --student bob --json {tmp_path}/wrong.json"
    assert main(line.split()) == 0
    wrong = json.loads((tmp_path / "wrong.json").read_text())
    assert wrong["score"] == 3
    first, _ = wrong["tests"]
    assert first["status"] == "failed" and "It printed: tried" in first["output"]
    assert "This is a known mistake: the sign" in first["output"]

    rows = list(csv.DictReader((tmp_path / "grades.csv").read_text().splitlines()))
    assert [(row["student_id"], row["score"], row["guide"]) for row in rows] == [
        ("ada", "8.0", "5.0"),
        ("bob", "3.0", "0.0"),
    ]


def test_what_gradescope_reads_has_its_names():
    results = graded().results()
    assert set(results) <= {
        "score",
        "execution_time",
        "output",
        "visibility",
        "stdout_visibility",
        "extra_data",
        "tests",
        "leaderboard",
    }
    assert set(results["tests"][0]) == {
        "name",
        "number",
        "score",
        "max_score",
        "status",
        "output",
    }
    assert {tuple(row) for row in results["leaderboard"]} == {("name", "value", "order")}
    json.dumps(results, allow_nan=False)


def test_an_attempt_too_many_leaves_the_best_one_before():
    assert graded(attempt=2, best=4.0).score == 10
    late = graded(attempt=3, best=4.0)
    assert (late.score, late.raw) == (4, 10)
    assert "does not count" in late.says() and "Attempt 3 of 2" in late.says()
    assert graded(attempt=3).score == 0


@pytest.mark.parametrize(
    "facts, points, says",
    [
        (None, 0, "There is no evaluate.json"),
        ({"sets": {}}, 0, "has no number at sets/one/joint/mean"),
        ({"sets": {"one": {"joint": {"mean": 95}}}}, 10, "is 95, at least 90"),
        ({"sets": {"one": {"joint": {"mean": 50.0}}}}, 3, "is 50, at least 50"),
        ({"sets": {"one": {"joint": {"mean": 49.9}}}}, 0, "points begin at 50"),
        ({"sets": {"one": {"joint": {"mean": "95"}}}}, 0, "has no number"),
    ],
)
def test_a_measured_figure_gets_the_points_of_its_band(facts, points, says, tmp_path):
    if facts is not None:
        (tmp_path / "evaluate.json").write_text(json.dumps(facts))
    asked = Assignment("hw", "Title", {}, (FIGURE,))
    (part,) = grade_submission(None, asked, figures=tmp_path).parts
    assert (part.score, part.most) == (points, 10) and says in part.says


def test_gradescope_says_who_and_the_how_manieth_it_is(tmp_path):
    file = tmp_path / "submission_metadata.json"
    before = [{"submission_time": "x", "score": score} for score in (3.0, None, 7.5)]
    users = [{"email": "b@x.org", "id": 2, "name": "B"}, {"email": "a@x.org", "id": 1, "name": "A"}]
    file.write_text(json.dumps({"id": 1, "users": users, "previous_submissions": before}))
    assert read_metadata(file) == ("a@x.org b@x.org", 4, 7.5)
    file.write_text('{"users": 3}')
    with pytest.raises(ValueError, match="is no submission_metadata"):
        read_metadata(file)


def test_a_table_of_another_assignment_is_not_written_into(tmp_path):
    table = tmp_path / "grades.csv"
    add_row(graded(), table, "2026-01-01 00:00:00")
    head, row = table.read_text().splitlines()
    assert head == ",".join([*COLUMNS, "q_sample", "guide", "model"])
    assert row == "hw1,,2026-01-01 00:00:00,ada,,,,10,0,10,25,10,,"
    other = Graded(Assignment("hw2", "Another", {"guide": 1}), "ada", (), 1.0)
    with pytest.raises(ValueError, match="has other columns"):
        add_row(other, table)
    assert table.read_text().splitlines() == [head, row]


@pytest.mark.parametrize(
    "content, says",
    [(None, "no submission at"), (b"\xff\xfe\x00", "is no text"), (b"#" * 2**21, "has at most")],
)
def test_what_is_no_submission_is_refused_before_any_work(file, content, says):
    if content is not None:
        file.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        grade_submission(file, ASKED)


def test_what_a_submission_says_is_shown_as_plain_text(file):
    file.write_text("def guide(a, b, scale): raise ValueError('\\x1b[2J\\ud800 end')")
    (part,) = grade_submission(file, Assignment("hw", "Title", {"guide": 5})).parts
    assert "It raised ValueError" in part.says and "?[2J? end" in part.says
    part.says.encode()


def test_answers_that_our_own_facts_cannot_use_are_wrong_and_no_crash(file):
    """Right on the cases, and of another kind when a fact asks."""
    odd = "return 'x' if scale == 1.0 and e_cond.max() == 4 else e_null"
    file.write_text(RIGHT.replace("return e_null", odd))
    asked = Assignment("hw", "Title", {"guide": 5})
    (part,) = grade_submission(file, asked).parts
    assert part.score == 0


@pytest.mark.parametrize(
    "line, says",
    [
        ("--attempt 0", "expected 1 or more"),
        ("--csv grades.txt", "must end in .csv"),
        ("--json r.txt", "must end in .json"),
        ("--assignment none.toml", "no assignment at"),
    ],
)
def test_the_command_refuses_in_one_line(line, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hw.json").write_text('{"title": "T", "exercises": {"guide": 1}}')
    words = f"learn grade x.py --assignment hw.json {line}".split()
    assert main(words) == 2
    told = capsys.readouterr().err
    assert says in told and len(told.splitlines()) == 1


def test_what_is_mistyped_is_refused_before_any_grading(file, tmp_path):
    file.write_text(RIGHT)
    with pytest.raises(ValueError, match="there is no folder"):
        grade_submission(file, ASKED, figures=tmp_path / "nowhere")
    other = tmp_path / "other.csv"
    other.write_text("of,another,homework\n")
    with pytest.raises(ValueError, match="other columns"):
        check_columns(ASKED, other)


def test_the_solutions_that_the_instructor_gets_are_right(file):
    """Renamed and with their imports, as a submission."""
    asked = Assignment("hw1", "Homework", {"q_sample": 1, "hybrid_noise": 1, "times": 1}, seed=3)
    file.write_text(instructor_files(asked)["solutions.py"])
    done = grade_submission(file, asked)
    assert done.raw == 3, [part.says for part in done.parts]
