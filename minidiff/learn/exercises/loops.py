"""What other loops do between two moves: keep the coarse part, step so that it can be undone, jump
back and try again.
"""

import torch
import torch.nn.functional as F

from minidiff.core.cond import Cond
from minidiff.core.process import ddim_step
from minidiff.inversion.edict import down, up
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import LINEAR, draws, states
from minidiff.learn.values import is_number, is_sequence
from minidiff.restoration.ilvr import refine
from minidiff.restoration.jumps import jumps

# ---- ILVR ----------------------------------------------------------------------------------------


def slow_refine(x, y, factor):
    out = x.clone()
    for i in range(0, x.shape[2], factor):
        for j in range(0, x.shape[3], factor):
            block = (..., slice(i, i + factor), slice(j, j + factor))
            out[block] = x[block] + (y[block] - x[block]).mean((-2, -1), keepdim=True)
    return out


def two_pictures(seed):
    sizes = (((1, 1, 4, 4), 2), ((2, 3, 8, 16), 4))
    return [(*draws(seed, shape, shape), factor) for shape, factor in sizes]


def means(x, factor, mode="nearest"):
    return F.interpolate(F.avg_pool2d(x, factor), scale_factor=factor, mode=mode)


def block_means(fn):
    x = torch.eye(8)[None, None]
    y = torch.ones(1, 1, 8, 8)
    return F.avg_pool2d(fn(x, y, 4), 4), F.avg_pool2d(y, 4)


ilvr_refine = Exercise(
    "refine",
    "warm-up",
    "ILVR: x with the coarse part of y, both (b c h w). The coarse part is the mean of every "
    "`factor` x `factor` block, at full size again: $x - \\phi(x) + \\phi(y)$.",
    refine,
    slow_refine,
    two_pictures,
    facts=(
        Fact(
            "the answer's block means are those of y",
            block_means,
        ),
    ),
    mutants=(
        Mutant(
            "smooth upsampling",
            lambda x, y, f: x - means(x, f, "bilinear") + means(y, f, "bilinear"),
            "The published code resizes with a cubic filter. Applied twice it is not what it was "
            "once, so the result's coarse part is not exactly the reference's.",
        ),
        Mutant(
            "only added",
            lambda x, y, f: x + means(y, f),
            "Its own coarse part was not taken out first: everything doubles.",
        ),
        Mutant(
            "the reference's detail",
            lambda x, y, f: means(x, f) + y - means(y, f),
            "The roles are exchanged: coarse from the sample, detail from the reference.",
        ),
        Mutant(
            "one pixel for the mean of a block",
            lambda x, y, f: x + F.interpolate((y - x)[..., ::f, ::f], scale_factor=f),
            "`interpolate` to a smaller size takes every f-th pixel. Noise is not averaged out, "
            "and the coarse part is grain.",
        ),
    ),
    hints=(
        "avg_pool2d, then interpolate back; both are in torch.nn.functional, F for short.",
        "`phi = lambda v: F.interpolate(F.avg_pool2d(v, f), scale_factor=f)`.",
        "`return x - phi(x) + phi(y)`.",
    ),
    about="ILVR: the coarse part of a reference",
    page="tutorials/restoration/ilvr.md",
)


# ---- EDICT ---------------------------------------------------------------------------------------


def noise_of(z, t, cond):
    told = 0.0 if cond is None else 0.2 * cond.label.item()
    return torch.tanh(z) * 0.5 + t / 2000 + told


def slow_down(denoise, sch, x, y, t, s, cond, p, swap):
    first, second = (y, x) if swap else (x, y)
    first = ddim_step(sch, first, denoise(second, t, cond), t, s)
    second = ddim_step(sch, second, denoise(first, t, cond), t, s)
    x, y = (second, first) if swap else (first, second)
    mixed = p * x + (1 - p) * y
    return mixed, p * y + (1 - p) * mixed


def pairs_of_states(seed):
    conds = (None, Cond(label=torch.tensor([3])), Cond(label=torch.tensor([7])))
    return [
        (noise_of, sch, x.double(), e.double(), t, s, cond, 0.93, swap)
        for cond, (sch, x, e, t, s) in zip(conds, states(seed))
        for swap in (False, True)
    ]


def both_ways(fn):
    x, y = (v.double() for v in draws(0, (1, 3, 4, 4), (1, 3, 4, 4)))
    lower = fn(noise_of, LINEAR, x, y, 600, 500, None, 0.9, True)
    return up(noise_of, LINEAR, *lower, 500, 600, None, 0.9, True), (x, y)


def at_once(denoise, sch, x, y, t, s, cond, p, swap):
    x_s = ddim_step(sch, x, denoise(y, t, cond), t, s)
    y_s = ddim_step(sch, y, denoise(x, t, cond), t, s)
    mixed = p * x_s + (1 - p) * y_s
    return mixed, p * y_s + (1 - p) * mixed


def mixed_at_once(denoise, sch, x, y, t, s, cond, p, swap):
    x, y = slow_down(denoise, sch, x, y, t, s, cond, 1.0, swap)
    return p * x + (1 - p) * y, p * y + (1 - p) * x


def of_its_own(denoise, sch, x, y, t, s, cond, p, swap):
    x = ddim_step(sch, x, denoise(x, t, cond), t, s)
    y = ddim_step(sch, y, denoise(y, t, cond), t, s)
    mixed = p * x + (1 - p) * y
    return mixed, p * y + (1 - p) * mixed


def not_exchanged_back(denoise, sch, x, y, t, s, cond, p, swap):
    if swap:
        x, y = y, x
    return slow_down(denoise, sch, x, y, t, s, cond, p, False)


coupled = Exercise(
    "down",
    "core",
    "EDICT's coupled step, from time t to s: two states, each moved with the noise that the "
    "network finds in the OTHER. x first, by the noise of y; then y, by the noise of the NEW x "
    "(`swap`: y first). Then they are mixed, one after the other: $x' = p x + (1 - p) y$, $y' = p "
    "y + (1 - p) x'$. Return (x', y').",
    down,
    slow_down,
    pairs_of_states,
    facts=(Fact("the project's `up` undoes it", both_ways),),
    mutants=(
        Mutant(
            "moved at once",
            at_once,
            "Both noises are taken from the old states: then neither can be known on the way "
            "back, and the step cannot be undone.",
        ),
        Mutant(
            "mixed at once",
            mixed_at_once,
            "y is mixed with the old x. It can be undone too, by another formula; with the "
            "published inverse the round trip fails.",
        ),
        Mutant(
            "the roles never change",
            lambda d, sch, x, y, t, s, c, p, swap: slow_down(d, sch, x, y, t, s, c, p, False),
            "Without taking turns one of the two states is always the newer one, and they drift "
            "apart.",
        ),
        Mutant(
            "each by its own noise",
            of_its_own,
            "That is DDIM twice. A state is known again on the way back because its noise was "
            "asked of the OTHER one, which has not moved since.",
        ),
        Mutant(
            "not exchanged back",
            not_exchanged_back,
            "After a swapped move x and y must be called x and y again before they are mixed.",
        ),
    ),
    hints=(
        "Four lines: two moves, two mixtures.",
        "`x = ddim_step(sch, x, denoise(y, t, cond), t, s)`, then y with the new x.",
        "With swap, exchange x and y before the moves and again after them, before mixing.",
    ),
    tolerance=1e-9,
    about="EDICT: a coupled step that can be undone",
    page="tutorials/inversion/edict.md",
)


# ---- RePaint's schedule --------------------------------------------------------------------------


def slow_jumps(ts, length, repeats):
    n = len(ts) - 1
    jumps_left = {k: repeats - 1 for k in range(1, n, length) if k - 1 < n - length}
    level = n
    levels = [level]
    while level:
        level -= 1
        levels.append(level)
        if jumps_left.get(level, 0):
            jumps_left[level] -= 1
            level += length
            levels.append(level)
    return [ts[n - k] for k in levels]


def walks(seed):
    return [
        (list(range(10, -1, -1)), 3, 2),
        (list(range(100, -1, -5)), 5, 3 + seed),
        (list(range(6, -1, -1)), 2, 1),
    ]


def without_stops(times):
    """A list of times in which a rise is its two ends: what lies between says nothing more."""
    if not is_sequence(times) or not all(is_number(time) for time in times):
        return times  # the grader says what it is
    kept = []
    for k, time in enumerate(times):
        between = 0 < k < len(times) - 1 and times[k - 1] < time < times[k + 1]
        if not between:
            kept.append(time)
    return kept


jump_schedule = Exercise(
    "jumps",
    "core",
    "RePaint's way down a grid `ts` of falling times (n steps): after every `length` steps it "
    "jumps back up by `length`, until each stretch was walked `repeats` times. Count levels from "
    "the clean end (level n is ts[0], 0 is ts[-1]): jumps start at levels 1, 1 + length, 1 + 2 "
    "length, ... below n - length + 1. Return the list of times visited: a jump is the time it "
    "starts at and the one it ends at (with every time on the way up, as RePaint's code writes it, "
    "is right, too). Called as `jumps(ts, length, repeats)`.",
    jumps,
    slow_jumps,
    walks,
    read=without_stops,
    facts=(Fact("one repeat is a plain walk", lambda fn: (fn([3, 2, 1, 0], 1, 1), [3, 2, 1, 0])),),
    mutants=(
        Mutant(
            "one jump too many",
            lambda ts, length, r: slow_jumps(ts, length, r + 1),
            "repeats counts the walks, not the jumps between them.",
        ),
        Mutant(
            "never back",
            lambda ts, length, r: list(ts),
            "RePaint without its point: the hole is filled in one pass, and fits its surroundings "
            "no better than a plain blend.",
        ),
        Mutant(
            "one step up",
            lambda ts, length, r: [t for k, t in enumerate(slow_jumps(ts, 1, r))],
            "A jump of one step undoes hardly anything: the picture cannot be thought over.",
        ),
    ),
    hints=(
        "Walk with a counter of jumps left at each level.",
        "`left = {1 + k * length: repeats - 1 for ...}`.",
        "After each step down: if left[level], then left[level] -= 1, level += length, and note "
        "the time again.",
    ),
    about="RePaint's way down, with jumps back",
    page="tutorials/restoration/repaint.md",
)

EXERCISES = (ilvr_refine, coupled, jump_schedule)
