"""A learned sampler: the numbers of the step are trained, the network is not.

Learning Fast Samplers for Diffusion Models by Differentiating Through Sample Quality,
Daniel Watson, William Chan, Jonathan Ho, Mohammad Norouzi, 2022, arXiv 2202.05830 (GGDM, DDSS).

DDIM's step mixes three things with fixed numbers: the guess of the clean picture, the state, and
fresh noise. Nothing says that these numbers are the best for five steps. The family here lets a
state be any mixture of the newest guess and of all states so far:

    x_t = mu_{t,0} x0_hat + sum_{u > t} mu_{t,u} x_u + sigma_t z

DDIM and ancestral sampling are members. The numbers begin as DDIM's. Then whole batches are sampled
with fresh noise, compared with data, and the gradient of that comparison goes back through all
steps into the numbers; the network is only passed through. The comparison must be unbiased: with
the pairs (i, i) counted in, a batch looks less spread than it is, in the part that is to be large,
and the sampler learns to shrink.

Where the network knows every level of noise and not only whole times, the levels at which it is
asked are learned as well (`by_levels`).

Try: 2, 5 and 10 steps; `biased=True` with groups of 2; the learned numbers beside DDIM's.

Weakness: it fits one network, one schedule, one number of steps, and the data it saw. What the
comparison does not see, it does not learn: in pixels one compares features, and a sampler can fit
their blind spots. Trained through every step, so memory grows with the steps (`checkpoint=True`
trades it for time).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from minidiff.core.cond import Cond
from minidiff.core.denoise import Denoise, noises
from minidiff.core.process import eps_to_x0
from minidiff.core.schedule import Schedule

# (state, which step, the numbers) -> the guess of the clean picture
Guess = Callable[[Tensor, int, "Numbers"], Tensor]


class Numbers(nn.Module):
    """The coefficients of K steps along K + 1 falling times, in float64, at first DDIM's.

    guess  K       mu_{t,0}
    past   K K     mu_{t,u}: row i belongs to step i, column u to the state before step u <= i
    fresh  K       sigma_t; its sign is no matter
    level  K       log(alpha / sigma) at which the network is asked; only `by_levels` looks
    """

    def __init__(self, sch: Schedule, times: Sequence[int]):
        super().__init__()
        self.times = sch.checked(times)
        K = len(self.times) - 1
        if self.times[-1] != 0:
            raise ValueError(f"times={self.times}: the last must be 0, the clean picture")
        guess = torch.zeros(K, dtype=torch.float64)
        past = torch.zeros(K, K, dtype=torch.float64)
        for i in range(K):
            alpha_t, sigma_t = sch.at(self.times[i])
            alpha_s, sigma_s = sch.at(self.times[i + 1])
            past[i, i] = sigma_s / sigma_t
            guess[i] = alpha_s - alpha_t * sigma_s / sigma_t
        level = torch.tensor([sch.lam(t) for t in self.times[:-1]], dtype=torch.float64)
        self.guess = nn.Parameter(guess)
        self.past = nn.Parameter(past)
        self.fresh = nn.Parameter(torch.zeros(K, dtype=torch.float64))
        self.level = nn.Parameter(level)

    def __len__(self) -> int:
        return len(self.guess)


# ---- who is asked --------------------------------------------------------------------------------


def by_times(denoise: Denoise, sch: Schedule, cond: Cond | None = None) -> Guess:
    """Any network, at the whole times of the grid, which stay as they are."""

    def guess(x: Tensor, i: int, numbers: Numbers) -> Tensor:
        t = numbers.times[i]
        return eps_to_x0(sch, x, denoise(x, t, cond), t)

    return guess


def by_levels(eps: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Guess:
    """A network eps(x, alpha, sigma) for every level with alpha^2 + sigma^2 = 1; these are
    learned.
    """

    def guess(x: Tensor, i: int, numbers: Numbers) -> Tensor:
        lam = numbers.level[i]
        alpha = torch.sigmoid(2 * lam).sqrt()
        sigma = torch.sigmoid(-2 * lam).sqrt()
        return (x - sigma * eps(x, alpha, sigma)) / alpha

    return guess


# ---- the sampler ---------------------------------------------------------------------------------


def ggdm_step(numbers: Numbers, i: int, x0: Tensor, states: Sequence[Tensor], z: Tensor) -> Tensor:
    """Step i of the family: from the guess x0 and the states so far, oldest first, with the unit
    noise z.
    """
    x = numbers.guess[i] * x0 + numbers.fresh[i] * z
    for u, state in enumerate(states):
        x = x + numbers.past[i, u] * state
    return x


def ggdm_run(
    guess: Guess, numbers: Numbers, x: Tensor, zs: Sequence[Tensor], checkpoint: bool = False
) -> Tensor:
    """All steps from the starting state x, with one unit noise a step. Gradients pass.

    checkpoint  keep no activations of the network; it is asked again on the way back
    """
    states = [x]
    for i in range(len(numbers)):
        if checkpoint:
            x0 = recomputed(guess, states[-1], i, numbers, use_reentrant=False)
        else:
            x0 = guess(states[-1], i, numbers)
        states.append(ggdm_step(numbers, i, x0, states, zs[i]))
    return states[-1]


def ggdm(numbers: Numbers) -> Callable[..., Tensor]:
    """The learned numbers as a sampler like the others, without choices: the steps and the times
    are those that were learned.
    """

    @torch.no_grad()
    def sampler(
        denoise: Denoise,
        sch: Schedule,
        x: Tensor,
        cond: Cond | None = None,
        *,
        steps: int = len(numbers),
        seed: int = 0,
    ) -> Tensor:
        """Denoise x (b ..), a state at the first of the learned times, to a clean x0; the noise of
        the steps is from `seed`.
        """
        if steps != len(numbers):
            raise ValueError(
                f"steps={steps}: these numbers were learned for {len(numbers)}; learn others"
            )
        sch.checked(numbers.times)
        fresh = noises(x, seed)
        zs = [next(fresh) for _ in range(steps)]
        # float64 numbers of no dimension: the states keep their own precision
        return ggdm_run(by_times(denoise, sch, cond), numbers, x, zs)

    return sampler


# ---- sample quality ------------------------------------------------------------------------------


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """All distances between two sets (.. n d), (.. m d), from exact differences."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def energy_loss(x: Tensor, y: Tensor, biased: bool = False) -> Tensor:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| between samples x (.. n d) and data y (.. m d), with a
    gradient. Leading axes are groups, compared each for itself; the mean over them comes back.

    biased  the pairs (i, i), whose distance is 0, are counted: what one gets by `.mean()`
    """
    n = x.shape[-2]
    m = y.shape[-2]
    within_x = _distances(x, x).sum((-1, -2)) / (n * n if biased else n * (n - 1))
    within_y = _distances(y, y).sum((-1, -2)) / (m * m if biased else m * (m - 1))
    return (2 * _distances(x, y).mean((-1, -2)) - within_x - within_y).mean()


def fourier_features(d: int, n: int = 256, width: float = 1.0, seed: int = 0) -> Callable:
    """n random waves (points .. d -> features .. 2n) whose inner product is, on average, the kernel
    exp(-|x - y|^2 / (2 width^2)).
    """
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(d, n, generator=g, dtype=torch.float64) / width

    def features(x: Tensor) -> Tensor:
        angle = x @ w.to(x)
        return torch.cat([angle.cos(), angle.sin()], -1) / math.sqrt(n)

    return features


def kid_loss(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared distance of the mean features, of x (n f) and y (m f): the kernel
    distance of the paper, with the inner product for its kernel.
    """
    n = len(x)
    m = len(y)
    total_x = x.sum(0)
    total_y = y.sum(0)
    within_x = (total_x.square().sum() - x.square().sum()) / (n * (n - 1))  # pairs i != j
    within_y = (total_y.square().sum() - y.square().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * (total_x @ total_y) / (n * m)


# ---- learning ------------------------------------------------------------------------------------


def learn(
    guess: Guess,
    numbers: Numbers,
    data: Callable[[int], Tensor],
    sigma_T: float,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = energy_loss,
    updates: int = 300,
    lr: float = 1e-2,
    seed: int = 0,
    checkpoint: bool = False,
) -> list[float]:
    """Train the numbers in place; the losses come back.

    data     data(k): the k-th batch of clean pictures (n ..); so many are sampled
    sigma_T  the size of the starting noise
    lr       falls to 0 over the updates, evenly
    """
    wanted = list(numbers.parameters())
    adam = torch.optim.Adam(wanted, lr=lr)
    g = torch.Generator().manual_seed(seed)
    losses = []
    for k in range(updates):
        adam.param_groups[0]["lr"] = lr * (1 - k / updates)
        y = data(k)
        zs = [torch.randn(y.shape, generator=g, dtype=y.dtype) for _ in range(len(numbers) + 1)]
        x = ggdm_run(guess, numbers, sigma_T * zs[0], zs[1:], checkpoint)
        value = loss(x, y)
        # not backward(): the network's own weights get no gradient
        grads = torch.autograd.grad(value, wanted, allow_unused=True)
        for p, grad in zip(wanted, grads):
            p.grad = grad
        adam.step()
        losses.append(value.item())
    return losses
