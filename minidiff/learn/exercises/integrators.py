"""Steps that integrate the linear half of the equation exactly: DPM-Solver-2 and UniPC."""

import math
from itertools import pairwise

import torch

from minidiff.core import process
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    ANY_SCHEDULE,
    LINEAR,
    draws,
    levels,
    preserving_assumed,
    states,
)
from minidiff.samplers.dpm_solver import block_move
from minidiff.samplers.unipc import unipc_move

D = torch.float64
EVEN = LINEAR.timesteps(33, 700, "lambda")[:-1]  # 32 moves, even in lambda


def lam(sch, t):
    return math.log(sch.alpha[t].item() / sch.sigma[t].item())


def start():
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=D)


# ---- DPM-Solver-2: a block -----------------------------------------------------------------------


def slow_block_move(
    sch,
    x_t,
    eps,
    eps_m,
    t,
    m,
    s,
    taylor=False,
    half_way=False,
    in_time=False,
    inverted=False,
    sign=1.0,
    lambdas=1.0,
    bare=False,
):
    """As the paper writes it: e^h - 1, and half the slope."""
    a_t, _, a_s, s_s = levels(sch, t, s)
    h = lambdas * (lam(sch, s) - lam(sch, t))
    r = lambdas * (lam(sch, m) - lam(sch, t)) / h
    if half_way:
        r = 0.5
    if in_time:
        r = (t - m) / (t - s)
    if inverted:
        r = 1 / r
    e = math.exp(h) - 1
    slope = sign * (eps_m.double() - eps.double()) / r
    counts = e / h - 1 if taylor else e / 2
    weight = h if bare else e
    x_s = a_s / a_t * x_t.double() - s_s * (weight * eps.double() + counts * slope)
    return x_s.to(x_t.dtype)


def block_like(**how):
    return lambda *args: slow_block_move(*args, **how)


def block_cases(seed):
    cases = []
    for k in range(3):
        for sch, x, eps, t, s in states(seed + 7 * k):
            if t - s > 4:
                (eps_m,) = draws(seed + 3 + k, x.shape)
                cases.append((sch, x, eps, eps_m, t, s + (1 + k) * (t - s) // 4, s))
    return cases


def one_noise(fn):
    """Equal answers: the line is level, and the move DDIM's."""
    _, (sch, x, eps, t, s), _ = states(3)
    return fn(sch, x, eps, eps, t, (t + s) // 2, s), process.ddim_step(sch, x, eps, t, s)


def by_blocks(fn):
    toy = gauss_aniso()
    eps = toy.denoise(LINEAR)
    ts = EVEN
    x = by_ddim = start()
    true = gaussian_flow_map(toy.means[0], toy.covs[0], x, LINEAR, ts[0], ts[-1])
    for t, s in pairwise(ts):
        by_ddim = process.ddim_step(LINEAR, by_ddim, eps(by_ddim, t), t, s)
    for t, m, s in zip(ts[::2], ts[1::2], ts[2::2]):
        e = eps(x, t)
        middle = process.ddim_step(LINEAR, x, e, t, m)
        x = fn(LINEAR, x, e, eps(middle, m), t, m, s)
    gain = ((by_ddim - true).norm() / (x - true).norm()).item()
    return gain, 2.0, "DDIM's error in 32 evaluations over yours"


block = Exercise(
    "block_move",
    "core",
    "The second move of a block of DPM-Solver-2, from t to s, with the noise that the network saw "
    "at t (`eps`) and at a time m on the way (`eps_m`), t > m > s > 0. With $\\lambda = "
    "\\log(\\alpha / \\sigma)$, $h = \\lambda_s - \\lambda_t$ and $r = (\\lambda_m - \\lambda_t) "
    "/ h$: $x_s = \\frac{\\alpha_s}{\\alpha_t} x_t - \\sigma_s (e^h - 1) \\left(\\epsilon_t + "
    "\\frac{\\epsilon_m - \\epsilon_t}{2r}\\right)$. m may lie anywhere between, and `taylor` need "
    "not be looked at: it stays False." + ANY_SCHEDULE,
    block_move,
    slow_block_move,
    block_cases,
    facts=(Fact("with equal noises it is DDIM's move", one_noise),),
    behaviour=by_blocks,
    tolerance=1e-4,
    mutants=(
        Mutant(
            "the middle taken for half way",
            block_like(half_way=True),
            "With r = 1/2 the formula is short: the noise at m, and nothing else. The paper puts "
            "its m there. A grid of whole times has none that is exactly half way in lambda.",
        ),
        Mutant(
            "r in time",
            block_like(in_time=True),
            "The line is drawn over lambda. Half way in t is elsewhere in lambda, near clean far "
            "away.",
        ),
        Mutant(
            "r upside down",
            block_like(inverted=True),
            "The slope counts r instead of 1 / r: a middle near t should count more, for a short "
            "stretch shows little of the slope.",
        ),
        Mutant(
            "the sign of the slope",
            block_like(sign=-1.0),
            "The line is followed backwards: worse than DDIM.",
        ),
        Mutant(
            "the half is forgotten",
            block_like(sign=2.0),
            "The slope counts half: the mean of the line over the step, not its end.",
        ),
        Mutant(
            "h for e^h - 1",
            block_like(bare=True),
            "Euler's method in lambda: the linear half is not solved but approximated, and that is "
            "what exponential integrators are there to avoid.",
        ),
        Mutant(
            "log SNR for lambda",
            block_like(lambdas=2.0),
            "lambda is the logarithm of alpha / sigma; log SNR, that of its square, is twice it. r "
            "is the same, and e^h is not.",
        ),
        preserving_assumed(block_move),
    ),
    hints=(
        "DDIM is this move with eps_m = eps. What does the second answer add?",
        "`r = (lam_m - lam_t) / h` with lam = log(alpha / sigma).",
        "`a_s / a_t * x_t - sig_s * math.expm1(h) * (eps + (eps_m - eps) / (2 * r))`.",
    ),
    about="a block of DPM-Solver-2: look ahead",
    page="tutorials/samplers/dpm_solver.md",
)


# ---- UniPC: predictor and corrector -------------------------------------------------------------


def slow_unipc_move(
    sch,
    x_t,
    guesses,
    times,
    s,
    variant="bh2",
    mirrored=False,
    in_time=False,
    noise_form=False,
    solved=False,
    other=False,
    newest_alone=False,
    ends_swapped=False,
):
    """As the paper writes it: differences to the first guess over their nodes, weights from a
    linear system, and B(h).
    """
    _, s_t, a_s, s_s = levels(sch, times[0], s)
    h = lam(sch, s) - lam(sch, times[0])
    if other:
        variant = "bh1" if variant == "bh2" else "bh2"
    z = h if noise_form else -h
    B = z if variant == "bh1" else math.expm1(z)
    if in_time:
        nodes = [(times[0] - r) / (times[0] - s) for r in times[1:]]
    else:
        nodes = [(lam(sch, r) - lam(sch, times[0])) / h for r in times[1:]]
    if mirrored:
        nodes = [abs(r) for r in nodes]
    if ends_swapped and times[-1] == s:
        nodes[-1] = -nodes[-1]
    first = guesses[0].double()
    slopes = [(g.double() - first) / r for g, r in zip(guesses[1:], nodes)]
    b = []
    g = math.expm1(z) / z - 1
    for k in range(1, len(nodes) + 1):
        b.append(g * math.factorial(k) / B)
        g = g / z - 1 / math.factorial(k + 1)
    if len(nodes) == 1 and not solved:
        rho = [0.5]
    elif nodes:
        R = torch.tensor([[r**k for r in nodes] for k in range(len(nodes))], dtype=D)
        rho = torch.linalg.lstsq(R, torch.tensor(b, dtype=D)[:, None]).solution[:, 0].tolist()
    else:
        rho = []
    x_s = s_s / s_t * x_t.double() - a_s * math.expm1(-h) * first
    if newest_alone:
        return x_s.to(x_t.dtype)
    sign = 1.0 if noise_form else -1.0
    for weight, slope in zip(rho, slopes):
        x_s = x_s + sign * a_s * B * weight * slope
    return x_s.to(x_t.dtype)


def unipc_like(**how):
    return lambda *args: slow_unipc_move(*args, **how)


def unipc_cases(seed):
    cases = []
    for sch, x, _, t, s in states(seed):
        if t - s < 2:
            continue
        room = sch.T - t
        if room < 10:
            continue
        before = [t, t + room // 3, t + 2 * room // 3]
        guesses = list(draws(seed + 2, *[x.shape] * 4))
        for known in (1, 2, 3):
            for variant in ("bh2", "bh1"):
                cases.append((sch, x, guesses[:known], before[:known], s, variant))
                both = [*guesses[:known], guesses[3]]
                cases.append((sch, x, both, [*before[:known], s], s, variant))
    return cases


def constant(fn):
    """A guess that never changes: DDIM, however many of them."""
    _, (sch, x, x0, t, s), _ = states(3)
    eps = process.x0_to_eps(sch, x, x0, t)
    r = min(t + 40, sch.T)
    return fn(sch, x, [x0, x0, x0], [t, r, s], s, "bh2"), process.ddim_step(sch, x, eps, t, s)


def corrected(fn):
    toy = gauss_aniso()
    eps = toy.denoise(LINEAR)
    ts = EVEN
    x = predicted = start()
    true = gaussian_flow_map(toy.means[0], toy.covs[0], x, LINEAR, ts[0], ts[-1])

    def guess(x, t):
        return process.eps_to_x0(LINEAR, x, eps(x, t), t)

    old = []
    for k, (t, s) in enumerate(pairwise(ts)):
        old = [guess(predicted, t), *old[:1]]
        predicted = fn(LINEAR, predicted, old, ts[k - len(old) + 1 : k + 1][::-1], s, "bh2")
    new = [guess(x, ts[0])]
    for k, s in enumerate(ts[1:]):
        times = ts[k - len(new) + 1 : k + 1][::-1]
        there = fn(LINEAR, x, new, times, s, "bh2")
        found = guess(there, s)
        x = fn(LINEAR, x, [*new, found], [*times, s], s, "bh2")
        new = [found, *new[:1]]
    gain = ((predicted - true).norm() / (x - true).norm()).item()
    return gain, 2.0, "the error in 32 steps without corrector over that with it"


unipc = Exercise(
    "unipc_move",
    "core",
    "One move of UniPC from t to s > 0, as predictor or as corrector. `guesses` of the clean "
    "picture belong to `times`, of which the first is t. A predictor's others are earlier ones (t "
    "< r < T). A corrector's are the same, and then one at s itself, the last. With $h = "
    "\\lambda_s - \\lambda_t$, $\\lambda = \\log(\\alpha / \\sigma)$, and the nodes $r_j = "
    "(\\lambda_j - \\lambda_t) / h$: $x_s = \\frac{\\sigma_s}{\\sigma_t} x_t + \\alpha_s h \\sum_j "
    "w_j \\hat x_0^{(j)}$, where $w$ is `exponential_weights(nodes, -h)` of "
    "minidiff.core.exponential, which may be used. Only two nodes are special: there $w_1 = B / (2 "
    "r_1)$ and $w_0 = \\varphi_1 - w_1$, with $\\varphi_1 = (1 - e^{-h}) / h$; B is $\\varphi_1$ "
    'for variant "bh2" and 1 for "bh1".' + ANY_SCHEDULE,
    unipc_move,
    slow_unipc_move,
    unipc_cases,
    facts=(Fact("of a guess that does not change it is DDIM's move", constant),),
    behaviour=corrected,
    tolerance=1e-3,
    mutants=(
        Mutant(
            "nodes without a sign",
            unipc_like(mirrored=True),
            "Earlier guesses lie on the other side of t. With positive nodes the polynomial is "
            "read backwards.",
        ),
        Mutant(
            "the corrector's node at -1",
            unipc_like(ends_swapped=True),
            "The new guess is put where the last step began, and what it says of the end of this "
            "one is turned round: correcting makes it worse.",
        ),
        Mutant(
            "nodes in t",
            unipc_like(in_time=True),
            "The polynomial is drawn over lambda. Over t it is another one.",
        ),
        Mutant(
            "the weights of the noise form",
            unipc_like(noise_form=True),
            "e^h belongs to solvers in eps, where the state shrinks with alpha; in the clean "
            "picture it shrinks with sigma, and the sign of h is the other one.",
        ),
        Mutant(
            "two nodes are not special",
            unipc_like(solved=True),
            "The exact integral of the line, of the same order. It is not what the paper's "
            "authors run, and pictures differ from theirs.",
        ),
        Mutant(
            "bh1 and bh2 exchanged",
            unipc_like(other=True),
            "B is h for the first and e^h - 1 for the second, over h. Both are of the same order; "
            "the second is the default.",
        ),
        Mutant(
            "the newest guess alone",
            unipc_like(newest_alone=True),
            "DDIM. Nothing is continued, and nothing is corrected.",
        ),
        preserving_assumed(unipc_move),
    ),
    hints=(
        "First the nodes: 0, then below 0 for what came earlier, 1 for what lies at s.",
        "Two nodes: `w = B / (2 * nodes[1])`, weights `[phi(1, -h) - w, w]`.",
        "`sig_s / sig_t * x_t + a_s * h * sum(w * g for w, g in zip(weights, guesses))`.",
    ),
    about="predict a step, and correct it: UniPC",
    page="tutorials/samplers/unipc.md",
)

EXERCISES = (block, unipc)
