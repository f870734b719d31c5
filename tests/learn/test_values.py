"""Differences between nested answers, and where they are."""

import numpy as np
import torch

from minidiff.learn.exercises.inputs import LINEAR
from minidiff.learn.values import clone, difference, in_words


def test_the_place_of_a_difference_is_found_in_nested_answers():
    a = [torch.zeros(2, 3), {"k": (1.0, torch.ones(2))}]
    b = clone(a)
    b[1]["k"][1][1] += 2
    assert difference(a, b) == (2.0, "[1]['k'][1][1]")
    assert difference(a, a) == (0.0, "")


def test_another_shape_or_structure_is_infinitely_different():
    inf = float("inf")
    assert difference(torch.zeros(2), torch.zeros(3))[0] == inf
    assert difference([1], 1)[0] == inf


def test_equal_infinities_agree_and_nan_never_does():
    edge = torch.tensor([1.0, float("inf")])
    assert difference(edge, edge)[0] == 0
    assert difference(torch.tensor(float("nan")), torch.tensor(1.0))[0] == float("inf")


def test_texts_differ_by_their_letters():
    assert difference(["ab", "c"], ["ab", "c"])[0] == 0
    assert difference(["ab", "c"], ["ab", "d"]) == (1.0, "[1][0]")
    assert difference(["a", "b"], ["ab"])[0] == float("inf")


def test_numbers_of_numpy_are_numbers():
    assert difference([np.int64(3), np.float32(0.5)], [3, 0.5])[0] == 0


def test_arguments_are_told_in_words():
    given = (LINEAR, torch.ones(2, 3), torch.tensor([5, 700]), 0.25, "v", [3, 2], max, None)
    words = "linear, tensor (2, 3), [5, 700], 0.25, 'v', [3, 2], max, None"
    assert ", ".join(in_words(value) for value in given) == words
    assert in_words([torch.ones(2)] * 3) == "a list of 3"
    assert in_words(lambda x: x) == "function"
