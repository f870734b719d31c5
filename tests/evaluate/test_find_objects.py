"""The oracle that draws, told nothing: what is there is found, what is a fragment is no shape."""

from dataclasses import replace

import numpy as np
import pytest

from minidiff.data import shapes, unseen
from minidiff.evaluate.find_objects import see
from minidiff.evaluate.oracle import compare
from minidiff.models.attribute_net import canonical


@pytest.mark.parametrize("seed", range(5))
def test_analysis_by_synthesis_reads_clean_renders_without_being_told(seed):
    rng = np.random.default_rng([11, seed])
    scenes = [shapes.scene(rng, objects=1 + i % 2) for i in range(12)]
    scenes.append(replace(scenes[0], objects=(), position="center"))
    found = see(shapes.render(scenes))
    for s, f in zip(scenes, found):
        assert all(compare(f, s).values()), s
    assert found[-1]["position"] is None


@pytest.mark.parametrize("shape", ["ring", "circle", "star", "cross"])
def test_a_fragment_is_no_shape(shape):
    one = shapes.scene(np.random.default_rng(3), objects=1)
    red = replace(one.objects[0], shape=shape, color="red", size="large")
    whole = replace(one, objects=(red,), texture="plain", background="yellow", position="center")
    image, ground = shapes.render(whole), shapes.render(replace(whole, objects=()))
    assert see(image)[0]["objects"][0]["shape"] == shape
    image[..., :34] = ground[..., :34]
    assert [o["shape"] for o in see(image)[0]["objects"]] == [None]


def strange(n, seed):
    """n scenes, one and two objects in turn, and nuisances for each."""
    rng = np.random.default_rng([12, seed])
    scenes = [shapes.scene(rng, objects=1 + i % 2) for i in range(n)]
    return scenes, [unseen.unseen(rng, [s]) for s in scenes]


def test_what_a_picture_is_known_to_carry_is_taken_off_before_it_is_read():
    scenes, nuisances = strange(16, 0)
    for s, found in zip(scenes, see(unseen.render(scenes, nuisances), nuisances)):
        assert all(compare(found, s).values()), s


def test_a_picture_that_lost_what_it_carried_is_read_all_the_same():
    scenes, nuisances = strange(8, 1)
    for s, found in zip(scenes, see(shapes.render(scenes), nuisances)):
        assert all(compare(found, s).values()), s


def test_an_object_that_has_come_to_lie_on_a_mark_is_seen():
    ground = shapes.Scene((), "center", "white")
    nuisance = unseen.Unseen(thing=((0.45, 0.27, 0.10), 44.0, 31.0, 6.0, 5))
    s = shapes.Scene((shapes.Obj("square", "red", "large"),), "right", "white")
    assert see(unseen.render(ground, nuisance), [nuisance])[0]["objects"] == []
    (found,) = see(shapes.render(s), [nuisance])
    assert compare(found, s)["count"] and found["objects"][0]["shape"] == "square"


def test_another_number_of_nuisances_is_refused():
    with pytest.raises(ValueError, match="one each, or None"):
        see(shapes.render(strange(2, 0)[0]), [None])


def test_what_was_seen_is_where_it_is():
    s = next(
        s
        for i in range(99)
        if len((s := shapes.scene(np.random.default_rng(i), objects=2)).objects) == 2
    )
    for o, (x, y) in zip(see(shapes.render(s))[0]["objects"], shapes.centers(canonical(s))):
        assert abs(o["x"] - x) < 1 and abs(o["y"] - y) < 1
