"""Warm-ups about x_t = alpha_t x0 + sigma_t eps, and the DDIM step: the lines that everything else
stands on.
"""

from itertools import pairwise

import torch

from minidiff.core import process
from minidiff.data.toy2d import gauss_aniso
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    A_TIME_EACH,
    ANY_SCHEDULE,
    LINEAR,
    ONE,
    batches,
    by_rows,
    guess_clipped,
    preserving_assumed,
    states,
)

PAGE = "tutorials/00_the_six_words.md"


# ---- q_sample ------------------------------------------------------------------------------------


def q_sample_cases(seed):
    ints = [(sch, x, t, e) for sch, x, e, t, _ in states(seed)]
    rows = [(sch, x, t, e) for sch, x, e, t, _ in batches(seed)]
    return ints + rows


@by_rows
def slow_q_sample(sch, x0, t, eps):
    alpha = sch.alpha[t].item()
    sigma = sch.sigma[t].item()
    out = torch.empty_like(x0)
    for i in range(x0.numel()):
        out.view(-1)[i] = alpha * x0.reshape(-1)[i] + sigma * eps.reshape(-1)[i]
    return out


q_sample = Exercise(
    "q_sample",
    "warm-up",
    "Noise a picture to time t: return $x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$. `sch.at(t, "
    "x0)` gives the two coefficients; `x0` and `eps` have the same shape (b ..), and so has the "
    "answer." + A_TIME_EACH + ANY_SCHEDULE,
    process.q_sample,
    slow_q_sample,
    q_sample_cases,
    facts=(Fact("at t = 0 the picture comes back", lambda fn: (fn(LINEAR, ONE, 0, 2 * ONE), ONE)),),
    mutants=(
        Mutant(
            "no square root",
            lambda sch, x0, t, eps: sch.at(t, x0)[0] ** 2 * x0 + sch.at(t, x0)[1] ** 2 * eps,
            "alpha_bar and 1 - alpha_bar are variances; the picture and the noise are scaled by "
            "their roots.",
        ),
        Mutant(
            "sigma instead of alpha",
            lambda sch, x0, t, eps: sch.at(t, x0)[1] * x0 + sch.at(t, x0)[0] * eps,
            "The coefficients have changed places: at t = 0 this is pure noise.",
        ),
        Mutant(
            "off by one",
            by_rows(lambda sch, x0, t, eps: process.q_sample(sch, x0, max(t - 1, 0), eps)),
            "A widely seen table starts at the first noisy time, so its index 0 is not the clean "
            "picture.",
        ),
        Mutant(
            "the noise is not scaled",
            lambda sch, x0, t, eps: sch.at(t, x0)[0] * x0 + eps,
            "Then the variance of x_t is above 1 at every time, and no network trained otherwise "
            "knows such states.",
        ),
        preserving_assumed(process.q_sample),
    ),
    hints=(
        "Two numbers times two tensors.",
        "`a, s = sch.at(t, x0)`.",
        "`return a * x0 + s * eps`.",
    ),
    about="noising a picture in one jump",
    page=PAGE,
)


# ---- ddim_step -----------------------------------------------------------------------------------


@by_rows
def slow_ddim_step(sch, x_t, eps, t, s):
    a_t, s_t = sch.at(t)
    a_s, s_s = sch.at(s)
    x = x_t.double()
    e = eps.double()
    x0 = (x - s_t * e) / a_t
    return (a_s * x0 + s_s * e).to(x_t.dtype)


def same_time(fn):
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return fn(LINEAR, x, torch.ones_like(x), 500, 500), x


def there_and_back(fn):
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    e = torch.ones_like(x)
    return fn(LINEAR, fn(LINEAR, x, e, 300, 700), e, 700, 300), x


def drawn_covariance(fn) -> tuple[float, float, str]:
    """With a denoiser that is known exactly: do fifty steps of `fn` bring noise to the right
    distribution?
    """
    toy = gauss_aniso()
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = toy.denoise(LINEAR)
    for t, s in pairwise(LINEAR.timesteps(50)):
        x = fn(LINEAR, x, eps(x, t), t, s)
    true = toy.sample(4000, seed=1).T.cov()
    return (
        1 - ((x.T.cov() - true).norm() / true.norm()).item(),
        0.9,
        "likeness of the drawn covariance to the true one",
    )


@by_rows
def variances(sch, x_t, eps, t, s):
    """alpha_bar where its root belongs."""
    a_t = sch.at(t)[0] ** 2
    a_s = sch.at(s)[0] ** 2
    return a_s * (x_t - (1 - a_t) * eps) / a_t + (1 - a_s) * eps


def keeps_time(sch, x_t, eps, t, s):
    x0 = process.eps_to_x0(sch, x_t, eps, t)
    return sch.at(s, x_t)[0] * x0 + sch.at(t, x_t)[1] * eps


def clipped(sch, x_t, eps, t, s):
    return process.q_sample(sch, process.eps_to_x0(sch, x_t, eps, t).clamp(-1, 1), s, eps)


def not_divided(sch, x_t, eps, t, s):
    a_t, _ = sch.at(t, x_t)
    return process.q_sample(sch, a_t * process.eps_to_x0(sch, x_t, eps, t), s, eps)


def ddim_step_cases(seed):
    down = [(sch, x, e, t, s) for sch, x, e, t, s in states(seed)]
    up = [(sch, x, e, s, t) for sch, x, e, t, s in states(seed)]
    return down + up + list(batches(seed))


ddim_step = Exercise(
    "ddim_step",
    "core",
    "Move a state from time t to time s without noise (eta = 0). First the clean picture that "
    "`x_t` and `eps` imply, $\\hat x_0 = (x_t - \\sigma_t \\epsilon) / \\alpha_t$; then put the "
    "same noise back at the level of s, $x_s = \\alpha_s \\hat x_0 + \\sigma_s \\epsilon$. s may "
    "lie above t: that inverts. Your function is called as `ddim_step(sch, x_t, eps, t, s)`; the "
    "project's own knows noise (`eta`) too, which is not asked here." + A_TIME_EACH + ANY_SCHEDULE,
    process.ddim_step,
    slow_ddim_step,
    ddim_step_cases,
    facts=(
        Fact("from t to t nothing moves", same_time),
        Fact("up and down again with the same noise changes nothing", there_and_back),
    ),
    behaviour=drawn_covariance,
    mutants=(
        Mutant(
            "no square root",
            variances,
            "A widely copied version multiplies by alpha_bar and 1 - alpha_bar. Pictures come out "
            "washed out, and too dark or too light.",
        ),
        Mutant(
            "sigma_t for sigma_s",
            keeps_time,
            "The noise is put back at the level it came from, so the state is noisier than its "
            "time says and the picture never gets clean.",
        ),
        Mutant(
            "t and s exchanged",
            lambda sch, x, e, t, s: process.ddim_step(sch, x, e, s, t),
            "The move goes the other way: alpha_bar of the present step stands where that of the "
            "next one belongs.",
        ),
        Mutant(
            "eps added where it is taken off",
            lambda sch, x, e, t, s: process.ddim_step(sch, x, -e, t, s),
            "A sign: the guess of x0 gets twice the noise. Loops that train a network to predict "
            "-eps do not mix with samplers that expect eps.",
        ),
        Mutant(
            "the noise is not put back",
            lambda sch, x, e, t, s: sch.at(s, x)[0] * process.eps_to_x0(sch, x, e, t),
            "Only the first term: every step shrinks the picture towards grey, and the next call "
            "of the network sees a state without noise.",
        ),
        Mutant(
            "only the guess of x0",
            lambda sch, x, e, t, s: process.eps_to_x0(sch, x, e, t),
            "The first of the two lines. It is where a single step to time 0 would end, and s is "
            "not looked at.",
        ),
        Mutant(
            "not divided by alpha_t",
            not_divided,
            "The guess of x0 is still as dark as alpha made it at t, and is then darkened again by "
            "alpha_s.",
        ),
        guess_clipped(clipped),
        preserving_assumed(process.ddim_step),
    ),
    hints=(
        "Two lines: what x0 does this noise imply, and what does that x0 look like at time s?",
        "`(a_t, s_t), (a_s, s_s) = sch.at(t, x_t), sch.at(s, x_t)`; then x0 by solving x_t = a_t "
        "x0 + s_t eps.",
        "`x0 = (x_t - s_t * eps) / a_t` and `return a_s * x0 + s_s * eps`.",
    ),
    about="a move without noise, down or up",
    page=PAGE,
)

EXERCISES = (q_sample, ddim_step)
