"""What a guess of noise is: read from other outputs, known in closed form, asked twice; and how
much noise there is, told in other numbers. No task here prints its formula.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.core import process
from minidiff.core.cond import Cond
from minidiff.data.toy2d import gauss_aniso, gaussian_flow_map
from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import (
    A_TIME_EACH,
    ANY_SCHEDULE,
    LINEAR,
    batches,
    by_rows,
    draws,
    states,
)
from minidiff.learn.exercises.moves import known
from minidiff.learn.exercises.process import PAGE
from minidiff.samplers.heun import heun_step

ONE_VIEW = "tutorials/unified_perspective.md"
EDM = "tutorials/samplers/edm.md"
D = torch.float64


# ---- any output as noise -------------------------------------------------------------------------


@by_rows
def slow_to_eps(sch, x_t, out, t, prediction):
    """Two equations in x0 and eps: the state, and what the output is; by Cramer's rule."""
    a = sch.alpha[t].item()
    s = sch.sigma[t].item()
    c, d = {"eps": (0, 1), "x0": (1, 0), "v": (-s, a), "flow": (-1, 1)}[prediction]
    eps = (a * out.double() - c * x_t.double()) / (a * d - c * s)
    return eps.to(x_t.dtype)


def to_eps_cases(seed):
    return [
        (sch, x, out, t, prediction)
        for prediction in ("eps", "x0", "v", "flow")
        for sch, x, out, t, _ in (*states(seed), *batches(seed))
    ]


def read_back(fn):
    """Each target, made from known noise, must give that noise back."""
    got = []
    wanted = []
    for prediction in ("eps", "x0", "v", "flow"):
        for sch, x0, eps, t, _ in states(5):
            out = process.target(sch, x0, eps, t, prediction)
            got.append(fn(sch, process.q_sample(sch, x0, t, eps), out, t, prediction))
            wanted.append(eps)
    return got, wanted


def undivided(sch, x_t, out, t, prediction):
    a, s = sch.at(t, x_t)
    forms = {"v": s * x_t + a * out, "flow": x_t + a * out}
    return forms.get(prediction, process.to_eps(sch, x_t, out, t, prediction))


def sign_of_v(sch, x_t, out, t, prediction):
    if prediction in ("v", "flow"):
        out = -out
    return process.to_eps(sch, x_t, out, t, prediction)


reading = Exercise(
    "to_eps",
    "core",
    "Networks are trained to say different things, and samplers want eps. `out` is a network's "
    'output for the state x_t. `prediction` says what it means: "eps", the noise; "x0", the '
    'picture; "v", $\\alpha_t \\epsilon - \\sigma_t x_0$; "flow", $\\epsilon - x_0$. Together '
    "with $x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$ these are two equations: solve them for eps."
    + A_TIME_EACH
    + ANY_SCHEDULE,
    process.to_eps,
    slow_to_eps,
    to_eps_cases,
    facts=(Fact("what was made from known noise gives it back", read_back),),
    tolerance=1e-4,
    mutants=(
        Mutant(
            "not divided",
            undivided,
            "sigma x_t + alpha v is eps only where alpha^2 + sigma^2 = 1, and x_t + alpha out only "
            "where alpha + sigma = 1. In general the sum has to be divided by that.",
        ),
        Mutant(
            "the sign",
            sign_of_v,
            "v and the flow's velocity point from the picture to the noise.",
        ),
        Mutant(
            "every output is noise",
            lambda sch, x_t, out, t, prediction: out.clone(),
            "A network of another kind in a sampler for eps: the commonest way to draw grey.",
        ),
    ),
    hints=(
        "Eliminate x0: solve the second equation for it and put it into the first.",
        "For v: x0 = (alpha eps - v) / sigma. Or multiply the equations so that x0 drops out of "
        "their sum.",
        '"v": `(s * x_t + a * out) / (a * a + s * s)`; "flow": `(x_t + a * out) / (a + s)`; "x0": '
        "`(x_t - a * out) / s`.",
    ),
    about="any network's output, read as noise",
    page=ONE_VIEW,
)


# ---- how much noise, in other numbers ------------------------------------------------------------


def betas_of(alpha_bar: Tensor) -> Tensor:
    """The betas (T,) of the chain whose table of alpha_bar is (T + 1,), 1 at index 0."""
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def slow_betas(alpha_bar):
    shares = alpha_bar.tolist()
    betas = [(before - after) / before for before, after in pairwise(shares)]
    return torch.tensor(betas, dtype=D)


def betas_cases(seed):
    g = torch.Generator().manual_seed(seed)
    cases = [(LINEAR.alpha_bar,)]
    for n in (3, 10 + seed):
        kept = 0.5 + 0.5 * torch.rand(n, generator=g, dtype=D)
        cases.append((torch.cat([torch.ones(1, dtype=D), kept.cumprod(0)]),))
    return cases[::-1]


one_step = Exercise(
    "betas_of",
    "warm-up",
    "A schedule's table of alpha_bar, (T + 1,) in float64 with the clean picture (1) at index 0, "
    "is known; training code wants the chain it belongs to. Return the betas (T,), float64: what "
    "each single step of the chain takes of the variance that is there.",
    betas_of,
    slow_betas,
    betas_cases,
    apart="the package makes its tables from betas, and never the other way",
    facts=(
        Fact(
            "for a chain of equal steps every beta is the same",
            lambda fn: (fn(0.9 ** torch.arange(5, dtype=D)), torch.full((4,), 0.1, dtype=D)),
        ),
    ),
    mutants=(
        Mutant(
            "what all steps took",
            lambda ab: 1 - ab[1:],
            "1 - alpha_bar is what is gone since the clean picture. One step is the ratio of two "
            "neighbours.",
        ),
        Mutant(
            "differences",
            lambda ab: ab[:-1] - ab[1:],
            "A step takes a share of what is left, not of what there was at first: late betas come "
            "out far too small.",
        ),
        Mutant(
            "of alpha, not of its square",
            lambda ab: 1 - (ab[1:] / ab[:-1]).sqrt(),
            "beta counts variances. The ratio's root is what a step leaves of the picture itself.",
        ),
    ),
    hints=(
        "alpha_bar_t is alpha_bar_{t-1} times something.",
        "That something is 1 - beta_t.",
        "`1 - alpha_bar[1:] / alpha_bar[:-1]`.",
    ),
    about="from alpha_bar back to the single steps",
    page=PAGE,
)


def from_log_snr(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a variance preserving process with that log SNR, each of its shape."""
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def slow_from_log_snr(log_snr):
    pairs = [math.exp(-v / 2) for v in log_snr.tolist()]  # sigma / alpha
    alpha = torch.tensor([1 / math.sqrt(1 + r * r) for r in pairs], dtype=D)
    sigma = torch.tensor([r / math.sqrt(1 + r * r) for r in pairs], dtype=D)
    return alpha, sigma


def log_snr_cases(seed):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.zeros(1, dtype=D),),
        (torch.tensor([-20.0, -1, 3, 20], dtype=D),),
        (4 * torch.randn(9, generator=g, dtype=D),),
    ]


def of_the_schedule(fn):
    alpha, sigma = fn(LINEAR.log_snr[1:])
    return (alpha, sigma), (LINEAR.alpha[1:], LINEAR.sigma[1:])


noise_level = Exercise(
    "from_log_snr",
    "warm-up",
    "Newer papers name a noise level by one number, $\\log(\\alpha^2 / \\sigma^2)$. Return the "
    "pair (alpha, sigma) that has it, for a variance preserving process, where $\\alpha^2 + "
    "\\sigma^2 = 1$. `log_snr` is (n,) in float64, and so are both.",
    from_log_snr,
    slow_from_log_snr,
    log_snr_cases,
    apart="the package's tables hold alpha and sigma, and `log_snr` is made from them",
    facts=(Fact("it finds the tables of DDPM from their log SNR", of_the_schedule),),
    mutants=(
        Mutant(
            "the roots left out",
            lambda log_snr: (log_snr.sigmoid(), (-log_snr).sigmoid()),
            "The sigmoid is the share of the variance, alpha squared.",
        ),
        Mutant(
            "the log of the ratio, not of its square",
            lambda log_snr: from_log_snr(2 * log_snr),
            "lambda = log(alpha / sigma) in DPM-Solver is half the log SNR of others.",
        ),
        Mutant(
            "alpha and sigma exchanged",
            lambda log_snr: from_log_snr(-log_snr),
            "A large SNR is little noise.",
        ),
    ),
    hints=(
        "Put sigma^2 = 1 - alpha^2 in, and solve for alpha^2.",
        "alpha^2 = SNR / (1 + SNR): which function of log SNR is that?",
        "`log_snr.sigmoid().sqrt()` and `(-log_snr).sigmoid().sqrt()`.",
    ),
    about="alpha and sigma from one number, log SNR",
    page=PAGE,
)


# ---- what a perfect network would say ------------------------------------------------------------


def best_guess(x_t: Tensor, mean: Tensor, var: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | x_t] for pixels x0 ~ N(mean, var), independent, and x_t = alpha x0 + sigma eps; all
    tensors of one shape.
    """
    gain = alpha * var / (alpha**2 * var + sigma**2)
    return mean + gain * (x_t - alpha * mean)


def slow_best_guess(x_t, mean, var, alpha, sigma):
    """By sums over a fine grid of pictures: each counts as it is likely, and as x_t is from it."""
    if sigma == 0:
        return x_t / alpha
    out = torch.empty_like(x_t)
    for i in range(x_t.numel()):
        middle = mean.view(-1)[i]
        spread = var.view(-1)[i].sqrt()
        x0 = middle + spread * torch.linspace(-12, 12, 40_001, dtype=D)
        log_p = -((x0 - middle) ** 2) / (2 * spread**2)
        log_p = log_p - (x_t.view(-1)[i] - alpha * x0) ** 2 / (2 * sigma**2)
        weights = (log_p - log_p.max()).exp()
        out.view(-1)[i] = (weights * x0).sum() / weights.sum()
    return out


def best_guess_cases(seed):
    cases = []
    for alpha, sigma in ((0.9, math.sqrt(0.19)), (0.4, 0.6), (1.0, 3.0)):
        x, mean, spread = (v.double() for v in draws(seed, (2, 3), (2, 3), (2, 3)))
        cases.append((x, mean, 0.2 + spread**2, alpha, sigma))
    return cases


def without_any_noise(fn):
    x, mean = (v.double() for v in draws(2, (2, 2), (2, 2)))
    return fn(x, mean, torch.ones_like(x), 0.5, 0.0), x / 0.5


gaussian_guess = Exercise(
    "best_guess",
    "core",
    "What would a perfect network say? Let the data be the simplest there is: each pixel x0 is "
    "drawn from a Gaussian of its own, with `mean` and `var`, and noised, $x_t = \\alpha x_0 + "
    "\\sigma \\epsilon$. Trained with squared errors, the network says the mean of all x0 that "
    "may have led to x_t. Derive it: two Gaussians in x0 are multiplied. `x_t`, `mean` and `var` "
    "have one shape, and so has the answer; alpha and sigma are two numbers, sigma may be 0. This "
    "is why one step from strong noise gives a blur: look at what is left when sigma grows.",
    best_guess,
    slow_best_guess,
    best_guess_cases,
    apart="the toy mixtures have their exact denoiser as a method, for full covariances",
    facts=(Fact("without noise nothing has to be guessed", without_any_noise),),
    mutants=(
        Mutant(
            "the data is not looked at",
            lambda x, mean, var, alpha, sigma: x / alpha,
            "x_t / alpha is right on average, and as noisy as it was: what is known of pictures "
            "was not used.",
        ),
        Mutant(
            "the deviation for the variance",
            lambda x, mean, var, alpha, sigma: best_guess(x, mean, var.sqrt(), alpha, sigma),
            "Precisions add up, one over a variance each.",
        ),
        Mutant(
            "drawn to zero",
            lambda x, mean, var, alpha, sigma: best_guess(x, 0 * mean, var, alpha, sigma),
            "In strong noise the best guess is the mean of the data, not black.",
        ),
        Mutant(
            "the picture's scale forgotten",
            lambda x, mean, var, alpha, sigma: best_guess(x, mean, var, 1.0, sigma),
            "x_t shows alpha x0, not x0.",
        ),
    ),
    hints=(
        "One Gaussian in x0 is the data's; the other is the likelihood: x_t - alpha x0 has the "
        "variance sigma^2.",
        "The mean of a product weighs both means by their precisions: 1 / var, and alpha^2 / "
        "sigma^2 for x_t / alpha.",
        "`mean + alpha * var / (alpha**2 * var + sigma**2) * (x_t - alpha * mean)`.",
    ),
    tolerance=1e-6,
    about="what a perfect network says; why guesses blur",
    page=ONE_VIEW,
)


def ideal_guess(x_t: Tensor, data: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | x_t] (b d) where x0 is one of the rows of `data` (n d), each as likely."""
    far = torch.cdist(x_t, alpha * data).square()  # b n
    return (-far / (2 * sigma**2)).softmax(1) @ data


def slow_ideal_guess(x_t, data, alpha, sigma, factor=2.0, power=2):
    out = torch.zeros_like(x_t)
    for row, state in enumerate(x_t):
        logs = []
        for picture in data:
            far = ((state - alpha * picture) ** 2).sum().item()
            logs.append(-far / (factor * sigma**power))
        weights = [math.exp(v - max(logs)) for v in logs]
        for weight, picture in zip(weights, data):
            out[row] += weight / sum(weights) * picture
    return out


def ideal_guess_cases(seed):
    cases = []
    for b, n, alpha, sigma in ((1, 2, 0.8, 0.6), (4, 5, 0.3, math.sqrt(0.91)), (3, 6, 0.999, 0.02)):
        x, data = (v.double() for v in draws(seed + n, (b, 3), (n, 3)))
        cases.append((x, data, alpha, sigma))
    return cases


def ideal_like(**how):
    return lambda *args: slow_ideal_guess(*args, **how)


def nearest_picture(x_t, data, alpha, sigma):
    return data[torch.cdist(x_t, alpha * data).argmin(1)]


def over_states(x_t, data, alpha, sigma):
    far = torch.cdist(x_t, alpha * data).square()
    return (-far / (2 * sigma**2)).softmax(0) @ data


memory = Exercise(
    "ideal_guess",
    "core",
    "A training set is nothing but its n pictures. So a network that has learned it perfectly "
    "says, for x_t (b d), the mean of the pictures `data` (n d), each weighted by how likely it "
    "is that x_t was made from it: $x_t = \\alpha x_0 + \\sigma \\epsilon$. Return that mean, (b "
    "d), float64. sigma may be small: no likelihood may be lost to underflow. (Then think: what "
    "would such a network draw? What do real ones do differently?)",
    ideal_guess,
    slow_ideal_guess,
    ideal_guess_cases,
    apart="the toy mixtures have their exact denoiser as a method; points are their limit",
    facts=(
        Fact(
            "of a single picture it is that picture",
            lambda fn: (
                fn(torch.ones(2, 3, dtype=D), torch.zeros(1, 3, dtype=D), 0.5, 0.1),
                torch.zeros(2, 3, dtype=D),
            ),
        ),
    ),
    mutants=(
        Mutant(
            "the nearest picture",
            nearest_picture,
            "The limit of no noise. Where several pictures are as likely, a network trained with "
            "squared errors says their mean: a blur.",
        ),
        Mutant(
            "the 2 is forgotten",
            ideal_like(factor=1.0),
            "A Gaussian's exponent is the square over TWO variances; without it the network is too "
            "sure.",
        ),
        Mutant(
            "pictures not scaled by alpha",
            lambda x, data, alpha, sigma: ideal_guess(x, data, 1.0, sigma),
            "x_t shows alpha x0: it is compared with alpha times each picture.",
        ),
        Mutant(
            "the deviation for the variance",
            ideal_like(power=1),
            "The distance is squared, and so must sigma be.",
        ),
        Mutant(
            "a softmax over the states",
            over_states,
            "Each state shares itself out among the pictures: the weights of a ROW sum to 1.",
        ),
    ),
    hints=(
        "Bayes: the weight of a picture is the density of x_t under N(alpha x0, sigma^2).",
        "log weights are -|x_t - alpha x0|^2 / (2 sigma^2); which function makes weights of logs?",
        "`(-far / (2 * sigma**2)).softmax(1) @ data` with far of `torch.cdist`, squared.",
    ),
    tolerance=1e-7,
    about="what a network says that knows its data by heart",
    page=ONE_VIEW,
)


# ---- Heun ----------------------------------------------------------------------------------------


def slow_heun(
    denoise,
    sch,
    x_t,
    t,
    s,
    cond=None,
    first=0.5,
    clock=lambda t, s: s,
    last=False,
    looks_there=True,
    onward=False,
):
    """In the coordinates in which DDIM is Euler's method: x / alpha over sigma / alpha."""
    y = x_t / sch.alpha[t].item()
    width = (sch.sigma[s] / sch.alpha[s] - sch.sigma[t] / sch.alpha[t]).item()
    slope = denoise(x_t, t, cond)
    if s > 0 or last:
        there = (y + width * slope) * sch.alpha[s].item()
        again = denoise(there if looks_there else x_t, clock(t, s), cond)
        if onward:
            y = there / sch.alpha[s].item()
        slope = first * slope + (1 - first) * again
    return (y + width * slope) * sch.alpha[s].item()


def heun_like(**how):
    return lambda *args: slow_heun(*args, **how)


def heun_cases(seed):
    conds = (None, Cond(label=torch.tensor([3])), Cond(label=torch.tensor([7])))
    cases = []
    for cond, (sch, x, _, t, s) in zip(conds, states(seed)):
        for to in (s, 0):
            cases.append((known, sch, x, t, to, cond))
    return cases


def better_than_ddim(fn):
    toy = gauss_aniso()
    eps = toy.denoise(LINEAR)
    ts = [round(900 - 880 * k / 12) for k in range(13)]
    start = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    true = gaussian_flow_map(toy.means[0], toy.covs[0], start, LINEAR, ts[0], ts[-1])
    by_ddim = start
    x = start
    for t, s in pairwise(ts):
        by_ddim = process.ddim_step(LINEAR, by_ddim, eps(by_ddim, t), t, s)
        x = fn(eps, LINEAR, x, t, s, None)
    gain = ((by_ddim - true).norm() / (x - true).norm()).item()
    return gain, 2.0, "DDIM's error in 12 steps over yours"


heun = Exercise(
    "heun_step",
    "core",
    "A DDIM step follows the noise at its start as if it stayed the same (Euler's method). Heun's "
    "method looks where that leads, asks again there, and then goes from the START along the mean "
    "of both answers. Write it with `ddim_step`; the network is `denoise(x, t, cond)`. At s = 0 "
    "nothing can be asked, since no network knows time 0: there it is DDIM.",
    heun_step,
    slow_heun,
    heun_cases,
    behaviour=better_than_ddim,
    tolerance=1e-4,
    mutants=(
        Mutant(
            "Euler's step",
            heun_like(first=1.0),
            "The first answer alone: DDIM.",
        ),
        Mutant(
            "the second answer alone",
            heun_like(first=0.0),
            "The noise at the end for the whole way is as one-sided as the noise at the start.",
        ),
        Mutant(
            "asked again at the old time",
            heun_like(clock=lambda t, s: t),
            "The second state is at time s, and the network must be told so.",
        ),
        Mutant(
            "the state at the start looked at twice",
            heun_like(looks_there=False),
            "The second slope is that of the state to which the first one leads. The old state, at "
            "the time of the end, has more noise than the network is told of.",
        ),
        Mutant(
            "on from where DDIM led",
            heun_like(onward=True),
            "The mean is for one step from the start. From the end of the trial it makes two steps "
            "of one, and the state is cleaner than its time.",
        ),
        Mutant(
            "asked at time 0",
            heun_like(last=True),
            "No network was trained there; its answer is whatever it happens to be.",
        ),
    ),
    hints=(
        "Two calls of `ddim_step`, both from x_t at t.",
        "`there = ddim_step(sch, x_t, eps, t, s)`, and `denoise(there, s, cond)`.",
        "`return ddim_step(sch, x_t, (eps + denoise(there, s, cond)) / 2, t, s)`; `there` if s is "
        "0.",
    ),
    about="a step that looks ahead: Heun's method",
    page=EDM,
)

EXERCISES = (reading, one_step, noise_level, gaussian_guess, memory, heun)
