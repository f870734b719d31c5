"""One command makes anew what quotes the weights: its stages go on where they were."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def refresh(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "tutorials/refresh.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "refresh", module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DONE", tmp_path / "done.json")
    return module


@pytest.fixture
def stage(refresh, tmp_path):
    """A stage that notes that it ran, and ends with an exit code; and what has run."""
    runs = tmp_path / "runs"
    runs.touch()

    def make(name: str, code: int = 0, **more):
        program = f"open({str(runs)!r}, 'a').write({name!r}); raise SystemExit({code})"
        return refresh.Stage(name, "", (("-c", program),), **more)

    make.ran = runs.read_text
    return make


def test_what_was_done_with_these_weights_is_not_done_again(refresh, stage, monkeypatch):
    both = [stage("a"), stage("b", always=True)]
    assert refresh.go(both) == 0 and refresh.go(both) == 0
    assert stage.ran() == "abb"
    refresh.go(both, again=True)
    monkeypatch.setattr(refresh, "weights", lambda: "others")
    refresh.go(both)
    assert stage.ran() == "abbabab"


def test_an_error_stops_and_what_was_done_before_stays(refresh, stage, capsys):
    assert refresh.go([stage("a"), stage("b", 3), stage("c")]) == 3
    assert "b stopped with exit code 3" in capsys.readouterr().err
    refresh.go([stage("a"), stage("b"), stage("c")])
    assert stage.ran() == "ab" + "bc"


def test_a_claim_that_fails_is_told_at_the_end(refresh, stage, capsys):
    assert refresh.go([stage("a", 1, judges=True), stage("b")]) == 1
    assert stage.ran() == "ab" and "claims fail in: a" in capsys.readouterr().out


def test_every_program_of_a_stage_exists(refresh, tmp_path):
    every = refresh.stages(tmp_path, True, tmp_path)
    assert len({s.name for s in every}) == len(every)
    for s in every:
        for first, *rest in s.commands:
            assert (first == "-m" and rest[0] == "minidiff") or (ROOT / first).is_file(), s.name


def test_stages_are_listed_and_an_unknown_one_is_refused(refresh, capsys):
    assert refresh.main(["--list", "--only", "readme"]) == 0
    assert "$ python tutorials/tables.py" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        refresh.main(["--only", "alchemy"])
    assert "no stage called alchemy" in capsys.readouterr().err
