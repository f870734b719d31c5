"""Editing: which token is which, and where an edit may happen."""

from functools import cache

import torch
import torch.nn.functional as F

from minidiff.editing.diffedit import RATIO, threshold_mask
from minidiff.editing.prompt_to_prompt import align, blend_mask
from minidiff.learn.exercise import Exercise, Fact, Mutant

P2P = "tutorials/editing/prompt_to_prompt.md"


# ---- prompt-to-prompt: alignment -----------------------------------------------------------------


def slow_align(source, target):
    @cache
    def score(i, j):  # of the best alignment of the first i and j tokens
        if not i or not j:
            return 0
        pair = score(i - 1, j - 1) + (1 if source[i - 1] == target[j - 1] else -1)
        return max(score(i, j - 1), score(i - 1, j), pair)

    partner = [-1] * len(target)
    i = len(source)
    j = len(target)
    while i and j:
        if score(i, j) == score(i, j - 1):
            j -= 1
        elif score(i, j) == score(i - 1, j):
            i -= 1
        else:
            i -= 1
            j -= 1
            partner[j] = i
    return partner


def by_place(source, target):
    return [j if j < len(source) else -1 for j in range(len(target))]


def first_equal(source, target):
    return [source.index(w) if w in source else -1 for w in target]


def replaced_too(source, target):
    partners = align(source, target)
    if len(source) != len(target):
        return partners
    return [place if partner < 0 else partner for place, partner in enumerate(partners)]


def numbers(seed, length):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(4, (length,), generator=g).tolist()


def align_cases(seed):
    return [
        ("a b".split(), "a b".split()),
        ("a red cat".split(), "a blue cat".split()),
        ("a cat on a mat".split(), "a small cat on a red mat".split()),
        ([], ["x"]),
        (numbers(seed, 9), numbers(seed + 9, 7)),
    ]


aligned = Exercise(
    "align",
    "core",
    "For every token of `target` (a list) the index of its partner in `source`, or -1: the "
    "Needleman-Wunsch alignment with match 1, mismatch -1, gap 0. So a replaced word is "
    "unmatched. Where several alignments are equally good, walking back from the two ends, an "
    "insertion in the target goes first, then a deletion, then a pair.",
    align,
    slow_align,
    align_cases,
    facts=(
        Fact(
            "equal prompts: every token is its own partner",
            lambda fn: (fn([5, 5, 7], [5, 5, 7]), [0, 1, 2]),
        ),
        Fact("a suffix has no partner", lambda fn: (fn([1, 2], [1, 2, 3]), [0, 1, -1])),
    ),
    mutants=(
        Mutant(
            "by place",
            by_place,
            'Words behind an insertion get the maps of their neighbours: "cat" looks where "red" '
            "was.",
        ),
        Mutant(
            "the first equal word",
            first_equal,
            '"a cat on a mat": both articles find the first one. Repeated words need an order, '
            "which only an alignment keeps.",
        ),
        Mutant(
            "replaced words paired",
            replaced_too,
            'Then "refine" keeps the old word\'s maps for the new one, which is what "replace" '
            "is for.",
        ),
    ),
    hints=(
        "A table of (len(source) + 1) x (len(target) + 1) scores, filled row by row.",
        "score[i+1][j+1] = max(score[i+1][j], score[i][j+1], score[i][j] + (1 if equal else -1)).",
        "Walk back from the last cell: if it equals its left neighbour, j -= 1; elif the upper "
        "one, i -= 1; else pair them.",
    ),
    page=P2P,
)


# ---- prompt-to-prompt: local blend ---------------------------------------------------------------


def slow_grown(m):
    """Each cell is the largest of itself and its neighbours."""
    out = torch.zeros_like(m)
    for i in range(len(m)):
        for j in range(len(m)):
            out[i, j] = m[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max()
    return out


def slow_blend(maps, words, size, threshold=0.3):
    height, width = size
    out = torch.zeros(1, 1, height, width)
    for row in range(2):
        m = sum(maps[row, word] for word in words[row])
        side = len(m)
        strong = slow_grown(m) > threshold * m.max()
        for y in range(height):
            for x in range(width):
                out[0, 0, y, x] += strong[y * side // height, x * side // width]
    return out.clamp(max=1)


def blend_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = []
    for side in (4, 8):
        maps = 0.2 * torch.rand(2, 6, side, side, generator=g) ** 4
        cases.append((maps, ([1], [1, 3]), (2 * side, 2 * side), 0.3))
    return cases


def blended(joined=torch.any, grow=1, relative=True):
    def wrong(maps, words, size, threshold=0.3):
        m = torch.stack([maps[row, w].sum(0) for row, w in enumerate(words)])[:, None]
        m = F.interpolate(F.max_pool2d(m, 2 * grow + 1, 1, grow), size)
        m = m / m.amax((2, 3), keepdim=True) if relative else m
        return joined(m > threshold, 0, keepdim=True).to(maps.dtype)

    return wrong


blend = Exercise(
    "blend_mask",
    "core",
    "Local blend: where may the picture change? `maps` (2 tokens s s) are the averaged attention "
    "maps of source and edit, `words` the token positions of the blend word in each. Sum a word's "
    "tokens, grow with a 3x3 maximum, resize to `size` (nearest), divide by the largest value, "
    "keep what exceeds `threshold`: 1 where either row does, as (1 1 h w).",
    blend_mask,
    slow_blend,
    blend_cases,
    mutants=(
        Mutant(
            "both rows",
            blended(torch.all),
            "The edit may then happen only where old and new object overlap. Published: either.",
        ),
        Mutant(
            "not grown",
            blended(grow=0),
            "Attention peaks are narrow; without the maximum the mask has holes.",
        ),
        Mutant(
            "an absolute threshold",
            blended(relative=False),
            "Maps are probabilities over tokens and layers: how large they get depends on the "
            "number of words.",
        ),
    ),
    hints=(
        "torch.nn.functional has max_pool2d and interpolate.",
        "`F.max_pool2d(m, 3, 1, 1)` keeps the size.",
        "`(m / m.amax((2, 3), keepdim=True) > threshold).any(0, keepdim=True)`.",
    ),
    page=P2P,
)


# ---- DiffEdit's mask -----------------------------------------------------------------------------


def slow_mask(d, threshold=0.5, grow=0):
    out = torch.zeros_like(d)
    for b in range(len(d)):
        cut = 3 * d[b].mean()
        strong = torch.minimum(d[b, 0], cut) > threshold * cut
        for y, x in strong.nonzero().tolist():
            rows = slice(max(y - grow, 0), y + grow + 1)
            columns = slice(max(x - grow, 0), x + grow + 1)
            out[b, 0, rows, columns] = 1
    return out


def differences(seed):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(b, 1, 8, 8, generator=g) ** 6, 0.5, grow)
        for b, grow in ((1, 0), (3, 0), (2, 1))
    ]


def cut_by(mean, absolute=False):
    def wrong(d, threshold=0.5, grow=0):
        cut = RATIO * mean(d)
        if absolute:
            strong = d > threshold
        else:
            strong = d.clamp(max=cut) > threshold * cut
        return F.max_pool2d(strong.to(d), 2 * grow + 1, 1, grow)

    return wrong


diffedit_mask = Exercise(
    "threshold_mask",
    "core",
    "DiffEdit: from the two prompts' disagreement d (b 1 h w) to a mask. Cut every picture's "
    "values at 3 times its own mean; 1 where more than `threshold` of that cut is reached; grown "
    "by `grow` cells in every direction.",
    threshold_mask,
    slow_mask,
    differences,
    facts=(
        Fact(
            "where the prompts agree everywhere, nothing is edited",
            lambda fn: (fn(torch.zeros(1, 1, 4, 4), 0.5, 1).sum(), 0.0),
        ),
    ),
    mutants=(
        Mutant(
            "the mean of the batch",
            cut_by(lambda d: d.mean()),
            "A public pipeline does this: which pictures share a batch then changes their masks.",
        ),
        Mutant(
            "no cut",
            cut_by(lambda d: d.amax((1, 2, 3), keepdim=True) / RATIO),
            "One cell with a huge disagreement sets the scale, and the rest of the object falls "
            "below the threshold.",
        ),
        Mutant(
            "an absolute threshold",
            cut_by(lambda d: d.mean(), absolute=True),
            "How large disagreements are depends on the model, the time and the prompts.",
        ),
    ),
    hints=(
        "The mean over each row alone: `d.mean((1, 2, 3), keepdim=True)`.",
        "`d.clamp(max=cut) > threshold * cut`.",
        "Growing a mask is a maximum: `F.max_pool2d(m, 2 * grow + 1, 1, grow)`.",
    ),
    page="tutorials/editing/diffedit.md",
)

EXERCISES = (aligned, blend, diffedit_mask)
