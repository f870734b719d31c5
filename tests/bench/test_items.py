"""The bench's questions: one change each, everything else held, and nothing to tune on that is
reported on.
"""

from dataclasses import fields

import pytest
import torch

from minidiff.bench.items import KINDS, admissible, chains, fingerprint, in_split, items
from minidiff.data import shapes, unseen

# of items version 2: two of each kind and two chains
FROZEN = {
    "dev": "96887d0d51bede4e46bfc08cad382a875f79e2bcdd0de01ef6f2cc9a554995ff",
    "test": "81ee6f28d5cd32cbe78aec36927c94af548fd3e5a372adc4eb29398b2541908c",
    "hard": "38468fe9a9835c2dec52edd446b7aea74595042a8a7cd40f9ef6e068cd26e8cf",
}


def test_one_thing_changes_and_the_mask_says_where():
    for it in items("dev", 4):
        same = (it.image - it.answer).abs().amax(1, keepdim=True) <= 4 / 255
        assert same[it.mask == 0].all() and it.mask.any(), it
        assert it.source != it.target and it.source == it.source.strip()


@pytest.mark.parametrize(
    "kind, field", [("recolour", "color"), ("reshape", "shape"), ("resize", "size")]
)
def test_an_object_edit_changes_one_field_of_one_object(kind, field):
    for it in items("test", 6, (kind,)):
        changed = [
            (f.name, k)
            for k, (a, b) in enumerate(zip(it.scene.objects, it.truth.objects))
            for f in fields(a)
            if getattr(a, f.name) != getattr(b, f.name)
        ]
        assert len(changed) == 1 and changed[0][0] == field
        index = changed[0][1]
        assert (
            shapes.edit(it.truth, field, getattr(it.scene.objects[index], field), index=index)
            == it.scene
        )


def test_what_is_added_and_deleted_leaves_the_other_object_where_it_was():
    for it in items("dev", 4, ("add", "delete")):
        more, less = (it.truth, it.scene) if it.kind == "add" else (it.scene, it.truth)
        assert len(more.objects) == 2 and len(less.objects) == 1
        assert torch.allclose(
            torch.tensor(shapes.centers(more)[0]), torch.tensor(shapes.centers(less)[0])
        )
        assert more.objects[0].shape == less.objects[0].shape


def test_the_word_that_changes_is_found():
    for it in items("dev", 4, ("recolour", "reshape", "background", "texture")):
        assert it.words and it.words[0] in it.source.split() and it.words[1] in it.target.split()
    assert all(it.words is None for it in items("dev", 2, ("add", "delete")))


def test_the_edited_object_is_called_by_its_name_in_both_captions():
    its = items("dev", 6, ("recolour", "reshape", "resize"))
    assert sum(it.nouns is not None for it in its) > len(its) / 2
    for it in its:
        if it.nouns:
            before, after = it.nouns
            assert (before != after) == (it.kind == "reshape")
            assert it.source.split().count(before) == it.target.split().count(after) == 1
    assert all(it.nouns is None for it in items("dev", 2, ("move", "add", "background")))


def test_no_tuple_is_in_both_splits_and_training_saw_none():
    tuples = {
        split: {
            (o.shape, o.color, it.scene.background)
            for it in items(split, 12)
            if it.kind != "add"
            for o in it.scene.objects[:1]
        }
        for split in ("dev", "test")
    }
    assert not tuples["dev"] & tuples["test"]
    assert all(in_split(it.scene, s) for s in tuples for it in items(s, 4) if it.kind != "add")
    assert all(
        shapes.held_out(it.truth if it.kind == "add" else it.scene) for it in items("test", 4)
    )


def test_items_are_the_same_whatever_number_is_asked_for():
    assert items("dev", 2, ("move",)) == items("dev", 5, ("move",))[:2]


def test_hard_items_are_the_test_items_with_nuisances_in_source_and_truth():
    for kind in KINDS:
        (plain,) = items("test", 1, (kind,))
        (hard,) = items("hard", 1, (kind,))
        assert (hard.scene, hard.truth, hard.target) == (plain.scene, plain.truth, plain.target)
        assert plain.nuisance is None and hard.nuisance is not None
        assert (hard.image - plain.image).abs().mean() > 0.02
        same = (hard.image - hard.answer).abs().amax(1, keepdim=True) <= 4 / 255
        assert same[hard.mask == 0].all() and 0 < hard.mask.mean() < 1


def test_what_lies_on_a_hard_ground_is_clear_of_every_admissible_answer():
    for item in items("hard-dev", 4, ("add", "move")):
        objects = shapes.object_masks([item.scene, *admissible(item)]).amax((0, 1))
        for _, cover in unseen.on_ground(item.nuisance):
            assert (objects * cover).max() == 0


@pytest.mark.parametrize("split, sha256", FROZEN.items())
def test_the_questions_are_frozen(split, sha256):
    """Whoever changes them raises ITEMS_VERSION: rows of other questions compare with nothing."""
    every = items(split, 2) + [item for chain in chains(split, 2) for item in chain]
    assert fingerprint(every) == sha256


def test_unknown_names_are_refused_before_any_work():
    with pytest.raises(ValueError, match="to tune on"):
        items("train")
    with pytest.raises(ValueError, match=", ".join(KINDS)):
        items("dev", 1, ("repaint",))


def test_a_misread_caption_has_one_wrong_word_and_the_wish_is_as_before():
    for item in items("test", 4):
        said, wrong = item.source.split(), item.misread.split()
        changed = [(a, b) for a, b in zip(said, wrong) if a != b]
        assert (
            len(said) == len(wrong)
            and len(changed) == 1
            and changed[0][1] not in said + item.target.split()
        )
        assert changed[0][0] in item.target.split()  # the edit itself is about another word


def test_the_mask_is_empty_only_where_nothing_changes():
    for item in items("dev", 2):
        assert item.mask.any() and not shapes.edit_mask(item.scene, item.scene).any()
