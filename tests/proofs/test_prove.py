"""The proofs' own instruments, on renders whose answer is known."""

import numpy as np
import pytest
import torch

import minidiff
from minidiff.data import shapes
from minidiff.proofs.prompt_to_prompt import prove as prove_prompt_to_prompt
from minidiff.proofs.prove import Row, draw, object_region, prove, rank_correlation, recoloured


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


def test_unknown_proof_lists_the_known_ones():
    with pytest.raises(ValueError, match="sdedit"):
        prove(None, names=("alchemy",))


@pytest.mark.weights
def test_each_proof_runs_on_an_untrained_model_and_fails_there():
    pipe = minidiff.load("tiny")
    pipe.net = minidiff.build("tiny", seed=0).net
    rows = prove_prompt_to_prompt(pipe, 2, 0)
    assert len(rows) == 3 and not all(r.holds for r in rows)
    assert all(torch.isfinite(torch.tensor(float(r.figure))) for r in rows)
