import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import eps_to_x0, q_sample
from minidiff.data.toy2d import (
    Mixture,
    checker,
    energy_distance,
    gauss_aniso,
    gaussian_flow_map,
    gmm8,
    two_moons,
)

SCH = schedule.cosine(200)
SLANTED = Mixture(
    [[0.0, 1.0], [-1.0, -1.0], [2.0, 0.0]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]], [[0.2, 0.0], [0.0, 0.05]]],
    weights=[1, 2, 3],
    classes=[0, 0, 1],
)


def points(n=50, seed=0):
    return 2 * noise((n, 2), seed, dtype=torch.float64)


def test_log_prob_is_the_sum_of_torch_gaussians():
    a, s, x = 0.6, 0.5, points()
    density = sum(
        w
        * torch.distributions.MultivariateNormal(a * m, a**2 * C + s**2 * torch.eye(2))
        .log_prob(x)
        .exp()
        for w, m, C in zip([1 / 6, 2 / 6, 3 / 6], SLANTED.means, SLANTED.covs)
    )
    assert (SLANTED.log_prob(x, a, s) - density.log()).abs().max() < 1e-12


@pytest.mark.parametrize(
    "label", [None, 0, torch.arange(50) % 3 - 1], ids=["any", "class 0", "per point"]
)
@pytest.mark.parametrize("a, s", [(1.0, 0.0), (0.7, 0.7), (1.0, 5.0)])
def test_score_is_the_gradient_of_log_prob(a, s, label):
    x = points().requires_grad_()
    (grad,) = torch.autograd.grad(SLANTED.log_prob(x, a, s, label).sum(), x)
    assert (SLANTED.score(x, a, s, label) - grad).abs().max() < 1e-10


def test_a_class_is_the_mixture_of_its_modes():
    alone = Mixture(SLANTED.means[:2], SLANTED.covs[:2], weights=[1, 2])
    x = points()
    assert (
        SLANTED.log_prob(x, 0.6, 0.5, label=0) - alone.log_prob(x, 0.6, 0.5)
    ).abs().max() < 1e-12


@pytest.mark.parametrize("t", [1, 60, 199])
def test_tweedie_gives_the_posterior_mean(t):
    """Against the average of x0 over samples of the data, weighted by how well each explains
    x_t.
    """
    a, s = SCH.at(t)
    x0 = SLANTED.sample(200_000, seed=1)
    x_t = q_sample(SCH, x0[:6], t, noise((6, 2), dtype=torch.float64))
    ours = eps_to_x0(SCH, x_t, SLANTED.denoise(SCH)(x_t, t), t)
    weight = (-((x_t[:, None] - a * x0) ** 2).sum(-1) / (2 * s**2)).softmax(-1)
    spread = (weight @ x0**2 - (weight @ x0) ** 2).clamp(min=0).sqrt()
    enough = 1 / (weight**2).sum(-1, keepdim=True)  # the number of samples that count
    assert ((ours - weight @ x0).abs() < 4 * spread / enough.sqrt() + 1e-3).all()


def test_the_exact_eps_is_the_best_predictor_of_the_noise():
    x0, eps = SLANTED.sample(20_000), noise((20_000, 2), 3, dtype=torch.float64)
    x_t = q_sample(SCH, x0, 100, eps)
    out = SLANTED.denoise(SCH)(x_t, 100)
    # the residual is uncorrelated with the prediction
    assert abs(((eps - out) * out).mean()) < 0.01
    assert 0.05 < ((eps - out) ** 2).mean() < (eps**2).mean() - 0.05


def test_denoise_takes_one_time_per_row_labels_and_float32():
    eps, x, t = SLANTED.denoise(SCH), points(4), torch.tensor([1, 50, 100, 200])
    label = torch.tensor([0, 1, -1, 0])
    out = eps(x, t, Cond(label=label))
    for i in range(4):
        one = None if label[i] == -1 else Cond(label=label[i : i + 1])
        assert (out[i : i + 1] - eps(x[i : i + 1], int(t[i]), one)).abs().max() < 1e-12
    single = eps(x.float(), t, Cond(label=label))
    assert single.dtype == torch.float32 and (single - out).abs().max() < 1e-3
    assert eps(x, 0).abs().max() == 0


def test_points_may_lie_along_further_axes():
    eps, x = SLANTED.denoise(SCH), points(12).view(3, 4, 2)
    t, cond = torch.tensor([10, 100, 150]), Cond(label=torch.tensor([0, 1, -1]))
    flat = eps(x.flatten(0, 1), t.repeat_interleave(4), Cond(label=cond.label.repeat_interleave(4)))
    assert (eps(x, t, cond).flatten(0, 1) - flat).abs().max() < 1e-12


def test_samples_have_the_moments_of_the_mixture():
    x = SLANTED.sample(100_000)
    w = torch.tensor([1, 2, 3], dtype=torch.float64) / 6
    mean = w @ SLANTED.means
    second = torch.einsum(
        "k,kde->de", w, SLANTED.covs + SLANTED.means[:, :, None] * SLANTED.means[:, None]
    )
    assert (x.mean(0) - mean).abs().max() < 0.02
    assert (x.T.cov() - (second - torch.outer(mean, mean))).abs().max() < 0.03
    assert torch.equal(x[:9], SLANTED.sample(100_000)[:9]) and not torch.equal(
        x, SLANTED.sample(100_000, seed=1)
    )


def test_samples_follow_their_labels():
    ring, label = gmm8(), torch.arange(800) % 8
    assert torch.equal(torch.cdist(ring.sample(800, label=label), ring.means).argmin(-1), label)
    assert (ring.sample(50, label=3) - ring.means[3]).abs().max() < 0.5


def test_the_flow_of_a_gaussian_carries_its_marginals_and_has_an_inverse():
    mix = gauss_aniso()
    m, C = mix.means[0], mix.covs[0]
    x = mix.sample(50_000)
    a, s = SCH.at(120)
    up = gaussian_flow_map(m, C, x, SCH, 0, 120)
    assert (up.mean(0) - a * m).abs().max() < 0.02
    assert (up.T.cov() - (a**2 * C + s**2 * torch.eye(2))).abs().max() < 0.02
    assert (gaussian_flow_map(m, C, up, SCH, 120, 0) - x).abs().max() < 1e-10


def test_the_flow_of_a_gaussian_solves_the_probability_flow_ode():
    """In xbar = x / alpha and rho = sigma / alpha the ODE reads d xbar / d rho = eps; one short
    move must obey it.
    """
    mix, sch, t = gauss_aniso(), schedule.cosine(100_000), 50_000
    (a0, s0), (a1, s1) = sch.at(t), sch.at(t + 1)
    x = points()
    moved = gaussian_flow_map(mix.means[0], mix.covs[0], x, sch, t, t + 1)
    slope = (moved / a1 - x / a0) / (s1 / a1 - s0 / a0)
    assert (slope - mix.denoise(sch)(x, t)).abs().max() < 1e-3


def test_gmm8_has_unit_axes_and_eight_equal_modes():
    x = gmm8().sample(20_000)
    assert abs(x.std() - 1) < 0.02
    share = torch.cdist(x, gmm8().means).argmin(-1).bincount(minlength=8) / 20_000
    assert (share - 1 / 8).abs().max() < 0.01


def test_two_moons_lie_on_two_half_circles():
    x = two_moons(4000, std=0.0)
    upper = ((x + torch.tensor([0.5, 0.25])).norm(dim=-1) - 1).abs() < 1e-12
    lower = ((x - torch.tensor([0.5, 0.25])).norm(dim=-1) - 1).abs() < 1e-12
    assert (upper | lower).all() and 1800 < upper.sum() < 2200


def test_checker_fills_only_the_black_squares():
    x = checker(4000)
    cell = ((x + 2).floor()).long()
    assert x.abs().max() <= 2 and ((cell.sum(-1) % 2) == 0).all()
    share = (cell[:, 1] * 4 + cell[:, 0]).bincount(minlength=16)
    assert (share > 0).sum() == 8 and share[share > 0].min() > 400


def test_energy_distance_is_zero_for_equal_laws_and_grows_with_the_gap():
    ring = gmm8()
    x, y = ring.sample(3000, 1), ring.sample(3000, 2)
    shifts = [energy_distance(x, y + d) for d in (0.0, 0.3, 1.0)]
    assert abs(shifts[0]) < 3e-3 < 0.02 < shifts[1] < shifts[2]


def test_energy_distance_leaves_a_point_out_of_its_own_average():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0], [1.0]])
    assert energy_distance(x, y) == energy_distance(y, x) == 0.0  # 2 * 1 - 2 - 0


def test_energy_distance_of_two_unit_gaussians_matches_its_closed_form():
    x, y = (
        noise((1, 20_000), 1, dtype=torch.float64)[0],
        noise((1, 20_000), 2, dtype=torch.float64)[0] + 1,
    )

    def gap(d):  # E|N(d, 2)|
        return 2 / math.sqrt(math.pi) * math.exp(-d * d / 4) + d * math.erf(d / 2)

    x, y = x[:4000, None], y[:4000, None]
    assert abs(energy_distance(x, y) - 2 * (gap(1) - gap(0))) < 0.03


def test_bad_mixtures_and_labels_are_refused():
    with pytest.raises(ValueError, match=r"means.*need covs"):
        Mixture([[0.0, 0.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match="positive semi-definite"):
        Mixture([[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]])
    with pytest.raises(ValueError, match=r"names no mode.*\[0, 1\] and -1"):
        SLANTED.score(points(), 0.5, 0.5, label=7)
