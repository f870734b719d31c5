"""The proofs' own instruments, on renders whose answer is known."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minidiff
from minidiff.data import shapes
from minidiff.evaluate.metrics import rank_correlation
from minidiff.proofs import prove as runner
from minidiff.proofs.claims import (
    SOURCES,
    Row,
    averaged,
    counted,
    draw,
    gained,
    object_region,
    recoloured,
)
from minidiff.proofs.masked_sdedit import prove as prove_masked_sdedit
from minidiff.proofs.prove import code_of, proofs, prove


def test_object_region_finds_the_rendered_object():
    for s in draw(12, seed=0):
        found = object_region(shapes.render(s)[0], s.objects[0].color, grow=0)[0] > 0.5
        true = shapes.object_masks(s)[0, 0] > 0.3
        assert (found & true).sum() / (found | true).sum() > 0.9, s


def test_growing_the_region_covers_the_edge():
    s = draw(1, seed=1)[0]
    assert (
        object_region(shapes.render(s)[0], s.objects[0].color)[0]
        >= (shapes.object_masks(s)[0, 0] > 0).float()
    ).all()


def test_recolouring_changes_the_colour_and_nothing_else():
    rng = np.random.default_rng(0)
    for s in draw(20, seed=2):
        e = recoloured(s, rng)
        assert e.objects[0].color not in (s.objects[0].color, s.background)
        assert shapes.edit(e, "color", s.objects[0].color) == s


def test_proofs_draw_scenes_training_never_saw():
    assert all(shapes.held_out(s) and len(s.objects) == 1 for s in draw(50, seed=3))


@pytest.mark.parametrize("name", proofs())
def test_every_proof_can_be_imported_and_says_what_it_asks(name):
    module = import_module(proofs()[name])
    assert module.prove.__doc__ and getattr(module, "N", 1) >= 1


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 4, -1]) == pytest.approx(-1)
    # ties share their ranks
    assert rank_correlation([1, 2, 3, 4], [7, 7, 9, 9]) == pytest.approx(0.8**0.5)


def test_a_figure_that_is_not_a_number_does_not_hold():
    assert (
        Row("", 1.0, 1.0).holds
        and not Row("", 0.9, 1.0).holds
        and not Row("", float("nan"), 0.0).holds
    )


def test_a_threshold_says_where_it_comes_from():
    with pytest.raises(ValueError, match="paper, identity, rival, aim"):
        Row("", 1.0, 1.0, source="what came out")


def test_a_rival_is_beaten_by_the_whole_interval_or_not_at_all():
    ours = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    theirs = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    chance = gained("", ours, theirs)
    assert chance.figure > 0 and chance.low < 0 and not chance.holds
    assert (chance.n, chance.baseline) == (6, 0.5)
    sure = gained("", np.ones(6), np.zeros(6))
    assert sure.holds and sure.low == 1
    # a share must reach its threshold, and its interval says how sure that is
    assert averaged("", ours > 0.5, 0.6).holds


def test_the_interval_of_a_mean_leaves_out_what_is_no_number_and_is_of_the_right_size():
    values = np.random.default_rng(0).normal(3, 1, 400)
    row = averaged("", np.append(values, np.nan), 0)
    assert row.n == 400 and row.low < row.figure < row.high
    assert (row.high - row.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.15)


def test_rows_that_count_themselves_are_left_as_they_are():
    rows = counted([Row("", 1.0, 1.0), averaged("", np.ones(5), 1.0)], 7, seeds=2)
    assert [(r.n, r.seeds) for r in rows] == [(7, 2), (5, 1)]


# ---- running them --------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch):
    """Two proofs that say how often they ran, the second of which can be interrupted."""
    runs = []
    stop = []

    def first(pipe, n, seed):
        """The first."""
        runs.append(("first", n, seed))
        return counted([Row("one is one", 1.0, 1.0, source="identity")], n)

    def second(pipe, n, seed):
        """The second."""
        if stop:
            raise KeyboardInterrupt
        runs.append(("second", n, seed))
        return counted([Row("one is two", 1.0, 2.0, 0.5)], n)

    modules = {
        "a": SimpleNamespace(prove=first, N=5),
        "b": SimpleNamespace(prove=second),
    }
    monkeypatch.setattr(runner, "proofs", lambda: {name: name for name in modules})
    monkeypatch.setattr(runner, "import_module", modules.__getitem__)
    monkeypatch.setattr(runner, "code_of", lambda module: module)
    return SimpleNamespace(runs=runs, stop=stop)


def test_a_proof_takes_as_many_scenes_as_it_needs_unless_told_otherwise(two, capsys):
    tiny = minidiff.build("tiny")
    facts = prove(tiny)
    assert two.runs == [("first", 5, 100), ("second", runner.N, 100)]
    assert not facts["passed"] and [row["n"] for row in facts["rows"]] == [5, runner.N]
    assert prove(tiny, names=("a",), n=2, seed=3)["passed"]
    assert prove(tiny, skip=("b",))["passed"]
    said = capsys.readouterr().out
    assert "1 of 2 claims hold" in said and "FAILS" in said and "(identity)" in said


def test_what_was_measured_is_not_measured_again_until_something_changes(two, tmp_path):
    tiny = minidiff.build("tiny")
    before = prove(tiny, out=tmp_path)
    assert prove(tiny, out=tmp_path) == before and len(two.runs) == 2
    prove(tiny, names=("a",), out=tmp_path, again=True)
    prove(tiny, names=("a",), out=tmp_path, n=3)  # other settings
    assert [name for name, *_ in two.runs] == ["first", "second", "first", "first"]
    with torch.no_grad():
        next(tiny.net.parameters()).add_(1e-3)  # other weights
    prove(tiny, names=("b",), out=tmp_path)
    assert len(two.runs) == 5


def test_a_figure_that_is_not_a_number_is_kept_as_failing(two, monkeypatch, tmp_path, capsys):
    def nothing(pipe, n, seed):
        """Nothing."""
        return counted([Row("nothing over nothing", float("nan"), 0.0)], n)

    monkeypatch.setattr(runner, "import_module", lambda name: SimpleNamespace(prove=nothing))
    facts = prove(minidiff.build("tiny"), names=("a",), out=tmp_path)
    assert not facts["passed"] and "not a number" in capsys.readouterr().out


def test_what_is_done_stays_when_the_rest_is_interrupted(two, tmp_path, capsys):
    tiny = minidiff.build("tiny")
    two.stop.append(True)
    with pytest.raises(KeyboardInterrupt):
        prove(tiny, out=tmp_path)
    assert "1 of 2 proofs are done" in capsys.readouterr().out
    two.stop.clear()
    prove(tiny, out=tmp_path)
    assert [name for name, *_ in two.runs] == ["first", "second"]


def test_the_code_of_a_proof_is_its_own_file_and_what_that_imports(monkeypatch, tmp_path):
    module = tmp_path / "a_proof.py"
    module.write_text("from minidiff.editing.sdedit import sdedit")
    real = runner.find_spec

    def found(name):
        return SimpleNamespace(origin=str(module)) if name == "a_proof" else real(name)

    monkeypatch.setattr(runner, "find_spec", found)
    one = code_of("a_proof")
    module.write_text("from minidiff.editing.ddib import ddib")
    other = code_of("a_proof")
    module.write_text("from minidiff.editing.sdedit import sdedit")
    assert code_of("a_proof") == one != other


@pytest.mark.parametrize(
    "asked, said",
    [
        (dict(names=("a",), skip=("a",)), "nothing is left"),
        (dict(skip=("alchemy",)), "no proof called 'alchemy'"),
        (dict(n=0), "at least one scene"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(two, asked, said):
    with pytest.raises(ValueError, match=said):
        prove(None, **asked)
    assert not two.runs


def test_a_folder_is_wanted(two, tmp_path):
    file = tmp_path / "proofs"
    file.write_text("")
    with pytest.raises(ValueError, match="a folder was expected"):
        prove(None, out=file)


def test_unknown_proof_lists_the_known_ones():
    with pytest.raises(ValueError, match="sdedit"):
        prove(None, names=("alchemy",))


@pytest.mark.weights
def test_each_proof_runs_on_an_untrained_model_and_fails_there():
    pipe = minidiff.load("tiny")
    pipe.net = minidiff.build("tiny", seed=0).net
    rows = prove_masked_sdedit(pipe, 2, 0)
    assert not all(r.holds for r in rows)
    assert all(r.n == 2 and r.source in SOURCES for r in rows)
    assert all(torch.isfinite(torch.tensor(float(r.figure))) for r in rows)
