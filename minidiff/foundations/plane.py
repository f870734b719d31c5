"""The plane: where every foundation paper is learned on the same points, and what its network
should have learned is a formula.

A paper of this room is three functions, of which `learn` makes something to be measured:

    network() -> nn.Module             what is trained
    loss(net, x0, g) -> scalar         its objective on points x0 (n d); g is its randomness
    learned(net) -> Learned            what the trained network says, and how points are drawn

Whatever a paper trains its network to say, it stands for a score, the gradient of the log density
of noisy points, and noisy points of a mixture have an exact one (`Mixture.score`). So papers that
predict noise, scores, velocities or clean points meet on one measure. All have the same network
and batch, and the same number of steps unless their record says another, so that what differs is
the paper.

Try: `PlaneNet(width=32)` for all of them, or 300 steps: who suffers first?

Weakness: two dimensions forgive much. Nothing here is hard because it is large.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.core.denoise import noise
from minidiff.models.blocks import timestep_embedding

STEPS = 3000
BATCH = 512
RATE = 2e-3

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Learned:
    """What a paper has learned of a distribution of points.

    levels    noise at a time u in [0, 1]: (alpha, sigma) of x_u = alpha x0 + sigma eps; 0 is clean
    sample    (n, steps, seed) -> n points (n d), in as many evaluations as `evaluations` says
    score     (x (n d), u) -> gradient of the log density of points at time u, (n d); None: what was
              learned has none
    log_prob  points (n d) -> log density in nats (n,); None: this paper has none
    evaluations  of the network for each drawn point, of a number of steps
    """

    levels: Callable[[float], tuple[float, float]]
    sample: Callable[[int, int, int], Tensor]
    score: Callable[[Tensor, float], Tensor] | None = None
    log_prob: Callable[[Tensor], Tensor] | None = None
    evaluations: Callable[[int], int] = lambda steps: steps


class PlaneNet(nn.Module):
    """Points x (n d) and times u (n,) in [0, 1] -> (n out): three hidden layers of SiLU, with sines
    and cosines of the time beside the coordinates.
    """

    def __init__(self, dim: int = 2, out: int | None = None, width: int = 128, waves: int = 32):
        super().__init__()
        self.waves = waves
        self.layers = nn.ModuleList(
            [nn.Linear(dim + waves, width), nn.Linear(width, width), nn.Linear(width, width)]
        )
        self.last = nn.Linear(width, out or dim)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        h = torch.cat([x, timestep_embedding(1000 * u, self.waves).to(x)], dim=1)
        for layer in self.layers:
            h = F.silu(layer(h))
        return self.last(h)


def learn(
    network: Callable[[], nn.Module],
    loss: Loss,
    points: Tensor,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: bool = False,
) -> tuple[nn.Module, float]:
    """(trained network in eval mode, CPU seconds it took): Adam, with a rate that falls in a line
    to zero, on random rows of `points` (n d).

    ValueError: points that are no table of finite numbers, or all alike; no steps.
    """
    check_points(points)
    if steps < 1:
        raise ValueError(f"steps={steps}: training needs at least one step")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network()
    g = torch.Generator().manual_seed(seed)
    mover = torch.optim.Adam(net.parameters(), lr=RATE)
    points = points.float()
    start = time.process_time()
    for step in tqdm(range(steps), disable=not progress, desc="learning"):
        for group in mover.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        rows = torch.randint(len(points), (BATCH,), generator=g)
        value = loss(net, points[rows], g)
        if not value.isfinite():
            raise FloatingPointError(f"the loss is {value.item()} at step {step}")
        mover.zero_grad(set_to_none=True)
        value.backward()
        mover.step()
    return net.eval().requires_grad_(False), time.process_time() - start


def check_points(points: Tensor) -> None:
    """ValueError: not a table of at least two finite points that differ."""
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(
            f"points of shape {tuple(points.shape)}: expected a table (n, d) of two points or more"
        )
    if not points.isfinite().all():
        raise ValueError("points hold NaN or infinity: every coordinate must be a number")
    if (points == points[0]).all():
        raise ValueError(f"all {len(points)} points are the same: there is nothing to learn")


def standard(n: int, seed: int, dim: int = 2) -> Tensor:
    """n points (n d) of N(0, I), float64: point i depends on seed + i only."""
    return noise((n, dim), seed, dtype=torch.float64)


def normal_log_prob(x: Tensor) -> Tensor:
    """Log density (n,) of N(0, I) at points x (n d)."""
    return -(x.square() + math.log(2 * math.pi)).sum(1) / 2


def ask(net: nn.Module, x: Tensor, u: float) -> Tensor:
    """The network's answer (n out) to points x (n d) at one time u, in their precision."""
    times = torch.full((len(x),), float(u))
    return net(x.float(), times).to(x.dtype)


def flow_log_prob(
    velocity: Callable[[Tensor, float], Tensor],
    prior: Callable[[Tensor], Tensor],
    x: Tensor,
    times: list[float],
) -> Tensor:
    """Log density (n,) of points x (n d) under a flow that carries the prior to them, in nats.

    velocity  (x, u) -> dx/du (n d), differentiable
    prior     log density (n,) of where the flow ends
    times     from the clean end to the prior, in the steps of Heun's method

    Along a path, log p falls by the divergence of the velocity (instantaneous change of variables:
    Chen et al. 2018, 1806.07366). The divergence is exact: one gradient for each coordinate.
    """
    total = torch.zeros(len(x), dtype=x.dtype)
    for u, after in pairwise(times):
        h = after - u
        first, spread = _with_divergence(velocity, x, u)
        second, spread_after = _with_divergence(velocity, x + h * first, after)
        x = x + h / 2 * (first + second)
        total = total + h / 2 * (spread + spread_after)
    return prior(x) + total


def _with_divergence(velocity, x: Tensor, u: float) -> tuple[Tensor, Tensor]:
    """(velocity (n d), its divergence (n,)) at points x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        v = velocity(x, u)
        divergence = torch.zeros(len(x), dtype=x.dtype)
        for i in range(x.shape[1]):
            (slope,) = torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)
            divergence = divergence + slope[:, i]
    return v.detach(), divergence.detach()
