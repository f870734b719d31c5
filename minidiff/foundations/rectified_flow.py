"""Rectified flow: straighten a flow by learning it again from its own pairs.

Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, Xingchao Liu,
Chengyue Gong, Qiang Liu, 2022, arXiv 2209.03003.

Lines between independent pairs cross, and where they cross the mean velocity turns. A flow's own
paths cannot cross: from one place there is one way on. So carry noise points to data with the flow
that was learned, keep the pairs, and learn the velocity of the straight lines between *them*.

    pairs:  x0 = eps - integral of v du;      L = E |v'(z_u, u) - (eps - x0)|^2 over these pairs

The points drawn stay the same in law, the cost E |eps - x0|^2 cannot rise, and the paths get
straighter each time. One that is quite straight needs one step.

    straightness  S = integral of E |v(z_u, u) - (z_1 - z_0)|^2 du

Try: a second round; pairs from few steps (`PAIR_STEPS`), whose errors are learned, too.

Weakness: every round learns the errors of the one before.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from minidiff.foundations import flow_matching
from minidiff.foundations.flow_matching import euler, network, velocity_error
from minidiff.foundations.plane import STEPS, Learned, ask, learn, standard

PAIRS = 20_000
PAIR_STEPS = 100

__all__ = ["learned", "loss", "network", "own_pairs", "straightness", "teach"]


def learned(net: nn.Module) -> Learned:
    """As of flow matching, without a score: that follows from a velocity only where noise was drawn
    independently of the data.
    """
    return replace(flow_matching.learned(net), score=None)


def loss(net: nn.Module, pairs: Tensor, g: torch.Generator) -> Tensor:
    """Squared error of the velocity on the lines of given pairs (n 2d): x0 beside eps."""
    x0, eps = pairs.chunk(2, dim=1)
    return velocity_error(net, x0, eps, torch.rand(len(x0), generator=g))


@torch.no_grad()
def own_pairs(net: nn.Module, n: int, seed: int, steps: int = PAIR_STEPS, dim: int = 2) -> Tensor:
    """n pairs (n 2d) that a flow makes: where it carries a noise point, beside that point."""
    eps = standard(n, seed, dim)
    x0 = euler(lambda z, u: ask(net, z, u), eps, steps)
    return torch.cat([x0, eps], dim=1)


@torch.no_grad()
def straightness(net: nn.Module, n: int, seed: int, steps: int = PAIR_STEPS) -> float:
    """S of a flow from n noise points, by the midpoints of its own even steps: 0 for straight
    paths.
    """
    start = standard(n, seed)
    z = start
    speeds = []
    for k in range(steps, 0, -1):
        v = ask(net, z, k / steps)
        speeds.append(v)
        z = z - v / steps
    whole = start - z  # z_1 - z_0
    return torch.stack([(v - whole).square().sum(1).mean() for v in speeds]).mean().item()


def teach(
    points: Tensor, *, steps: int = STEPS, seed: int = 0, rounds: int = 1, progress: bool = False
) -> tuple[nn.Module, float]:
    """(network, CPU seconds) after flow matching and `rounds` of learning from its own pairs, each
    of `steps`.
    """
    net, seconds = learn(
        network, flow_matching.loss, points, steps=steps, seed=seed, progress=progress
    )
    for k in range(1, rounds + 1):
        pairs = own_pairs(net, PAIRS, seed + 1_000_000 * k, dim=points.shape[1])
        net, more = learn(network, loss, pairs, steps=steps, seed=seed + k, progress=progress)
        seconds += more
    return net, seconds
