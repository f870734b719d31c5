"""Flow matching: learn the velocity of straight lines between data and noise.

Flow Matching for Generative Modeling, Yaron Lipman, Ricky T. Q. Chen, Heli Ben-Hamu, Maximilian
Nickel, Matt Le, 2022, arXiv 2210.02747. Flow Straight and Fast: Learning to Generate and Transfer
Data with Rectified Flow, Xingchao Liu, Chengyue Gong, Qiang Liu, 2022, arXiv 2209.03003. Times:
Scaling Rectified Flow Transformers, Patrick Esser et al., 2024, arXiv 2403.03206.

Draw a data point and a noise point, and a straight line between them. Many lines pass through one
place; the network learns their mean velocity there, and following it carries noise to data.

    z_u = (1 - u) x0 + u eps,      L = E |v(z_u, u) - (eps - x0)|^2

The minimum is E[eps - x0 | z_u], so the paths bend wherever lines cross. Here u = 1 is noise, as in
Esser et al.; Lipman et al. have their time the other way round. Times are drawn as
sigmoid(m + s n), mostly in the middle, where the lines cross.

Try: even times (`s=None`); one step of Euler's method.

Weakness: lines of independent pairs cross, so a few steps cut corners. `reflow.py` straightens
them.
"""

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

LEAST = 1e-3  # time at which densities are asked: at 0 the score has no limit


def network() -> nn.Module:
    """Says velocities."""
    return PlaneNet()


def line(x0: Tensor, eps: Tensor, u: Tensor) -> Tensor:
    """Points (n d) of the straight lines from x0 to eps at times u (n,)."""
    u = u[:, None]
    return (1 - u) * x0 + u * eps


def logit_normal(n: int, g: torch.Generator, m: float = 0.0, s: float | None = 1.0) -> Tensor:
    """n times in (0, 1); `s` None: even ones."""
    if s is None:
        return torch.rand(n, generator=g)
    return torch.sigmoid(m + s * torch.randn(n, generator=g))


def loss(net: nn.Module, x0: Tensor, g: torch.Generator, s: float | None = 1.0) -> Tensor:
    """Squared error of the velocity at a random time of a random line, summed over coordinates."""
    eps = torch.randn(x0.shape, generator=g)
    u = logit_normal(len(x0), g, s=s)
    return velocity_error(net, x0, eps, u)


def velocity_error(net: nn.Module, x0: Tensor, eps: Tensor, u: Tensor) -> Tensor:
    """Squared error of the velocity at times u (n,) of the lines from x0 to eps (n d), summed over
    coordinates, mean over lines.
    """
    v = net(line(x0, eps, u), u)
    return (v - (eps - x0)).square().sum(1).mean()


def learned(net: nn.Module) -> Learned:
    """Euler's method from noise to data; exact divergence for densities."""

    def velocity(z: Tensor, u: float) -> Tensor:
        return ask(net, z, u)

    def score(z: Tensor, u: float) -> Tensor:
        eps = z + (1 - u) * velocity(z, u)
        return -eps / u

    @torch.no_grad()
    def sample(n: int, steps: int, seed: int) -> Tensor:
        return euler(velocity, standard(n, seed), steps)

    def log_prob(x: Tensor) -> Tensor:
        times = torch.linspace(LEAST, 1, 101).tolist()
        return flow_log_prob(velocity, normal_log_prob, x, times)

    return Learned(levels, sample, score, log_prob)


def levels(u: float) -> tuple[float, float]:
    """(alpha, sigma) at time u."""
    return 1 - u, u


def euler(velocity, z: Tensor, steps: int) -> Tensor:
    """Follow a velocity from points z at time 1 to time 0, in even steps."""
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one is needed")
    for k in range(steps, 0, -1):
        z = z - velocity(z, k / steps) / steps
    return z
