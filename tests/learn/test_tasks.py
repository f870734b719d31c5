"""Tasks, hints, the solution and the record of progress."""

import pytest

from minidiff.learn import check, hint, progress, reveal, task
from minidiff.learn.exercises import exercises, find
from minidiff.learn.plain import plain
from minidiff.learn.records import Record, read_records


def test_a_task_says_what_to_write_and_where_to_go_on():
    text = task("ddim_step")
    assert "# ddim_step: a move without noise, down or up (core, 45 minutes)" in text
    assert "python -m minidiff learn check FILE" in text
    assert "python -m minidiff learn hint ddim_step" in text


@pytest.mark.parametrize("name", exercises())
def test_what_a_task_prints_runs_as_a_file_and_fails_only_when_called(name):
    space = {}
    exec(task(name), space)
    with pytest.raises(NotImplementedError, match=f"write {name}"):
        space[name](*find(name).cases(0)[0])


@pytest.mark.parametrize("name", exercises())
def test_a_printed_task_has_plain_symbols_that_every_terminal_knows(name):
    written = plain(find(name).task)
    assert written.isascii()
    assert not set("\\${}") & set(written)
    assert written.count("(") == written.count(")")


def test_formulas_in_plain_words():
    assert plain(r"So $\hat x_0 = (x_t - \sigma_t \epsilon) / \alpha_t$.") == (
        "So x_hat_0 = (x_t - sigma_t eps) / alpha_t."
    )
    assert plain(r"$\frac{h}{2h'}\,\sqrt{\bar\alpha_t}$") == "(h / (2h')) sqrt(alpha_bar_t)"
    assert plain(r"$\nabla \log p(y \mid x)$") == "grad log p(y | x)"
    assert plain(r"$\tfrac12 e^{-h}$ of $\prod_{s \le t} x_s$") == (
        "(1 / 2) e^(-h) of product_(s <= t) x_s"
    )


def test_the_stub_is_cut_from_the_source():
    text = task("ddim_step")
    assert "def ddim_step(\n    sch: Schedule" in text
    assert '"""Move a state' in text
    assert "a * x0" not in text


def test_hints_come_one_at_a_time_and_the_last_one_stays():
    numbers = [hint("ddim_step").split(":")[0] for _ in range(4)]
    assert numbers == [f"ddim_step, hint {i} of 3" for i in (1, 2, 3, 3)]
    with pytest.raises(ValueError, match="there are three hints"):
        hint("ddim_step", 4)


def test_the_solution_waits_for_a_right_answer(right, still):
    check("ddim_step", still)
    with pytest.raises(ValueError, match="not solved yet"):
        reveal("ddim_step")
    assert "def ddim_step" in reveal("ddim_step", anyway=True)
    check("ddim_step", right)
    assert "def ddim_step" in reveal("ddim_step")


def test_tries_and_hints_are_remembered_and_what_is_solved_stays_solved(right, still, capsys):
    check("ddim_step", right)
    check("ddim_step", still)
    hint("ddim_step")
    assert progress()["ddim_step"] == Record(tries=2, passed=True, hints=1)
    printed = capsys.readouterr().out
    assert "core    a move without noise, down or up" in printed
    assert "solved *" in printed and "nb 01 03" in printed


@pytest.mark.parametrize("text", ["{", "[1]", '{"ddim_step": {"points": 3}}'])
def test_a_record_that_cannot_be_read_counts_as_none(home, text):
    home.mkdir()
    (home / "progress.json").write_text(text)
    assert read_records() == {}


def test_a_home_that_cannot_be_written_is_told_of_and_not_fatal(home, right, capsys):
    home.write_text("a file where the folder belongs")
    assert check("ddim_step", right).passed
    assert "progress was not saved" in capsys.readouterr().out


def test_unknown_names_bring_near_ones():
    with pytest.raises(KeyError, match="ddim_step"):
        find("dim_step")
