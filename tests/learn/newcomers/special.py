"""Around sampling: a step with matrices, a stream of frames, the mean of a network's noise."""

import torch

from newcomers import right, wrong

# ---- gddim_step ----------------------------------------------------------------------------------


@right("gddim_step")
def _(x, eps, Psi, R_t, R_s):
    clean = x.T - R_t @ eps.T
    return (Psi @ clean + R_s @ eps.T).T


@right("gddim_step")
def _(x, eps, Psi, R_t, R_s):
    carried = torch.einsum("ij,nj->ni", Psi, x)
    turned = torch.einsum("ij,nj->ni", R_s - Psi @ R_t, eps)
    return carried + turned


@wrong("gddim_step", "rows times matrices that are meant for columns")
def _(x, eps, Psi, R_t, R_s):
    return (x - eps @ R_t) @ Psi + eps @ R_s


@wrong("gddim_step", "the noise is not put back")
def _(x, eps, Psi, R_t, R_s):
    return torch.einsum("ij,nj->ni", Psi, x - eps @ R_t.mT)


@wrong("gddim_step", "the old noise is not carried")
def _(x, eps, Psi, R_t, R_s):
    return torch.einsum("ij,nj->ni", Psi, x) + eps @ (R_s - R_t).mT


# ---- next_level ----------------------------------------------------------------------------------


@right("next_level")
def _(sch, x0, times, noises):
    out = torch.empty_like(x0)
    for i in range(len(x0)):
        alpha, sigma = sch.at(times[i + 1])
        out[i] = alpha * x0[i] + sigma * noises[i + 1]
    return out


@right("next_level")
def _(sch, x0, times, noises):
    t = torch.tensor(times)[1 : 1 + len(x0)]
    alpha, sigma = sch.at(t, x0)
    return alpha * x0 + sigma * noises[1 : 1 + len(x0)]


@wrong("next_level", "noised to its own time")
def _(sch, x0, times, noises):
    k = len(x0)
    alpha, sigma = sch.at(torch.tensor(times[:k]), x0)
    return alpha * x0 + sigma * noises[1 : k + 1]


@wrong("next_level", "the noise of the level before")
def _(sch, x0, times, noises):
    k = len(x0)
    alpha, sigma = sch.at(torch.tensor(times[1 : k + 1]), x0)
    return alpha * x0 + sigma * noises[:k]


@wrong("next_level")
def _(sch, x0, times, noises):
    k = len(x0)
    alpha, sigma = sch.at(torch.tensor(times[1 : k + 1]), x0)
    return alpha * x0 + sigma**2 * noises[1 : k + 1]


# ---- measured_means ------------------------------------------------------------------------------


@right("measured_means")
def _(eps, labels):
    classes = sorted(set(labels.tolist()))
    groups = [eps[(labels == c).nonzero()[:, 0]] for c in classes]
    means = torch.stack([g.sum(0) / len(g) for g in groups])
    chance = []
    for g, m in zip(groups, means):
        chance.append((g - m).square().sum() / (len(g) - 1) / len(g))
    return means, torch.stack(chance)


@right("measured_means")
def _(eps, labels):
    classes = labels.unique()
    means = torch.stack([eps[labels == c].mean(0) for c in classes])
    spread = [eps[labels == c].std(0).square().sum() / (labels == c).sum() for c in classes]
    return means, torch.stack(spread)


@wrong("measured_means")
def _(eps, labels):
    classes = labels.unique()
    means = torch.stack([eps.mean(0) for _ in classes])
    spread = [eps[labels == c].var(0).sum() / (labels == c).sum() for c in classes]
    return means, torch.stack(spread)


@wrong("measured_means")
def _(eps, labels):
    classes = labels.unique()
    means = torch.stack([eps[labels == c].mean(0) for c in classes])
    spread = [eps[labels == c].var(0).sum() for c in classes]
    return means, torch.stack(spread)


@wrong("measured_means")
def _(eps, labels):
    classes = labels.unique()
    means = torch.stack([eps[labels == c].mean(0) for c in classes])
    spread = [(eps[labels == c].var(0).sum() / (labels == c).sum()).sqrt() for c in classes]
    return means, torch.stack(spread)
