"""The moves of a state: back to the picture, up again, down with noise, up by inversion; and
guidance between guesses.
"""

from itertools import pairwise

import torch

from minidiff.core import process
from minidiff.core.cfg import guide
from minidiff.core.cond import Cond
from minidiff.data.toy2d import gauss_aniso, gmm8
from minidiff.inversion.ddim import invert_step
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    A_TIME_EACH,
    ANY_SCHEDULE,
    LINEAR,
    ONE,
    batches,
    by_rows,
    draws,
    guess_clipped,
    levels,
    preserving_assumed,
    states,
)

PAGE = "tutorials/00_the_six_words.md"


# ---- eps_to_x0 -----------------------------------------------------------------------------------


def eps_to_x0_cases(seed):
    ints = [(sch, x, e, t) for sch, x, e, t, _ in states(seed)]
    rows = [(sch, x, e, t) for sch, x, e, t, _ in batches(seed)]
    return ints + rows


@by_rows
def slow_x0(sch, x_t, eps, t):
    a = sch.alpha[t].item()
    s = sch.sigma[t].item()
    return ((x_t.double() - s * eps.double()) / a).to(x_t.dtype)


eps_to_x0 = Exercise(
    "eps_to_x0",
    "warm-up",
    "The clean picture that a state and its noise imply: solve $x_t = \\alpha_t x_0 + \\sigma_t "
    "\\epsilon$ for $x_0$." + A_TIME_EACH + ANY_SCHEDULE,
    process.eps_to_x0,
    slow_x0,
    eps_to_x0_cases,
    facts=(
        Fact(
            "it undoes q_sample",
            lambda fn: (fn(LINEAR, process.q_sample(LINEAR, ONE, 600, 3 * ONE), 3 * ONE, 600), ONE),
        ),
    ),
    mutants=(
        Mutant(
            "not divided by alpha",
            lambda sch, x, e, t: x - sch.at(t, x)[1] * e,
            "The noise is gone, but the picture is still as dark as alpha made it: at t near T "
            "almost black.",
        ),
        Mutant(
            "divided by alpha_bar",
            lambda sch, x, e, t: (x - sch.at(t, x)[1] * e) / sch.at(t, x)[0] ** 2,
            "The picture was scaled by the root of alpha_bar. Dividing by alpha_bar makes it far "
            "too bright.",
        ),
        Mutant(
            "1 - alpha for sigma",
            lambda sch, x, e, t: (x - (1 - sch.at(t, x)[0]) * e) / sch.at(t, x)[0],
            "True for straight-line (flow) tables only, where alpha + sigma = 1.",
        ),
        Mutant(
            "the sign of the noise",
            lambda sch, x, e, t: process.eps_to_x0(sch, x, -e, t),
            "Noise was added to make x_t; it has to be taken off again.",
        ),
        guess_clipped(lambda sch, x, e, t: process.eps_to_x0(sch, x, e, t).clamp(-1, 1)),
        preserving_assumed(process.eps_to_x0),
    ),
    hints=(
        "One subtraction, one division.",
        "`a, s = sch.at(t, x_t)`.",
        "`return (x_t - s * eps) / a`.",
    ),
    tolerance=1e-4,
    about="the picture that a state and its noise imply",
    page=PAGE,
)


# ---- v target ------------------------------------------------------------------------------------


def v_cases(seed):
    ints = [(*sch.at(t), x, e) for sch, x, e, t, _ in states(seed)]
    rows = [(*sch.at(t, x), x, e) for sch, x, e, t, _ in batches(seed)]
    return ints + rows


def slow_v(alpha, sigma, x0, eps):
    return (alpha * eps.double() - sigma * x0.double()).to(x0.dtype)


def v_read_back(fn):
    eps = 2 * ONE
    x_t = process.q_sample(LINEAR, ONE, 400, eps)
    alpha, sigma = LINEAR.at(400)
    v = fn(alpha, sigma, ONE, eps)
    return process.to_eps(LINEAR, x_t, v, 400, "v"), eps


velocity = Exercise(
    "v_target",
    "warm-up",
    "v-prediction (Salimans and Ho 2022): $v = \\alpha_t \\epsilon - \\sigma_t x_0$. Near the "
    "noise it asks for the picture, near the picture for the noise: never for what is already "
    "known. `alpha` and `sigma` are what the schedule says at time t: two numbers, or tensors (b, "
    "1, 1, 1) with one for each row.",
    process.v_target,
    slow_v,
    v_cases,
    facts=(
        Fact("at time 0 it is the noise", lambda fn: (fn(1.0, 0.0, 3 * ONE, ONE), ONE)),
        Fact("read back, it gives the noise", v_read_back),
    ),
    mutants=(
        Mutant(
            "the sign",
            lambda alpha, sigma, x, e: sigma * x - alpha * e,
            "A network trained to -v learns just as well, and then meets a sampler that adds what "
            "should be taken off.",
        ),
        Mutant(
            "v for eps",
            lambda alpha, sigma, x, e: e,
            "An eps model's target under the name of v: each is read wrongly by samplers of the "
            "other kind, most of all at the noisy end.",
        ),
        Mutant(
            "alpha and sigma exchanged",
            lambda alpha, sigma, x, e: sigma * e - alpha * x,
            "Then it is the state itself, turned by 90 degrees too little: mostly known already.",
        ),
        Mutant(
            "added",
            lambda alpha, sigma, x, e: alpha * e + sigma * x,
            "v is the derivative of alpha x0 + sigma eps along the circle, and that of alpha is "
            "-sigma.",
        ),
        Mutant(
            "the velocity of a flow",
            lambda alpha, sigma, x, e: e - x,
            "The derivative along a straight line (flow matching). v-prediction's way is a circle, "
            "and its target depends on the time.",
        ),
    ),
    hints=(
        "Two products and a difference.",
        "At t = 0, alpha is 1 and sigma 0: what must be left?",
        "`return alpha * eps - sigma * x0`.",
    ),
    about="what a v-prediction network is trained on",
    page=PAGE,
)


# ---- renoise -------------------------------------------------------------------------------------


def renoise_cases(seed):
    ints = [(sch, x, s, t, e) for sch, x, e, t, s in states(seed)]
    rows = [(sch, x, s, t, e) for sch, x, e, t, s in batches(seed)]
    return ints + rows


@by_rows
def slow_renoise(sch, x_s, s, t, noise):
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    keep = a_t / a_s
    var = s_t**2 - keep**2 * s_s**2
    return (keep * x_s.double() + max(var, 0) ** 0.5 * noise.double()).to(x_s.dtype)


def spread(fn):
    first, second = draws(0, (1, 20_000), (1, 20_000))
    x_s = process.q_sample(LINEAR, torch.zeros_like(first), 300, first)
    x_t = fn(LINEAR, x_s, 300, 700, second)
    ratio = x_t.std() / LINEAR.sigma[700]
    return ratio.round(decimals=1), torch.tensor(1.0, dtype=torch.float64)


@by_rows
def difference_of_sigmas(sch, x, s, t, noise):
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    return a_t / a_s * x + (s_t - s_s) * noise


@by_rows
def old_noise_not_scaled(sch, x, s, t, noise):
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    return a_t / a_s * x + max(s_t**2 - s_s**2, 0) ** 0.5 * noise


def variance_for_root(sch, x, s, t, noise):
    a, var = process.transition(sch, s, t, x)
    return a * x + var * noise


def picture_not_scaled(sch, x, s, t, noise):
    return x + process.renoise(sch, 0 * x, s, t, noise)


renoise = Exercise(
    "renoise",
    "core",
    "Jump forward, from a state at time s to one at t >= s, with fresh noise: $x_t = a\\,x_s + "
    "\\sqrt{\\sigma_t^2 - a^2 \\sigma_s^2}\\;n$ with $a = \\alpha_t / \\alpha_s$. RePaint undoes "
    "its moves so. It is called as `renoise(sch, x_s, s, t, noise)`." + A_TIME_EACH + ANY_SCHEDULE,
    process.renoise,
    slow_renoise,
    renoise_cases,
    facts=(
        Fact("from s to s nothing happens", lambda fn: (fn(LINEAR, ONE, 300, 300, ONE), ONE)),
        Fact("noise twice has the spread of noise once", spread),
    ),
    mutants=(
        Mutant(
            "q_sample of a noisy state",
            lambda sch, x, s, t, n: process.q_sample(sch, x, t, n),
            "The state is treated as a clean picture: it gets all the noise of time t on top of "
            "what it had.",
        ),
        Mutant(
            "a difference of sigmas",
            difference_of_sigmas,
            "Variances add, standard deviations do not: the state ends less noisy than its time "
            "says.",
        ),
        Mutant(
            "old noise not scaled",
            old_noise_not_scaled,
            "The noise that is there already shrinks together with the picture, by a, and so its "
            "variance by a squared.",
        ),
        Mutant(
            "the variance for its root",
            variance_for_root,
            "Noise is scaled by a standard deviation. The variance, far below 1 here, adds hardly "
            "any.",
        ),
        Mutant(
            "the state is not scaled",
            picture_not_scaled,
            "Noise is added and nothing taken away: the state is too bright for its time.",
        ),
        preserving_assumed(process.renoise),
    ),
    hints=(
        "The state shrinks by alpha_t / alpha_s. How much noise is then missing?",
        "Variances add: sigma_t^2 = a^2 sigma_s^2 + what is new.",
        "`a * x_s + (sig_t**2 - a**2 * sig_s**2) ** .5 * noise`.",
    ),
    about="a jump back up, with fresh noise",
    page=PAGE,
)


# ---- posterior -----------------------------------------------------------------------------------


def with_wide_variance(answer):
    """(mean, var) with the variance at the mean's size: one number, one for each row or one for
    each pixel say the same.
    """
    try:
        mean, var = answer
        var = torch.as_tensor(var, dtype=torch.float64)
        if var.shape == mean.shape[:1]:
            var = var.view(-1, *[1] * (mean.ndim - 1))
        return mean, var.expand_as(mean)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return answer  # no such pair: the grader says what it is


@by_rows
def slow_posterior(sch, x_t, x0, t, s):
    """Two Gaussians multiplied: what the state says about x_s, and what the picture says about
    it.
    """
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    a = a_t / a_s
    var = s_t**2 - a**2 * s_s**2  # of x_t given x_s
    if s_s == 0:
        return (a_s * x0.double()).to(x_t.dtype), 0.0
    precision = a**2 / var + 1 / s_s**2
    mean = (a / var * x_t.double() + a_s / s_s**2 * x0.double()) / precision
    return mean.to(x_t.dtype), 1 / precision


def large_variance(sch, x, x0, t, s):
    return (
        process.posterior(sch, x, x0, t, s)[0],
        process.transition(sch, s, t, x)[1],
    )


def standard_deviation(sch, x, x0, t, s):
    mean, var = process.posterior(sch, x, x0, t, s)
    return mean, var**0.5


posterior = Exercise(
    "posterior",
    "core",
    "Where ancestral sampling draws the next state from: mean and variance of $q(x_s \\mid x_t, "
    "x_0)$, s < t (DDPM, eq. 7, for any stride). With $a = \\alpha_t / \\alpha_s$ and $\\beta = "
    "\\sigma_t^2 - a^2 \\sigma_s^2$: mean $\\frac{a \\sigma_s^2}{\\sigma_t^2} x_t + "
    "\\frac{\\alpha_s \\beta}{\\sigma_t^2} x_0$, variance $\\beta \\sigma_s^2 / \\sigma_t^2$. "
    "Return (mean, variance); the variance is a number, one for each row, or one for each pixel."
    + A_TIME_EACH
    + ANY_SCHEDULE,
    process.posterior,
    slow_posterior,
    lambda seed: [*states(seed), *batches(seed)],
    read=with_wide_variance,
    facts=(
        Fact(
            "at s = 0 it is the picture, surely",
            lambda fn: (fn(LINEAR, 5 * ONE, ONE, 9, 0), (ONE, 0 * ONE)),
        ),
    ),
    mutants=(
        Mutant(
            "the large variance",
            large_variance,
            "beta instead of beta tilde: DDPM allows both as a choice, but only the small one is "
            "this posterior's.",
        ),
        Mutant(
            "x0 and x_t exchanged",
            lambda sch, x, x0, t, s: process.posterior(sch, x0, x, t, s),
            "The weights go to the wrong pictures: near t = T nearly all of it belongs to the "
            "state, not to the guess.",
        ),
        Mutant(
            "one step's beta",
            lambda sch, x, x0, t, s: process.posterior(sch, x, x0, t, t - 1),
            "The formula of the full chain, used with a stride: the step removes the noise of one "
            "time while the loop believes to have moved many.",
        ),
        Mutant(
            "the standard deviation",
            standard_deviation,
            "The mean is right, and beside it stands the root of the variance. A sampler takes the "
            "root once more, and adds far too much noise.",
        ),
        preserving_assumed(process.posterior),
    ),
    hints=(
        "Write down a and beta first.",
        "`(a_s, sig_s), (_, sig_t) = sch.at(s), sch.at(t)`; a and beta from these.",
        "mean = a sig_s^2/sig_t^2 x_t + a_s beta/sig_t^2 x0; return it with beta sig_s^2/sig_t^2.",
    ),
    tolerance=1e-4,
    about="where ancestral sampling draws from",
    page=PAGE,
)


# ---- guidance ------------------------------------------------------------------------------------


def guide_cases(seed):
    scales = (((1, 1, 2, 2), 3.0), ((2, 4, 8, 8), 7.5), ((3, 2), 1.0), ((2, 3, 4), 0.0))
    return [(*draws(seed, shape, shape), scale) for shape, scale in scales]


def to_a_class(fn) -> tuple[float, float, str]:
    """A mixture of eight: is the wanted mode reached, with the exact denoiser, at scale 2?"""
    toy = gmm8()
    eps = toy.denoise(LINEAR)
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = Cond(label=torch.full((400,), 3))
    for t, s in pairwise(LINEAR.timesteps(30)):
        guided = fn(eps(x, t), eps(x, t, label), 2.0)
        x = process.ddim_step(LINEAR, x, guided, t, s)
    nearest = torch.cdist(x, toy.means).argmin(1)
    share = (nearest == 3).double().mean().item()
    return share, 0.95, "share of points in the wanted mode"


guidance = Exercise(
    "guide",
    "warm-up",
    "Classifier-free guidance: from what the network says without the condition, `e_null`, go "
    "`scale` times as far as to what it says with it, `e_cond`. Scale 1 is the conditional guess, "
    "0 the unconditional one.",
    guide,
    lambda n, c, w: (n.double() + w * (c.double() - n.double())).to(n.dtype),
    guide_cases,
    facts=(Fact("scale 1 is the conditional guess", lambda fn: (fn(ONE, 4 * ONE, 1.0), 4 * ONE)),),
    behaviour=to_a_class,
    mutants=(
        Mutant(
            "the paper's w",
            lambda n, c, w: (1 + w) * c - w * n,
            "The paper counts from 0: its w is scale - 1. Mixing the two conventions guides one "
            "unit too far.",
        ),
        Mutant("the sign", lambda n, c, w: n - w * (c - n), "It walks away from the prompt."),
        Mutant(
            "the two guesses exchanged",
            lambda n, c, w: c + w * (n - c),
            "The batch was split in the wrong order: [cond, null] for [null, cond]. It draws "
            "anything but what was asked.",
        ),
        Mutant(
            "the unconditional guess is not taken off",
            lambda n, c, w: n + w * c,
            "The way to go is the difference of the two guesses. Without it the noise is scale + 1 "
            "times too large.",
        ),
    ),
    hints=(
        "A straight line through two points.",
        "Where is it at scale 0, where at scale 1?",
        "`return e_null + scale * (e_cond - e_null)`.",
    ),
    about="classifier-free guidance",
    page="tutorials/00_the_six_words.md",
)


# ---- inversion -----------------------------------------------------------------------------------


def slow_invert_step(denoise, sch, x_s, s, t, cond):
    a_t, s_t, a_s, s_s = levels(sch, t, s)
    eps = denoise(x_s, t, cond)
    x0 = (x_s - s_s * eps) / a_s
    return a_t * x0 + s_t * eps


def known(x, t, cond):
    told = 0.0 if cond is None else 0.2 * cond.label.item()
    return x * 0.3 + t / 1000 + told


def climbs(seed):
    conds = (None, Cond(label=torch.tensor([3])), Cond(label=torch.tensor([7])))
    return [(known, sch, x, s, t, cond) for cond, (sch, x, _, t, s) in zip(conds, states(seed))]


def asked_twice(denoise, sch, x, s, t, cond):
    x0 = process.eps_to_x0(sch, x, denoise(x, s, cond), s)
    return process.q_sample(sch, x0, t, denoise(x, t, cond))


def round_trip(fn) -> tuple[float, float, str]:
    toy = gauss_aniso()
    eps = toy.denoise(LINEAR)
    x0 = toy.sample(200, seed=0)
    x = x0
    ts = LINEAR.timesteps(200, spacing="trailing")
    for s, t in pairwise(ts[::-1]):
        x = fn(eps, LINEAR, x, s, t, None)
    for t, s in pairwise(ts):
        x = process.ddim_step(LINEAR, x, eps(x, t), t, s)
    return 1 - (x - x0).abs().mean().item(), 0.98, "likeness after 200 steps to noise and back"


inversion = Exercise(
    "invert_step",
    "core",
    "One DDIM move up, from a state at time s to the noisier time t, by the explicit "
    "approximation: the noise is asked for at the state you have and the time you GO TO, "
    "`denoise(x_s, t, cond)`, and then used in both terms of the DDIM step. Called as "
    "`invert_step(denoise, sch, x_s, s, t, cond)`; the project's own can iterate on top.",
    invert_step,
    slow_invert_step,
    climbs,
    behaviour=round_trip,
    mutants=(
        Mutant(
            "asked at the lower time",
            lambda d, sch, x, s, t, c: process.ddim_step(sch, x, d(x, s, c), s, t),
            "The way back asks at t, so the way up must too. Asked at s, the round trip is "
            "several times worse; and s = 0 is a time no network was trained on.",
        ),
        Mutant(
            "moved down",
            lambda d, sch, x, s, t, c: process.ddim_step(sch, x, d(x, t, c), t, s),
            "t and s exchanged: the picture is denoised a second time.",
        ),
        Mutant(
            "fresh noise",
            lambda d, sch, x, s, t, c: process.renoise(sch, x, s, t, torch.ones_like(x)),
            "Noising a picture is not inverting it: the result leads back to some picture, not to "
            "this one.",
        ),
        Mutant(
            "the condition is not handed on",
            lambda d, sch, x, s, t, c: invert_step(d, sch, x, s, t, None),
            "The picture is inverted without its prompt, and comes back with it: the two do not "
            "fit.",
        ),
        Mutant(
            "asked twice",
            asked_twice,
            "The guess of x0 at time s and the noise at time t are those of two answers of the "
            "network. One answer, at t, serves both terms, as on the way back.",
        ),
    ),
    hints=(
        "It is `ddim_step` with rising times. Which noise does it need?",
        "`eps = denoise(x_s, t, cond)`.",
        "`return ddim_step(sch, x_s, eps, s, t)` (from minidiff.core.process).",
    ),
    tolerance=1e-4,
    about="DDIM upwards: from a picture to its noise",
    page="tutorials/inversion/ddim.md",
)

EXERCISES = (eps_to_x0, velocity, renoise, posterior, guidance, inversion)
