from dataclasses import replace

import numpy as np
import pytest
import torch

from minidiff.data import shapes
from minidiff.data.attributes import HEADS, NOTHING, PLACES, canonical, labels
from minidiff.models.attribute_net import AttributeNet


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return AttributeNet().eval()


def scenes(n, objects, seed=0):
    rng = np.random.default_rng(seed)
    return [shapes.scene(rng, objects=objects) for _ in range(n)]


def mirrored(s):
    """The other way to say the same picture of two objects."""
    other = {"left": "right", "right": "left", "above": "below", "below": "above"}
    return replace(s, objects=s.objects[::-1], position=other[s.position])


def test_every_head_has_one_logit_per_word(net):
    out = net(torch.zeros(2, 3, 64, 64))
    assert {h: tuple(v.shape) for h, v in out.items()} == {h: (2, len(v)) for h, v in HEADS.items()}
    assert [
        len(HEADS[h])
        for h in ("count", "place", "background", "texture", "a_shape", "b_color", "b_size")
    ] == [3, 7, 8, 4, 7, 8, 3]


def test_the_network_is_small(net):
    assert 4e5 < sum(p.numel() for p in net.parameters()) < 8.5e5


def test_rows_do_not_see_each_other(net):
    x = shapes.render(scenes(4, 1))
    assert (net.features(x)[2:3] - net.features(x[2:3])).abs().max() < 1e-5


def test_logits_are_a_linear_map_of_the_features(net):
    x = shapes.render(scenes(3, 2))
    f = net.features(x)
    assert f.shape == (3, 96) and f.min() >= 0
    assert (net.final_layer(f) - torch.cat(list(net(x).values()), 1)).abs().max() < 1e-6


def test_other_picture_sizes_are_refused(net):
    with pytest.raises(ValueError, match=r"64, 64.*resize"):
        net(torch.zeros(1, 3, 32, 32))


def test_a_left_of_b_and_b_right_of_a_are_one_picture_with_one_label():
    pairs = [s for s in scenes(60, 2) if all(o.size != "large" for o in s.objects)]  # no overlap
    assert (shapes.render(pairs) - shapes.render([mirrored(s) for s in pairs])).abs().max() < 1e-6
    assert torch.equal(labels(pairs), labels([mirrored(s) for s in pairs]))


def test_canonical_scenes_are_left_alone():
    for s in [canonical(s) for s in scenes(30, 2)] + scenes(5, 1):
        assert canonical(s) == s and (len(s.objects) == 1 or s.position in ("left", "above"))


def test_labels_spell_the_scene():
    s = shapes.Scene(
        (shapes.Obj("star", "cyan", "large"), shapes.Obj("ring", "red", "small")),
        "below",
        "grey",
        "dotted",
    )
    word = {h: HEADS[h][i] for h, i in zip(HEADS, labels([s])[0].tolist())}
    assert word == {
        "count": 2,
        "place": ("two", "above"),
        "background": "grey",
        "texture": "dotted",
        "a_shape": "ring",
        "a_color": "red",
        "a_size": "small",
        "b_shape": "star",
        "b_color": "cyan",
        "b_size": "large",
    }


def test_what_is_not_there_has_no_label():
    one = shapes.Scene((shapes.Obj("star", "cyan", "large"),), "top", "grey")
    none = replace(one, objects=())
    a, b = labels([one, none]).tolist()
    assert a[1] == PLACES.index(("one", "top")) and a[7:] == [NOTHING] * 3 and NOTHING not in a[:7]
    assert b[0] == 0 and b[1] == NOTHING and b[4:] == [NOTHING] * 6
