"""Foundation papers side by side: each learns the same mixture, and its score, its density and its
points are compared with the exact ones.

    score error  mean square of sigma (score - exact), over noisy points of RATIOS: what a network
                 that predicts noise is off by, beyond the noise that nobody can tell
    told         1 - score error / that of a score of zero: 0 has learned nothing, 1 is exact
    energy       distance of drawn points to fresh ones; its null is that of two fresh sets
    outliers     share of drawn points more than 3 deviations from every mode; the mixture's own is
                 exp(-4.5) = .011
    nats short   by how much the mean log density of fresh points falls short of the exact one

Try: 300 steps of training; four steps of sampling.

Weakness: energy is at its null for whatever works at all. Outliers and score error tell papers
apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minidiff.data.toy2d import Mixture, energy_distance, gmm8
from minidiff.foundations import FOUNDATIONS, Foundation
from minidiff.foundations.plane import Learned, standard

RATIOS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # of noise to signal, sigma / alpha
STD = 0.1  # of a mode
POINTS = 4000
DATA = 20_000


@dataclass(frozen=True)
class Found:
    """What one paper has learned with one seed."""

    name: str
    seed: int
    seconds: float
    score_error: float | None
    told: float | None
    energy: float
    outliers: float
    nats_short: float | None
    evaluations: int


def time_of(learned: Learned, ratio: float) -> float:
    """The time at which a process has that ratio of noise to signal, by bisection; its last time if
    it never gets there.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        alpha, sigma = learned.levels(middle)
        if sigma < ratio * alpha:
            low = middle
        else:
            high = middle
    return high


@torch.no_grad()
def score_error(learned: Learned, data: Mixture, seed: int, n: int = 2000) -> float:
    """Mean over RATIOS of E |sigma (score - exact)|^2, summed over coordinates."""
    errors = []
    for i, ratio in enumerate(RATIOS):
        u = time_of(learned, ratio)
        alpha, sigma = learned.levels(u)
        x0 = data.sample(n, seed=10_000 + seed)
        eps = standard(n, 1_000_000 * (i + 1) + seed)
        x = alpha * x0 + sigma * eps
        off = sigma * (learned.score(x, u) - data.score(x, alpha, sigma))
        errors.append(off.square().sum(1).mean().item())
    return float(np.mean(errors))


def told(error: float, learned: Learned, data: Mixture, seed: int) -> float:
    """Share of the exact score's mean square that an error leaves."""
    nothing = replace(learned, score=lambda x, u: torch.zeros_like(x))
    return 1 - error / score_error(nothing, data, seed)


def outliers(points: Tensor, data: Mixture, std: float = STD) -> float:
    """Share of points (n d) more than three deviations from every mode."""
    nearest = torch.cdist(points, data.means).min(1).values
    return (nearest > 3 * std).double().mean().item()


def measure(f: Foundation, *, seed: int, train: int | None = None, steps: int = 100) -> Found:
    """Teach one paper's network the eight modes and compare; `train` steps, by default its own."""
    data = gmm8(std=STD)
    net, seconds = f.teach(data.sample(DATA, seed), steps=train or f.steps, seed=seed)
    learned = f.module.learned(net)
    drawn = learned.sample(POINTS, steps, seed)
    fresh = data.sample(POINTS, seed=1000 + seed)
    error = score_error(learned, data, seed) if learned.score else None
    short = None
    if learned.log_prob:
        some = fresh[:500]
        short = (data.log_prob(some) - learned.log_prob(some)).mean().item()
    return Found(
        f.name,
        seed,
        seconds,
        error,
        None if error is None else told(error, learned, data, seed),
        energy_distance(drawn, fresh),
        outliers(drawn, data),
        short,
        learned.evaluations(steps),
    )


def null_energy(seeds: Sequence[int]) -> list[float]:
    """Energy distances of two fresh sets of the mixture, one for each seed."""
    data = gmm8(std=STD)
    return [
        energy_distance(data.sample(POINTS, 1000 + s), data.sample(POINTS, 2000 + s)) for s in seeds
    ]


def timeline() -> list[Foundation]:
    """The papers in the order of their years."""
    return sorted(FOUNDATIONS.values(), key=lambda f: f.year)
