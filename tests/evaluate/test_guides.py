"""Guidances side by side: what is counted, and what is refused."""

import numpy as np
import pytest
import torch

import minidiff
from minidiff.data import shapes
from minidiff.evaluate import guides
from minidiff.evaluate.oracle import FULL, SHORT
from minidiff.guidance import GUIDES


def test_prompts_are_short_and_full_in_turn_of_one_object_and_of_two():
    told = guides.asked(8, 0)
    assert told.groups == [SHORT, FULL] * 4
    assert [len(s.objects) for s in told.scenes] == [1, 1, 2, 2] * 2
    assert all(shapes.held_out(s) for s in told.scenes)


def test_another_scene_has_the_same_short_caption_and_other_places():
    rng = np.random.default_rng(0)
    for s in guides.asked(16, 1).scenes:
        drawn = [guides.another(rng, s) for _ in range(8)]
        assert {shapes.short_caption(d) for d in drawn} == {shapes.short_caption(s)}
        assert len({(d.position, *(o.size for o in d.objects)) for d in drawn}) > 1


def test_renders_keep_to_the_palette_and_louder_ones_do_not():
    pictures = shapes.render(guides.asked(16, 2).scenes)
    assert guides.off_palette(pictures).max() == 0
    assert guides.off_palette(1.5 * pictures).mean() > 0.3


def test_variety_is_read_off_where_the_accuracy_is_reached():
    rows = [
        {"scale": 1.0, "right": [0.8], "apart": [4.0]},
        {"scale": 2.0, "right": [1.0], "apart": [2.0]},
        {"scale": 3.0, "right": [0.5], "apart": [1.0]},
    ]
    assert guides.varied_at(rows, 90.0, 4.0) == pytest.approx(0.75)
    assert guides.varied_at(rows, 70.0, 4.0) == pytest.approx(1.0)
    assert guides.varied_at(rows[:1], 90.0, 4.0) is None


@pytest.mark.weights
def test_evaluations_of_every_network_that_is_asked_are_counted():
    pipe = minidiff.load("tiny")
    for name, scale, each in (("cfg", 1.0, 1), ("cfg", 2.0, 2), ("autoguidance", 2.0, 2)):
        row = guides.measure(pipe, name, scale, 8, 0, steps=2)
        assert row["evaluations"] == 2 * each
        assert len(row["right"]) == 8 and len(row["apart"]) == 4


@pytest.mark.weights
def test_off_every_guidance_leaves_the_conditional_answer():
    pipe = minidiff.load("tiny")
    x, cond = pipe.start(2), pipe.embed(["a red circle", "a blue star"])
    for guide in GUIDES.values():
        answer = guide.make(pipe, guide.off)(x, 900, cond)
        assert torch.equal(answer, pipe.eps(x, 900, cond)), guide.name


def test_unknown_guidances_and_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="no guidance called 'cgf'; there are: cfg"):
        guides.guides(None, names=("cgf",))
    with pytest.raises(ValueError, match="n=2: 8 prompts or more"):
        guides.guides(None, n=2)
