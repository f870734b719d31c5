"""Toy data in the plane whose best denoiser is known exactly: samplers and guidance are tested
without training.

A mixture of Gaussians with noise added is again one, x_t ~ sum_k w_k N(alpha mu_k, alpha^2 C_k +
sigma^2 I). Its score is a formula, and with it the noise a perfect network would predict:

    eps(x_t, t)  = -sigma_t score(x_t, t)
    E[x0 | x_t]  = (x_t + sigma_t^2 score) / alpha_t    Tweedie's formula

For one Gaussian even the whole deterministic sampler is known (`gaussian_flow_map`): every solver
must converge to it.

Try: draw the arrows of `gmm8().score` at a few times; two close modes and watch at which t they
part.
"""

import math

import torch
from torch import Tensor

from minidiff.core.denoise import Denoise
from minidiff.core.schedule import Schedule


class Mixture:
    """Gaussian mixture with exact density, score, denoiser and samples, in float64.

    means K d, covs K d d, weights K (normalised here); `classes` K gives each mode's class, by
    default its own number. A `label` (int or one per point) restricts every method to the modes of
    that class; -1 is "any", the null class.
    """

    def __init__(self, means, covs, weights=None, classes=None):
        self.means = torch.as_tensor(means, dtype=torch.float64)  # k d
        self.covs = torch.as_tensor(covs, dtype=torch.float64)  # k d d
        K, d = self.means.shape
        if self.covs.shape != (K, d, d):
            raise ValueError(f"means {(K, d)} need covs {(K, d, d)}, got {tuple(self.covs.shape)}")
        weights = torch.ones(K) if weights is None else torch.as_tensor(weights)
        self.weights = weights.double() / weights.double().sum()
        self.classes = torch.arange(K) if classes is None else torch.as_tensor(classes)
        # C = U diag(c) U^T inverts alpha^2 C + sigma^2 I at every time
        self.c, self.U = torch.linalg.eigh(self.covs)
        if (self.c < -1e-12).any():
            raise ValueError(
                f"covariances must be positive semi-definite, one has eigenvalue {self.c.min():.3g}"
            )
        self.c = self.c.clamp(min=0)

    def _log_weights(self, label) -> Tensor:
        label = torch.as_tensor(-1 if label is None else label)[..., None]
        keep = (label == -1) | (label == self.classes)  # .. k
        if not keep.any(-1).all():
            raise ValueError(
                "a label names no mode; this mixture has classes "
                f"{self.classes.unique().tolist()} and -1"
            )
        return torch.where(keep, self.weights, 0.0).log().log_softmax(-1)

    def _modes(self, x: Tensor, a, s, label):
        """Per mode: log of weight times density, and the score of its Gaussian."""
        a, s = (torch.as_tensor(v, dtype=torch.float64)[..., None] for v in (a, s))
        # .. k d, along the axes of C
        y = torch.einsum("...kd,kde->...ke", x[..., None, :] - a * self.means, self.U)
        var = a**2 * self.c + s**2
        # .. k
        log_p = self._log_weights(label) - 0.5 * (y**2 / var + (2 * math.pi * var).log()).sum(-1)
        return log_p, -torch.einsum("...ke,kde->...kd", y / var, self.U)

    def log_prob(self, x: Tensor, a=1.0, s=0.0, label=None) -> Tensor:
        """log density (..) at points x (.. d) of a x0 + s eps; a, s are floats or broadcast to
        x.
        """
        return self._modes(x, a, s, label)[0].logsumexp(-1)

    def score(self, x: Tensor, a=1.0, s=0.0, label=None) -> Tensor:
        """Gradient of `log_prob` in x (.. d): the modes' own scores, weighted by which mode x
        probably came from.
        """
        log_p, score = self._modes(x, a, s, label)
        return torch.einsum("...k,...kd->...d", log_p.softmax(-1), score)

    def denoise(self, sch: Schedule) -> Denoise:
        """The perfect network: (x_t, t, cond) -> eps in x_t's dtype. `cond.label` (b,) restricts
        row i to its class.
        """

        def eps(x_t, t, cond=None):
            a, s = sch.at(t, x_t.double())
            label = (
                None
                if cond is None or cond.label is None
                else cond.label.view(-1, *[1] * (x_t.ndim - 2))
            )
            return (-s * self.score(x_t.double(), a, s, label)).to(x_t.dtype)

        return eps

    def sample(self, n: int, seed: int = 0, label=None) -> Tensor:
        """n points (n d); `label` is one class for all or n of them."""
        g = torch.Generator().manual_seed(seed)
        p = self._log_weights(label).exp().expand(n, -1)
        k = torch.multinomial(p, 1, generator=g)[:, 0]
        z = torch.randn(n, self.means.shape[1], generator=g, dtype=torch.float64)
        return self.means[k] + torch.einsum("nde,ne->nd", self.U[k], self.c[k].sqrt() * z)


def gmm8(radius: float = 1.4, std: float = 0.1) -> Mixture:
    """Eight equal round modes on a circle; with these defaults each axis has standard deviation
    1.
    """
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = radius * torch.stack([angle.cos(), angle.sin()], -1)
    return Mixture(means, std**2 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2))


def gauss_aniso() -> Mixture:
    """One slanted Gaussian, N([1, -1], [[1, .8], [.8, 1]])."""
    return Mixture([[1.0, -1.0]], [[[1.0, 0.8], [0.8, 1.0]]])


def two_moons(n: int, seed: int = 0, std: float = 0.06) -> Tensor:
    """n points on two interlocked half circles, centred, of radius 1."""
    g = torch.Generator().manual_seed(seed)
    u, side = (
        torch.rand(n, generator=g, dtype=torch.float64) * math.pi,
        torch.randint(2, (n,), generator=g) * 2 - 1,
    )
    moon = torch.stack([side * (u.cos() - 0.5), side * (u.sin() - 0.25)], -1)
    return moon + std * torch.randn(n, 2, generator=g, dtype=torch.float64)


def checker(n: int, seed: int = 0, cells: int = 4) -> Tensor:
    """n points, uniform on the black squares of a cells x cells board over [-2, 2]^2; `cells` is
    even.
    """
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(cells, (n,), generator=g)
    col = 2 * torch.randint(cells // 2, (n,), generator=g) + row % 2
    return (
        torch.stack([col, row], -1) + torch.rand(n, 2, generator=g, dtype=torch.float64)
    ) * 4 / cells - 2


def gaussian_flow_map(
    mean: Tensor, cov: Tensor, x: Tensor, sch: Schedule, t: int, s: int
) -> Tensor:
    """Where the probability-flow ODE of N(mean, cov) data carries points x (b d) from time t to
    time s, exactly.
    """
    (a_t, sig_t), (a_s, sig_s) = sch.at(t), sch.at(s)
    c, U = torch.linalg.eigh(cov)
    # along the axes of cov
    gain = ((a_s**2 * c + sig_s**2) / (a_t**2 * c + sig_t**2)).sqrt()
    return a_s * mean + ((x - a_t * mean) @ U * gain) @ U.T


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two point sets (n d), (m d): 0 on average for
    equal laws.
    """

    # exact differences: the matrix-product shortcut leaves rounding on the diagonal
    def total(p, q):
        exact = "donot_use_mm_for_euclid_dist"
        return sum(torch.cdist(rows, q, compute_mode=exact).sum().item() for rows in p.split(1024))

    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))
