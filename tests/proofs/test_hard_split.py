"""The hard split can be answered: told what a picture carries, the oracles read the right answer as
right.
"""

import pytest

import minidiff
from minidiff.bench.items import KINDS
from minidiff.proofs.hard_split import prove, spread


def test_items_are_spread_evenly_and_more_of_them_are_the_same_and_others():
    few = spread(12, 5)
    assert [item.kind for item in few] == [*KINDS, *KINDS[:4]]
    assert spread(9, 5) == few[:9]
    assert all(item.nuisance is not None for item in few)


@pytest.mark.weights
def test_the_truth_is_the_edit_the_source_is_not_and_neither_asks_the_model():
    pipe = minidiff.load("tiny")
    pipe.vae.decoder.conv_out.weight.zero_()  # copies are of one colour now
    truth, source, likeness, copies = prove(pipe, 3, 7)
    assert truth.figure == source.figure == 1 and truth.n == source.n == 3
    assert copies.figure == 0 and not likeness.holds
