"""Every operator is what it says (against a plain computation), and its decomposition is one."""

import math

import pytest
import torch
import torch.nn.functional as F

import minidiff
from minidiff.core.denoise import noise, noises
from minidiff.restoration.operators import (
    blur,
    grey,
    hartley,
    hole,
    lossy,
    measure,
    mirror,
    superres,
    task_operator,
)

N = 16


def probe(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holes(n, b=1, seed=5):
    return (torch.rand(b, 1, n, n, generator=torch.Generator().manual_seed(seed)) < 0.4).double()


OPS = {
    "hole": hole(holes(N)),
    "a hole each": hole(holes(N, 2)),
    "sr2": superres(2),
    "sr4": superres(4),
    "grey": grey(),
    "blur": blur(N, N, 1.0),
    "wide blur": blur(N, N, 2.0),
    "sr2 grey": lossy(factor=2, grey=True),
    "sr4 grey holes": lossy(holes(N // 4), 4, True),
    "nothing lost": lossy(),
}
PLAIN = {
    "hole": lambda x: x * (1 - holes(N)),
    "sr4": lambda x: x.unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((3, 5)),
    "grey": lambda x: (x[:, :1] + x[:, 1:2] + x[:, 2:]) / 3,
    "nothing lost": lambda x: x,
    "sr4 grey holes": lambda x: F.avg_pool2d(x, 4).mean(1, keepdim=True) * (1 - holes(N // 4)),
}
both = pytest.mark.parametrize("name", OPS)


@both
def test_pseudo_inverse(name):
    op, x = OPS[name], probe(2, 3, N, N)
    y = op.A(x)
    assert (op.A(op.pinv(y)) - y).abs().max() < 1e-12  # A A+ A = A
    assert (op.pinv(op.A(op.pinv(y))) - op.pinv(y)).abs().max() < 1e-11  # A+ A A+ = A+
    z = probe(*y.shape, seed=1)
    symmetric = (op.pinv(op.A(x)) * probe(*x.shape, seed=2)).sum() - (
        x * op.pinv(op.A(probe(*x.shape, seed=2)))
    ).sum()
    assert symmetric.abs() < 1e-9  # A+ A is symmetric: a projection
    assert ((op.A(op.pinv(z)) - z) * op.A(op.pinv(z))).sum().abs() < 1e-9  # and so is A A+


@both
def test_v_is_orthogonal_and_u_s_vt_is_a(name):
    op, x = OPS[name], probe(2, 3, N, N)
    c = op.Vt(x)
    assert (op.V(c) - x).abs().max() < 1e-13 and c.numel() == x.numel()
    assert c.norm().item() == pytest.approx(x.norm().item(), rel=1e-13)
    other = probe(*c.shape, seed=3)
    assert (op.Vt(op.V(other)) - other).abs().max() < 1e-13
    assert (op.U(op.s * c) - op.A(x)).abs().max() < 1e-13
    y = probe(*op.A(x).shape, seed=4)
    assert (op.U(op.Ut(y)) - y).abs().max() < 1e-13 and op.Ut(y).norm().item() == pytest.approx(
        y.norm().item()
    )


@both
def test_adjoint(name):
    op, x = OPS[name], probe(2, 3, N, N)
    y = probe(*op.A(x).shape, seed=1)
    assert (op.A(x) * y).sum().item() == pytest.approx((x * op.At(y)).sum().item(), abs=1e-10)


@both
def test_projection_gives_y_keeps_the_rest_and_does_nothing_twice(name):
    op, x = OPS[name], probe(2, 3, N, N)
    y = op.A(probe(2, 3, N, N, seed=7))
    p = op.project(x, y)
    assert (op.A(p) - y).abs().max() < 1e-12
    assert (op.project(p, y) - p).abs().max() < 1e-11
    null = (op.s == 0).expand_as(op.Vt(x))
    assert (op.Vt(p) - op.Vt(x))[null].abs().max() < 1e-11 if null.any() else True


@pytest.mark.parametrize("name", PLAIN)
def test_a_is_the_plain_computation(name):
    x = probe(2, 3, N, N)
    assert (OPS[name].A(x) - PLAIN[name](x)).abs().max() < 1e-14


def test_blur_is_a_circular_convolution_with_a_gaussian():
    x, sigma = probe(1, 1, N, N), 1.2
    d = torch.arange(-N // 2, N // 2, dtype=torch.float64)
    g = torch.exp(-(d**2) / (2 * sigma**2))
    wide = F.pad(x, (N // 2, N // 2 - 1) * 2, mode="circular")
    k = torch.outer(g, g) / g.sum() ** 2
    assert (blur(N, N, sigma, cut=0).A(x) - F.conv2d(wide, k[None, None])).abs().max() < 1e-8
    # what the cut costs
    assert (blur(N, N, sigma).A(x) - blur(N, N, sigma, cut=0).A(x)).norm() < 0.02 * x.norm()
    assert (blur(N, N, sigma).A(torch.ones_like(x)) - 1).abs().max() < 1e-12


def test_singular_values_are_those_of_the_dense_matrix():
    n = 4
    for op in (superres(2), grey(), blur(n, n, 0.7), lossy(holes(2), 2, True)):
        eye = torch.eye(3 * n * n, dtype=torch.float64).view(-1, 3, n, n)
        dense = torch.linalg.svdvals(op.A(eye).flatten(1))
        ours = (
            op.s.expand(op.Vt(eye[:1]).shape).flatten().sort(descending=True).values[: len(dense)]
        )
        assert (dense - ours).abs().max() < 1e-7


def test_mirror_has_the_mean_first_and_hartley_is_an_involution():
    x = probe(2, 9, 5)
    assert (mirror(x, 1)[:, 0] - x.sum(1) / 3).abs().max() < 1e-14
    assert (mirror(mirror(x, 1), 1) - x).abs().max() < 1e-14
    x = probe(2, 3, 8, 6)
    assert (hartley(hartley(x)) - x).abs().max() < 1e-14


def test_hole_before_averaging_undone_in_turn_is_no_pseudo_inverse():
    """The published composite: mask, average; backwards: enlarge, mask. It misses its own
    measurement.
    """
    x, keep = probe(1, 3, N, N), 1 - holes(N)
    A = lambda x: F.avg_pool2d(x * keep, 4)  # noqa: E731
    backwards = lambda y: F.interpolate(y, scale_factor=4) * keep  # noqa: E731
    y = A(x)
    assert (A(backwards(y)) - y).abs().max() > 0.05
    with pytest.raises(ValueError, match="holes are made in the coarse picture"):
        lossy(holes(N), 4).A(x)


def test_float32_and_latents():
    x = probe(2, 3, N, N).float()
    for op in OPS.values():
        y = op.A(x)
        assert y.dtype == torch.float32 and (op.A(op.project(0 * x, y)) - y).abs().max() < 1e-5
    z = probe(2, 4, N, N)
    assert torch.equal(hole(holes(N)).A(z), z * (1 - holes(N)))


def test_tasks_by_name():
    m = holes(32)
    x = probe(1, 3, 32, 32)
    shapes = {"sr2": (3, 16, 16), "sr4": (3, 8, 8), "grey": (1, 32, 32), "blur": (3, 32, 32)}
    for task, shape in shapes.items():
        assert task_operator(task, (32, 32)).A(x).shape[1:] == shape
    assert torch.equal(task_operator("inpaint", (32, 32), m).A(x), x * (1 - m))
    assert math.isclose(
        task_operator("blur", (64, 64)).s[0, 1],
        task_operator("blur", (32, 32)).s[0, 1],
        rel_tol=1e-6,
    )


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda: task_operator("rain", (32, 32)), "choose one of: inpaint, sr2"),
        (lambda: task_operator("inpaint", (32, 32)), "needs a mask"),
        (lambda: task_operator("grey", (32, 32), holes(32)), "takes no mask"),
        (lambda: task_operator("inpaint", (32, 32), holes(16)), "the picture 32 x 32"),
        (lambda: hole(0.5 * holes(8)), "threshold it"),
        (lambda: superres(0), "factor=0"),
        (lambda: blur(8, 8, 0.0), "sigma=0.0"),
        (lambda: blur(8, 8, 1.0, cut=1.0), "cut=1.0"),
    ],
)
def test_bad_input_is_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


def test_the_noise_of_a_measurement_is_not_the_noise_that_sampling_starts_from():
    pixel = minidiff.build("tiny-pixel", seed=0)
    image = torch.zeros(1, 3, 32, 32)
    _, y = measure(pixel, image, "blur", sigma_y=1.0, seed=4)
    for sampling in (noise(image.shape, 4), next(noises(image, 4))):
        together = torch.corrcoef(torch.stack([y.flatten(), sampling.flatten()]))
        assert together[0, 1].abs() < 0.1
