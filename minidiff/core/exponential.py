"""Exponential integrators: what the fast samplers share.

Along lambda = log(alpha / sigma) the probability-flow equation has a linear half, which is solved
exactly, and a half that the network knows. From t to s, with h = lambda_s - lambda_t, it reads in
either of its two forms

    x_s = sigma_s / sigma_t x_t + alpha_s h int_0^1 e^((u - 1) h) x0(u) du      by the clean picture
    x_s = alpha_s / alpha_t x_t - sigma_s h int_0^1 e^((1 - u) h) eps(u) du     by the noise

where u runs from 0 at t to 1 at s. No step is taken in these lines: they are exact. A solver
replaces x0(u) or eps(u) by a polynomial through what the network has said, and integrates that
exactly. Both integrals are one, with z = -h for the picture and z = h for the noise.
"""

import math


def phi(k: int, z: float) -> float:
    """int_0^1 e^((1 - u) z) u^(k - 1) / (k - 1)! du for k = 1, 2, ..: the weight of a course that
    grows like u^(k - 1). phi_1 = (e^z - 1) / z, and phi_{k+1} = (phi_k - 1 / k!) / z.
    """
    if abs(z) > 1:
        value = math.expm1(z) / z
        for j in range(1, k):
            value = (value - 1 / math.factorial(j)) / z
        return value
    # that recursion cancels where z is small; the series does not
    return sum(z**j / math.factorial(j + k) for j in range(18))


def exponential_weights(nodes: list[float], z: float) -> list[float]:
    """Weights w, one a node, with sum_j w_j f(nodes_j) = int_0^1 e^((1 - u) z) p(u) du for the
    polynomial p through the values of f at the nodes.
    """
    moments = [math.factorial(k) * phi(k + 1, z) for k in range(len(nodes))]
    weights = []
    for here in nodes:
        lagrange = [1.0]  # by powers of u: 1 at this node, 0 at the others
        for other in nodes:
            if other != here:
                gap = here - other
                up, down = [0.0, *lagrange], [*lagrange, 0.0]
                lagrange = [(a - other * b) / gap for a, b in zip(up, down)]  # * (u - other) / gap
        weights.append(sum(c * moment for c, moment in zip(lagrange, moments)))
    return weights


def step_orders(order: int, ts: list[int], literal: bool = False) -> list[int]:
    """The order of each step of a multistep method on the grid ts: 1, 2, .. at first, for want of
    earlier answers, and .., 2, 1 at last where the grid ends at clean, infinitely far in lambda.

    literal: as public code has it, the end falls on any grid of fewer than 15 steps; on a longer
    one nothing but the step to clean does.
    """
    n = len(ts) - 1
    to_clean = ts[-1] == 0
    orders = []
    for k in range(n):
        left = n - k
        if literal and n >= 15:
            falls = to_clean and left == 1
        else:
            falls = to_clean or literal
        orders.append(min(order, k + 1, left if falls else order))
    return orders


def check_order(order: int, known: tuple[int, ...]) -> None:
    """ValueError for an order that a sampler does not have."""
    if order not in known:
        raise ValueError(
            f"order={order!r} is unknown; choose one of {', '.join(map(str, known))} (higher "
            "orders need smoother guesses and more steps)"
        )
