"""DDRM: each coefficient gets the right line, its noise adds up, and what was measured without
noise comes back.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import minidiff
from minidiff.core.denoise import noise, noises
from minidiff.core.process import eps_to_x0
from minidiff.restoration.ddrm import _mix, ddrm, ddrm_sample
from minidiff.restoration.operators import blur, grey, hole, lossy, superres


@pytest.fixture(scope="module")
def pixel():
    return minidiff.build("tiny-pixel", seed=0)


@pytest.fixture(scope="module")
def exact():
    return minidiff.build("tiny-pixel", seed=0, dtype=torch.float64)


def pictures(b=2, side=32, seed=0):
    return torch.rand(b, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def window(side=32):
    m = torch.zeros(1, 1, side, side)
    m[..., side // 4 : side // 2, side // 4 :] = 1
    return m


OPS = {
    "sr4": superres(4),
    "sr2": superres(2),
    "grey": grey(),
    "hole": hole(window()),
    "blur": blur(32, 32, 1.0),
    "sr4 grey holes": lossy(window(8), 4, True),
}


@pytest.mark.parametrize("name", OPS)
def test_what_was_measured_comes_back(pixel, name):
    op, x = OPS[name], pictures()
    y = op.A(x)
    out = ddrm_sample(pixel, y, op, steps=4)
    assert out.shape == x.shape and (op.A(out) - y).abs().max() < 1e-5
    assert (out - x).abs().max() > 0.1
    assert (
        op.A(ddrm_sample(pixel, y, op, eta_b=0.5, steps=4)) - y
    ).abs().max() > 0.01  # half trusted


def test_measuring_everything_returns_the_measurement(pixel):
    x = pictures()
    assert (ddrm_sample(pixel, x, lossy(), steps=3) - x).abs().max() < 1e-6


def test_measuring_nothing_is_the_unconditional_sampler(exact):
    z, eta = torch.zeros(2, 3, 32, 32, dtype=torch.float64), 0.85
    x, ts = noise(z.shape, 3, dtype=torch.float64) * exact.schedule.sigma[-1], exact.timesteps(3)
    zs = noises(x, 3)
    for t, s in pairwise(ts):
        eps = exact.eps(x, t, exact.null())
        a, sigma = exact.schedule.at(s)
        x0 = eps_to_x0(exact.schedule, x, eps, t).clamp(-1, 1)
        x = a * x0 + sigma * ((1 - eta**2) ** 0.5 * eps + eta * next(zs))
    assert (
        ddrm_sample(exact, z, hole(torch.ones(1, 1, 32, 32)), steps=3, seed=3) - x
    ).abs().max() < 1e-9


def test_the_first_state_holds_the_measurement_at_the_scale_of_the_state():
    """alpha_T ybar, and noise that adds up to sigma_T with that of y."""
    # its alpha_T is .07, not 5e-5
    latent, seen = minidiff.build("tiny", seed=0, dtype=torch.float64), []
    spy = replace(latent)
    spy.eps = lambda x, t, cond: (seen.append(x), latent.eps(x, t, cond))[1]
    z = noise((1, 4, 16, 16), 9, dtype=torch.float64)
    a, sigma = latent.schedule.at(latent.schedule.T)
    for sigma_y in (0.0, 0.5):
        seen.clear()
        ddrm_sample(spy, z, lossy(), sigma_y=sigma_y, steps=2, seed=3)
        n = noise(z.shape, 3, dtype=torch.float64)
        assert (seen[0] - a * z - (sigma**2 - (a * sigma_y) ** 2) ** 0.5 * n).abs().max() < 1e-12


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 0.5])
def test_the_noise_of_every_coefficient_adds_up_to_the_states(name, sigma_y):
    """Where guess and truth are 0, a state is noise of size sigma: in each of the three lines,
    drawn 4000 times.
    """
    op, a, sigma = OPS[name], 0.8, 0.3
    if name == "hole" or name == "blur":
        op = hole(window(8)) if name == "hole" else blur(8, 8, 1.0)
    op = lossy(window(2), 4, True) if "holes" in name else op
    g = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(4000, 3, 8, 8, generator=g)  # noqa: E731
    _, inverse = op.singular(torch.zeros(1))
    ybar = (
        inverse
        * sigma_y
        * op.Ut(op.A(torch.zeros(4000, 3, 8, 8)) + torch.randn(op.A(draw()).shape, generator=g))
    )
    c = _mix(op, ybar, torch.zeros(4000, 3, 8, 8), draw(), draw(), a, sigma, sigma_y, 0.85, 1.0)
    assert (c.std(0) / sigma - 1).abs().max() < 0.06


@pytest.mark.parametrize("eta_b", [1.0, 0.6])
def test_each_coefficient_gets_its_line(eta_b):
    """Blur has singular values of every size. By hand, one coefficient of each kind."""
    op, a, sigma, sigma_y, eta = blur(8, 8, 1.0), 0.8, 0.2, 0.05, 0.6
    x0, eps, n = (noise((1, 3, 8, 8), k, dtype=torch.float64) for k in range(3))
    ybar = noise((1, 3, 8, 8), 3, dtype=torch.float64)
    c = _mix(op, ybar, x0, eps, n, a, sigma, sigma_y, eta, eta_b)
    h0, he, hn = op.Vt(x0), op.Vt(eps), op.Vt(n)
    kinds = {
        "unseen": op.s == 0,
        "noisy": (op.s > 0) & (a * sigma_y > sigma * op.s),
        "clean": a * sigma_y <= sigma * op.s,
    }
    for kind, of in kinds.items():
        i = of.nonzero()[-1].tolist()
        k = (0, 0, *i)
        s = op.s[tuple(i)].item()
        want = {
            "unseen": a * h0[k] + sigma * (0.8 * he[k] + eta * hn[k]),
            "noisy": a * h0[k] + sigma * (0.8 * (ybar[k] - h0[k]) * s / sigma_y + eta * hn[k]),
            "clean": a * ((1 - eta_b) * h0[k] + eta_b * ybar[k])
            + (sigma**2 - (eta_b * a * sigma_y / max(s, 1e-9)) ** 2) ** 0.5 * hn[k]
            if kind == "clean"
            else 0,
        }[kind]
        assert abs(c[k] - want) < 1e-12, kind


def test_no_division_by_zero_where_noise_and_state_vanish(pixel):
    for sigma_y in (0.0, 0.3):
        for op in OPS.values():
            out = ddrm_sample(pixel, op.A(pictures()), op, sigma_y=sigma_y, steps=2)
            assert out.isfinite().all()


def test_a_row_depends_on_its_own_seed_and_measurement(exact):
    y = superres(4).A(pictures(3).double())
    both = ddrm_sample(exact, y, superres(4), ["", "blue star", ""], steps=2, seed=4)
    alone = ddrm_sample(exact, y[1:2], superres(4), "blue star", steps=2, seed=5)
    assert (both[1:2] - alone).abs().max() < 1e-9 and (both[0] - both[2]).abs().max() > 0.1


def test_latents_take_holes_and_keep_the_pixels_around_them():
    latent = minidiff.build("tiny", seed=0)
    x, m = pictures(2, 64), window(64)
    out = ddrm(latent, x, task="inpaint", mask=m, steps=3)
    assert torch.equal(out[:2], x * (1 - m)) and torch.equal(out[2:] * (1 - m), x * (1 - m))
    with pytest.raises(ValueError, match="works on latents"):
        ddrm(latent, x, task="grey")


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(eta=1.5), "eta=1.5"),
        (dict(eta_b=-0.1), "eta_b=-0.1"),
        (dict(sigma_y=-1.0), "sigma_y=-1.0"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1"),
        (dict(task="rain"), "choose one of: inpaint"),
        (dict(task="inpaint"), "needs a mask"),
        (dict(mask=window()), "takes no mask"),
    ],
)
def test_bad_arguments_are_refused(pixel, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        ddrm(pixel, pictures(), **{"task": "sr4", "steps": 2} | bad)
