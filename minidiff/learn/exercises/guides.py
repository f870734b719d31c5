"""Around the step: which noise to move along, straight lines, and guidance with limits."""

import math

import torch
from torch import Tensor

from minidiff.core import process
from minidiff.core.cfg import guide_within, rescale
from minidiff.core.schedule import Schedule
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import FLOW, draw, draws, states
from minidiff.learn.exercises.solvers import PAGE
from minidiff.samplers.plms import plms_noise

D = torch.float64
EVEN = torch.linspace(0, 0.999, 1001, dtype=D)
SIGMA = 3 * EVEN / (1 + 2 * EVEN)
# more of the times at high noise, as SD 3 does
SHIFTED = Schedule(1 - SIGMA, SIGMA, "shifted flow")


# ---- PLMS ----------------------------------------------------------------------------------------


def slow_plms(old):
    """The polynomial through the old values, averaged over the step to come (two Gauss points are
    exact up to cubics).
    """
    out = torch.zeros_like(old[0], dtype=D)
    for u in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):
        for i, e in enumerate(old):
            weight = math.prod((u + j) / (j - i) for j in range(len(old)) if j != i)
            out += 0.5 * weight * e.double()
    return out.to(old[0].dtype)


def plms_cases(seed):
    return [([*draws(seed, *[(2, 3, 4, 4)] * n)],) for n in (1, 2, 3, 4)]


plms = Exercise(
    "plms_noise",
    "warm-up",
    "What PLMS moves along: not the last noise, but the course of the last four continued. `old` "
    "is a list of 1 to 4 tensors, newest first. Return their combination with the Adams-Bashforth "
    "weights: (1), (3, -1) / 2, (23, -16, 5) / 12, (55, -59, 37, -9) / 24.",
    plms_noise,
    slow_plms,
    plms_cases,
    facts=(
        Fact("what never changed stays", lambda fn: (fn([torch.ones(2)] * 3), torch.ones(2))),
        Fact(
            "a cubic is continued exactly",
            lambda fn: (fn([torch.tensor(-float(k)) ** 3 for k in range(4)]), 0.25),
        ),
    ),
    mutants=(
        Mutant(
            "oldest first",
            lambda old: plms_noise(old[::-1]),
            "A list that grows by `append` is read from its end. From the front, the oldest noise "
            "counts two and a half times.",
        ),
        Mutant(
            "four weights from the start",
            lambda old: sum(w / 24 * e for w, e in zip((55, -59, 37, -9), old)),
            "The weights sum to 1 only together. With one value, the first step is more than "
            "twice too long.",
        ),
        Mutant(
            "never more than two",
            lambda old: plms_noise(old[:2]),
            "The list is cut too short: second order at most.",
        ),
        Mutant(
            "the last noise alone",
            lambda old: old[0].clone(),
            "That is DDIM: first order, and the course of the noise is not used.",
        ),
        Mutant(
            "the mean of them",
            lambda old: torch.stack(old).mean(0),
            "A mean looks back, to where the noise was; the step to come lies ahead.",
        ),
    ),
    hints=(
        "A table of four rows, chosen by len(old).",
        "Each row sums to 1.",
        "`sum(w * e for w, e in zip(row, old))`.",
    ),
    about="the last four noises continued",
    page=PAGE,
)


# ---- flow ----------------------------------------------------------------------------------------


def euler_step(sch: Schedule, x_t: Tensor, v: Tensor, t: int, s: int) -> Tensor:
    """Euler's step of a flow model (alpha = 1 - sigma) whose network says v = eps - x0: from time t
    to time s.
    """
    return x_t + (sch.at(s)[1] - sch.at(t)[1]) * v


def slow_euler(sch, x_t, v, t, s):
    sigma_t = sch.sigma[t].item()
    sigma_s = sch.sigma[s].item()
    x0 = x_t.double() - sigma_t * v.double()
    eps = x_t.double() + (1 - sigma_t) * v.double()
    return ((1 - sigma_s) * x0 + sigma_s * eps).to(x_t.dtype)


def flow_cases(seed):
    return [(sch, x, e, t, s) for sch in (FLOW, SHIFTED) for _, x, e, t, s in states(seed)]


def straight(fn):
    x0, eps = draws(0, (1, 2, 3, 3), (1, 2, 3, 3))
    return fn(SHIFTED, process.q_sample(SHIFTED, x0, 700, eps), eps - x0, 700, 0), x0


euler = Exercise(
    "euler_step",
    "warm-up",
    "Flow matching: the way from picture to noise is a straight line, $x = (1 - \\sigma) x_0 + "
    "\\sigma \\epsilon$, and the network says its direction, $v = \\epsilon - x_0$. Walk from "
    "time t to time s: sigma changes from sigma_t to sigma_s. The tables need not be even in t.",
    euler_step,
    slow_euler,
    flow_cases,
    apart="the package has no sampler of its own for flow models: on a flow table `ddim_step` is "
    "this step, written for eps",
    facts=(Fact("with the true v one step finds the picture", straight),),
    tolerance=1e-5,
    mutants=(
        Mutant(
            "the wrong way",
            lambda sch, x, v, t, s: x + (sch.at(t)[1] - sch.at(s)[1]) * v,
            "Papers let time run from noise to data as often as from data to noise. Half of all "
            "public flow code has the other sign, so signs cannot be copied.",
        ),
        Mutant(
            "t / T for sigma",
            lambda sch, x, v, t, s: x + (s - t) / sch.T * v,
            "True for the plain straight table. Large models shift it towards noise; then steps "
            "are too long or too short.",
        ),
        Mutant(
            "v read as noise",
            lambda sch, x, v, t, s: process.ddim_step(sch, x, v, t, s),
            "A flow network plugged into a sampler for eps.",
        ),
        Mutant(
            "all the way",
            lambda sch, x, v, t, s: x - sch.at(t)[1] * v,
            "The whole line to sigma = 0: the guess of the picture, wherever s is.",
        ),
    ),
    hints=("dx / d sigma = v.", "`sch.at(t)[1]` is sigma_t.", "`x_t + (sigma_s - sigma_t) * v`."),
    about="a step of flow matching",
    page=PAGE,
)

# ---- guidance with limits ------------------------------------------------------------------------


def slow_spread(values):
    return math.sqrt(((values - values.mean()) ** 2).sum() / (values.numel() - 1))


def slow_rescale(guided, e_cond, phi):
    rows = []
    for g, c in zip(guided.double(), e_cond.double()):
        ratio = slow_spread(c) / slow_spread(g)
        rows.append((phi * g * ratio + (1 - phi) * g).to(guided.dtype))
    return torch.stack(rows)


def rescale_cases(seed):
    loud = torch.tensor([1.0, 4, 9])[:, None, None, None]
    cases = []
    for phi, shape in ((1.0, (1, 1, 2, 2)), (0.7, (3, 2, 4, 4)), (0.0, (2, 1, 3, 3))):
        guided, e_cond = draws(seed, shape, shape)
        cases.append((3 * guided * loud[: len(guided)] + 1, e_cond, phi))
    return cases


def spread_at_one(fn):
    guided = 5 * draw(0, 1, 2, 3, 3)
    e_cond = draw(1, 1, 2, 3, 3)
    return fn(guided, e_cond, 1.0).std(), e_cond.std()


def ratio_upside_down(guided, e_cond, phi):
    dims = (1, 2, 3)
    ratio = guided.std(dims, keepdim=True) / e_cond.std(dims, keepdim=True)
    return (1 - phi + phi * ratio) * guided


def channel_ratio(guided, e_cond):
    return e_cond.std((2, 3), keepdim=True) / guided.std((2, 3), keepdim=True)


rescaled = Exercise(
    "rescale",
    "warm-up",
    "Guidance makes noise guesses too large, and pictures over-saturated. Bring the standard "
    "deviation of each row of `guided` (b c h w), over all its values, to that of `e_cond`, and "
    "mix: share `phi` of the result, 1 - phi of the guided guess itself.",
    rescale,
    slow_rescale,
    rescale_cases,
    facts=(
        Fact(
            "phi = 1: the spread is that of the conditional guess",
            spread_at_one,
        ),
    ),
    mutants=(
        Mutant(
            "the spread of the batch",
            lambda g, c, phi: (1 - phi + phi * c.std() / g.std()) * g,
            "One number for all rows: which pictures share a batch then changes each of them.",
        ),
        Mutant(
            "phi and 1 - phi exchanged",
            lambda g, c, phi: rescale(g, c, 1 - phi),
            "The published .7 then rescales by .3.",
        ),
        Mutant(
            "the ratio upside down",
            ratio_upside_down,
            "What was too large gets larger.",
        ),
        Mutant(
            "each channel alone",
            lambda g, c, phi: (1 - phi + phi * channel_ratio(g, c)) * g,
            "One number for each row, over all its values. A number for each channel shifts "
            "colours against each other.",
        ),
        Mutant(
            "the conditional guess mixed in",
            lambda g, c, phi: phi * rescale(g, c, 1.0) + (1 - phi) * c,
            "The rest, 1 - phi, is the guided guess itself. Mixed with the conditional one, "
            "guidance is taken back.",
        ),
    ),
    hints=(
        "A ratio of two standard deviations for each row.",
        "`x.std((1, 2, 3), keepdim=True)`.",
        "`phi * ratio * guided + (1 - phi) * guided`.",
    ),
    about="guided noise brought back to its spread",
    page=PAGE,
)


def slow_within(e_null, e_cond, scale, t, lo, hi, off="cond", closed=False):
    rows = []
    for null, cond, time in zip(e_null, e_cond, t.tolist()):
        if lo < time <= hi or (closed and time == lo):
            rows.append(null + scale * (cond - null))
        else:
            rows.append(cond if off == "cond" else null)
    return torch.stack(rows)


def within_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = []
    for b in (1, 2, 9):
        edges = torch.tensor([200, 700])[:b]
        others = torch.randint(1, 1000, (b - len(edges),), generator=g)
        e_null, e_cond = draws(seed, (b, 1, 2, 2), (b, 1, 2, 2))
        cases.append((e_null, e_cond, 3.0, torch.cat([edges, others]), 200, 700))
        cases.append((e_null, e_cond, 7.5, torch.cat([edges, others]), 100, 400))
    return cases


interval = Exercise(
    "guide_within",
    "warm-up",
    "Guidance only where it helps: rows with lo < t <= hi (`t` is a LongTensor (b,)) get "
    "$e_\\varnothing + scale\\,(e_c - e_\\varnothing)$, all others the conditional guess, which "
    "saves the second evaluation there.",
    guide_within,
    slow_within,
    within_cases,
    mutants=(
        Mutant(
            "off means unconditional",
            lambda *a: slow_within(*a, off="null"),
            "Outside the interval the prompt would be forgotten: scale 0, where scale 1 was meant.",
        ),
        Mutant(
            "the time of the first row",
            lambda n, c, w, t, lo, hi: guide_within(n, c, w, t[:1].expand(len(t)), lo, hi),
            "True in a sampler, where all rows are at one time, and wrong in a batch of frames or "
            "in training.",
        ),
        Mutant(
            "lo included, hi not",
            lambda n, c, w, t, lo, hi: guide_within(n, c, w, t + 1, lo, hi),
            "Two neighbouring intervals then still fit together, but results differ from the "
            "published ones by a step.",
        ),
        Mutant(
            "both ends included",
            lambda *a: slow_within(*a, closed=True),
            "lo < t is strict. Two neighbouring intervals would share a step.",
        ),
        Mutant(
            "everywhere",
            lambda n, c, w, t, lo, hi: n + w * (c - n),
            "Plain guidance: the interval is not looked at.",
        ),
    ),
    hints=(
        "A choice per row.",
        "`on.view(-1, 1, 1, 1)` goes with pictures.",
        "`torch.where(on, guided, e_cond)`.",
    ),
    about="guidance at some times only",
    page=PAGE,
)


def threshold(x0: Tensor, p: float) -> Tensor:
    """Dynamic thresholding: each picture (b c h w) cut at the p-quantile of its |values|, at least
    1, and divided by it.
    """
    s = x0.flatten(1).abs().quantile(p, 1).clamp(min=1).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def slow_quantile(values, p):
    """By linear interpolation between the two neighbours in order."""
    values = sorted(values)
    place = p * (len(values) - 1)
    k = min(int(place), len(values) - 2)
    return values[k] + (place - k) * (values[k + 1] - values[k])


def slow_threshold(x0, p):
    rows = []
    for row in x0:
        s = max(slow_quantile(row.abs().flatten().tolist(), p), 1.0)
        pixels = [min(max(v, -s), s) / s for v in row.flatten().tolist()]
        rows.append(torch.tensor(pixels).view_as(row))
    return torch.stack(rows)


def cut_at(s, divide=True):
    def wrong(x0, p):
        level = s(x0, p)
        return x0.clamp(-level, level) / (level if divide else 1)

    return wrong


def quantile(x0, p):
    return x0.flatten(1).abs().quantile(p, 1).view(-1, 1, 1, 1)


def threshold_cases(seed):
    loud = torch.tensor([0.2, 1.0, 4.0])[:, None, None, None]
    return [(3 * draw(seed, 1, 1, 2, 2), 0.5), (loud * draw(seed, 3, 3, 4, 4), 0.9)]


dynamic = Exercise(
    "threshold",
    "core",
    "Imagen's remedy for strong guidance in pixels, where guesses of x0 leave [-1, 1]. For each "
    "picture of (b c h w) alone: s is the p-quantile of the absolute values (linear "
    "interpolation, as `torch.quantile`), but at least 1; cut at -s and s, divide by s.",
    threshold,
    slow_threshold,
    threshold_cases,
    apart="it is for large models of pixels under strong guidance; the one that the package has "
    "is tiny, and a plain clamp serves it",
    mutants=(
        Mutant(
            "clamped to [-1, 1]",
            cut_at(lambda x0, p: torch.ones(1)),
            "The static cut: whatever exceeds 1 becomes a flat, saturated patch.",
        ),
        Mutant(
            "not at least 1",
            cut_at(quantile),
            "A dim picture is stretched until it fills the range: no picture stays dark.",
        ),
        Mutant(
            "the quantile of the batch",
            cut_at(lambda x0, p: x0.abs().flatten().quantile(p).clamp(min=1)),
            "One glaring picture dims all others.",
        ),
        Mutant(
            "not divided",
            cut_at(lambda x0, p: quantile(x0, p).clamp(min=1), divide=False),
            "The guess is still outside the range in which the network was trained.",
        ),
        Mutant(
            "divided, not cut",
            lambda x0, p: x0 / quantile(x0, p).clamp(min=1),
            "The share 1 - p of the values is still outside [-1, 1].",
        ),
    ),
    hints=(
        "One number s for each picture.",
        "`x0.flatten(1).abs().quantile(p, 1)`.",
        "`x0.clamp(-s, s) / s` with s as (b 1 1 1).",
    ),
    about="guesses kept in range: dynamic thresholding",
    page=PAGE,
)

EXERCISES = (plms, euler, rescaled, interval, dynamic)
