import pytest
import torch

from minidiff.core.cond import Cond


def bundle(b=3, n=5):
    g = torch.Generator().manual_seed(b)
    return Cond(
        text=torch.randn(b, n, 4, generator=g),
        mask=torch.ones(b, n, dtype=torch.bool),
        label=torch.arange(b),
        image=torch.randn(b, 1, 2, 2, generator=g),
        extra={"size": torch.randn(b, 2, generator=g)},
    )


def same(c, d):
    a, b = c._tensors(), d._tensors()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_int_row_keeps_the_batch_axis():
    c = bundle()
    for i in (0, 2, -1):
        assert len(c[i]) == 1 and torch.equal(c[i].text, c.text[[i]])
        assert torch.equal(c[i].extra["size"], c.extra["size"][[i]])


@pytest.mark.parametrize(
    "rows", [slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.arange(3) > 0], ids=str
)
def test_slices_lists_and_tensors_pick_the_same_rows(rows):
    c = bundle()
    assert len(c[rows]) == 2 and same(c[rows], Cond.cat([c[1], c[2]]))


def test_cat_of_the_rows_is_the_bundle():
    c = bundle()
    assert same(Cond.cat(list(c)), c)  # iterating stops at the last row
    assert len(Cond.cat([c, c[0]])) == 4


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(IndexError, match="row 3 of a Cond with 3 rows"):
        bundle()[3]


def test_cat_refuses_parts_with_other_fields_or_shapes():
    c = bundle()
    for other in (c.replace(mask=None), c.replace(extra=None), bundle(n=6), Cond()):
        with pytest.raises(ValueError, match="same fields and shapes in every part"):
            Cond.cat([c, other])


def test_fields_with_different_rows_are_refused():
    with pytest.raises(ValueError, match=r"equally many rows.*'text': 2.*'label': 3"):
        Cond(text=torch.zeros(2, 5, 4), label=torch.arange(3))


def test_one_row_expands_to_any_number_and_many_rows_do_not():
    c = bundle()
    assert same(c[1].expand(3), c[[1, 1, 1]]) and c.expand(3) is c
    with pytest.raises(ValueError, match="this Cond has 3"):
        c.expand(6)


def test_to_casts_floats_and_leaves_labels_and_masks_alone():
    c = bundle().to("cpu", torch.float64)
    assert c.text.dtype == c.image.dtype == c.extra["size"].dtype == torch.float64
    assert c.label.dtype == torch.int64 and c.mask.dtype == torch.bool


def test_replace_changes_one_field_of_a_copy():
    c = bundle()
    d = c.replace(label=torch.zeros(3, dtype=torch.long))
    assert d.text is c.text and d.label.sum() == 0 and c.label.sum() == 3
    with pytest.raises(AttributeError):
        c.label = None


def test_the_empty_condition_survives_everything():
    c = Cond()
    assert len(c) == 0 and c.expand(7) is c
    assert all(same(d, c) for d in (c[:1], Cond.cat([c, c]), c.to("cpu", torch.float64)))
