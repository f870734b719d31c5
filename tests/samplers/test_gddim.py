"""gDDIM: one step is exact for a point and for a Gaussian, under the right root and under no other."""

import math
from itertools import pairwise

import pytest
import torch

from minidiff.core.denoise import noise
from minidiff.core.process import ddim_step
from minidiff.core.schedule import Schedule
from minidiff.data.toy2d import gmm8
from minidiff.samplers.gddim import Blurring, L, Langevin, exact_eps, gddim, gddim_step, weights_of

D = torch.float64
NONE = torch.zeros(1, 2, 2, dtype=D)  # the covariance of a point
Z = noise((64, 2), 0, dtype=D)
LANGEVIN = Langevin(start=0.01)


def grid(n, last, first=1.0):
    """Falling times, even in their root."""
    lo, hi = last**0.5, first**0.5
    return [(hi + (lo - hi) * i / n) ** 2 for i in range(n + 1)]


@pytest.mark.parametrize("start", [0.0, 0.01])
def test_the_langevin_matrices_are_those_of_the_process(start):
    p, S = Langevin(start=start), torch.diag(torch.tensor([1.0, 0.25], dtype=D))
    S0 = torch.diag(torch.tensor([0.0, start], dtype=D))
    for t in (0.05, 0.3, 1.0):
        Psi = torch.matrix_exp(p.F * t)
        assert (p.Psi(0.0, t) - Psi).abs().max() < 1e-13
        assert (p.Sigma(t) - (S + Psi @ (S0 - S) @ Psi.T)).abs().max() < 1e-13  # to equilibrium
    assert p.Sigma(1e-5)[0, 0] > 0  # where that form has lost everything


@pytest.mark.parametrize("p", [Langevin(), Langevin(start=0.01), Langevin(data=0.3), Blurring()])
def test_R_is_a_root_and_moves_with_the_flow(p):
    h = 1e-5
    for t in (0.1, 0.7):
        R, Sigma, d = p.R(t), p.Sigma(t), 2
        assert (R @ R.T - Sigma).abs().max() < 1e-13
        F = (p.Psi(t - h, t + h) - torch.eye(d, dtype=D)) / (2 * h)
        F = F - h * F @ F  # the series of the exponential, to the next order
        rate = (F + 0.5 * p.GG(t) @ torch.linalg.inv(Sigma)) @ R
        assert ((p.R(t + h) - p.R(t - h)) / (2 * h) - rate).abs().max() < 1e-4


@pytest.mark.parametrize("p", [LANGEVIN, Blurring()], ids=["langevin", "blurring"])
def test_one_step_is_exact_for_a_point(p):
    point = torch.tensor([[0.7, 0.0 if p is LANGEVIN else -0.4]], dtype=D)
    eps = exact_eps(p, point, NONE)
    x = point @ p.Psi(0.0, 0.9).T + Z @ p.R(0.9).T
    for s in (0.5, 1e-3):
        want = point @ p.Psi(0.0, s).T + Z @ p.R(s).T  # the same noise, all along
        assert (gddim(eps, p, x, [0.9, s]) - want).abs().max() < 1e-9
    assert (gddim(eps, p, x, [0.9, 0.3, 0]) - point)[:, 0].abs().max() < 1e-9


def test_one_step_with_choleskys_root_is_not_exact_though_its_integral_is():
    point = torch.tensor([[0.7, 0.0]], dtype=D)
    x = point @ LANGEVIN.Psi(0.0, 1.0).T + Z @ LANGEVIN.R(1.0).T
    want = point @ LANGEVIN.Psi(0.0, 0.5).T + Z @ LANGEVIN.R(0.5).T
    eps = exact_eps(LANGEVIN, point, NONE, root="L")
    errs = [
        (gddim(eps, LANGEVIN, x, grid(n, 0.5), root="L") - want).norm(dim=-1).mean().item()
        for n in (1, 20, 40)
    ]
    assert errs[0] > 0.1 and 0.8 < math.log2(errs[1] / errs[2]) < 1.3  # of order 1, to the same end


def test_one_step_is_exact_for_a_gaussian_whose_covariance_R_counts():
    p, q = LANGEVIN, Langevin(start=0.01, data=0.3)
    x, C = Z * torch.tensor([1.0, 0.5]), torch.diag(torch.tensor([0.3, 0.0], dtype=D))

    def slope(x, t):  # the probability flow, with p's own covariance
        S = p.Psi(0.0, t) @ C @ p.Psi(0.0, t).T + p.Sigma(t)
        return x @ p.F.T + 0.5 * x @ torch.linalg.inv(S) @ p.GG(t)

    y = x
    for t, s in pairwise(grid(60, 0.1)):  # Runge-Kutta
        h = s - t
        k1 = slope(y, t)
        k2 = slope(y + h / 2 * k1, t + h / 2)
        k3 = slope(y + h / 2 * k2, t + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, s))
    one = gddim(exact_eps(q, torch.zeros(1, 2, dtype=D), NONE), q, x, [1.0, 0.1])
    assert (one - y).abs().max() < 1e-4
    eps = exact_eps(p, torch.zeros(1, 2, dtype=D), C[None])
    assert (gddim(eps, p, x, [1.0, 0.1]) - y).norm(
        dim=-1
    ).mean() > 0.1  # R of a point is not enough


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_is_the_number_of_answers_continued(order):
    p, q = LANGEVIN, Langevin(start=0.01, data=0.3)
    x, C = Z * torch.tensor([1.0, 0.5]), torch.diag(torch.tensor([0.3, 0.0], dtype=D))
    exact = gddim(exact_eps(q, torch.zeros(1, 2, dtype=D), NONE), q, x, [1.0, 0.05])
    eps = exact_eps(p, torch.zeros(1, 2, dtype=D), C[None])
    coarse, fine = (
        (gddim(eps, p, x, grid(n, 0.05), order=order) - exact).norm(dim=-1).mean().item()
        for n in (30, 60)
    )
    assert order - 0.25 < math.log2(coarse / fine) < order + 0.25


def test_no_blur_is_ddim():
    p, ts = Blurring(blur=0.0), [0.9, 0.6, 0.2, 0.0]
    angle = torch.tensor(ts[::-1], dtype=D) * math.pi / 2
    sch, data = Schedule(angle.cos(), angle.sin()), gmm8()
    ours = gddim(exact_eps(p, data.means, data.covs), p, Z, ts)
    x, eps = Z, data.denoise(sch)
    for t, s in pairwise([3, 2, 1, 0]):
        x = ddim_step(sch, x, eps(x, t, None), t, s)
    assert (ours - x).abs().max() < 1e-9


def test_scalar_ddim_is_wrong_for_a_blurred_process():
    p, point = Blurring(), torch.tensor([[0.7, -0.4]], dtype=D)
    x = point @ p.Psi(0.0, 0.9).T + Z @ p.R(0.9).T
    eps = exact_eps(p, point, NONE)(x, 0.9)
    a_t, a_s = math.cos(0.9 * math.pi / 2), math.cos(0.05 * math.pi / 2)
    scalar = a_s / a_t * (x - eps @ p.R(0.9).T) + eps @ p.R(0.05).T
    want = point @ p.Psi(0.0, 0.05).T + Z @ p.R(0.05).T
    assert (scalar - want).abs().max() > 0.3
    assert (gddim_step(x, eps, p.Psi(0.9, 0.05), p.R(0.9), p.R(0.05)) - want).abs().max() < 1e-10


@pytest.mark.parametrize("p", [LANGEVIN, Blurring()], ids=["langevin", "blurring"])
def test_the_integral_of_the_step_is_a_difference_of_roots(p):
    (C,) = weights_of(p, "R", [0.8], 0.1)
    assert (C - (p.R(0.1) - p.Psi(0.8, 0.1) @ p.R(0.8))).abs().max() < 1e-7
    pair = weights_of(p, "R", [0.8, 0.9], 0.1)
    assert (pair[0] + pair[1] - C).abs().max() < 1e-9  # noises that are equal weigh as one


def test_the_exact_noise_is_minus_the_score_times_the_root():
    data, p, t = gmm8(), Blurring(), 0.4
    a = p.Psi(0.0, t)
    for root, K in (("R", p.R(t)), ("L", L(p, t))):
        x = Z[:5].clone().requires_grad_()
        log_p = torch.stack(
            [
                torch.distributions.MultivariateNormal(a @ m, a @ c @ a.T + p.Sigma(t)).log_prob(x)
                for m, c in zip(data.means, data.covs)
            ]
        ).logsumexp(0)
        (score,) = torch.autograd.grad(log_p.sum(), x)
        ours = exact_eps(p, data.means, data.covs, root=root)(x.detach(), t)
        assert (ours + score @ K).abs().max() < 1e-10


def test_a_row_is_the_same_alone_and_in_a_batch():
    data, p = gmm8(), Blurring()
    eps = exact_eps(p, data.means, data.covs)
    whole, alone = (gddim(eps, p, x, [0.9, 0.5, 0.1], order=2) for x in (Z, Z[2:3]))
    assert (whole[2:3] - alone).abs().max() < 1e-12


@pytest.mark.parametrize(
    "times, kw, complaint",
    [
        ([1.0], {}, "two or more"),
        ([0.5, 0.5], {}, "smaller than the one before"),
        ([1.2, 0.1], {}, "within 0..1"),
        ([1.0, float("nan")], {}, "smaller than the one before"),
        ([1.0, 0.1], {"root": "Q"}, "one of R, L"),
        ([1.0, 0.1], {"order": 0}, "order 1 or more"),
    ],
)
def test_bad_input_is_refused(times, kw, complaint):
    eps = exact_eps(LANGEVIN, torch.zeros(1, 2, dtype=D), NONE)
    with pytest.raises(ValueError, match=complaint):
        gddim(eps, LANGEVIN, Z, times, **kw)
