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


@pytest.mark.weights
@pytest.mark.parametrize(
    "name, kind, with_it, without",
    [
        ("asyrp", "texture", {"learn": 2}, {"strength": 0.0}),
        ("pix2pix-zero", "recolour", {}, {"hold": 0.0}),
    ],
)
def test_a_setting_does_as_much_in_few_steps_as_in_many(name, kind, with_it, without):
    """What the shift, and the pull, change in the picture: in four times the steps it would be four
    times as much if every step added all of it. Half way, as a factor, is two.
    """
    pipe = minidiff.load("tiny")
    m = methods.method(name)
    (item,) = items("dev", 1, (kind,))
    sizes = []
    for steps in (5, 20):
        edits = [
            bench.call(pipe, m, [item], [""], 0, {"steps": steps} | options)[0]
            for options in (with_it, without)
        ]
        sizes.append((edits[0] - edits[1]).square().mean().sqrt().item())
    assert 1 / 2 < sizes[1] / sizes[0] < 2, sizes
