"""One picture for two prompts: each has its own part of it."""

import torch.nn.functional as F

from minidiff.guidance.hybrid_images import greyness, hybrid_noise, left_half
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import draws

PAGE = "tutorials/guidance/hybrid_images.md"


def coarse(x):
    """What is left of x (b c h w) after blocks of two pixels were averaged."""
    small = F.avg_pool2d(x, 2)
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3)


def slow_hybrid(eps_a, eps_b, part):
    kept = part(eps_a.double())
    rest = eps_b.double() - part(eps_b.double())
    return (kept + rest).to(eps_a.dtype)


def hybrid_cases(seed):
    asked = (((1, 1, 2, 2), left_half), ((2, 3, 4, 4), greyness), ((1, 4, 8, 8), coarse))
    return [(*draws(seed, shape, shape), part) for shape, part in asked]


def of_equals(fn):
    x, _ = draws(9, (1, 3, 4, 4), (1, 3, 4, 4))
    return fn(x, x, coarse), x


def part_of_the_first(fn):
    a, b = draws(9, (1, 3, 4, 4), (1, 3, 4, 4))
    return greyness(fn(a, b, greyness)), greyness(a)


hybrid = Exercise(
    "hybrid_noise",
    "warm-up",
    "A picture that shows one thing from afar and another from nearby (Geng et al. 2024): the "
    "network was asked twice, with the prompt of either. Make one noise of the two answers, of the "
    "same shape (b c h w). `part` is a linear function such as a blur: what the first prompt is "
    "responsible for. The second one is responsible for everything else.",
    hybrid_noise,
    slow_hybrid,
    hybrid_cases,
    facts=(
        Fact("two equal answers give that answer", of_equals),
        Fact("in grey it is the first answer in grey", part_of_the_first),
    ),
    mutants=(
        Mutant(
            "the two exchanged",
            lambda a, b, part: part(b) + a - part(a),
            "From afar one sees what was meant for nearby.",
        ),
        Mutant(
            "the same part of both",
            lambda a, b, part: part(a) + part(b),
            "What is not in that part is nobody's: its noise is never taken off, and the picture "
            "stays covered with it.",
        ),
        Mutant(
            "the part added, not replaced",
            lambda a, b, part: part(a) + b,
            "That part of the noise is taken off twice: equal answers no longer give the answer, "
            "and the coarse half of the picture is overdone.",
        ),
        Mutant(
            "the mean",
            lambda a, b, part: (a + b) / 2,
            "That is a visual anagram without a view: a compromise of both prompts everywhere, "
            "where each was to have a part of its own.",
        ),
    ),
    hints=(
        "Cut each answer into two pieces that add up to it. How many pieces do you keep?",
        "The rest of x is x - part(x).",
        "`return part(eps_a) + eps_b - part(eps_b)`.",
    ),
    page=PAGE,
    about="one picture for two prompts, by parts",
)


EXERCISES = (hybrid,)
