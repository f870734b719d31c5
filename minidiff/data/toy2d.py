"""Toy data in the plane whose best denoiser is known exactly, for tests without training.

A mixture of Gaussians with noise added is again one, x_t ~ sum_k w_k N(alpha mu_k, alpha^2 C_k +
sigma^2 I). Its score is a formula, and with it the noise a perfect network would predict:

    eps(x_t, t)  = -sigma_t score(x_t, t)
    E[x0 | x_t]  = (x_t + sigma_t^2 score) / alpha_t    Tweedie's formula

For one Gaussian even the whole deterministic sampler is known (`gaussian_flow_map`): every solver
must converge to it.

Try: draw the arrows of `gmm8().score` at a few times; bring two modes close and watch at which t
they part.
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
        if weights is None:
            weights = torch.ones(K)
        if classes is None:
            classes = torch.arange(K)
        weights = torch.as_tensor(weights).double()
        self.weights = weights / weights.sum()  # k
        self.classes = torch.as_tensor(classes)  # k
        # C = U diag(c) U^T inverts alpha^2 C + sigma^2 I at every time
        self.c, self.U = torch.linalg.eigh(self.covs)
        if (self.c < -1e-12).any():
            raise ValueError(
                f"covariances must be positive semi-definite, one has eigenvalue {self.c.min():.3g}"
            )
        self.c = self.c.clamp(min=0)

    def _log_weights(self, label) -> Tensor:
        label = torch.as_tensor(-1 if label is None else label)
        label = label[..., None]  # .. 1
        keep = (label == -1) | (label == self.classes)  # .. k
        if not keep.any(-1).all():
            raise ValueError(
                "a label names no mode; this mixture has classes "
                f"{self.classes.unique().tolist()} and -1"
            )
        return torch.where(keep, self.weights, 0.0).log().log_softmax(-1)

    def _modes(self, x: Tensor, a, s, label):
        """Per mode: log of weight times density, and the score of its Gaussian."""
        a = torch.as_tensor(a, dtype=torch.float64)[..., None]
        s = torch.as_tensor(s, dtype=torch.float64)[..., None]
        off = x[..., None, :] - a * self.means  # .. k d
        y = torch.einsum("...kd,kde->...ke", off, self.U)  # along the axes of C
        var = a**2 * self.c + s**2  # along the same
        surprise = y**2 / var + (2 * math.pi * var).log()
        log_p = self._log_weights(label) - 0.5 * surprise.sum(-1)  # .. k
        score = -torch.einsum("...ke,kde->...kd", y / var, self.U)  # .. k d
        return log_p, score

    def log_prob(self, x: Tensor, a=1.0, s=0.0, label=None) -> Tensor:
        """log density (..) at points x (.. d) of a x0 + s eps; a, s: floats or broadcast to x."""
        log_p, _ = self._modes(x, a, s, label)
        return log_p.logsumexp(-1)

    def score(self, x: Tensor, a=1.0, s=0.0, label=None) -> Tensor:
        """Gradient of `log_prob` in x (.. d): the modes' own scores, weighted by which mode x
        probably came from.
        """
        log_p, score = self._modes(x, a, s, label)
        came_from = log_p.softmax(-1)  # .. k
        return torch.einsum("...k,...kd->...d", came_from, score)

    def denoise(self, sch: Schedule) -> Denoise:
        """The perfect network: (x_t, t, cond) -> eps in x_t's dtype. `cond.label` (b,) restricts
        row i to its class.
        """

        def eps(x_t, t, cond=None):
            x = x_t.double()
            alpha, sigma = sch.at(t, x)
            label = None if cond is None else cond.label
            if label is not None:
                label = label.view(-1, *[1] * (x.ndim - 2))  # one for all points of a row
            score = self.score(x, alpha, sigma, label)
            return (-sigma * score).to(x_t.dtype)

        return eps

    def sample(self, n: int, seed: int = 0, label=None) -> Tensor:
        """n points (n d); `label` is one class for all or n of them."""
        g = torch.Generator().manual_seed(seed)
        p = self._log_weights(label).exp().expand(n, -1)
        k = torch.multinomial(p, 1, generator=g)[:, 0]  # the mode of each point
        z = torch.randn(n, self.means.shape[1], generator=g, dtype=torch.float64)
        along_axes = self.c[k].sqrt() * z  # n d
        return self.means[k] + torch.einsum("nde,ne->nd", self.U[k], along_axes)


def gmm8(radius: float = 1.4, std: float = 0.1) -> Mixture:
    """Eight equal round modes on a circle; at these defaults each axis has standard deviation 1."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = radius * torch.stack([angle.cos(), angle.sin()], -1)  # 8 2
    cov = std**2 * torch.eye(2, dtype=torch.float64)
    return Mixture(means, cov.expand(8, 2, 2))


def gauss_aniso() -> Mixture:
    """One slanted Gaussian, N([1, -1], [[1, .8], [.8, 1]])."""
    return Mixture([[1.0, -1.0]], [[[1.0, 0.8], [0.8, 1.0]]])


def two_moons(n: int, seed: int = 0, std: float = 0.06) -> Tensor:
    """n points on two interlocked half circles, centred, of radius 1."""
    g = torch.Generator().manual_seed(seed)
    angle = torch.rand(n, generator=g, dtype=torch.float64) * math.pi
    side = torch.randint(2, (n,), generator=g) * 2 - 1  # -1 or 1: which moon
    x = side * (angle.cos() - 0.5)
    y = side * (angle.sin() - 0.25)
    noise = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return torch.stack([x, y], -1) + std * noise


def checker(n: int, seed: int = 0, cells: int = 4) -> Tensor:
    """n points, uniform on the black squares of a board of cells x cells (even) over [-2, 2]^2."""
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(cells, (n,), generator=g)
    col = 2 * torch.randint(cells // 2, (n,), generator=g) + row % 2
    corner = torch.stack([col, row], -1)
    inside = torch.rand(n, 2, generator=g, dtype=torch.float64)
    return (corner + inside) * 4 / cells - 2


def gaussian_flow_map(
    mean: Tensor, cov: Tensor, x: Tensor, sch: Schedule, t: int, s: int
) -> Tensor:
    """Where the probability-flow ODE of N(mean, cov) data carries points x (b d) from time t to
    time s, exactly.
    """
    alpha_t, sigma_t = sch.at(t)
    alpha_s, sigma_s = sch.at(s)
    c, U = torch.linalg.eigh(cov)
    var_t = alpha_t**2 * c + sigma_t**2  # along the axes of cov
    var_s = alpha_s**2 * c + sigma_s**2
    gain = (var_s / var_t).sqrt()
    off = (x - alpha_t * mean) @ U
    return alpha_s * mean + (off * gain) @ U.T


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two point sets (n d), (m d): 0 on average for
    equal laws.
    """
    n = len(x)
    m = len(y)
    between = _total_distance(x, y) / (n * m)
    within_x = _total_distance(x, x) / (n * (n - 1))
    within_y = _total_distance(y, y) / (m * (m - 1))
    return 2 * between - within_x - within_y


def _total_distance(x: Tensor, y: Tensor) -> float:
    """Sum of the distances of all pairs, from exact differences: the shortcut by a matrix product
    leaves rounding on the diagonal.
    """
    exact = "donot_use_mm_for_euclid_dist"
    total = 0.0
    for rows in x.split(1024):
        total += torch.cdist(rows, y, compute_mode=exact).sum().item()
    return total
