"""Calibration: the identity it rests on, the bias it removes, and what its own error does."""

import math

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cond import Cond
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import q_sample
from minidiff.data.toy2d import Mixture, energy_distance, gauss_aniso, gmm8
from minidiff.samplers import solve
from minidiff.samplers.calibrated import calibrate, calibrated
from minidiff.samplers.dpm_solver import dpm_solver

D = torch.float64
SCH = schedule.linear()
DATA = gauss_aniso()
TIMES = [100, 400, 800]


def biased(denoise, by=(0.3, -0.2)):
    """A network that is off by a constant, and by more at later times."""

    def eps(x, t, cond=None):
        share = torch.as_tensor(t, dtype=D).view(-1, 1) / 1000
        return denoise(x, t, cond) + (0.5 + share) * torch.tensor(by, dtype=D)

    return eps


def test_alpha_times_the_score_is_a_martingale_backwards():
    """By quadrature, in one dimension: its value at x_t is the mean of its values at x_s."""
    data = Mixture([[-1.0], [0.6], [1.5]], [[[0.04]], [[0.3]], [[0.01]]], [0.5, 0.3, 0.2])
    y = torch.linspace(-8, 8, 40001, dtype=D)[:, None]
    (a_s, s_s), (a_t, s_t) = SCH.at(300), SCH.at(600)
    var = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    for x in (-0.7, 0.4):
        log_w = data.log_prob(y, a_s, s_s) - (x - a_t / a_s * y[:, 0]) ** 2 / (2 * var)
        later = (log_w.softmax(0) * a_s * data.score(y, a_s, s_s)[:, 0]).sum()
        now = a_t * data.score(torch.tensor([[x]], dtype=D), a_t, s_t)[0, 0]
        assert abs(now - later) < 1e-10 and abs(now) > 1e-3


def test_the_mean_of_a_perfect_network_is_0_to_chance():
    m = calibrate(DATA.denoise(SCH), SCH, DATA.sample(4000), TIMES)
    for t in TIMES:
        assert m.mean[t].square().sum() < 6 * m.noise[t].sum()


def test_a_constant_error_is_found_and_removed():
    exact = DATA.denoise(SCH)
    off = biased(exact)
    x0 = DATA.sample(4000)
    m = calibrate(off, SCH, x0, TIMES)
    x = noise((50, 2), 9, dtype=D)
    for t in TIMES:
        left = (calibrated(off, m)(x, t, None) - exact(x, t, None)).square().sum(-1)
        before = (off(x, t, None) - exact(x, t, None)).square().sum(-1)
        assert left.max() < 6 * m.noise[t].sum() and before.min() > 100 * left.max()


def test_the_loss_falls_by_the_square_of_the_mean():
    """On noises that add up to 0, as all noise does together, it is an identity and no estimate."""
    x0, e = DATA.sample(500), noise((500, 2), 3, dtype=D)
    e = e - e.mean(0)
    off = biased(DATA.denoise(SCH))
    for t in TIMES:
        eps = off(q_sample(SCH, x0, t, e), t)
        m = eps.mean(0)
        before, after = ((v - e).square().sum(-1).mean() for v in (eps, eps - m))
        assert abs(before - after - m.square().sum()) < 1e-12 and m.square().sum() > 0.02


def test_samples_of_a_biased_network_are_repaired():
    data, n = gmm8(1.0, 0.15), 1500
    off, truth = biased(data.denoise(SCH), (0.1, -0.07)), data.sample(n, seed=5)
    asked = []
    dpm_solver(lambda x, t, c: asked.append(t) or off(x, t), SCH, noise((1, 2), dtype=D), steps=10)
    m = calibrate(off, SCH, data.sample(4000, seed=1), asked)
    x = noise((n, 2), dtype=D)
    right, before, after = (
        energy_distance(dpm_solver(f, SCH, x, steps=10), truth)
        for f in (data.denoise(SCH), off, calibrated(off, m))
    )
    assert before > 10 * right and after < 2 * right + 1e-3


def test_its_own_noise_is_what_it_says():
    """For unit Gaussian data eps is a Gaussian of variance sigma_t^2, at every time: known."""
    data, t, n = Mixture([[0.0, 0.0]], torch.eye(2)[None]), 400, 50
    off = data.denoise(SCH)
    runs = [calibrate(off, SCH, data.sample(n, seed=k), [t], seed=10_000 * k) for k in range(100)]
    truth = 2 * SCH.at(t)[1] ** 2 / n
    squares = torch.stack([m.mean[t].square().sum() for m in runs]).mean().item()
    said = torch.stack([m.noise[t].sum() for m in runs]).mean().item()
    assert abs(said / truth - 1) < 0.05  # 100 chi squares of 98: 1.4 % of it over sqrt(100)
    assert abs(squares / truth - 1) < 4 / math.sqrt(100)  # of 2 degrees: 1 / sqrt(100)


def test_with_few_pictures_it_does_harm():
    x, t = DATA.sample(3000, seed=7), 400
    e, exact = noise(x.shape, 77, dtype=D), DATA.denoise(SCH)
    few = calibrated(exact, calibrate(exact, SCH, DATA.sample(4), [t]))
    before, after = (
        (f(q_sample(SCH, x, t, e), t, None) - e).square().sum(-1).mean() for f in (exact, few)
    )
    assert after > before


def test_pairs_of_noises_cancel_what_is_odd():
    """Unit Gaussian data: eps = sigma x_t, so of a pair only sigma alpha x0 is left."""
    data, t, n = Mixture([[0.0, 0.0]], torch.eye(2)[None]), 900, 2000
    plain, pairs = (
        calibrate(data.denoise(SCH), SCH, data.sample(n), [t], paired=p) for p in (False, True)
    )
    a, s = SCH.at(t)
    assert abs(plain.noise[t].item() / (2 * s**2 / n) - 1) < 0.15
    assert abs(pairs.noise[t].item() / (2 * s**2 * a**2 / n) - 1) < 0.15


def test_a_class_has_its_own_mean_and_a_row_its_own_time():
    data = gmm8()
    labels = torch.arange(8).repeat(50)
    x0 = data.sample(400, label=labels)

    def off(x, t, cond):
        t = torch.as_tensor(t).view(-1, 1)
        return data.denoise(SCH)(x, t[:, 0], cond) + cond.label.double()[:, None] + t / 1000

    m = calibrate(off, SCH, x0, TIMES, Cond(label=labels), by_class=True)
    assert m.mean[400].shape == (8, 2) and m.classes.tolist() == list(range(8))
    assert (m.mean[400].mean(1) - torch.arange(8) - 0.4).abs().max() < 0.6
    f = calibrated(off, m)
    x, cond = noise((3, 2), dtype=D), Cond(label=torch.tensor([5, 0, 2]))
    together = f(x, torch.tensor([100, 800, 400]), cond)
    for i, t in enumerate((100, 800, 400)):
        want = off(x[i : i + 1], t, cond[i]) - m.mean[t][cond.label[i]]
        assert (together[i] - want).abs().max() < 1e-12
        assert (f(x[i : i + 1], t, cond[i]) - want).abs().max() < 1e-12


def test_one_evaluation_a_picture_and_time_whatever_the_batch():
    eps, x0 = Counted(DATA.denoise(SCH)), DATA.sample(70)
    a = calibrate(eps, SCH, x0, TIMES, batch=16)
    assert eps.nfe == 70 * 3
    b = calibrate(eps, SCH, x0, TIMES, batch=70)
    assert all((a.mean[t] - b.mean[t]).abs().max() < 1e-12 for t in TIMES)


def test_it_goes_into_every_sampler():
    eps = DATA.denoise(SCH)
    m = calibrate(eps, SCH, DATA.sample(64), [*range(1, 1001)], batch=64)
    for name in ("ddim", "plms", "dpm++"):
        out = solve(name, calibrated(eps, m), SCH, noise((4, 2), dtype=D), None, steps=5)
        assert out.shape == (4, 2)


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(times=[0]), "at 0 there is no noise"),
        (dict(times=[1001]), "in 1..1000"),
        (dict(times=[]), "expected times"),
        (dict(times=[5], by_class=True), "label for each picture"),
        (dict(times=[5], x0=torch.zeros(1, 2, dtype=D)), "two pictures"),
    ],
)
def test_bad_input_is_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        calibrate(DATA.denoise(SCH), SCH, kw.pop("x0", DATA.sample(8)), **kw)


def test_what_was_not_measured_is_refused():
    eps, x = DATA.denoise(SCH), noise((2, 2), dtype=D)
    f = calibrated(eps, calibrate(eps, SCH, DATA.sample(8), [400]))
    with pytest.raises(ValueError, match=r"times \[401\] were not measured"):
        f(x, 401, None)
    labels = torch.arange(8) % 2
    two = Mixture([[0.0, 0], [1, 1]], torch.eye(2).expand(2, 2, 2)).denoise(SCH)
    m = calibrate(two, SCH, DATA.sample(8), [400], Cond(label=labels), by_class=True)
    with pytest.raises(ValueError, match=r"classes \[-1\] were not measured"):
        calibrated(two, m)(x, 400, Cond(label=torch.tensor([0, -1])))
    with pytest.raises(ValueError, match="no label"):
        calibrated(two, m)(x, 400, None)
