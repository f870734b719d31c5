"""gDDIM: DDIM where the noise is not the same in every direction.

gDDIM: Generalized denoising diffusion implicit models, Qinsheng Zhang, Molei Tao, Yongxin Chen,
2022, arXiv 2206.05564. The two processes: Blurring Diffusion Models, Emiel Hoogeboom, Tim Salimans,
2022, arXiv 2209.05557; Critically-Damped Langevin Diffusion, Tim Dockhorn, Arash Vahdat,
Karsten Kreis, 2021, arXiv 2112.07068.

A linear process dx = F x dt + G dw has matrices for its coefficients: Psi(s, t) carries the mean
from time s to time t, Sigma_t is the covariance of x_t given x_0. A network may be trained on
eps = -K^T score with any root K of Sigma. They are all as good until a step is made, for a step
takes eps for a constant. With one root, R, it is one: if the data is a single point, the eps along
a path never changes.

    dR/dt = (F + G G^T Sigma^-1 / 2) R                  the root that moves with the flow
    x_s   = Psi(t, s) (x_t - R_t eps) + R_s eps         the step: DDIM, with matrices

Here R is a Cholesky root turned by an angle, and the angle is one integral (`Langevin.R`). Times
are real numbers in 0..1; the last axis of a state is the one that the matrices mix.

Try: one step for a point, with `root="R"` and `root="L"`; the blur at 0, which is DDIM; `order=2`.

Weakness: exact only for one point, or one Gaussian if Sigma begins with its covariance. R is known
in closed form for few processes, and a network trained with another root predicts another eps. The
mean of a blurred frequency is divided by its coefficient, which must not be 0 (`least`). A process
of these cannot be told by the two tables of `Schedule`, so this is no entry of `SAMPLERS`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Eps = Callable[[Tensor, float], Tensor]  # (state, time) -> the noise in it, under some root
Time = float | Tensor


class Process(Protocol):
    """A linear process on the last axis. Times may be tensors; then so many matrices come back."""

    def Psi(self, s: Time, t: Time) -> Tensor:
        """What carries the mean from time s to time t, either way."""

    def Sigma(self, t: Time) -> Tensor:
        """The covariance that was added until t."""

    def GG(self, t: Time) -> Tensor:
        """G G^T: how much of it is added at t."""

    def R(self, t: Time) -> Tensor:
        """The root of Sigma that moves with the flow."""


def L(process: Process, t: Time) -> Tensor:
    """The other root in use, Cholesky's: lower triangular."""
    return torch.linalg.cholesky(process.Sigma(t))


ROOTS: dict[str, Callable[[Process, Time], Tensor]] = {"R": lambda p, t: p.R(t), "L": L}


# ---- two processes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blurring:
    """Noise and blur: in the basis of the discrete cosine transform, frequency k has the mean
    coefficient a_t f_k(t), and all have the variance sigma_t^2.

    A state is a row of `size` frequencies (a picture of two pixels is a point of the plane: its
    mean and its contrast). `blur` 0 is an ordinary diffusion; `least` is left of every frequency.
    """

    size: int = 2
    blur: float = 2.0
    least: float = 1e-3

    def c(self, t: Time) -> Tensor:
        """The coefficient of the mean, for each frequency."""
        t = _times(t)[..., None]
        k = torch.arange(self.size, dtype=torch.float64)
        decay = (math.pi * k / self.size) ** 2  # the heat equation's
        width = self.blur * torch.sin(math.pi / 2 * t) ** 2
        f = (1 - self.least) * torch.exp(-decay * width**2 / 2) + self.least
        return torch.cos(math.pi / 2 * t) * f

    def Psi(self, s: Time, t: Time) -> Tensor:
        return torch.diag_embed(self.c(t) / self.c(s))

    def Sigma(self, t: Time) -> Tensor:
        return self.R(t) ** 2

    def R(self, t: Time) -> Tensor:
        sigma = torch.sin(math.pi / 2 * _times(t))
        return sigma[..., None, None] * torch.eye(self.size, dtype=torch.float64)

    def GG(self, t: Time) -> Tensor:
        t = _times(t)
        variance = torch.sin(math.pi / 2 * t) ** 2
        grows = math.pi / 2 * torch.sin(math.pi * t)  # its derivative
        h = 1e-6  # the rate of the mean, d log c / dt, by differences
        rate = (self.c(t + h).log() - self.c(t - h).log()) / (2 * h)
        return torch.diag_embed(grows[..., None] - 2 * rate * variance[..., None])


@dataclass(frozen=True)
class Langevin:
    """Critically damped: a state is (position, velocity), and only the velocity gets noise.

        dx = beta v / M dt,    dv = -beta x dt - Gamma beta v / M dt + sqrt(2 Gamma beta) dw

    with Gamma^2 = 4 M. `start` is the variance that the velocity has at time 0, counted as noise,
    and `data` that of the position, for a data law that is one Gaussian. Times from about 1e-5.
    """

    beta: float = 4.0
    M: float = 0.25
    start: float = 0.0
    data: float = 0.0

    @property
    def Gamma(self) -> float:
        return 2 * math.sqrt(self.M)

    @property
    def F(self) -> Tensor:
        beta, M = self.beta, self.M
        return torch.tensor([[0, beta / M], [-beta, -self.Gamma * beta / M]], dtype=torch.float64)

    def Psi(self, s: Time, t: Time) -> Tensor:
        """exp(F (t - s)): both eigenvalues of F are -w, so F + w squared is 0 and the series ends
        after two terms.
        """
        span = (_times(t) - _times(s))[..., None, None]
        w = 2 * self.beta / self.Gamma
        one = torch.eye(2, dtype=torch.float64)
        return torch.exp(-w * span) * (one + (self.F + w * one) * span)

    def GG(self, t: Time) -> Tensor:
        only_v = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        return (2 * self.Gamma * self.beta * only_v).expand(*_times(t).shape, 2, 2)

    def Sigma(self, t: Time) -> Tensor:
        """An integral of squares, for the closed form takes 1 from 1 near time 0, where the
        variance of a position is of the order t^3.
        """
        t = _times(t)
        r, weights = quadrature(torch.zeros_like(t), t)
        from_v = self.Psi(0.0, r)[..., 1]  # where noise of the velocity has got to, r later
        added = 2 * self.Gamma * self.beta * from_v[..., :, None] * from_v[..., None, :]
        Psi = self.Psi(0.0, t)
        begun = torch.diag(torch.tensor([self.data, self.start], dtype=torch.float64))
        return (weights[..., None, None] * added).sum(-3) + Psi @ begun @ Psi.mT

    def R(self, t: Time) -> Tensor:
        """L turned by an angle. R = L O with a rotation O, put into R's equation, leaves
        d angle / dt = -F_xv L_vv / L_xx: all else of it is lower triangular.
        """
        t = _times(t)
        log_t, weights = quadrature(t.log(), torch.zeros_like(t), 32)  # smooth in log t, from 1
        roots = L(self, log_t.exp())
        turns = self.beta / self.M * roots[..., 1, 1] / roots[..., 0, 0]
        angle = (weights * log_t.exp() * turns).sum(-1)
        cos = angle.cos()
        sin = angle.sin()
        rows = [torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)]
        return L(self, t) @ torch.stack(rows, -2)


def _times(t: Time) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def quadrature(a: Tensor, b: Tensor, n: int = 16) -> tuple[Tensor, Tensor]:
    """Gauss's n points between a and b, and their weights, on a new last axis."""
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(n))
    half = (b - a)[..., None] / 2
    return a[..., None] + half * (1 + x), half * w


# ---- the noise that a perfect network predicts ---------------------------------------------------


def exact_eps(
    process: Process, means: Tensor, covs: Tensor, weights: Tensor | None = None, root: str = "R"
) -> Eps:
    """-K^T score of a mixture of Gaussians (means k d, covs k d d; covariances 0 are points) after
    the process, for states (.. d). At time t it is again a mixture.
    """
    log_w = torch.zeros(len(means)) if weights is None else weights.log()

    def eps(x: Tensor, t: float) -> Tensor:
        Psi = process.Psi(0.0, t)
        spread = Psi @ covs @ Psi.mT + process.Sigma(t)  # k d d
        off = x[..., None, :] - means @ Psi.mT  # .. k d
        pull = torch.linalg.solve(spread, off[..., None])[..., 0]  # minus each mode's score
        log_p = log_w - 0.5 * (off * pull).sum(-1) - 0.5 * torch.linalg.slogdet(spread)[1]
        minus_score = (log_p.softmax(-1)[..., None] * pull).sum(-2)
        return minus_score @ ROOTS[root](process, t)  # K^T of a column is a row times K

    return eps


# ---- the steps -----------------------------------------------------------------------------------


def gddim_step(x: Tensor, eps: Tensor, Psi: Tensor, R_t: Tensor, R_s: Tensor) -> Tensor:
    """From t to s: take the noise off, carry what is left by Psi(t, s), put the noise back at its
    new size. x and eps (.. d) are rows, the matrices d d.
    """
    return (x - eps @ R_t.mT) @ Psi.mT + eps @ R_s.mT


def weights_of(process: Process, root: str, ts: Sequence[float], s: float) -> list[Tensor]:
    """For a step from ts[0] to s > 0: the matrices that multiply the noises at the times ts, newest
    first. Between them eps is a polynomial in t; the integral is exact for it.

    For one time and R this is R_s - Psi R_t.
    """
    t = ts[0]
    nodes, w = quadrature(_times(math.log(t)), _times(math.log(s)), 48)  # roots of t near 0
    tau = nodes.exp()
    K = ROOTS[root](process, tau)
    rate = 0.5 * process.Psi(tau, s) @ process.GG(tau) @ torch.linalg.inv(K).mT
    rate = (w * tau)[:, None, None] * rate
    found = []
    for j, t_j in enumerate(ts):
        share = torch.ones_like(tau)  # Lagrange: 1 at t_j, 0 at the others
        for other in [*ts[:j], *ts[j + 1 :]]:
            share = share * (tau - other) / (t_j - other)
        found.append((share[:, None, None] * rate).sum(0))
    return found


@torch.no_grad()
def gddim(
    eps: Eps,
    process: Process,
    x: Tensor,
    times: Sequence[float],
    *,
    root: str = "R",
    order: int = 1,
) -> Tensor:
    """Carry the states x (.. d) along falling times. A last time of 0 ends in the guess of the
    clean state, the rest of it (a velocity's `start`) left out.

    root    what the network's eps means: "R", or "L", Cholesky's
    order   how many of the last answers the noise is continued from

    ValueError: times that do not fall, or leave 0..1; an unknown root; an order below 1.
    """
    ts = [float(t) for t in times]
    if len(ts) < 2 or not all(1 >= t > s >= 0 for t, s in pairwise(ts)):
        raise ValueError(
            f"times={ts}: expected two or more, each smaller than the one before, within 0..1"
        )
    if root not in ROOTS or order < 1:
        raise ValueError(
            f"root={root!r}, order={order}: root is one of {', '.join(ROOTS)}, order 1 or more"
        )
    old: list[Tensor] = []  # the last answers, newest first
    for k, s in enumerate(ts[1:]):
        t = ts[k]
        old = [eps(x, t), *old[: order - 1]]
        Psi = process.Psi(t, s)
        K_t = ROOTS[root](process, t)
        if s == 0:
            x = gddim_step(x, old[0], Psi, K_t, torch.zeros_like(K_t))
        elif root == "R" and len(old) == 1:
            x = gddim_step(x, old[0], Psi, K_t, process.R(s))
        else:
            known = ts[k - len(old) + 1 : k + 1][::-1]
            x = x @ Psi.mT
            for e, C in zip(old, weights_of(process, root, known, s)):
                x = x + e @ C.mT
    return x
