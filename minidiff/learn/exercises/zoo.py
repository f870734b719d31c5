"""Guidance by inner products: what is kept of a difference, and the multiple that fits best."""

import math

import torch

from minidiff.guidance.cfg_zero import guide_zero
from minidiff.guidance.projected import projected_difference
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import draws

D = torch.float64
SHAPES = ((1, 1, 2, 2), (2, 3, 4, 4), (3, 2, 5, 3))


def inner(a, b):
    return sum(x * y for x, y in zip(a.flatten().tolist(), b.flatten().tolist()))


# ---- projected guidance --------------------------------------------------------------------------


def slow_projected(
    difference,
    x0_cond,
    eta,
    radius=math.inf,
    swapped=False,
    along_difference=False,
    unsquared=False,
    stretched=False,
    cut_late=False,
    across_dropped=False,
    by_channel=False,
):
    """Row by row, with lists of numbers."""
    if by_channel:
        rows = [slow_projected(d[:, None], c[:, None], eta) for d, c in zip(difference, x0_cond)]
        x0 = torch.stack(rows)[:, :, 0]
        return slow_projected(x0, x0_cond, 1.0, radius)
    rows = []
    for d, c in zip(difference.double(), x0_cond.double()):
        length = math.sqrt(inner(d, d))
        cut = radius / length if stretched and radius < math.inf else min(1.0, radius / length)
        if not cut_late:
            d = cut * d
        axis = d if along_difference else c
        square = inner(axis, axis)
        parallel = inner(d, c) / (math.sqrt(square) if unsquared else square) * axis
        across = d - parallel
        if across_dropped:
            kept = eta * parallel
        else:
            kept = eta * across + parallel if swapped else across + eta * parallel
        if cut_late:
            kept = kept * min(1.0, radius / math.sqrt(max(inner(kept, kept), 1e-24)))
        rows.append(kept.to(difference.dtype))
    return torch.stack(rows)


def projected_like(**how):
    return lambda *args: slow_projected(*args, **how)


def of_the_batch(difference, x0_cond, eta, radius=math.inf):
    return slow_projected(difference[None], x0_cond[None], eta, radius)[0]


def projected_cases(seed):
    cases = []
    for k, shape in enumerate(SHAPES):
        difference, picture = draws(seed + k, shape, shape)
        loud = torch.arange(1, len(picture) + 1)[:, None, None, None]
        for eta, radius in ((0.0, math.inf), (0.4, 1.5), (0.7, 100.0)):
            cases.append((difference + 0.3 * picture, loud * picture, eta, radius))
    return cases


def across(fn):
    difference, picture = draws(0, (2, 3, 4, 4), (2, 3, 4, 4))
    kept = fn(difference, picture, 0.0, math.inf)
    return (kept * picture).flatten(1).sum(1), torch.zeros(2)


def all_kept(fn):
    difference, picture = draws(1, (2, 3, 4, 4), (2, 3, 4, 4))
    return fn(difference, picture, 1.0, math.inf), difference


projected = Exercise(
    "projected_difference",
    "warm-up",
    "What projected guidance keeps of a difference $d$ of two guesses (b ..). For each row: first "
    "cut it to the length `radius`, over all values of the row (a shorter one stays as it is; the "
    "radius may be infinite). Then split it into the part parallel to the picture `x0_cond`, $d_"
    "\\parallel = \\frac{\\langle d, x \\rangle}{|x|^2} x$, and the rest. Return the rest and the "
    "share `eta` of the parallel part.",
    projected_difference,
    slow_projected,
    projected_cases,
    facts=(
        Fact("eta = 0: what is left is at right angles to the picture", across, 1e-4),
        Fact("eta = 1 without a radius: all of it", all_kept),
    ),
    mutants=(
        Mutant(
            "eta on the wrong part",
            projected_like(swapped=True),
            "The change is scaled down and the loudness stays: over-saturation without the prompt.",
        ),
        Mutant(
            "the length is not squared",
            projected_like(unsquared=True),
            "A projection divides by the square of the length: once to make the direction a unit, "
            "once because the inner product holds it too.",
        ),
        Mutant(
            "projected on the difference",
            projected_like(along_difference=True),
            "The direction is that of the picture, for louder means more of the picture.",
        ),
        Mutant(
            "one inner product for the batch",
            of_the_batch,
            "A picture then depends on its neighbours.",
        ),
        Mutant(
            "each channel alone",
            projected_like(by_channel=True),
            "One number for each channel shifts colours against each other.",
        ),
        Mutant(
            "short differences are stretched",
            projected_like(stretched=True),
            "The radius is a limit. What is shorter stays as it is.",
        ),
        Mutant(
            "cut at the end",
            projected_like(cut_late=True),
            "The difference is cut first and then split. The other way round, what was dropped no "
            "longer counts in the length.",
        ),
        Mutant(
            "the rest is dropped",
            projected_like(across_dropped=True),
            "Only the loudness is left, which is the part that was to go.",
        ),
    ),
    hints=(
        "Inner products and lengths over all values of a row: `flatten(1)`, then `sum(1)`.",
        "`d * (radius / length).clamp(max=1)`, with length as (b, 1, ..).",
        "`parallel = share * x0_cond`; return `d - parallel + eta * parallel`.",
    ),
    about="guidance that does not make louder",
    page="tutorials/guidance/projected.md",
)


# ---- CFG-Zero* -----------------------------------------------------------------------------------


def slow_zero(
    v_null,
    v_cond,
    scale,
    upside_down=False,
    unsquared=False,
    null_alone=False,
    from_cond=False,
    plain=False,
    once=False,
):
    """Row by row: the multiple by its normal equation."""
    rows = []
    for n, c in zip(v_null.double(), v_cond.double()):
        s = inner(c, n) / inner(n, n)
        if upside_down:
            s = inner(c, n) / inner(c, c)
        if unsquared:
            s = inner(c, n) / math.sqrt(inner(n, n))
        if plain:
            s = 1.0
        start = n if once else s * n
        if from_cond:
            start = c
        difference = c - n if null_alone else c - s * n
        rows.append((start + scale * difference).to(v_null.dtype))
    return torch.stack(rows)


def zero_like(**how):
    return lambda *args: slow_zero(*args, **how)


def zero_cases(seed):
    cases = []
    for k, shape in enumerate(SHAPES):
        null, other = draws(seed + k, shape, shape)
        sizes = torch.arange(1, len(null) + 1)[:, None, None, None]
        for scale in (1.0, 3.0, 0.0):
            cases.append((sizes * null, null + other, scale))
    return cases


def any_length(fn):
    null, cond = draws(2, (2, 3, 4, 4), (2, 3, 4, 4))
    return fn(3 * null, cond, 4.0), fn(null, cond, 4.0)


def off_at_one(fn):
    null, cond = draws(3, (2, 3, 4, 4), (2, 3, 4, 4))
    return fn(null, cond, 1.0), cond


zero = Exercise(
    "guide_zero",
    "warm-up",
    "CFG-Zero*: guidance that does not trust the length of the unconditional velocity. For each "
    "row of `v_null` and `v_cond` (b ..) take the number $s$ that makes $s\\,v_\\varnothing$ the "
    "nearest to $v_c$, in least squares over all values of the row. Then guide from there: $v = "
    "s\\,v_\\varnothing + w\\,(v_c - s\\,v_\\varnothing)$, with $w$ = `scale`.",
    guide_zero,
    slow_zero,
    zero_cases,
    facts=(
        Fact("the length of v_null does not count", any_length, 1e-4),
        Fact("at scale 1 it is the conditional velocity", off_at_one),
    ),
    mutants=(
        Mutant(
            "s upside down",
            zero_like(upside_down=True),
            "Divided by the square of v_cond: the multiple of the conditional velocity that is "
            "nearest to the unconditional one.",
        ),
        Mutant(
            "the length is not squared",
            zero_like(unsquared=True),
            "Least squares divides by the inner product of v_null with itself, which is the square "
            "of its length.",
        ),
        Mutant(
            "s in the start alone",
            zero_like(null_alone=True),
            "The difference is taken from the unscaled velocity, and that is what guidance "
            "multiplies: the fault stays.",
        ),
        Mutant(
            "s in the difference alone",
            zero_like(once=True),
            "It starts from the unscaled velocity. At scale 1 it is not the conditional one.",
        ),
        Mutant(
            "from the conditional velocity",
            zero_like(from_cond=True),
            "That counts the scale from 0, as some code does: one more than was asked for.",
        ),
        Mutant(
            "s is 1",
            zero_like(plain=True),
            "Classifier-free guidance.",
        ),
        Mutant(
            "one multiple for the batch",
            lambda n, c, scale: slow_zero(n[None], c[None], scale)[0],
            "A picture then depends on its neighbours.",
        ),
    ),
    hints=(
        "Where the distance is least, what is left is at right angles to v_null.",
        "s is the inner product of both over that of v_null with itself, shaped (b, 1, ..).",
        "`guide(s * v_null, v_cond, scale)`.",
    ),
    about="guidance from the best multiple",
    page="tutorials/guidance/cfg_zero.md",
)

EXERCISES = (projected, zero)
