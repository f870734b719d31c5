"""`minidiff learn check FILE`: every function of the file is graded, by its name."""

import os

import pytest

from minidiff.cli.main import main
from minidiff.learn import answers, task
from minidiff.learn.answers import check_file, functions
from minidiff.learn.records import record_of

TWO = """\
from minidiff.core.process import renoise  # imported, and so no answer

def q_sample(sch, x0, t, eps):
    a, s = sch.at(t, x0)
    return a * x0 + s * eps

def ddim_step(sch, x_t, eps, t, s):
    return x_t

def helper():
    pass
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "mywork.py"


def test_a_file_is_graded_function_by_function(file, capsys):
    file.write_text(TWO)
    verdicts = [(verdict.name, verdict.passed) for verdict in check_file(file)]
    assert verdicts == [("q_sample", True), ("ddim_step", False)]
    assert "q_sample: right" in capsys.readouterr().out


def test_the_printed_way_from_the_task_to_the_solution(file, capsys):
    """Every command a newcomer is told of, with nothing but what was printed before."""

    def learn(*words):
        code = main(["learn", *map(str, words)])
        return code, capsys.readouterr()

    code, printed = learn("task", "guide")
    file.write_text(printed.out)
    assert code == 0
    code, printed = learn("check", file)
    assert code == 1 and "It is not written yet" in printed.out
    code, printed = learn("reveal", "guide")
    assert code == 2 and "not solved yet" in printed.err
    code, printed = learn("hint", "guide")
    assert code == 0 and "hint 1 of 3" in printed.out
    body = "return e_null + scale * (e_cond - e_null)"
    file.write_text(file.read_text().replace('raise NotImplementedError("write guide")', body))
    code, printed = learn("check", file)
    assert code == 0 and "guide: right" in printed.out
    code, printed = learn("reveal", "guide")
    assert code == 0 and body in printed.out
    code, printed = learn("list")
    assert code == 0 and "solved" in printed.out
    assert record_of("guide").tries == 2


def test_two_tasks_fit_into_one_file(file):
    file.write_text(task("q_sample") + task("posterior"))
    assert list(functions(file)) == ["q_sample", "posterior"]


@pytest.mark.parametrize(
    "words, says",
    [
        (["check"], "needs a file"),
        (["watch"], "needs a file"),
        (["watch", "nowhere.py"], "no file"),
        (["task"], "needs the name of an exercise"),
        (["list", "guide"], "takes no name"),
        (["task", "gide"], "guide"),
    ],
)
def test_a_command_that_lacks_something_says_what(words, says, capsys):
    assert main(["learn", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, says",
    [
        ("x = 1", "named as an exercise"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_file_that_answers_nothing_is_told_so(file, text, says):
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        functions(file)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="no file"):
        functions("nowhere.py")


def test_a_watched_file_is_graded_at_every_save_until_ctrl_c(file, monkeypatch, capsys):
    right = "def guide(e_null, e_cond, scale):\n    return e_null + scale * (e_cond - e_null)\n"
    versions = ["def guide(e_null, e_cond, scale:", None, right]  # None: nothing was saved

    def save_or_stop(_):
        if not versions:
            raise KeyboardInterrupt
        text = versions.pop(0)
        if text is not None:
            before = file.stat().st_mtime_ns
            file.write_text(text)
            os.utime(file, ns=(before + 10**9, before + 10**9))

    file.write_text("def guide(e_null, e_cond, scale):\n    return e_cond\n")
    monkeypatch.setattr(answers.time, "sleep", save_or_stop)
    assert main(["learn", "watch", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("waiting for") == 3
    first, second, third, end = printed.split("---")
    assert "guide: not yet" in first and "SyntaxError" in second and "guide: right" in third
    assert end.endswith("no longer watched\n")


def test_a_watched_file_that_is_deleted_is_said_once_to_be_gone(file, monkeypatch, capsys):
    right = "def guide(e_null, e_cond, scale):\n    return e_null + scale * (e_cond - e_null)\n"
    naps = []

    def delete_then_stop(_):
        naps.append(1)
        file.unlink(missing_ok=True)
        if len(naps) > 3:
            raise KeyboardInterrupt

    file.write_text(right)
    monkeypatch.setattr(answers.time, "sleep", delete_then_stop)
    assert main(["learn", "watch", str(file)]) == 0
    assert capsys.readouterr().out.count(f"{file} is gone") == 1
