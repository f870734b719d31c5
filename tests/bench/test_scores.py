"""What counts: the truth scores 1, a copy 0, and the kept area changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minidiff.bench import scores
from minidiff.bench.items import items
from minidiff.data import shapes


def asked(found, item):
    changed, kept = scores.questions(item)
    v = scores.verdict(found, item)
    return all(v[w] for w in changed), {w for w in kept if not v[w]}


def test_the_true_scene_is_right_in_everything_and_the_source_in_all_but_the_edit(told):
    for item in items("dev", 12):
        assert asked(told(item.truth), item) == (True, set()), item
        done, missed = asked(told(item.scene), item)
        assert not done and not missed, (item.kind, missed)


def test_changed_and_kept_share_nothing_and_leave_out_only_what_no_caption_says(told):
    for item in items("dev", 4):
        changed, kept = scores.questions(item)
        assert changed and kept and not changed & kept
        free = scores.verdict(told(item.truth), item).keys() - changed - kept
        assert free <= (
            {"1.size"} if item.kind == "add" else {"count"} if item.kind == "delete" else set()
        )


def test_deleting_the_wrong_object_or_both_is_no_deletion(told):
    for item in items("dev", 6, ("delete",)):
        wrong = told(shapes.edit(item.scene, "delete", index=0))
        nothing = told(replace(item.scene, objects=(), position="center"))
        assert not asked(wrong, item)[0] and not asked(nothing, item)[0]


def test_an_object_moved_aside_by_the_order_of_reading_is_still_the_same_object(told):
    """The canonical order changes when an edit moves what is left or upper; objects are paired by
    their looks instead.
    """
    for item in (
        i for i in items("dev", 12, ("recolour", "reshape", "resize")) if len(i.scene.objects) == 2
    ):
        seen = told(item.truth)
        seen["objects"] = seen["objects"][::-1]  # as if they had swapped places
        done, missed = asked(seen, item)
        assert done and missed == {"position"}, (item, missed)


def test_a_neighbour_in_the_way_costs_the_count_and_not_the_edit(told):
    item = next(i for i in items("dev", 8, ("recolour",)) if len(i.scene.objects) == 1)
    seen = told(item.truth)
    extra = {
        "shape": next(s for s in shapes.SHAPES if s != item.truth.objects[0].shape),
        "color": None,
        "size": "small",
    }
    done, missed = asked(seen | {"objects": [*seen["objects"], extra], "position": "left"}, item)
    assert done and "count" in missed


def test_a_move_must_arrive_within_half_a_cell(told):
    item = items("dev", 1, ("move",))[0]
    ((x, y),) = shapes.centers(item.truth)
    for shift, right in ((5, True), (8, False)):
        seen = told(item.truth)
        seen["objects"][0] |= {"x": x + shift, "y": y}
        assert asked(seen, item)[0] == right


def test_kept_area_does_not_change_the_likeness_of_a_constant_error():
    """Averaging over all pixels, as PIE-Bench's code does, gives 5 dB for a mask of two thirds."""
    image = torch.zeros(1, 3, 64, 64)
    off, found = image + 32 / 255, []
    for edge in (8, 32, 56):
        region = torch.zeros(1, 1, 64, 64)
        region[..., :edge] = 1
        found.append(scores.distances(off, image, region))
    b, c, pie = zip(*found)
    assert np.ptp(b) < 1e-9 and np.ptp(c) < 1e-9 and b[0] == pytest.approx(c[0])
    assert pie[2] - pie[0] == pytest.approx(10 * np.log10(7), abs=1e-6)


def test_the_score_is_1_at_the_ceiling_and_0_at_the_floor_or_without_the_edit():
    at = dict(b_floor=20, b_vae=38, c_vae=30)
    assert (
        scores.edit_score(1, 1, 38, 30, **at)["score"]
        == scores.edit_score(1, 1, 50, 50, **at)["score"]
        == 1
    )
    assert (
        scores.edit_score(0, 1, 50, 50, **at)["score"]
        == scores.edit_score(1, 1, 20, 50, **at)["score"]
        == 0
    )
    assert scores.edit_score(1, 1, 38, 5, **at)["score"] == pytest.approx(0.5 ** (1 / 3))
    assert scores.edit_score(1, 1, float("nan"), 30, **at)["Bn"] == 1


def test_what_knows_only_the_caption_does_not_rise_above_the_floor():
    for item in items("dev", 3):
        again = scores.redrawn(item)
        said = {
            g: {"resize": "size", "move": "position", "texture": "texture"}.get(item.kind) == g
            for g in ("size", "position", "texture")
        }
        assert all(shapes.caption(s, **said) == item.target for s in again)
        floor = scores.floor_of_b(item, scores.region(item), 40.0)
        assert scores.FLOOR_B <= floor <= 30


def test_what_no_caption_names_is_kept_by_the_truth_and_lost_by_its_plain_render():
    for item in items("hard-dev", 1):
        region = scores.region(item)
        plain = replace(item, nuisance=None).answer

        def kept(picture, item=item, region=region):
            return scores.nuisances_kept(picture, item, region, item.answer)["Nn"]

        assert kept(item.answer) == 1 and kept(plain) == 0
        assert 0 < kept((item.answer + plain) / 2) < 1
        inside = item.answer * (1 - region) + plain * region  # what the edit is about is not asked
        assert kept(inside) == 1
    easy = items("dev", 1, ("move",))[0]
    assert np.isnan(scores.nuisances_kept(easy.answer, easy, region, easy.answer)["Nn"])


def test_an_added_object_may_have_any_size_and_the_nearest_counts():
    item = items("dev", 1, ("add",))[0]
    truths, region = item.truths, scores.region(item)
    assert len(truths) == 3 and torch.equal(truths[:1], item.answer)
    for t in truths:
        b, c, _ = scores.distances(t[None], truths, region)
        assert b == c == 50
    assert (region >= item.mask).all()
