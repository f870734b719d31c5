"""Minibatch optimal transport: pair noise with the data that are near, before a flow is learned.

Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, Alexander
Tong, Kilian Fatras, Nikolay Malkin et al., 2023, arXiv 2302.00482.

Which noise point belongs to which data point is free: any pairing with the right two halves makes a
flow from noise to data. Independent pairs cross most. So within each small batch choose the pairing
that moves points least,

    pi = argmin over permutations of  sum_i |x0_i - eps_pi(i)|^2

and learn the lines of these pairs. In large batches this tends to optimal transport, whose paths
are straight and do not cross.

Try: batches of 2, 16, 64: how do cost and straightness fall?

Weakness: with a condition, pair within each class, or the pairing leaks the condition. In many
dimensions all points are equally far apart, and a small batch has little to choose.
"""

import time

import numpy as np
import torch
from torch import Tensor, nn

from minidiff.foundations.flow_matching import network
from minidiff.foundations.plane import STEPS, check_points, learn, standard
from minidiff.foundations.rectified_flow import learned, loss

GROUP = 64
PAIRS = 20_000

__all__ = ["assignment", "learned", "loss", "network", "paired", "teach"]


def assignment(cost: np.ndarray) -> np.ndarray:
    """The column of each row (n,) in the pairing of least total cost (n n): shortest augmenting
    paths (the Hungarian method in the form of Jonker and Volgenant).

    Prices u, v keep cost - u - v >= 0, and 0 on pairs. Each new row looks for the cheapest way to a
    free column along which pairs can be exchanged, and the prices are raised by what it cost.
    """
    n = len(cost)
    if cost.shape != (n, n) or not np.isfinite(cost).all():
        raise ValueError(f"costs of shape {cost.shape}: expected a square table of finite numbers")
    u = np.zeros(n + 1)
    v = np.zeros(n + 1)
    row_of = np.full(n + 1, n)  # of each column; the last column and row stand for "none"
    for row in range(n):
        row_of[n] = row
        column = n
        distance = np.full(n, np.inf)
        came_from = np.full(n, n)
        done = np.zeros(n + 1, dtype=bool)
        while row_of[column] != n:
            done[column] = True
            i = row_of[column]
            reduced = cost[i] - u[i] - v[:n]
            shorter = ~done[:n] & (reduced < distance)
            distance[shorter] = reduced[shorter]
            came_from[shorter] = column
            open_ = np.where(done[:n], np.inf, distance)
            nearest = int(open_.argmin())
            step = open_[nearest]
            u[row_of[done]] += step
            v[done] -= step
            distance[~done[:n]] -= step
            column = nearest
        while column != n:  # exchange the pairs along the way
            before = came_from[column]
            row_of[column] = row_of[before]
            column = before
    columns = np.empty(n, dtype=int)
    columns[row_of[:n]] = np.arange(n)
    return columns


def paired(x0: Tensor, eps: Tensor, group: int = GROUP) -> Tensor:
    """Pairs (n 2d) of data and noise points (n d), least moved within each `group` of rows."""
    if x0.shape != eps.shape:
        raise ValueError(f"{tuple(x0.shape)} data and {tuple(eps.shape)} noise points do not pair")
    if group < 1:
        raise ValueError(f"group={group}: at least one point is needed")
    chosen = []
    for data, noises in zip(x0.split(group), eps.split(group)):
        cost = torch.cdist(data.double(), noises.double()).square().numpy()
        chosen.append(noises[torch.from_numpy(assignment(cost))])
    return torch.cat([x0, torch.cat(chosen)], dim=1)


def teach(
    points: Tensor, *, steps: int = STEPS, seed: int = 0, progress: bool = False
) -> tuple[nn.Module, float]:
    """(network, CPU seconds): lines between points and the noise paired with them."""
    check_points(points)
    start = time.process_time()
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(points), (PAIRS,), generator=g)
    eps = standard(PAIRS, seed + 1_000_000, points.shape[1])
    pairs = paired(points[rows].double(), eps)
    pairing = time.process_time() - start
    net, seconds = learn(network, loss, pairs, steps=steps, seed=seed, progress=progress)
    return net, pairing + seconds
