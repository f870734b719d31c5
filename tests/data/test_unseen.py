"""The nuisances of the hard split: the same before and after an edit, and no caption is untrue."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minidiff.data import shapes, unseen
from minidiff.data.unseen import Unseen


def pairs(n, seed=0, level=1.0):
    """n times a scene, an edit of it, and nuisances that fit both."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        before = shapes.scene(rng, objects=1 + i % 2)
        what = ("shape", "size", "background")[i % 3]
        words = {"shape": shapes.SHAPES, "size": shapes.SIZES, "background": ("grey", "black")}
        now = before.background if what == "background" else getattr(before.objects[0], what)
        after = shapes.edit(before, what, next(word for word in words[what] if word != now))
        out.append((before, after, unseen.unseen(rng, [before, after], level)))
    return out


def test_a_picture_is_a_function_of_scene_and_nuisance_and_lies_in_the_usual_range():
    before, _, nuisance = zip(*pairs(8))
    x = unseen.render(before, nuisance)
    assert x.shape == (8, 3, 64, 64) and -1 <= x.min() and x.max() <= 1
    assert torch.equal(x, unseen.render(before, nuisance)) and pairs(8) == pairs(8)
    alone = torch.cat([unseen.render(s, n) for s, n in zip(before, nuisance)])
    assert (x - alone).abs().max() < 1e-6


def test_the_counterfactual_differs_only_where_the_plain_one_does_and_on_the_edited_object():
    """Light and grain reach every pixel, but they are the same in both; an outline follows the
    shape it belongs to, also where the old shape and the new one overlap.
    """
    for before, after, nuisance in pairs(12):
        objects = shapes.object_masks([before, after])[:, :1].amax(0, keepdim=True)
        mask = torch.maximum(shapes.edit_mask(before, after), (objects > 0).float())
        gap = (unseen.render(before, nuisance) - unseen.render(after, nuisance)).abs()
        assert (gap * (1 - mask)).max() <= 4 / 255
        assert (gap * mask).max() > 0.05


def test_what_lies_on_the_ground_keeps_clear_of_every_object_before_and_after():
    for before, after, nuisance in pairs(24, seed=1):
        objects = shapes.object_masks([before, after]).amax((0, 1))
        near = F.max_pool2d(objects[None], 5, 1, 2)[0]
        covers = [cover for _, cover in unseen.on_ground(nuisance)]
        assert all((near * cover).max() == 0 for cover in covers)
        assert len(covers) < 2 or (covers[0] * covers[1]).max() == 0


def test_without_nuisances_a_picture_is_the_plain_render():
    s = shapes.scene(np.random.default_rng(0))
    assert (unseen.render(s, Unseen()) - shapes.render(s)).abs().max() < 1e-6


def test_level_0_has_no_light_hue_or_grain_and_differs_by_marks_alone():
    for before, _, nuisance in pairs(8, level=0.0):
        assert nuisance.light[1] == nuisance.grain[1] == 0 and not np.any(nuisance.hues)
        gap = (unseen.render(before, nuisance) - shapes.render(before)).abs().amax(1)[0]
        marks = sum(cover for _, cover in unseen.on_ground(nuisance)) + torch.zeros(64, 64)
        marks = marks + shapes.object_masks(before).sum((0, 1))
        if nuisance.frame:
            marks = marks + unseen.edge()
        assert gap[marks == 0].max() < 1e-6


def test_light_only_takes_away_and_can_be_divided_out():
    light = unseen.light(Unseen(light=(0.7, 0.3)))
    assert light.max() <= 1 and light.min() == pytest.approx(0.7, abs=0.01)
    s = shapes.Scene((), "center", "white", "checkered")
    x = (unseen.render(s, Unseen(light=(0.7, 0.3))) + 1) / 2
    assert (x / light - (shapes.render(s) + 1) / 2).abs().max() < 1e-5


def test_hues_leave_every_color_nearest_to_its_own_word():
    palette = torch.tensor(list(shapes.COLORS.values()))
    grounds = torch.tensor(list(shapes.BACKGROUNDS.values()))
    rng = np.random.default_rng(3)
    for _ in range(40):
        s = shapes.scene(rng)
        a, _, ground = unseen.unseen(rng, [s]).hues
        o = s.objects[0]
        seen = torch.tensor(shapes.COLORS[o.color]) + torch.tensor(a) + torch.tensor(o.tint)
        word = list(shapes.COLORS)[(palette - seen).norm(dim=1).argmin()]
        tinted = torch.tensor(ground) + torch.tensor(s.tint)
        behind = torch.tensor(shapes.BACKGROUNDS[s.background]) + tinted
        name = list(shapes.BACKGROUNDS)[(grounds - behind).norm(dim=1).argmin()]
        assert (word, name) == (o.color, s.background)


def test_no_object_has_both_stripes_and_outline_and_no_ink_hides_in_a_ground():
    for before, _, nuisance in pairs(60, seed=2):
        assert not (nuisance.stripes and nuisance.outline)
        if nuisance.thing:
            ground = torch.tensor(shapes.BACKGROUNDS[before.background])
            assert (torch.tensor(nuisance.thing[0]) - ground).norm() > 0.2


def test_stripes_move_with_their_object():
    s = shapes.Scene((shapes.Obj("square", "red", "large"),), "left", "white")
    moved = shapes.edit(s, "position", "right")  # by 26 whole pixels
    nuisance = Unseen(stripes=((0.1, 0.1, 0.3), 0.4, 3.0))
    a, b = unseen.render([s, moved], [nuisance] * 2)
    assert (a[..., :-26] - b[..., 26:])[..., 2:34].abs().max() < 1e-5


def test_a_larger_picture_shows_the_same():
    before, _, nuisance = zip(*pairs(3))
    small = unseen.render(before, nuisance)
    large = F.avg_pool2d(unseen.render(before, nuisance, 256), 4)
    away_from_edges = (small - large).abs().amax(1) < 0.02
    assert away_from_edges.float().mean() > 0.8
    assert (small - large).pow(2).mean() < 0.01  # 26 dB, edges and all


def test_another_number_of_nuisances_is_refused():
    with pytest.raises(ValueError, match="one each"):
        unseen.render(shapes.scene(np.random.default_rng(0)), [])
