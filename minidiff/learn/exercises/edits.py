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
    about="which token of two prompts is which",
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
    for k in range(2):
        m = sum(maps[k, word] for word in words[k])
        side = len(m)
        strong = slow_grown(m) / m.max() > threshold
        rows = [y * side // height for y in range(height)]
        columns = [x * side // width for x in range(width)]
        out[0, 0] += strong[rows][:, columns]
    return out.clamp(max=1)


def blend_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = []
    for side in (4, 8):
        maps = 0.2 * torch.rand(2, 6, side, side, generator=g) ** 4
        cases.append((maps, ([1], [1, 3]), (2 * side, 2 * side), 0.3))
    # one sharp peak in each row, enlarged four times: where its square ends depends on the resizing
    maps = 0.02 * torch.rand(2, 4, 6, 6, generator=g)
    maps[0, 1, 1 + seed, 2] = 1.0
    maps[0, 1, 4, 5] = 0.45
    maps[1, 2, 4, 3] = 0.6
    maps[1, 2, 1, 1] = 0.5
    maps[1, 3, 4, 3] = 0.5
    return [*cases, (maps, ([1], [2]), (24, 24), 0.3), (maps, ([1], [2, 3]), (24, 12), 0.6)]


def blended(
    joined=torch.any,
    grow=1,
    late=False,
    largest=(2, 3),
    mode="nearest",
    limit=None,
    of_tokens=torch.sum,
):
    def wrong(maps, words, size, threshold=0.3):
        m = torch.stack([of_tokens(maps[row, w], 0) for row, w in enumerate(words)])[:, None]
        if late:
            m = F.max_pool2d(F.interpolate(m, size, mode=mode), 3, 1, 1)
        else:
            m = F.interpolate(F.max_pool2d(m, 2 * grow + 1, 1, grow), size, mode=mode)
        m = m / m.amax(largest, keepdim=True) if largest else m
        above = m > (threshold if limit is None else limit)
        return joined(above, 0, keepdim=True).to(maps.dtype)

    return wrong


blend = Exercise(
    "blend_mask",
    "core",
    "Local blend: where may the picture change? `maps` (2 tokens s s) are the averaged attention "
    "maps of source and edit, `words` the token positions of the blend word in each. Sum a word's "
    "tokens, grow with a 3x3 maximum, resize to `size` (nearest), divide by the largest value, "
    "keep what exceeds `threshold`: 1 where either row does, 0 elsewhere, as (1 1 h w) in the "
    "dtype of `maps`.",
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
            blended(largest=None),
            "Maps are probabilities over tokens and layers: how large they get depends on the "
            "number of words.",
        ),
        Mutant(
            "one largest value for both rows",
            blended(largest=(0, 1, 2, 3)),
            "The row with the fainter map then loses its part of the mask.",
        ),
        Mutant(
            "smoothly resized",
            blended(mode="bilinear"),
            "Between two cells the values slide, and the mask's edge moves with the size it is "
            "resized to. The mask is made of whole cells.",
        ),
        Mutant(
            "grown after resizing",
            blended(late=True),
            "The order matters: a cell of the map is many latents, and growing by one latent is "
            "next to nothing.",
        ),
        Mutant(
            "the strongest token for the sum",
            blended(of_tokens=torch.amax),
            "A word of several tokens is where all of them together look.",
        ),
        Mutant(
            "the threshold is not looked at",
            blended(limit=0.3),
            "The published value stands in the function. Another one, handed in, changes nothing.",
        ),
    ),
    hints=(
        "torch.nn.functional has max_pool2d and interpolate.",
        "`F.max_pool2d(m, 3, 1, 1)` keeps the size.",
        "`(m / m.amax((2, 3), keepdim=True) > threshold).any(0, keepdim=True)`.",
    ),
    about="where a local edit may happen, from attention",
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
        (torch.rand(b, 1, 8, 8, generator=g) ** 6, limit, grow)
        for b, limit, grow in ((1, 0.5, 0), (3, 0.5, 0), (2, 0.5, 1), (2, 0.25, 2))
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
    "by `grow` cells in every direction, the diagonal ones too. 0 and 1 in the dtype of d.",
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
        Mutant(
            "not grown",
            lambda d, threshold=0.5, grow=0: threshold_mask(d, threshold, 0),
            "`grow` is not looked at: the edit is cut off where the disagreement ends.",
        ),
    ),
    hints=(
        "The mean over each row alone: `d.mean((1, 2, 3), keepdim=True)`.",
        "`d.clamp(max=cut) > threshold * cut`.",
        "Growing a mask is a maximum: `F.max_pool2d(m, 2 * grow + 1, 1, grow)`.",
    ),
    about="DiffEdit's mask, from two prompts' noise",
    page="tutorials/editing/diffedit.md",
)

EXERCISES = (aligned, blend, diffedit_mask)
