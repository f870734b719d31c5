"""Around sampling: a step with matrices, a stream of frames, the mean of a network's noise."""

import torch

from minidiff.learn.exercise import Exercise, Fact, Mutant
from minidiff.learn.exercises.inputs import ANY_SCHEDULE, FLOW, LINEAR, draws, preserving_assumed
from minidiff.samplers.calibrated import measured_means
from minidiff.samplers.gddim import Langevin, gddim_step
from minidiff.samplers.stream import next_level

# ---- gDDIM ---------------------------------------------------------------------------------------


def slow_gddim(x, eps, Psi, R_t, R_s):
    """Row by row, as columns."""
    rows = []
    for state, e in zip(x.double(), eps.double()):
        mean = state - R_t.double() @ e
        rows.append(Psi.double() @ mean + R_s.double() @ e)
    return torch.stack(rows).to(x.dtype)


def gddim_cases(seed):
    cases = []
    for n, d in ((1, 1), (3, 2), (4, 3)):
        cases.append(draws(seed + d, (n, d), (n, d), (d, d), (d, d), (d, d)))
    return cases


def langevin_matrices(t, s):
    p = Langevin()
    return p.Psi(t, s).float(), p.R(t).float(), p.R(s).float()


def a_point(fn):
    Psi, R_t, R_s = langevin_matrices(0.6, 0.3)
    (z,) = draws(11, (20, 2))
    mean = torch.tensor([0.7, -0.3])
    return fn(mean + z @ R_t.T, z, Psi, R_t, R_s), Psi @ mean + z @ R_s.T


def triangular(K):
    return torch.linalg.cholesky(K @ K.mT + 1e-6 * torch.eye(len(K)))


gddim = Exercise(
    "gddim_step",
    "warm-up",
    "DDIM with matrices. States `x` and noises `eps` are rows (n d). `Psi` (d d) carries a mean "
    "from time t to time s, `R_t` and `R_s` (d d) are the roots of the noise's covariance at both. "
    "For one state, as a column: $x_s = \\Psi (x_t - R_t \\epsilon) + R_s \\epsilon$. Return all "
    "rows (n d).",
    gddim_step,
    slow_gddim,
    gddim_cases,
    facts=(Fact("a point with its noise stays that point with that noise", a_point, 1e-4),),
    tolerance=1e-4,
    mutants=(
        Mutant(
            "rows times matrices that are meant for columns",
            lambda x, e, Psi, R_t, R_s: (x - e @ R_t) @ Psi + e @ R_s,
            "A row must be multiplied by the transposed matrix. With numbers or diagonal matrices "
            "nobody notices; with these, position and velocity are exchanged.",
        ),
        Mutant(
            "the old noise is not carried",
            lambda x, e, Psi, R_t, R_s: x @ Psi.mT - e @ R_t.mT + e @ R_s.mT,
            "The noise that is taken off is that of time t, and goes before the state is carried: "
            "afterwards it has another size.",
        ),
        Mutant(
            "carried the wrong way",
            lambda x, e, Psi, R_t, R_s: (x - e @ R_t.mT) @ torch.linalg.inv(Psi).mT + e @ R_s.mT,
            "Psi(s, t) and Psi(t, s) are each other's inverse, and papers order the two times "
            "either way. With this one, the mean shrinks where it was to grow.",
        ),
        Mutant(
            "Cholesky's root",
            lambda x, e, Psi, R_t, R_s: (
                (x - e @ triangular(R_t).mT) @ Psi.mT + e @ triangular(R_s).mT
            ),
            "Both roots have the same covariance, so the samples of one time look right. But eps "
            "is the noise under the root that was given; the other one turns it.",
        ),
        Mutant(
            "the noise is not put back",
            lambda x, e, Psi, R_t, R_s: (x - e @ R_t.mT) @ Psi.mT,
            "That is the guess of the mean. The next call of the network would be asked about a "
            "state with no noise, at a time that has some.",
        ),
    ),
    hints=(
        "DDIM: take the noise off, scale what is left, put the noise back.",
        "A column A v is the row v @ A.mT.",
        "`(x - eps @ R_t.mT) @ Psi.mT + eps @ R_s.mT`.",
    ),
    page="tutorials/samplers/gddim.md",
    about="DDIM where the noise has a direction",
)


# ---- the stream ----------------------------------------------------------------------------------


def slow_next_level(sch, x0, times, noises, shift=1, noise_shift=1, fixed=False, root=False):
    alpha = sch.alpha.tolist()
    sigma = sch.sigma.tolist()
    rows = []
    for i, picture in enumerate(x0.double()):
        t = times[shift] if fixed else times[i + shift]
        size = sigma[t] ** 2 if root else sigma[t]
        rows.append(alpha[t] * picture + size * noises[i + noise_shift].double())
    return torch.stack(rows).to(x0.dtype)


def level_like(**how):
    return lambda *args: slow_next_level(*args, **how)


def level_cases(seed):
    cases = []
    ways = ((LINEAR, (900, 300), 1), (LINEAR, (950, 700, 400, 150), 3), (FLOW, (800, 500, 200), 1))
    for sch, times, k in ways:
        x0, noises = draws(seed + k, (k, 2, 3, 3), (len(times), 2, 3, 3))
        cases.append((sch, x0, times, noises))
    return cases


def no_noise(fn):
    (x0,) = draws(8, (2, 1, 2, 2))
    alpha = torch.tensor([LINEAR.alpha[400].item(), LINEAR.alpha[150].item()])
    got = fn(LINEAR, x0, (800, 400, 150), torch.zeros(3, 1, 2, 2))
    return got, alpha.view(2, 1, 1, 1) * x0


level = Exercise(
    "next_level",
    "warm-up",
    "A stream batch: frames at different levels went through the network together, and `x0` (k ..) "
    "has the guess of a clean picture for each, the newest first. Row i was made at `times[i]` "
    "(falling). Noise each guess to the time after its own: $\\alpha_{t_{i+1}} \\hat x_0 + "
    "\\sigma_{t_{i+1}} n_{i+1}$, with row i + 1 of `noises` (n ..): each level has its noise. k is "
    "at most n - 1, and may be less while the stream warms up." + ANY_SCHEDULE,
    next_level,
    slow_next_level,
    level_cases,
    facts=(Fact("without noise each is scaled by the alpha of its next time", no_noise),),
    mutants=(
        Mutant(
            "noised to its own time",
            level_like(shift=0),
            "The guess goes back to where it came from: the network is told t_{i+1} and sees more "
            "noise than that, tick after tick. Pictures stay grainy.",
        ),
        Mutant(
            "the noise of the level before",
            level_like(noise_shift=0),
            "Nothing looks wrong: it is unit noise. But the frame has met that noise already, and "
            "its guess was made with it, so the two are no longer independent.",
        ),
        Mutant(
            "one time for all rows",
            level_like(fixed=True),
            "Right with two levels. With more, every row but the first is at another level than "
            "the network will be told.",
        ),
        Mutant(
            "the variance for its root",
            level_like(root=True),
            "sigma is a standard deviation. Its square is smaller, and the state too clean.",
        ),
        preserving_assumed(next_level),
    ),
    hints=(
        "It is q_sample, with another time in every row.",
        "The k times are `times[1:k + 1]`, the noises `noises[1:k + 1]`.",
        "`q_sample(sch, x0, torch.tensor(times[1:k + 1]), noises[1:k + 1])`.",
    ),
    page="tutorials/samplers/stream.md",
    about="frames of a stream, each to its next level",
)


# ---- calibration ---------------------------------------------------------------------------------


def slow_means(eps, labels, classes=True, over_n=True, freedom=1, root=False, summed=True):
    means = []
    chance = []
    for c in sorted(set(labels.tolist())):
        own = [e.double() for e, k in zip(eps, labels.tolist()) if k == c or not classes]
        n = len(own)
        mean = sum(own) / n
        square = sum((e - mean) ** 2 for e in own) / (n - freedom)
        noise = square.sum() if summed else square.mean()
        noise = noise / n if over_n else noise
        means.append(mean)
        chance.append(noise**0.5 if root else noise)
    return torch.stack(means).to(eps.dtype), torch.stack(chance).to(eps.dtype)


def means_like(**how):
    return lambda *args: slow_means(*args, **how)


def means_cases(seed):
    cases = []
    for n, shape, k in ((4, (2,), 1), (9, (2, 3), 3), (12, (1, 2, 2), 4)):
        (eps,) = draws(seed + n, (n, *shape))
        labels = torch.arange(n) % k
        cases.append((eps + labels.view(-1, *[1] * len(shape)), labels * 3 - 1))
    return cases


def shifted_by_class(fn):
    (eps,) = draws(6, (10, 3))
    labels = torch.arange(10) % 2
    before, _ = fn(eps, labels)
    after, _ = fn(eps + labels[:, None], labels)
    return after - before, torch.tensor([[0.0], [1.0]]).expand(2, 3)


means = Exercise(
    "measured_means",
    "warm-up",
    "What calibration measures. `eps` (n ..) are the noises that a network predicted at one time, "
    "`labels` (n,) the classes of the pictures, any whole numbers. Return two tensors: the mean "
    "noise of each class (k ..), by rising label; and (k,), how much of its square is chance: the "
    "variance of that mean, summed over all numbers of a picture. Estimate the variance without "
    "bias. Every class has two pictures or more.",
    measured_means,
    slow_means,
    means_cases,
    facts=(Fact("what is added to a class is added to its mean", shifted_by_class),),
    mutants=(
        Mutant(
            "one mean for all classes",
            means_like(classes=False),
            "The mean over all pictures may be 0 while no class has a mean of 0: then nothing is "
            "corrected.",
        ),
        Mutant(
            "the variance of an answer",
            means_like(over_n=False),
            "A mean of n answers varies n times less than one answer. With this figure no "
            "calibration would ever look worth its while.",
        ),
        Mutant(
            "divided by n",
            means_like(freedom=0),
            "The distance to the own mean is too small on average: n - 1 in place of n repairs it. "
            "With two pictures a class the figure is half of what it should be.",
        ),
        Mutant(
            "the deviation for the variance",
            means_like(root=True),
            "It is to be compared with |mean|^2, so it must be a square as well.",
        ),
        Mutant(
            "averaged over the picture",
            means_like(summed=False),
            "|mean|^2 is a sum over all numbers of a picture. Compared with an average, every mean "
            "looks significant.",
        ),
    ),
    hints=(
        "`labels.unique()` gives the classes, rising.",
        "The variance of a mean of n is the variance of one over n.",
        "`own.mean(0)` and `own.var(0).sum() / len(own)`, for each class.",
    ),
    page="tutorials/samplers/calibrated.md",
    about="the mean of a network's noise, by class",
)


EXERCISES = (gddim, level, means)
