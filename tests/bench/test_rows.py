"""One function, one row: no two rows of the full table give the same picture at equal options."""

import inspect
from itertools import combinations

import pytest
import torch

import minidiff
from minidiff.bench import bench, knobs, methods
from minidiff.bench.items import items
from minidiff.techniques import TECHNIQUES

EQUAL = {"steps": 4, "scale": 2.0, "strength": 0.75, "iterations": 2, "updates": 1}
AGREE = 1e-4


def edit(pipe, name: str) -> torch.Tensor:
    """The edit of one item by a row, with the options that all have alike."""
    m = methods.method(name)
    plain = knobs.names(name)[1]
    asked = inspect.signature(m.fn).parameters
    equal = {option: value for option, value in EQUAL.items() if option in asked}
    cheap = TECHNIQUES[plain].cheap if plain in TECHNIQUES else {}
    item, neighbour = items("dev", 2, ("recolour",))
    options = m.fixed | cheap | equal
    return bench.call(pipe, m, [item], [neighbour.target], 5, options)[0]


@pytest.mark.weights
def test_no_two_rows_agree():
    pipe = minidiff.load("tiny")
    rows = [name for name in methods.everything() if "@" not in name]
    pictures = {name: edit(pipe, name) for name in rows}
    twins = [
        (a, b) for a, b in combinations(rows, 2) if (pictures[a] - pictures[b]).abs().max() < AGREE
    ]
    assert not twins, twins
    for technique in TECHNIQUES.values():  # and those without a row equal the one that is named
        if technique.same_as:
            gap = (edit(pipe, technique.name) - pictures[technique.same_as]).abs().max()
            assert gap < AGREE, technique.name
