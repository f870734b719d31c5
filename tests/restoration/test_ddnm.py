"""DDNM: what was measured comes back exactly, the rest is the model's, and DDNM+ is DDNM where
there is no noise.
"""

from itertools import pairwise

import pytest
import torch

import minidiff
from minidiff.core.denoise import noise, noises, sample
from minidiff.core.process import eps_to_x0
from minidiff.pipe.masks import to_latent_mask
from minidiff.restoration.ddnm import ddnm, ddnm_sample, trust
from minidiff.restoration.operators import blur, grey, hole, lossy, superres


@pytest.fixture(scope="module")
def pixel():
    return minidiff.build("tiny-pixel", seed=0)


@pytest.fixture(scope="module")
def exact():
    """In float64: at T this schedule divides by alpha = 5e-5, which makes float32's rounding
    visible.
    """
    return minidiff.build("tiny-pixel", seed=0, dtype=torch.float64)


@pytest.fixture(scope="module")
def latent():
    return minidiff.build("tiny", seed=0)


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
@pytest.mark.parametrize("repeats", [1, 2])
def test_what_was_measured_comes_back(pixel, name, repeats):
    op, x = OPS[name], pictures()
    y = op.A(x)
    out = ddnm_sample(pixel, y, op, steps=4, length=2, repeats=repeats)
    assert out.shape == x.shape and (op.A(out) - y).abs().max() < 1e-5
    assert (out - x).abs().max() > 0.1  # and the rest is invented


def test_measuring_nothing_is_the_unconditional_sampler_bit_for_bit(latent):
    nothing, z, sch = hole(torch.ones(1, 1, 16, 16)), torch.zeros(2, 4, 16, 16), latent.schedule
    ts = latent.timesteps(5)
    for eta in (0.0, 0.85):
        x, zs = noise(z.shape, 3), noises(z, 3)
        for t, s in pairwise(ts):
            eps = latent.eps(x, t, latent.null())
            a, sigma = sch.at(s)
            fresh = torch.tensor(eta * sigma) * next(zs)
            x = a * eps_to_x0(sch, x, eps, t) + (1 - eta**2) ** 0.5 * sigma * eps + fresh
        ours = ddnm_sample(latent, z, nothing, eta=eta, steps=5, seed=3)
        assert torch.equal(ours, x) if eta == 0 else (ours - x).abs().max() < 1e-5
    plain = sample(latent.eps, sch, noise(z.shape, 3), ts, latent.null())
    assert (
        ddnm_sample(latent, z, nothing, eta=0.0, steps=5, seed=3) - plain
    ).abs().max() < 1e-5  # DDIM


def test_measuring_everything_returns_the_measurement(pixel):
    x = pictures()
    assert (ddnm_sample(pixel, x, lossy(), steps=3) - x).abs().max() < 1e-6
    empty = torch.zeros(1, 1, 32, 32)
    assert (ddnm(pixel, x, task="inpaint", mask=empty, steps=3)[2:] - x).abs().max() < 1e-6


@pytest.mark.parametrize("name", OPS)
def test_without_noise_ddnm_plus_is_ddnm(exact, name):
    """Against the plain algorithm, which knows A and A+ alone."""
    op, eta = OPS[name], 0.85
    y = op.A(pictures().double())
    x, ts = noise((2, 3, 32, 32), 0, dtype=torch.float64), exact.timesteps(3)
    zs = noises(x, 0)
    for t, s in pairwise(ts):
        eps = exact.eps(x, t, exact.null())
        x0 = op.project(eps_to_x0(exact.schedule, x, eps, t).clamp(-1, 1), y)
        a, sigma = exact.schedule.at(s)
        x = a * x0 + sigma * (eta * next(zs) + (1 - eta**2) ** 0.5 * eps)
    assert (ddnm_sample(exact, y, op, steps=3) - x).abs().max() < 1e-9
    lam, d = trust(op, 0.0, 0.6, 0.5, y)
    assert torch.equal(lam, torch.ones_like(lam)) and torch.equal(d, torch.full_like(d, 0.5))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("a, fresh", [(0.1, 0.9), (0.8, 0.5), (0.99, 0.05), (1.0, 0.0)])
def test_the_noise_of_y_takes_the_place_of_fresh_noise(name, a, fresh):
    """lam^2 (a sigma_y / s)^2 + d^2 = fresh^2 in every coefficient, whichever of the two is
    larger.
    """
    op = OPS[name]
    lam, d = trust(op, 0.2, a, fresh, torch.zeros(1, dtype=torch.float64))
    theirs = a * 0.2 * op.singular(torch.zeros(1, dtype=torch.float64))[1]
    assert ((lam * theirs) ** 2 + d**2 - fresh**2).abs().max() < 1e-12
    assert lam.min() >= 0 and lam.max() <= 1 and (d >= 0).all()


def test_the_last_step_ignores_a_noisy_y(pixel):
    """At the clean end no noise may stay in the picture, so a noisy y is not put into it."""
    op, x = superres(2), pictures()
    y = op.A(x) + 0.2 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    out = ddnm_sample(pixel, y, op, sigma_y=0.2, steps=4)
    # a clipped guess, uncorrected
    assert (op.A(out) - y).abs().max() > 0.05 and out.abs().max() <= 1


def test_a_row_depends_on_its_own_seed_measurement_and_prompt(exact):
    y, names = superres(4).A(pictures(3).double()), ["red circle", "blue star", ""]
    both = ddnm_sample(exact, y, superres(4), names, steps=2, scale=2.0, seed=4)
    alone = ddnm_sample(exact, y[1:2], superres(4), names[1], steps=2, scale=2.0, seed=5)
    assert (both[1:2] - alone).abs().max() < 1e-9 and (both[0] - both[2]).abs().max() > 0.1


def test_degrading_twice_measures_the_same(exact):
    x = pictures().double()
    for task, shown in (
        ("sr4", superres(4).pinv(superres(4).A(x))),
        ("grey", x.mean(1, keepdim=True).expand_as(x)),
        ("blur", blur(32, 32).A(x)),
    ):
        a, b = (
            ddnm(exact, x, task=task, steps=2),
            ddnm(exact, shown, task=task, degraded=True, steps=2),
        )
        assert (a[:2] - shown).abs().max() < 1e-9 and (a - b).abs().max() < 1e-7, task
        assert a.shape == (4, 3, 32, 32)


def test_latents_take_holes_and_keep_the_pixels_around_them(latent):
    x, m = pictures(2, 64), window(64)
    out = ddnm(latent, x, "a red circle on a blue background", task="inpaint", mask=m, steps=3)
    assert torch.equal(out[:2], x * (1 - m)) and torch.equal(out[2:] * (1 - m), x * (1 - m))
    assert ((out[2:] - x) * m).abs().max() > 0.1
    z, op = latent.encode(x), hole(to_latent_mask(m, latent))
    assert (op.A(ddnm_sample(latent, op.A(z), op, steps=3)) - op.A(z)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="works on latents"):
        ddnm(latent, x, task="sr4")


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(eta=1.5), "eta=1.5"),
        (dict(sigma_y=-1.0), "sigma_y=-1.0"),
        (dict(sigma_y=float("nan")), "sigma_y=nan"),
        (dict(steps=0), "steps=0"),
        (dict(repeats=0), "repeats=0"),
        (dict(length=0), "length=0"),
        (dict(scale=-1.0), "scale=-1"),
        (dict(prompt="red elephant"), "red elephant"),
        (dict(task="rain"), "choose one of: inpaint"),
        (dict(task="inpaint"), "needs a mask"),
        (dict(mask=window()), "takes no mask"),
        (dict(task="inpaint", mask=window(16)), "mask is"),
        (dict(task="inpaint", mask=0.5 * window()), "expected only 0"),
    ],
)
def test_bad_arguments_are_refused(pixel, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        ddnm(pixel, pictures(), **{"task": "sr4", "steps": 2} | bad)


def test_another_size_is_refused(pixel):
    with pytest.raises(ValueError, match="32 x 32"):
        ddnm(pixel, pictures(1, 64), task="sr4")


@pytest.mark.parametrize("name", ["ddnm", "ddrm", "repaint"])
def test_from_the_command_line(tmp_path, monkeypatch, pixel, capsys, name):
    from minidiff.cli import main as app
    from minidiff.io import read_image, write_image
    from minidiff.weights import store

    monkeypatch.setattr(store, "load", lambda *a, **k: pixel)
    monkeypatch.chdir(tmp_path)
    write_image(pictures(1, 64)[0], "x.png")
    write_image(window()[0].expand(3, -1, -1) * 2 - 1, "hole.png")

    def run(line):
        return app.main(["edit", name, *line.split(), "--model", "tiny-pixel", "--steps", "2"])

    if name != "repaint":
        assert run("--image x.png --task sr4 --resize --sheet sheet.png --out out.png") == 0
        assert (
            read_image("out.png").shape == (1, 3, 32, 32) and read_image("sheet.png").shape[3] > 300
        )
        assert run("--image x.png --task sr4") == 2 and "allow a resize" in capsys.readouterr().err
        assert (
            run("--image x.png --resize --task rain") == 2
            and run("--image x.png --resize --task inpaint") == 2
        )
        assert "needs a mask" in capsys.readouterr().err
    task = "" if name == "repaint" else "--task inpaint"
    assert run(f"--image x.png --resize --mask hole.png {task} --out filled.png") == 0
    filled, x = read_image("filled.png"), read_image("x.png", 32, resize=True)
    assert ((filled - x) * (1 - window())).abs().max() < 1.01 / 127.5
