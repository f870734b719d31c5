"""Words and weights: whose map a new word gets, what is done to the maps, how a LoRA is merged, a
word that is learned.
"""

from itertools import product

import torch
from torch import Tensor

from minidiff.editing.prompt_to_prompt import edited_maps, span_map
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.edits import P2P
from minidiff.learn.exercises.inputs import draw, draws

LORA = "tutorials/formats/lora.md"
EMBED = "tutorials/weights/embeddings.md"


# ---- replaced words ------------------------------------------------------------------------------


def slow_span_map(source, target, n):
    out = torch.zeros(n, n)
    for j in range(n):
        for a, b in zip(source, target):
            if j in b and len(a) == len(b):
                out[a[b.index(j)], j] = 1
            elif j in b:
                for i in a:
                    out[i, j] = 1 / len(a)
    return out


def random_words(g):
    """Four words of one to three tokens each, one after the other."""
    words = []
    first = 1
    for length in torch.randint(1, 4, (4,), generator=g).tolist():
        words.append([*range(first, first + length)])
        first += length
    return words


def span_cases(seed):
    g = torch.Generator().manual_seed(seed)
    return [
        ([[1], [2]], [[1], [2]], 3),
        ([[1], [2, 3], [4]], [[1], [2], [3]], 5),
        ([[1], [2]], [[1], [2, 3, 4]], 5),
        (random_words(g), random_words(g), 14),
    ]


def spans_like(share=lambda a, b: 1 / len(a), in_pairs=False, always=False):
    def wrong(source, target, n):
        M = torch.zeros(n, n)
        for a, b in zip(source, target):
            equal = len(a) == len(b) and not always
            pairs = zip(a, b) if equal or in_pairs else product(a, b)
            for i, j in pairs:
                M[i, j] = 1.0 if equal else share(a, b)
        return M

    return wrong


def others_kept(source, target, n):
    M = span_map(source, target, n)
    taken = {j for word in target for j in word}
    for j in range(n):
        if j not in taken:
            M[j, j] = 1
    return M


replaced = Exercise(
    "span_map",
    "core",
    'Prompt-to-prompt\'s "replace": target word k takes over the attention of source word k. '
    "Words are lists of token positions (`source`, `target`, equally many words). Return M (n n) "
    "so that maps (.. n) @ M are the target's: words of equal length pair token by token; "
    "otherwise each target token gets the mean over the source word's tokens. Unused columns are "
    "0. float32.",
    span_map,
    slow_span_map,
    span_cases,
    facts=(
        Fact(
            "a column sums to 1 where there is a partner",
            lambda fn: (fn([[1, 2, 3]], [[1, 2]], 5).sum(0), torch.tensor([0.0, 1, 1, 0, 0])),
        ),
    ),
    mutants=(
        Mutant(
            "divided by the target's tokens",
            spans_like(lambda a, b: 1 / len(b)),
            "A widely copied version does this: two tokens replaced by one then give it twice the "
            "attention there is, one replaced by three a third of it.",
        ),
        Mutant(
            "not shared out",
            spans_like(lambda a, b: 1.0),
            "A word of three tokens hands over three times its attention.",
        ),
        Mutant(
            "as many tokens as both have",
            spans_like(lambda a, b: 1.0, in_pairs=True),
            "Further tokens of the new word look nowhere, since their columns stay 0.",
        ),
        Mutant(
            "transposed",
            lambda s, t, n: span_map(s, t, n).T,
            "Rows are source tokens. The other way round, nothing fails as long as all words have "
            "one token at equal places.",
        ),
        Mutant(
            "always the mean",
            spans_like(always=True),
            "Words of equally many tokens pair token by token: the first half of a name looks "
            "where the first half did.",
        ),
        Mutant(
            "the other tokens look where they did",
            others_kept,
            "The columns of other tokens are 0 here: whoever uses M keeps those tokens' own maps.",
        ),
    ),
    hints=(
        "Two loops: words, then tokens.",
        "`zip(a, b)` for equal lengths, all pairs otherwise.",
        "The value is 1, or 1 / len(a).",
    ),
    about="a replaced word takes over attention maps",
    page=P2P,
)


# ---- maps under an edit --------------------------------------------------------------------------


def slow_edited(source, edit, M, alpha, inject, weight, normal=False):
    out = torch.zeros_like(edit)
    tokens = edit.shape[-1]
    for j in range(tokens):
        column = edit[..., j]
        if inject and alpha[j]:
            column = sum(source[..., i] * M[i, j] for i in range(tokens))
        out[..., j] = column * weight[j]
    return out / out.sum(-1, keepdim=True) if normal else out


def map_cases(seed):
    g = torch.Generator().manual_seed(seed)
    M = span_map([[0], [1], [2, 3]], [[0], [2], [1]], 4)
    alpha = torch.tensor([1.0, 1, 0, 1])
    loud = torch.tensor([1.0, 1, 2, 0.5])
    first, second, third = (torch.randn(2, b, 2, 3, 4, generator=g).softmax(-1) for b in (1, 1, 2))
    return [
        (*first, torch.eye(4), torch.ones(4), 1.0, torch.ones(4)),
        (*second, M, alpha, 1.0, loud),
        (*third, M, alpha, 0.0, loud),
        (*third, M, alpha, torch.tensor(1.0), loud),
    ]


injection = Exercise(
    "edited_maps",
    "core",
    "All that prompt-to-prompt does to cross-attention, in one function. `source`, `edit`: maps "
    "(b h n m) over m tokens. Where a target token has a partner (`alpha` (m,) is 1) the edit "
    "takes the source's maps, carried over by `M` (m m); elsewhere it keeps its own. `inject` is "
    "1 in the steps in which maps are injected, 0 later. At all times each token's column is "
    "multiplied by its `weight` (m,), and rows are left as they then are.",
    edited_maps,
    slow_edited,
    map_cases,
    mutants=(
        Mutant(
            "renormalised",
            lambda *a: slow_edited(*a, normal=True),
            "Rows that sum to 1 again take back most of the weight; the published method leaves "
            "them.",
        ),
        Mutant(
            "M transposed",
            lambda s, e, M, a, on, w: edited_maps(s, e, M.T, a, on, w),
            "Symmetric for swapped single tokens, so short tests pass.",
        ),
        Mutant(
            "all tokens from the source",
            lambda s, e, M, a, on, w: edited_maps(s, e, M, torch.ones_like(a), on, w),
            "New words have empty columns: they are attended to nowhere, and do not appear.",
        ),
        Mutant(
            "weights only while maps are injected",
            lambda s, e, M, a, on, w: edited_maps(s, e, M, a, on, w if on else 1.0 + 0 * w),
            "A louder word falls silent when injection ends.",
        ),
        Mutant(
            "injected to the end",
            lambda s, e, M, a, on, w: edited_maps(s, e, M, a, 1.0, w),
            "`inject` is not looked at: the new word keeps the old shape down to the last detail.",
        ),
        Mutant(
            "no weights",
            lambda s, e, M, a, on, w: edited_maps(s, e, M, a, on, torch.ones_like(w)),
            "All words are as loud as they were.",
        ),
    ),
    hints=(
        "First what the source offers, then who takes it, then when, then how loud.",
        "`source @ M` carries maps over.",
        "`mixed = alpha * (source @ M) + (1 - alpha) * edit`; `(on * mixed + (1 - on) * edit) * "
        "weight`.",
    ),
    about="all that prompt-to-prompt does to maps",
    page=P2P,
)


# ---- LoRA ----------------------------------------------------------------------------------------


def lora_weight(W: Tensor, A: Tensor, B: Tensor, alpha: float, strength: float) -> Tensor:
    """W (out in) or (out in kh kw) with a LoRA merged: A (r in ..) down, B (out r ..) up, scaled by
    alpha / r.
    """
    low_rank = B.flatten(1) @ A.flatten(1)
    return W + strength * alpha / len(A) * low_rank.view_as(W)


def slow_lora(W, A, B, alpha, strength, scale=None):
    """Layer by layer, as a network would run it: what the two thin layers give for every unit
    input.
    """
    factor = alpha / len(A) if scale is None else scale(A, B, alpha)
    out = W.clone().flatten(1)
    for k, unit in enumerate(torch.eye(out.shape[1])):
        thin = A.flatten(1) @ unit
        out[:, k] += strength * factor * (B.flatten(1) @ thin)
    return out.view_as(W)


def lora_cases(seed):
    return [
        (*draws(seed, (2, 2), (1, 2), (2, 1)), 1.0, 1.0),
        (*draws(seed, (6, 5), (3, 5), (6, 3)), 8.0, 0.7),
        (*draws(seed, (4, 3, 3, 3), (2, 3, 3, 3), (4, 2, 1, 1)), 1.0, -1.0),
    ]


def lora_like(scale):
    def wrong(W, A, B, alpha, strength):
        return slow_lora(W, A, B, alpha, strength, lambda a, b, al: scale(a, b, al, strength))

    return wrong


merged = Exercise(
    "lora_weight",
    "warm-up",
    "Merge a LoRA: $W' = W + strength \\cdot \\frac{\\alpha}{r} B A$. A (r in) maps down, B (out "
    "r) up, r is the rank. For a convolution W is (out in kh kw), A (r in kh kw), B (out r 1 1), "
    "and all count as matrices with what is behind the first axis laid flat.",
    lora_weight,
    slow_lora,
    lora_cases,
    apart="the package reads five families of factors, and merges whichever a file holds "
    "(`Delta.delta`)",
    facts=(
        Fact(
            "strength 0 changes nothing",
            lambda fn: (fn(*draws(1, (2, 3), (1, 3), (2, 1)), 4.0, 0.0), draw(1, 2, 3)),
        ),
    ),
    mutants=(
        Mutant(
            "alpha forgotten",
            lora_like(lambda a, b, al, s: 1.0),
            "Right for files with alpha = r, such as some trainers write. Others have alpha 1 at "
            "rank 128: then the picture falls apart.",
        ),
        Mutant(
            "alpha not divided by the rank",
            lora_like(lambda a, b, al, s: al),
            "Files of different rank then differ in strength, which the division was invented for.",
        ),
        Mutant(
            "the rank from the wrong axis",
            lora_like(lambda a, b, al, s: al / len(b)),
            "The first axis of B is the output.",
        ),
        Mutant(
            "the strength in both factors",
            lora_like(lambda a, b, al, s: al / len(a) * s),
            "Scaled A and scaled B: .7 becomes .49, and -1 does the same as 1.",
        ),
        Mutant(
            "the weight itself is left out",
            lambda W, A, B, alpha, strength: lora_weight(0 * W, A, B, alpha, strength),
            "A LoRA is what is added to W, not what stands in its place.",
        ),
    ),
    hints=(
        "One matrix product.",
        "`flatten(1)` makes a matrix of a kernel.",
        "`W + strength * alpha / len(A) * (B.flatten(1) @ A.flatten(1)).view_as(W)`.",
    ),
    tolerance=2e-5,
    about="merging a LoRA",
    page=LORA,
)


# ---- textual inversion ---------------------------------------------------------------------------


def expand_word(ids: list[int], word: int, first: int, count: int) -> list[int]:
    """Token ids in which each `word` is replaced by the `count` ids of its vectors: first, first +
    1, ...
    """
    out = []
    for i in ids:
        out += range(first, first + count) if i == word else [i]
    return out


def slow_expand(ids, word, first, count):
    out = []
    for i in ids:
        if i != word:
            out.append(i)
            continue
        for k in range(count):
            out.append(first + k)
    return out


def expand_word_cases(seed):
    return [
        ([5, 9, 6], 9, 100, 2),
        ([9, 1, 9, 9], 9, 50, 3),
        ([1, 2], 9, 50, 3),
        (torch.randint(4, (8,), generator=torch.Generator().manual_seed(seed)).tolist(), 2, 4, 1),
    ]


def first_word_only(ids, word, first, count):
    if word not in ids:
        return list(ids)
    end = ids.index(word) + 1
    return slow_expand(ids[:end], word, first, count) + ids[end:]


expanded = Exercise(
    "expand_word",
    "warm-up",
    "Textual inversion may learn several vectors for one word. They are rows first, first + 1, "
    "... of the table. In a list of token ids replace every `word` by the ids of its `count` "
    "vectors, in order.",
    expand_word,
    slow_expand,
    expand_word_cases,
    apart="the package gives the tokenizer the word, which then spells it as so many ids",
    mutants=(
        Mutant(
            "only the first",
            first_word_only,
            '"<cat> and <cat>": the second one stays an unknown token.',
        ),
        Mutant(
            "one vector repeated",
            lambda ids, w, f, n: [j for i in ids for j in ([f] * n if i == w else [i])],
            "As long as it should be, but all of them are the first vector.",
        ),
        Mutant(
            "one vector",
            lambda ids, w, f, n: [f if i == w else i for i in ids],
            "The other vectors of the file are never used.",
        ),
    ),
    hints=(
        "A list grows while another is read.",
        "`range(first, first + count)`.",
        "`out += range(first, first + count) if i == word else [i]`.",
    ),
    about="one learned word, several vectors",
    page=EMBED,
)


def keep_rows(table: Tensor, before: Tensor, learned: list[int]) -> Tensor:
    """The table (n d) after an optimiser's step, all rows but the `learned` ones as they were
    `before`.
    """
    keep = torch.ones(len(table), 1, dtype=torch.bool)
    keep[learned] = False
    return torch.where(keep, before, table)


def slow_keep_rows(table, before, learned):
    rows = [table[i] if i in learned else before[i] for i in range(len(table))]
    return torch.stack(rows)


def other_rows(fn):
    table, before = draws(5, (9, 7), (9, 7))
    return fn(table, before, [3])[4:], before[4:]


frozen = Exercise(
    "keep_rows",
    "warm-up",
    "In textual inversion only the new word's rows may change. But optimisers with momentum or "
    "weight decay move every row of the table. Return the table (n d) after the step with all "
    "rows except `learned` (a list of indices) as they were `before`, to the last bit.",
    keep_rows,
    slow_keep_rows,
    lambda seed: [(*draws(seed, (3, 2), (3, 2)), [2]), (*draws(seed, (8, 4), (8, 4)), [5, 7])],
    facts=(Fact("all other rows are as they were, to the last bit", other_rows, tolerance=0.0),),
    apart="the package loads learned words and trains none",
    mutants=(
        Mutant(
            "the learned rows put back",
            lambda new, old, rows: keep_rows(old, new, rows),
            "The mask is used the wrong way round: all other words drift, and nothing is learned.",
        ),
        Mutant(
            "nothing put back",
            lambda new, old, rows: new.clone(),
            "Zero gradients are not enough: weight decay shrinks the whole vocabulary a little at "
            "each step.",
        ),
        Mutant("all put back", lambda new, old, rows: old.clone(), "The loss never falls."),
        Mutant(
            "everything before the first one",
            lambda new, old, rows: torch.cat([old[: rows[0]], new[rows[0] :]]),
            "True for rows at the end of the table, one after the other; not for words among "
            "others.",
        ),
    ),
    hints=(
        "A mask over rows.",
        "`keep[learned] = False`.",
        "`torch.where(keep, before, table)` with keep (n 1).",
    ),
    about="a word learned, all others kept",
    page=EMBED,
)

EXERCISES = (replaced, injection, merged, expanded, frozen)
