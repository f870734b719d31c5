"""Steps of other samplers: ancestral, DDIM with noise, and one of second order."""

import math
from itertools import pairwise

import torch

from minidiff.core import process
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    A_TIME_EACH,
    ANY_SCHEDULE,
    LINEAR,
    batches,
    by_rows,
    draw,
    draws,
    guess_clipped,
    levels,
    preserving_assumed,
    states,
)
from minidiff.samplers.ddpm import ddpm_step
from minidiff.samplers.dpm_solver_pp import dpm_step

PAGE = "tutorials/00_the_six_words.md"
D = torch.float64


# ---- DDPM ----------------------------------------------------------------------------------------


def slow_ddpm_step(
    sch, x_t, x0, t, s, noise, variance, root=True, always=False, swap=False, small=False
):
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    x0 = x0.double()
    eps = (x_t.double() - a_t * x0) / s_t
    beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    tilde = beta * s_s**2 / s_t**2
    # DDIM's form of the same mean, eta = 1
    mean = a_s * x0 + math.sqrt(max(s_s**2 - tilde, 0)) * eps
    if s == 0 and not always:
        return mean.to(x_t.dtype)
    large = (variance == "large") != swap and not small
    var = beta if large else tilde
    spread = var**0.5 if root else var
    return (mean + spread * noise.double()).to(x_t.dtype)


def ddpm_like(**how):
    return lambda *args: slow_ddpm_step(*args, **how)


def ddpm_cases(seed):
    cases = []
    for variance in ("small", "large"):
        for sch, x, e, t, s in states(seed):
            noise = draw(seed + 5, *x.shape)
            for to in (s, 0):
                cases.append((sch, x, e, t, to, noise, variance))
    return cases


def without_noise(fn):
    _, (sch, x, x0, t, _), _ = states(3)
    return fn(sch, x, x0, t, 0, None, "small"), x0


def ancestral(fn):
    toy = gauss_aniso()
    zs = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    eps = toy.denoise(LINEAR)
    for t, s in pairwise(LINEAR.timesteps(100, spacing="trailing")):
        x0 = process.eps_to_x0(LINEAR, x, eps(x, t), t)
        x = fn(LINEAR, x, x0, t, s, torch.randn(4000, 2, generator=zs, dtype=D), "small")
    true = toy.sample(4000, seed=1).T.cov()
    return (
        1 - ((x.T.cov() - true).norm() / true.norm()).item(),
        0.85,
        "likeness of the drawn covariance to the true one",
    )


ddpm = Exercise(
    "ddpm_step",
    "core",
    "Ancestral sampling from t to s, with a guess `x0` of the clean picture: a draw from $q(x_s "
    "\\mid x_t, x_0)$: its mean plus the root of the variance times `noise`; no noise if s is 0, "
    "where `noise` may be None. "
    'variance "small": the posterior\'s $\\beta \\sigma_s^2 / \\sigma_t^2$; "large": $\\beta = '
    "\\sigma_t^2 - (\\alpha_t / \\alpha_s)^2 \\sigma_s^2$. `posterior` and `transition` of "
    "minidiff.core.process may be used; for int times they give the variance as a Python float (no "
    "`.sqrt()`, but `** 0.5`)." + ANY_SCHEDULE,
    ddpm_step,
    slow_ddpm_step,
    ddpm_cases,
    facts=(Fact("the last step needs no noise: None may be given", without_noise),),
    behaviour=ancestral,
    tolerance=1e-4,
    mutants=(
        Mutant(
            "the variance for its root",
            ddpm_like(root=False),
            "Variances are far below 1, so almost no noise is added and pictures come out smooth "
            "and all alike.",
        ),
        Mutant(
            "noise at the last step",
            ddpm_like(always=True),
            "With the large variance a film of grain stays on every picture. Loops that add noise "
            "at every index forget that the last one returns the mean.",
        ),
        Mutant(
            "small and large exchanged",
            ddpm_like(swap=True),
            "In many steps nobody notices; in few, one gives too little spread and the other "
            "grain.",
        ),
        Mutant(
            "always the small variance",
            ddpm_like(small=True),
            "The choice is not looked at. Of DDPM's two variances this is the one for data that is "
            "a single point; the large one is for data that is noise.",
        ),
        guess_clipped(lambda sch, x, x0, *rest: ddpm_step(sch, x, x0.clamp(-1, 1), *rest)),
        preserving_assumed(ddpm_step),
    ),
    hints=(
        "A mean, a variance, and the root of it.",
        "`mean, var = posterior(sch, x_t, x0, t, s)`.",
        "`transition(sch, s, t, x_t)[1]` is the large variance; `mean + var ** .5 * noise` unless "
        "s is 0.",
    ),
    about="ancestral sampling, with either variance",
    page=PAGE,
)


# ---- DDIM with noise -----------------------------------------------------------------------------


def slow_noisy(sch, x_t, eps, t, s, eta, noise, kept=False, squared=False, large=False, root=True):
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    eps = eps.double()
    x0 = (x_t.double() - s_t * eps) / a_t
    beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    var = beta if large else beta * s_s**2 / s_t**2
    share = eta**2 if squared else eta
    sig = share * math.sqrt(var)
    left = s_s if kept else math.sqrt(max(s_s**2 - sig**2, 0))
    if not root:
        left = left**2
        sig = sig**2
    return (a_s * x0 + left * eps + sig * noise.double()).to(x_t.dtype)


def noisy_like(**how):
    return by_rows(lambda *args: slow_noisy(*args, **how))


def as_ddpm(fn):
    _, (sch, x, e, t, s), _ = states(3)
    (n,) = draws(8, (2, 3, 8, 8))
    x0 = process.eps_to_x0(sch, x, e, t)
    return fn(sch, x, e, t, s, 1.0, n), ddpm_step(sch, x, x0, t, s, n, "small")


def ddim_noisy_step_cases(seed):
    return [
        (sch, x, e, t, s, eta, draw(seed + 3, *x.shape))
        for sch, x, e, t, s in (*states(seed), *batches(seed))
        for eta in (0.0, 0.5, 1.0)
    ]


eta_step = Exercise(
    "ddim_noisy_step",
    "core",
    "DDIM with noise, from t to s < t. $\\sigma_\\eta = \\eta \\sqrt{\\beta}\\,\\sigma_s / "
    "\\sigma_t$ with $\\beta = \\sigma_t^2 - (\\alpha_t / \\alpha_s)^2 \\sigma_s^2$; then $x_s = "
    "\\alpha_s \\hat x_0 + \\sqrt{\\sigma_s^2 - \\sigma_\\eta^2}\\,\\epsilon + "
    "\\sigma_\\eta\\,n$. Called as `ddim_noisy_step(sch, x_t, eps, t, s, eta, noise)`, eta in "
    "0..1." + A_TIME_EACH + ANY_SCHEDULE,
    process.ddim_step,
    by_rows(slow_noisy),
    ddim_noisy_step_cases,
    facts=(Fact("eta = 1 is ancestral sampling", as_ddpm),),
    tolerance=1e-4,
    mutants=(
        Mutant(
            "the old noise kept whole",
            noisy_like(kept=True),
            "Noise is added and none taken away to make room: every state is noisier than its "
            "time, and grain is left at the end.",
        ),
        Mutant(
            "eta squared",
            noisy_like(squared=True),
            "The papers' eta multiplies a standard deviation, not a variance; right at 0 and 1, "
            "wrong between.",
        ),
        Mutant(
            "the large deviation",
            noisy_like(large=True),
            "Without sigma_s / sigma_t the noise may exceed the level of s, and the root of the "
            "rest is cut at 0.",
        ),
        Mutant(
            "variances for their roots",
            noisy_like(root=False),
            "Both noises are scaled by standard deviations. Their squares are far smaller, and the "
            "state is cleaner than its time says.",
        ),
        Mutant(
            "eta is not looked at",
            lambda sch, x, e, t, s, eta, n: process.ddim_step(sch, x, e, t, s),
            "Right at eta = 0, where DDIM draws no noise.",
        ),
        preserving_assumed(process.ddim_step),
    ),
    hints=(
        "How much noise is fresh, and how much room is left for the old?",
        "Variances add up to sigma_s^2.",
        "`a_s * x0 + (sig_s**2 - sig**2) ** .5 * eps + sig * noise`, sig from the formula.",
    ),
    about="DDIM with some noise (eta)",
    page=PAGE,
)


# ---- DPM-Solver++ --------------------------------------------------------------------------------


def slow_dpm_step(
    sch,
    x_t,
    x0,
    x0_before,
    r,
    t,
    s,
    order=2,
    inverted=False,
    sign=1.0,
    in_time=False,
    lambdas=1.0,
):
    """In the published form: two terms, the second with half the slope."""
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    h = math.log(a_s * s_t / (s_s * a_t))
    before = math.log(a_t * sch.sigma[r] / (s_t * sch.alpha[r]))
    ratio = (r - t) / (t - s) if in_time else before / h
    if inverted:
        ratio = 1 / ratio
    slope = sign * (order - 1) * (x0.double() - x0_before.double()) / ratio
    gain = 1 - (s_s * a_t / (a_s * s_t)) ** lambdas
    x_s = s_s / s_t * x_t.double() + a_s * gain * (x0.double() + 0.5 * slope)
    return x_s.to(x_t.dtype)


def dpm_like(**how):
    return lambda *args: slow_dpm_step(*args, **how)


def dpm_cases(seed):
    cases = []
    for gap, (sch, x, _, t, s) in zip((40, 90, 150), states(seed)):
        if t < sch.T:
            x0, before = draws(seed + 2, x.shape, x.shape)
            cases.append((sch, x, x0, before, min(t + gap, sch.T), t, s))
    return cases


def second_order(fn):
    toy = gauss_aniso()
    eps = toy.denoise(LINEAR)
    ts = [round(900 - 880 * k / 12) for k in range(13)]
    start = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    true = gaussian_flow_map(toy.means[0], toy.covs[0], start, LINEAR, ts[0], ts[-1])
    by_ddim = start
    x = start
    before = None
    for k, (t, s) in enumerate(pairwise(ts)):
        by_ddim = process.ddim_step(LINEAR, by_ddim, eps(by_ddim, t), t, s)
        noise = eps(x, t)
        x0 = process.eps_to_x0(LINEAR, x, noise, t)
        if before is None:
            x = process.ddim_step(LINEAR, x, noise, t, s)
        else:
            x = fn(LINEAR, x, x0, before, ts[k - 1], t, s)
        before = x0
    gain = ((by_ddim - true).norm() / (x - true).norm()).item()
    return gain, 2.0, "DDIM's error in 12 steps over yours"


dpm = Exercise(
    "dpm_step",
    "core",
    "One step of DPM-Solver++(2M) from t to s, with the guesses of the clean picture at t (`x0`) "
    "and at the time r before (`x0_before`), r > t > s > 0. With $\\lambda = \\log(\\alpha / "
    "\\sigma)$, $h = \\lambda_s - \\lambda_t$ and $h' = \\lambda_t - \\lambda_r$: $D = \\hat x_0 "
    "+ \\frac{h}{2h'}(\\hat x_0 - \\hat x_0^{before})$ and $x_s = \\frac{\\sigma_s}{\\sigma_t} "
    "x_t + \\alpha_s (1 - e^{-h}) D$." + ANY_SCHEDULE,
    dpm_step,
    slow_dpm_step,
    dpm_cases,
    behaviour=second_order,
    tolerance=1e-4,
    mutants=(
        Mutant(
            "first order", dpm_like(order=1), "Without the line through both guesses it is DDIM."
        ),
        Mutant(
            "the ratio upside down",
            dpm_like(inverted=True),
            "Equal strides in lambda hide it; real grids have none.",
        ),
        Mutant(
            "the sign of the slope",
            dpm_like(sign=-1),
            "The line is followed backwards: worse than DDIM.",
        ),
        Mutant(
            "strides in t",
            dpm_like(in_time=True),
            "The line is drawn over lambda. Over t it bends, and the order falls back to one.",
        ),
        Mutant(
            "the half is forgotten",
            dpm_like(sign=2.0),
            "The slope counts half: the mean of the line over the step, not its end.",
        ),
        Mutant(
            "log SNR for lambda",
            dpm_like(lambdas=2.0),
            "lambda is the logarithm of alpha / sigma; log SNR, that of its square, is twice it. "
            "The ratio of strides is the same, and 1 - exp(-h) is not.",
        ),
        preserving_assumed(dpm_step),
    ),
    hints=(
        "lambda of a time is one logarithm.",
        "`h / (2 * h_before)` is how far the line is followed.",
        "`sig_s / sig_t * x_t - a_s * math.expm1(-h) * D`.",
    ),
    about="a step of second order: DPM-Solver++",
    page=PAGE,
)

EXERCISES = (ddpm, eta_step, dpm)
