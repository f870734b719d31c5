"""`MINIDIFF_SOLUTIONS=mywork.py make check`: one test for each function of that file. Without it,
none.
"""

import os

import pytest

from minidiff.learn.check import grade
from minidiff.learn.exercises import find
from minidiff.learn.solutions import check_file, functions

if MINE := os.environ.get("MINIDIFF_SOLUTIONS"):

    @pytest.mark.parametrize("name", functions(MINE))
    def test_my(name):
        verdict = grade(find(name), functions(MINE)[name])
        assert verdict.passed, str(verdict)


def test_a_file_is_graded_function_by_function(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIDIFF_HOME", str(tmp_path / "home"))
    file = tmp_path / "mywork.py"
    file.write_text(
        "from minidiff.core.process import renoise\n"
        "def q_sample(sch, x0, t, eps):\n    a, s = sch.at(t, x0)\n    return a * x0 + s * eps\n"
        "def ddim_step(sch, x_t, eps, t, s):\n    return x_t\n"
        "def helper():\n    pass\n"
    )
    assert [(v.name, v.passed) for v in check_file(file)] == [
        ("q_sample", True),
        ("ddim_step", False),
    ]
    assert "q_sample: right" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, says",
    [
        ("x = 1", "named as an exercise"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_file_that_answers_nothing_is_told_so(tmp_path, text, says):
    file = tmp_path / "mywork.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        functions(file)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="no file"):
        functions("nowhere.py")
