"""Steps that integrate exactly."""

import math

import torch

from minidiff.core.exponential import exponential_weights, phi
from minidiff.core.process import ddim_step
from newcomers import right, wrong


def lam(sch, t):
    alpha, sigma = sch.at(t)
    return math.log(alpha / sigma)


# ---- block_move ----------------------------------------------------------------------------------


@right("block_move")
def _(sch, x_t, eps, eps_m, t, m, s, taylor=False):
    ratio = (lam(sch, s) - lam(sch, t)) / (lam(sch, m) - lam(sch, t)) / 2
    return ddim_step(sch, x_t, (1 - ratio) * eps + ratio * eps_m, t, s)


@right("block_move")
def _(sch, x_t, eps, eps_m, t, m, s, taylor=False):
    half_snr = sch.log_snr / 2
    h = half_snr[s] - half_snr[t]
    r = (half_snr[m] - half_snr[t]) / h
    mean = eps + (eps_m - eps) / (2 * r)
    return sch.alpha[s] / sch.alpha[t] * x_t - sch.sigma[s] * torch.expm1(h) * mean


@wrong("block_move", "half way")
def _(sch, x_t, eps, eps_m, t, m, s, taylor=False):
    return ddim_step(sch, x_t, eps_m, t, s)


@wrong("block_move", "r in time")
def _(sch, x_t, eps, eps_m, t, m, s, taylor=False):
    r = (t - m) / (t - s)
    return ddim_step(sch, x_t, eps + (eps_m - eps) / (2 * r), t, s)


@wrong("block_move", "the half is forgotten")
def _(sch, x_t, eps, eps_m, t, m, s, taylor=False):
    r = (lam(sch, m) - lam(sch, t)) / (lam(sch, s) - lam(sch, t))
    return ddim_step(sch, x_t, eps + (eps_m - eps) / r, t, s)


@wrong("block_move")
def _(sch, x_t, eps, eps_m, t, m, s, taylor=False):
    return ddim_step(sch, ddim_step(sch, x_t, eps, t, m), eps_m, m, s)


# ---- unipc_move ----------------------------------------------------------------------------------


@right("unipc_move")
def _(sch, x_t, guesses, times, s, variant="bh2"):
    h = lam(sch, s) - lam(sch, times[0])
    nodes = [(lam(sch, r) - lam(sch, times[0])) / h for r in times]
    w = exponential_weights(nodes, -h)
    if len(nodes) == 2:
        first = (1 - math.exp(-h)) / h
        b = first if variant == "bh2" else 1
        w = [first - b / 2 / nodes[1], b / 2 / nodes[1]]
    (a, sig), sig_t = sch.at(s), sch.at(times[0])[1]
    return sig / sig_t * x_t + a * h * sum(c * g for c, g in zip(w, guesses))


@right("unipc_move")
def _(sch, x_t, guesses, times, s, variant="bh2"):
    lams = [lam(sch, t) for t in times]
    h = lam(sch, s) - lams[0]
    r = torch.tensor([(v - lams[0]) / h for v in lams], dtype=torch.float64)
    moments = torch.tensor([math.factorial(k) * phi(k + 1, -h) for k in range(len(r))])
    powers = torch.stack([r**k for k in range(len(r))])
    w = torch.linalg.solve(powers, moments.double())
    if len(r) == 2:
        w[1] = (phi(1, -h) if variant == "bh2" else 1.0) / (2 * r[1])
        w[0] = phi(1, -h) - w[1]
    x = torch.exp(torch.tensor(-h)) * sch.alpha[s] / sch.alpha[times[0]] * x_t
    for c, g in zip(w.tolist(), guesses):
        x = x + sch.alpha[s].item() * h * c * g
    return x


@wrong("unipc_move", "two nodes are not special")
def _(sch, x_t, guesses, times, s, variant="bh2"):
    h = lam(sch, s) - lam(sch, times[0])
    w = exponential_weights([(lam(sch, r) - lam(sch, times[0])) / h for r in times], -h)
    (a, sig), sig_t = sch.at(s), sch.at(times[0])[1]
    return sig / sig_t * x_t + a * h * sum(c * g for c, g in zip(w, guesses))


@wrong("unipc_move", "nodes in t")
def _(sch, x_t, guesses, times, s, variant="bh2"):
    h = lam(sch, s) - lam(sch, times[0])
    nodes = [(times[0] - r) / (times[0] - s) for r in times]
    w = exponential_weights(nodes, -h)
    if len(nodes) == 2:
        b = phi(1, -h) if variant == "bh2" else 1.0
        w = [phi(1, -h) - b / (2 * nodes[1]), b / (2 * nodes[1])]
    (a, sig), sig_t = sch.at(s), sch.at(times[0])[1]
    return sig / sig_t * x_t + a * h * sum(c * g for c, g in zip(w, guesses))


@wrong("unipc_move", "the newest guess alone")
def _(sch, x_t, guesses, times, s, variant="bh2"):
    h = lam(sch, s) - lam(sch, times[0])
    (a, sig), sig_t = sch.at(s), sch.at(times[0])[1]
    return sig / sig_t * x_t + a * (1 - math.exp(-h)) * guesses[0]


@wrong("unipc_move")
def _(sch, x_t, guesses, times, s, variant="bh2"):
    h = lam(sch, s) - lam(sch, times[0])
    (a, sig), sig_t = sch.at(s), sch.at(times[0])[1]
    return sig / sig_t * x_t + a * (1 - math.exp(-h)) * sum(guesses) / len(guesses)
