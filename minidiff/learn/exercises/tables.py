"""Warm-ups about time: how much noise there is when, which times are visited, and how a network is
told.
"""

import math

import torch

from minidiff.core import schedule
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.models.blocks import timestep_embedding

PAGE = "tutorials/00_the_six_words.md"
D = torch.float64


# ---- alpha_bar of linear betas -------------------------------------------------------------------


def slow_alpha_bar(betas):
    shares = [1.0]
    for beta in betas.tolist():
        shares.append(shares[-1] * (1 - beta))
    return torch.tensor(shares, dtype=D)


def with_clean(shares):
    return torch.cat([torch.ones(1, dtype=D), shares])


def beta_cases(seed):
    ends = ((0.1, 0.4, 4), (1e-4, 0.02, 10 + seed), (1e-4, 0.02, 1000))
    return [(torch.linspace(first, last, n, dtype=D),) for first, last, n in ends]


def published_end(fn):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=D)
    return fn(betas)[-1].sqrt(), schedule.linear().alpha[-1]


def never_grows(fn):
    shares = fn(torch.linspace(0.01, 0.3, 50, dtype=D))
    return (shares.diff() < 0).all(), torch.tensor(True)


alpha_bar = Exercise(
    "alpha_bar_of",
    "warm-up",
    "The share of the picture's variance that is left at every time: $\\bar\\alpha_t = \\prod_{s "
    "\\le t} (1 - \\beta_s)$ for the betas of a chain, (T,) in float64. Return (T + 1,) in "
    "float64; index 0 is the clean picture, 1.",
    schedule.alpha_bar_of,
    slow_alpha_bar,
    beta_cases,
    facts=(
        Fact(
            "the published chain ends at noise",
            published_end,
        ),
        Fact(
            "it never grows",
            never_grows,
        ),
    ),
    mutants=(
        Mutant(
            "no clean time",
            lambda betas: torch.cat([slow_alpha_bar(betas)[1:], slow_alpha_bar(betas)[-1:]]),
            "The table starts at the first noisy time. Code that mixes such tables with an index "
            "for clean is one step off.",
        ),
        Mutant(
            "a sum in place of a product",
            lambda betas: with_clean(1 - betas.cumsum(0)),
            "It is the first term of the expansion: right for small betas and few steps, negative "
            "later.",
        ),
        Mutant(
            "the root already taken",
            lambda betas: slow_alpha_bar(betas).sqrt(),
            "alpha and alpha_bar: papers and code use the same letter for a number and for its "
            "square. Here alpha_bar is the variance.",
        ),
        Mutant(
            "one step's alpha",
            lambda betas: with_clean(1 - betas),
            "Some papers write alpha_t for 1 - beta_t, what a single step keeps. The bar is the "
            "product of all of them.",
        ),
        Mutant(
            "the betas multiplied",
            lambda betas: with_clean(betas.cumprod(0)),
            "beta is what a step takes; what it keeps is 1 - beta.",
        ),
    ),
    hints=(
        "T factors, multiplied up one after the other.",
        "`cumprod` of 1 - betas, and a 1 in front.",
        "`torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])`.",
    ),
    about="how much of a picture is left at every time",
    page=PAGE,
)


# ---- the cosine curve ----------------------------------------------------------------------------


def slow_cosine(T, s):
    angles = [(t / T + s) / (1 + s) * math.pi / 2 for t in range(T + 1)]
    return torch.tensor([(math.cos(u) / math.cos(angles[0])) ** 2 for u in angles], dtype=D)


def one_step_less(T, s):
    shares = torch.cat([slow_cosine(max(T - 1, 1), s), slow_cosine(T, s)[-1:]])
    return shares[: T + 1]


cosine = Exercise(
    "alpha_bar_cosine",
    "warm-up",
    "$\\bar\\alpha_t = f(t) / f(0)$ with $f(t) = \\cos^2\\big(\\tfrac{t/T + s}{1 + s} "
    "\\tfrac\\pi2\\big)$, t = 0 .. T, as (T + 1,) in float64.",
    schedule.alpha_bar_cosine,
    slow_cosine,
    lambda seed: [(4, 0.1), (10 + seed, 0.008), (1000, 0.008)],
    facts=(Fact("it begins at 1", lambda fn: (fn(7, 0.3)[0], 1.0)),),
    mutants=(
        Mutant(
            "not divided by f(0)",
            lambda T, s: slow_cosine(T, s) * math.cos(s / (1 + s) * math.pi / 2) ** 2,
            "With s = .008 the difference is a ten-thousandth, so nobody sees it; the clean "
            "picture is then not quite clean.",
        ),
        Mutant(
            "cos, not its square",
            lambda T, s: slow_cosine(T, s).sqrt(),
            "That is alpha, the root of alpha_bar. Used as alpha_bar it keeps far too much of the "
            "picture in the middle.",
        ),
        Mutant(
            "T - 1 steps",
            one_step_less,
            "T numbers from 0 to 1 in place of T + 1: every time is a little noisier than it "
            "should be.",
        ),
    ),
    hints=(
        "T + 1 even numbers from 0 to 1, and a function of them.",
        "`u = torch.linspace(0, 1, T + 1)`.",
        "`f = cos((u + s) / (1 + s) * pi / 2) ** 2`, `return f / f[0]`.",
    ),
    about="the cosine schedule",
    page=PAGE,
)


# ---- which times are visited ---------------------------------------------------------------------


def slow_times(n, start, spacing):
    times = []
    for i in range(n):
        if spacing == "trailing":
            times.append(round(start - i * start / n))
        else:
            times.append((n - 1 - i) * (start // n) + 2)
    return times


def times_cases(seed):
    return [
        (4, 1000, "trailing"),
        (50, 1000, "leading"),
        (7 + 2 * seed, 999, "trailing"),  # odd: no ties to round
        (3 + seed, 640, "leading"),
    ]


def as_stable_diffusion(fn):
    published = schedule.scaled_linear().timesteps(50, spacing="leading")[:-1]
    return fn(50, 1000, "leading"), published


def without_offset(n, T, kind):
    if kind == "trailing":
        return slow_times(n, T, kind)
    return [i * (T // n) + 1 for i in reversed(range(n))]


def cut_off(n, T, kind):
    if kind == "trailing":
        return [int(T - i * T / n) for i in range(n)]
    return slow_times(n, T, kind)


spacing = Exercise(
    "times",
    "warm-up",
    'At which n times does a sampler of n steps ask the network? Decreasing ints. "trailing": $T '
    '- i T / n$, rounded, i = 0 .. n - 1. "leading", as Stable Diffusion does: $i \\lfloor T / n '
    "\\rfloor + 2$ for i = n - 1 .. 0 (the 2 is the published offset 1 plus one, since index 0 is "
    "clean here). T is `start`, and n is below it. (Where $T - i T / n$ lies between two ints, "
    "either is right.) The project's own knows a third spacing, linspace, which is not asked here.",
    schedule.even_times,
    slow_times,
    times_cases,
    facts=(
        Fact("trailing begins at the noise", lambda fn: (fn(13, 1000, "trailing")[0], 1000)),
        Fact(
            "leading is the list that Stable Diffusion's 50 steps visit",
            as_stable_diffusion,
        ),
    ),
    mutants=(
        Mutant(
            "the offset is missing",
            without_offset,
            "Stable Diffusion was sampled one time later. Without the offset pictures differ a "
            "little, and the last step starts from almost nothing.",
        ),
        Mutant(
            "the loop's index for the time",
            lambda n, T, kind: [*reversed(range(1, n + 1))],
            "An encoder that was widely used passes i where the i-th time belongs: the network is "
            "then told that there is hardly any noise.",
        ),
        Mutant(
            "cut off, not rounded",
            cut_off,
            "Truncation shifts some times by one. Nothing breaks; results just differ from "
            "everybody else's.",
        ),
        Mutant(
            "rising",
            lambda n, T, kind: slow_times(n, T, kind)[::-1],
            "A sampler starts in the noise: the largest time comes first.",
        ),
    ),
    hints=(
        "Two list comprehensions.",
        "`i * (start // n) + 2 for i in reversed(range(n))`.",
        "trailing: `round(start - i * start / n) for i in range(n)`.",
    ),
    about="which times a sampler visits",
    page=PAGE,
)


# ---- telling the network -------------------------------------------------------------------------


def slow_embedding(t, dim, cos_first=True, shift=0.0):
    half = dim // 2
    out = torch.zeros(len(t), dim)
    for row in range(len(t)):
        for k in range(half):
            angle = t[row].item() * 10000 ** (-k / (half - shift))
            first = math.cos(angle)
            second = math.sin(angle)
            if not cos_first:
                first, second = second, first
            out[row, k] = first
            out[row, half + k] = second
    return out


def frequencies(base):
    def wrong(t, dim, cos_first=True, shift=0.0):
        freq = base ** (-torch.arange(dim // 2) / (dim // 2 - shift))
        angle = t[:, None].float() * freq
        return torch.cat(
            [angle.cos(), angle.sin()] if cos_first else [angle.sin(), angle.cos()], -1
        )

    return wrong


def interleaved(t, dim, cos_first=True, shift=0.0):
    c, s = slow_embedding(t, dim, cos_first, shift).chunk(2, -1)
    return torch.stack([c, s], -1).flatten(1)


def timestep_embedding_cases(seed):
    return [
        (torch.tensor([0, 3]), 4, True, 0),
        (torch.tensor([1, 500, 999]), 32, True, 0),
        (torch.tensor([7 + seed, 30]), 16, False, 1),
    ]


embedding = Exercise(
    "timestep_embedding",
    "warm-up",
    "Times (b,) -> (b, dim): `dim / 2` frequencies $\\omega_k = 10000^{-k / (dim/2 - shift)}$, "
    "then all cosines of $t\\,\\omega_k$ followed by all sines (`cos_first`), or the other way "
    "round. float32.",
    timestep_embedding,
    slow_embedding,
    timestep_embedding_cases,
    facts=(
        Fact(
            "time 0 is ones, then zeros",
            lambda fn: (fn(torch.zeros(1), 6, True, 0), torch.tensor([[1.0, 1, 1, 0, 0, 0]])),
        ),
    ),
    mutants=(
        Mutant(
            "sines first",
            lambda t, dim, c, s: slow_embedding(t, dim, not c, s),
            "The DDPM code of 2020 puts sines first, Stable Diffusion cosines. With trained "
            "weights the wrong order gives noise, and no error.",
        ),
        Mutant(
            "interleaved",
            interleaved,
            "The transformer paper alternates sine and cosine. Diffusion networks were trained on "
            "two blocks.",
        ),
        Mutant(
            "2 k / dim twice",
            frequencies(100.0),
            "The exponent halved (or the base a root): frequencies fall too slowly, so near times "
            "look alike and far ones do too.",
        ),
        Mutant(
            "the shift is forgotten",
            lambda t, dim, c, s: slow_embedding(t, dim, c, 0),
            "Right for Stable Diffusion, whose shift is 0. The DDPM networks of 2020 were trained "
            "with 1.",
        ),
    ),
    hints=(
        "An outer product of times and frequencies, then two functions of it.",
        "`freq = torch.exp(-log(10000) * torch.arange(half) / (half - shift))`.",
        "`angle = t[:, None].float() * freq`; `torch.cat([angle.cos(), angle.sin()], -1)` or "
        "swapped.",
    ),
    tolerance=1e-4,
    about="telling a network the time: sines and cosines",
    page=PAGE,
)

EXERCISES = (alpha_bar, cosine, spacing, embedding)
