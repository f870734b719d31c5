"""The oracle that draws, told nothing: what is there is found, what is a fragment is no shape."""

from dataclasses import replace

import numpy as np
import pytest

from minidiff.data import shapes
from minidiff.data.attributes import canonical
from minidiff.evaluate.find_objects import see
from minidiff.evaluate.oracle import compare


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


def test_what_was_seen_is_where_it_is():
    s = next(
        s
        for i in range(99)
        if len((s := shapes.scene(np.random.default_rng(i), objects=2)).objects) == 2
    )
    for o, (x, y) in zip(see(shapes.render(s))[0]["objects"], shapes.centers(canonical(s))):
        assert abs(o["x"] - x) < 1 and abs(o["y"] - y) < 1
