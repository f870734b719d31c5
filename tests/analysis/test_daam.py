import pytest
import torch

import minidiff
from minidiff.analysis.daam import as_pictures, attention_maps, heat, overlap
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene, caption, object_masks


@pytest.fixture(scope="module")
def tiny():
    return minidiff.load("tiny")


SCENE = Scene((Obj("circle", "red", "large"),), "left", "white", "plain")


def test_maps_keep_their_places_and_sum_to_one_over_the_words(tiny):
    maps = attention_maps(tiny, shapes.render(SCENE), caption(SCENE), times=(300, 700))
    assert {t for _, t in maps} == {300, 700} and len(maps) >= 8
    for m in maps.values():
        assert (m.sum(1) - 1).abs().max() < 1e-5 and m.shape[2] == m.shape[3]


def test_places_become_rows_and_columns():
    probs = torch.zeros(1, 2, 32, 3)
    probs[:, :, 8 + 5, 1] = 1  # row 1, column 5 of 4 x 8
    found = as_pictures(probs, (8, 16))
    assert found.shape == (1, 3, 4, 8) and found[0, 1, 1, 5] == 1 and found.sum() == 1
    with pytest.raises(ValueError, match="a map of 30 pixels"):
        as_pictures(torch.zeros(1, 2, 30, 3), (8, 16))


@pytest.mark.weights
def test_the_noun_is_looked_at_where_the_thing_is(tiny):
    """More than the background's word is, and more than chance: a region of that size laid
    anywhere overlaps less.
    """
    image, said = shapes.render(SCENE), caption(SCENE)
    maps = attention_maps(tiny, image, said)
    spans = dict(tiny.tokenizer.token_spans(said))
    mask = object_masks(SCENE)[:, 0]
    thing, ground = (heat(maps, spans[word], (64, 64)) for word in ("circle", "background"))
    inside = (thing * mask).sum() / mask.sum() - (thing * (1 - mask)).sum() / (1 - mask).sum()
    assert inside > 0
    assert overlap(thing, mask) > overlap(ground, mask)


def test_overlap_is_the_intersection_over_the_union():
    a = torch.zeros(1, 4, 4)
    b = torch.zeros(1, 4, 4)
    a[:, :2], b[:, 1:3] = 1, 1
    assert overlap(a, b).item() == pytest.approx(1 / 3)


def test_what_cannot_be_looked_at_is_refused(tiny):
    image = shapes.render(SCENE)
    with pytest.raises(ValueError, match=r"times=\[0\]"):
        attention_maps(tiny, image, "a red circle", times=(0,))
    maps = attention_maps(tiny, image, "a red circle", times=(500,))
    with pytest.raises(ValueError, match="no layer's name contains 'attic'"):
        heat(maps, [1], (64, 64), "attic")
    pixel = minidiff.build("tiny-pixel", seed=0)
    with pytest.raises(ValueError, match="no cross-attention"):
        attention_maps(pixel, shapes.render(SCENE, 32), "red circle", times=(500,))
