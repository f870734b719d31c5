"""Measuring."""
import torch
from by_hand import near, rand

from minidiff.evaluate.metrics import frechet, frechet_gaussians


def test_frechet():
    """By the eigenvalues of C1 C2, which is not symmetric, and on one feature by deviations."""
    d, (m1, m2) = 3, rand(2, 3)
    a, b = rand(2, d, d, seed=1)
    c1, c2 = a @ a.T + .2 * torch.eye(d), b @ b.T + .2 * torch.eye(d)
    w = torch.linalg.eigvals(c1 @ c2)
    want = sum((p - q) ** 2 for p, q in zip(m1.tolist(), m2.tolist())) + (c1 + c2).trace() - 2 * w.real.sqrt().sum()
    near(frechet_gaussians(m1, c1, m2, c2), want.item(), 1e-8)
    near(frechet_gaussians(m1[:1], c1[:1, :1], m2[:1], c2[:1, :1]),
         ((m1[0] - m2[0]) ** 2 + (c1[0, 0].sqrt() - c2[0, 0].sqrt()) ** 2).item())


def test_frechet_bias():
    for d, n in ((8, 500), (32, 1000)):
        got = [frechet(rand(n, d, seed=2 * i), rand(n, d, seed=2 * i + 1)) for i in range(20)]
        assert abs(sum(got) / len(got) / (d * (d + 5) / (2 * n)) - 1) < .08
