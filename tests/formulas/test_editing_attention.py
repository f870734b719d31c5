"""Editing in the attention layers."""
from itertools import product

import torch
from by_hand import near, rand

from minidiff.editing.prompt_to_prompt import edit_cross


def test_prompt_to_prompt_maps():
    h, n, m = 2, 4, 3
    probs, M = rand(2, h, n, m).softmax(-1), rand(m, m, seed=1).abs()
    alpha, weight = torch.tensor([1., 0., 1.]).double(), torch.tensor([1., 2., .5]).double()
    for a in (0., 1.):
        got = edit_cross(M, alpha, torch.tensor(a), weight)(probs, "")
        near(got[0], probs[0])
        for i, j, k in product(range(h), range(n), range(m)):
            moved = sum(probs[0, i, j, q] * M[q, k] for q in range(m))
            own = probs[1, i, j, k]
            near(got[1, i, j, k], (a * (alpha[k] * moved + (1 - alpha[k]) * own) + (1 - a) * own) * weight[k])
