"""What a picture is known to carry is taken off, and what it is about stays."""

import numpy as np
import pytest
import torch

from minidiff.data import shapes, unseen
from minidiff.evaluate.find_objects import see
from minidiff.evaluate.oracle import compare, oracle
from minidiff.evaluate.taken_off import taken_off


def strange(n, seed):
    """n scenes, one and two objects in turn, and nuisances for each."""
    rng = np.random.default_rng([12, seed])
    scenes = [shapes.scene(rng, objects=1 + i % 2) for i in range(n)]
    return scenes, [unseen.unseen(rng, [s]) for s in scenes]


def test_what_is_left_is_nearer_to_the_plain_render():
    scenes, nuisances = strange(24, 0)
    x = unseen.render(scenes, nuisances)
    plain = shapes.render(scenes)
    before = ((x - plain) ** 2).mean((1, 2, 3))
    after = ((taken_off(x, nuisances) - plain) ** 2).mean((1, 2, 3))
    assert (after < before).all() and after.mean() < before.mean() / 4


def test_a_picture_without_nuisances_is_returned_as_it_is():
    scenes, nuisances = strange(2, 1)
    x = unseen.render(scenes, nuisances)
    out = taken_off(x, [None, nuisances[1]])
    assert torch.equal(out[0], x[0]) and not torch.equal(out[1], x[1])


def test_the_drawing_oracle_reads_what_is_left():
    scenes, nuisances = strange(16, 2)
    readable = taken_off(unseen.render(scenes, nuisances), nuisances)
    for s, found in zip(scenes, see(readable)):
        assert all(compare(found, s).values()), s


def test_a_picture_that_lost_what_it_carried_is_read_all_the_same():
    scenes, nuisances = strange(8, 3)
    for s, found in zip(scenes, see(taken_off(shapes.render(scenes), nuisances))):
        assert all(compare(found, s).values()), s


@pytest.mark.weights
def test_the_learned_oracle_reads_what_is_left_better_than_what_was_there():
    scenes, nuisances = strange(64, 4)
    x = unseen.render(scenes, nuisances)
    before = oracle().judge(x, scenes)["joint"].float().mean()
    after = oracle().judge(taken_off(x, nuisances), scenes)["joint"].float().mean()
    assert after > before and after > 0.9


def test_an_ink_near_a_colour_does_not_outvote_the_object():
    """Half of a small ring with an outline is outline, and teal is near to green."""
    ring = shapes.Obj("ring", "orange", "small")
    s = shapes.Scene((ring,), "left", "blue", "checkered")
    nuisance = unseen.Unseen(outline=(0.05, 0.38, 0.38), grain=(0, 0.02))
    (found,) = see(taken_off(unseen.render(s, nuisance), [nuisance]))
    assert all(compare(found, s).values())


def test_light_is_divided_out_on_a_dark_ground_too():
    """Black times light is black, but the ring that lies there was orange."""
    ring = shapes.Obj("ring", "orange", "medium")
    s = shapes.Scene((ring,), "left", "black")
    nuisance = unseen.Unseen(light=(0.5, 0.3), grain=(3, 0.02))
    left = taken_off(unseen.render(s, nuisance), [nuisance])
    inside = shapes.object_masks(s)[0, 0] > 0.99
    off = (left - shapes.render(s))[0][:, inside].mean(1)
    assert off.abs().max() < 0.02


def test_a_colour_mixed_with_ink_does_not_outvote_the_object():
    """Pink and navy make purple, and of a small cross most pixels are edges."""
    cross = shapes.Obj("cross", "pink", "small", angle=0.05)
    s = shapes.Scene((cross,), "top", "grey")
    nuisance = unseen.Unseen(outline=(0.08, 0.10, 0.35), light=(1.0, 0.25), grain=(0, 0.02))
    left = taken_off(unseen.render(s, nuisance), [nuisance])
    (found,) = see(left)
    assert all(compare(found, s).values())
    inside = shapes.object_masks(s)[0, 0] > 0.99
    pink = torch.tensor(shapes.COLORS["pink"])[:, None, None]
    off = ((left[0] + 1) / 2 - pink).norm(dim=0)[inside]
    assert off.max() < 0.3


def test_of_a_thing_that_nothing_lies_on_not_a_pixel_is_left():
    """Navy on lilac has an edge of purple, a colour of the palette."""
    s = shapes.Scene((), "bottom", "purple", "dotted", (11.8557, 15.8023), (-0.012, -0.015, -0.012))
    nuisance = unseen.Unseen(
        light=(1.8105, 0.2121),
        hues=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.026, -0.010, 0.006)),
        thing=((0.08, 0.10, 0.35), 50.0, 21.0, 5.5499, 5),
        grain=(1200934854, 0.0125),
    )
    left = taken_off(unseen.render(s, nuisance), [nuisance])
    assert (left - shapes.render(s)).abs().max() < 8 * 2 * 0.0125


def test_an_object_that_has_come_to_lie_on_a_thing_is_seen():
    ground = shapes.Scene((), "center", "white")
    nuisance = unseen.Unseen(thing=((0.45, 0.27, 0.10), 44.0, 31.0, 6.0, 5))
    s = shapes.Scene((shapes.Obj("square", "red", "large"),), "right", "white")
    (empty,) = see(taken_off(unseen.render(ground, nuisance), [nuisance]))
    (found,) = see(taken_off(shapes.render(s), [nuisance]))
    assert empty["objects"] == [] and [o["shape"] for o in found["objects"]] == ["square"]


def test_another_number_of_nuisances_is_refused():
    with pytest.raises(ValueError, match="one each, or None"):
        taken_off(shapes.render(strange(2, 0)[0]), [None])
