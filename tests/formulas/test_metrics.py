"""Measuring."""

from itertools import product

import torch
from by_hand import near, rand

from minidiff.bench.scores import edit_score
from minidiff.evaluate.metrics import frechet, frechet_gaussians


def test_frechet():
    """By the eigenvalues of C1 C2, which is not symmetric, and on one feature by deviations."""
    d, (m1, m2) = 3, rand(2, 3)
    a, b = rand(2, d, d, seed=1)
    c1, c2 = a @ a.T + 0.2 * torch.eye(d), b @ b.T + 0.2 * torch.eye(d)
    w = torch.linalg.eigvals(c1 @ c2)
    want = (
        sum((p - q) ** 2 for p, q in zip(m1.tolist(), m2.tolist()))
        + (c1 + c2).trace()
        - 2 * w.real.sqrt().sum()
    )
    near(frechet_gaussians(m1, c1, m2, c2), want.item(), 1e-8)
    near(
        frechet_gaussians(m1[:1], c1[:1, :1], m2[:1], c2[:1, :1]),
        ((m1[0] - m2[0]) ** 2 + (c1[0, 0].sqrt() - c2[0, 0].sqrt()) ** 2).item(),
    )


def test_frechet_bias():
    for d, n in ((8, 500), (32, 1000)):
        got = [frechet(rand(n, d, seed=2 * i), rand(n, d, seed=2 * i + 1)) for i in range(20)]
        assert abs(sum(got) / len(got) / (d * (d + 5) / (2 * n)) - 1) < 0.08


def test_bench_shares():
    """How far up from the floor to the autoencoder's ceiling, in steps of a twentieth: below and
    above it is cut.
    """
    for b_floor, b_vae, c_vae, k in product(
        (15.0, 18.5), (31.0, 40.0), (22.0, 36.0), range(-3, 24)
    ):
        b, c = b_floor + k / 20 * (b_vae - b_floor), 10 + (20 - k) / 20 * (c_vae - 10)
        up, down = (sorted((0.0, v / 20, 1.0))[1] for v in (k, 20 - k))
        for t, kept in ((1.0, 0.8), (0.0, 1.0)):
            got = edit_score(t, kept, b, c, b_floor, b_vae, c_vae)
            near(
                [got["Bn"], got["Cn"], got["score"] ** 3],
                [up, down, t * kept * up * (1 + down) / 2],
            )
