"""EDM: a network that always sees, and always answers, numbers of unit size.

Elucidating the Design Space of Diffusion-Based Generative Models, Tero Karras, Miika Aittala, Timo
Aila, Samuli Laine, 2022, arXiv 2206.00364.

Add noise of deviation sigma and shrink nothing; the best denoiser D(x; sigma) is then all one
needs, and score = (D - x) / sigma^2. Around the network stand four factors,

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

    c_skip = s^2 / (sigma^2 + s^2)      c_out   = sigma s / sqrt(sigma^2 + s^2)
    c_in   = 1 / sqrt(sigma^2 + s^2)    c_noise = ln(sigma) / 4

with s the deviation of the data, chosen so that F's input and target have variance 1 at every
sigma. The loss is weighted by 1 / c_out^2, and sigma is drawn where there is something to learn:
its logarithm is normal. Sampling is Heun's method on a grid that is dense where sigma is small,
with fresh noise on the way if one likes ("churn"), which repairs what a wrong score has broken.

Try: `churn` 10 with a score that is a tenth too small; rho 1 in place of 7.

Weakness: s is a number one must know. Churn adds its own error where the score is right. And an
answer of nothing is nearly right at every sigma at first, so that in the plane learning begins
late: it has twice the steps of the others there.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from minidiff.foundations.plane import Learned, PlaneNet, standard

SIGMA_DATA = 1.0  # of the points; .5 of pictures in [-1, 1]
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
# of the logarithm of sigma in training: the paper's -1.2 and 1.2, of data of deviation .5
MEAN, STD = -1.2 + math.log(SIGMA_DATA / 0.5), 1.2


class Preconditioned(nn.Module):
    """D(x; sigma): noisy points (n d), deviations (n,) -> clean guesses (n d)."""

    def __init__(self, sigma_data: float = SIGMA_DATA):
        super().__init__()
        self.sigma_data = sigma_data
        self.net = PlaneNet()

    def factors(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in, c_noise) of deviations of any shape."""
        s = self.sigma_data
        total = sigma**2 + s**2
        return s**2 / total, sigma * s / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, c_in, c_noise = self.factors(sigma[:, None])
        return c_skip * x + c_out * self.net(c_in * x, c_noise[:, 0])


def network() -> nn.Module:
    return Preconditioned()


def loss(net: nn.Module, x0: Tensor, g: torch.Generator) -> Tensor:
    """Squared error of the guess over c_out^2: at the start about 1 in each coordinate, at every
    sigma.
    """
    sigma = torch.exp(MEAN + STD * torch.randn(len(x0), generator=g))
    _, c_out, _, _ = net.factors(sigma[:, None])
    x = x0 + sigma[:, None] * torch.randn(x0.shape, generator=g)
    return ((net(x, sigma) - x0) / c_out).square().sum(1).mean()


def sigma_of(u: float, rho: float = RHO) -> float:
    """Deviation at time u: 0 is clean, 1 is SIGMA_MAX; between SIGMA_MIN and that even in
    sigma^(1/rho).
    """
    if u <= 0:
        return 0.0
    low, high = SIGMA_MIN ** (1 / rho), SIGMA_MAX ** (1 / rho)
    return (low + u * (high - low)) ** rho


def grid(steps: int, rho: float = RHO) -> list[float]:
    """Deviations SIGMA_MAX ... SIGMA_MIN, 0: one more than `steps`."""
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one is needed")
    high, low = SIGMA_MAX ** (1 / rho), SIGMA_MIN ** (1 / rho)
    falling = torch.linspace(high, low, steps, dtype=torch.float64)
    return [*(falling**rho).tolist(), 0.0]


def learned(net: nn.Module) -> Learned:
    """Heun's method without churn."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return net(x.float(), torch.full((len(x),), sigma)).to(x.dtype)

    def levels(u: float) -> tuple[float, float]:
        return 1.0, sigma_of(u)

    def score(x: Tensor, u: float) -> Tensor:
        sigma = sigma_of(u)
        return (denoise(x, sigma) - x) / sigma**2

    @torch.no_grad()
    def sample(n: int, steps: int, seed: int) -> Tensor:
        return heun(denoise, SIGMA_MAX * standard(n, seed), grid(steps), seed=seed)

    return Learned(levels, sample, score, evaluations=lambda steps: 2 * steps - 1)


def heun(denoise, x: Tensor, sigmas: list[float], *, churn: float = 0.0, seed: int = 0) -> Tensor:
    """Follow dx/dsigma = (x - D) / sigma from the first of `sigmas` to the last (Algorithm 2, with
    noise at every sigma and of its own size).

    churn   S_churn: how much noise is added over all steps
    """
    g = torch.Generator().manual_seed(seed)
    steps = len(sigmas) - 1
    for sigma, after in pairwise(sigmas):
        gamma = min(churn / steps, math.sqrt(2) - 1)
        if gamma > 0:
            raised = sigma * (1 + gamma)
            z = torch.randn(x.shape, generator=g, dtype=x.dtype)
            x = x + math.sqrt(raised**2 - sigma**2) * z
            sigma = raised
        slope = (x - denoise(x, sigma)) / sigma
        moved = x + (after - sigma) * slope
        if after > 0:
            slope_after = (moved - denoise(moved, after)) / after
            moved = x + (after - sigma) * (slope + slope_after) / 2
        x = moved
    return x
