"""Score SDE: noise as a stochastic differential equation, and the equations that undo it.

Score-Based Generative Modeling through Stochastic Differential Equations, Yang Song, Jascha
Sohl-Dickstein, Diederik P. Kingma, Abhishek Kumar, Stefano Ermon, Ben Poole, 2020, arXiv
2011.13456.

Chains of many small steps become one equation in continuous time, which runs forwards into noise.
Run backwards it needs nothing but the score, and so does an ordinary equation without noise that
has the same densities at every time.

    dx = f(x, t) dt + g(t) dw                               forward
    dx = [f - g^2 score] dt + g dw                          backward
    dx = [f - g^2 score / 2] dt                             probability flow

The flow changes densities in a known way, so with it the model has a likelihood. Three processes
are here: variance preserving (DDPM in the limit), variance exploding (NCSN in the limit), and
sub-VP, whose variance is smaller than the first one's at every time.

Try: `predictor_corrector` against `euler_maruyama` at equal evaluations, with few and with many
steps; the corrector pays only where the grid is already fine.

Weakness: at clean times scores grow without bound, so training and sampling stop a little before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from minidiff.foundations.plane import (
    Learned,
    PlaneNet,
    ask,
    flow_log_prob,
    normal_log_prob,
    standard,
)

LEAST = 1e-5  # time at which training begins
CLEAN = 1e-3  # time at which sampling stops
SNR = 0.16  # of the corrector, as in the paper

BETA_MIN, BETA_MAX = 0.1, 20.0
SIGMA_MIN, SIGMA_MAX = 0.01, 10.0  # the greatest: some times the width of the data

Score = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class SDE:
    """A forward process on times 0 to 1.

    levels  t -> (alpha, sigma) of x_t = alpha x0 + sigma eps; takes tensors
    pull    t -> c of the drift f = c x
    spread  t -> g
    prior   standard deviation at time 1
    """

    name: str
    levels: Callable[[Tensor], tuple[Tensor, Tensor]]
    pull: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]
    prior: float


def beta(t: Tensor) -> Tensor:
    """Rate of noise at time t."""
    return BETA_MIN + t * (BETA_MAX - BETA_MIN)


def beta_until(t: Tensor) -> Tensor:
    """Integral of beta from 0 to t."""
    return t * BETA_MIN + t**2 * (BETA_MAX - BETA_MIN) / 2


def _vp_levels(t):
    return torch.exp(-beta_until(t) / 2), torch.sqrt(-torch.expm1(-beta_until(t)))


def _sub_vp_levels(t):
    return torch.exp(-beta_until(t) / 2), -torch.expm1(-beta_until(t))  # not its root


def _sub_vp_spread(t):
    return torch.sqrt(beta(t) * -torch.expm1(-2 * beta_until(t)))


def _ve_sigma(t):
    return SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** t


def _ve_levels(t):
    return torch.ones_like(t), _ve_sigma(t)


def _ve_spread(t):
    return _ve_sigma(t) * math.sqrt(2 * math.log(SIGMA_MAX / SIGMA_MIN))


VP = SDE("vp", _vp_levels, lambda t: -beta(t) / 2, lambda t: torch.sqrt(beta(t)), 1.0)
SUB_VP = SDE("sub-vp", _sub_vp_levels, lambda t: -beta(t) / 2, _sub_vp_spread, 1.0)
VE = SDE("ve", _ve_levels, torch.zeros_like, _ve_spread, SIGMA_MAX)
SDES = {sde.name: sde for sde in (VP, SUB_VP, VE)}


def at(function: Callable, t: float):
    """A function of tensors at one time, as a number or a pair of them."""
    found = function(torch.tensor(t, dtype=torch.float64))
    return tuple(f.item() for f in found) if isinstance(found, tuple) else found.item()


# ---- learning ------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Says noise; the coordinates it sees have unit size, however much noise there is."""

    def __init__(self, sde: SDE = VP):
        super().__init__()
        self.sde = sde
        self.net = PlaneNet()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.levels(t[:, None])
        return self.net(x / torch.sqrt(alpha**2 + sigma**2), t)


def network(sde: SDE = VP) -> nn.Module:
    return Scaled(sde)


def loss(net: nn.Module, x0: Tensor, g: torch.Generator) -> Tensor:
    """E |sigma score + eps|^2, that is, with the weight sigma^2, at even times."""
    t = LEAST + (1 - LEAST) * torch.rand(len(x0), generator=g)
    alpha, sigma = net.sde.levels(t[:, None])
    eps = torch.randn(x0.shape, generator=g)
    return (net(alpha * x0 + sigma * eps, t) - eps).square().sum(1).mean()


def learned(net: nn.Module) -> Learned:
    """Draws by the backward equation; densities by the probability flow."""
    sde = net.sde

    def levels(t: float) -> tuple[float, float]:
        return at(sde.levels, t)

    def score(x: Tensor, t: float) -> Tensor:
        return -ask(net, x, t) / levels(t)[1]

    @torch.no_grad()
    def sample(n: int, steps: int, seed: int) -> Tensor:
        return euler_maruyama(sde, score, sde.prior * standard(n, seed), steps, seed)

    def log_prob(x: Tensor) -> Tensor:
        return ode_log_prob(sde, score, x)

    return Learned(levels, sample, score, log_prob)


# ---- sampling ------------------------------------------------------------------------------------


def grid(steps: int) -> list[float]:
    """Times 1 to CLEAN, even."""
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one is needed")
    return torch.linspace(1, CLEAN, steps + 1, dtype=torch.float64).tolist()


def euler_maruyama(sde: SDE, score: Score, x: Tensor, steps: int, seed: int) -> Tensor:
    """The backward equation in even steps; the last one adds no noise."""
    g = torch.Generator().manual_seed(seed)
    times = grid(steps)
    for t, s in pairwise(times):
        x, mean = _backward_step(sde, score, x, t, t - s, g)
    return mean


def _backward_step(sde: SDE, score: Score, x: Tensor, t: float, h: float, g):
    """(moved points, the same without noise)."""
    spread = at(sde.spread, t)
    mean = x - h * (at(sde.pull, t) * x - spread**2 * score(x, t))
    z = torch.randn(x.shape, generator=g, dtype=x.dtype)
    return mean + spread * math.sqrt(h) * z, mean


def predictor_corrector(
    sde: SDE, score: Score, x: Tensor, steps: int, seed: int, snr: float = SNR
) -> Tensor:
    """Each step of the backward equation after one of Langevin's at the same time, which moves
    points towards the right density there. Two evaluations a step.
    """
    g = torch.Generator().manual_seed(seed)
    times = grid(steps)
    for t, s in pairwise(times):
        x = langevin_step(score, x, t, snr, g)
        x, mean = _backward_step(sde, score, x, t, t - s, g)
    return mean


def langevin_step(score: Score, x: Tensor, t: float, snr: float, g: torch.Generator) -> Tensor:
    """x + h score + sqrt(2 h) z, with the h at which the pull is `snr` of the noise in length."""
    z = torch.randn(x.shape, generator=g, dtype=x.dtype)
    pull = score(x, t)
    h = 2 * (snr * z.norm(dim=1).mean() / pull.norm(dim=1).mean()) ** 2
    return x + h * pull + torch.sqrt(2 * h) * z


def flow(sde: SDE, score: Score) -> Callable[[Tensor, float], Tensor]:
    """Velocity dx/dt of the probability flow."""

    def velocity(x: Tensor, t: float) -> Tensor:
        return at(sde.pull, t) * x - at(sde.spread, t) ** 2 / 2 * score(x, t)

    return velocity


def ode_log_prob(sde: SDE, score: Score, x: Tensor, steps: int = 200) -> Tensor:
    """Log density (n,) of points x (n d) in nats, with the exact divergence; times are dense where
    the process is clean.
    """

    def prior(z: Tensor) -> Tensor:
        return normal_log_prob(z / sde.prior) - z.shape[1] * math.log(sde.prior)

    times = torch.logspace(math.log10(CLEAN), 0, steps + 1, dtype=torch.float64).tolist()
    return flow_log_prob(flow(sde, score), prior, x, times)
