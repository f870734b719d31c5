"""MagicMix: its limits are SDEdit and the picture
itself; what a ghost is; and how a setting is chosen.
"""

import pytest
import torch

from minidiff.core.process import q_sample
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene
from minidiff.editing import magicmix as module
from minidiff.editing.magicmix import blur, choose, ghosting, layout_likeness, magicmix
from minidiff.editing.sdedit import sdedit
from minidiff.pipe.pipe import Pipe

PROMPT = "a green star on a blue background"
CIRCLE = Scene((Obj("circle", "red", "medium"),), "left", "white", "plain")


@pytest.mark.parametrize("band", ["full", "low", "ramp"])
def test_no_interval_and_no_mixing_are_sdedit(pipe, image, band):
    plain = sdedit(pipe, image, PROMPT, strength=0.75, steps=8, scale=4.0)
    run = dict(steps=8, scale=4.0, band=band)
    assert torch.equal(magicmix(pipe, image, PROMPT, kmin=0.75, kmax=0.75, nu=0.3, **run), plain)
    assert (
        magicmix(pipe, image, PROMPT, kmin=0.1, kmax=0.75, nu=1.0, **run) - plain
    ).abs().max() < 1e-6
    fresh = sdedit(pipe, image, PROMPT, strength=1.0, steps=8, scale=4.0)
    assert (
        magicmix(pipe, image, PROMPT, kmin=0.0, kmax=1.0, nu=1.0, **run) - fresh
    ).abs().max() < 1e-6


def test_all_of_the_picture_down_to_zero_is_the_picture(pipe, image):
    out = magicmix(pipe, image, PROMPT, kmin=0.0, kmax=0.8, nu=0.0, steps=5)
    assert (out - pipe.decode(pipe.encode(image))).abs().max() < 1e-5
    assert torch.equal(
        magicmix(pipe, image, PROMPT, kmin=0.0, kmax=0.0, steps=5), pipe.decode(pipe.encode(image))
    )


def test_what_is_mixed_in_has_the_noise_of_the_time_the_state_is_at(pipe, image, monkeypatch):
    seen = []
    noised = Pipe.noised
    monkeypatch.setattr(
        Pipe, "noised", lambda self, z, t, n: seen.append((t, n)) or noised(self, z, t, n)
    )
    magicmix(pipe, image, PROMPT, kmin=0.3, kmax=0.8, steps=10)
    # the start, then each s down to kmin
    assert [t for t, _ in seen] == [800, 700, 600, 500, 400, 300]
    assert all(n is seen[0][1] for _, n in seen)  # one noise for all


def test_the_mixture_is_what_the_network_sees_next(pipe, image, monkeypatch):
    """A widespread variant shows the mixed state to the network
    but moves the unmixed one, so the mixing fades away.
    """
    moved, real = [], module.ddim_step
    monkeypatch.setattr(
        module,
        "ddim_step",
        lambda sch, x, e, t, s: moved.append((x, real(sch, x, e, t, s))) or moved[-1][1],
    )
    magicmix(pipe, image, PROMPT, kmin=0.2, kmax=0.8, nu=0.6, steps=5, seed=3)
    z, n = pipe.encode(image), module.noise((2, 4, 16, 16), 3)
    for (_, after), (before, _), s in zip(moved, moved[1:], (600, 400, 200)):
        assert (before - (0.6 * after + 0.4 * q_sample(pipe.schedule, z, s, n))).abs().max() < 1e-5


def test_the_low_band_mixes_no_detail_and_the_ramp_ends_gently():
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    flat = torch.ones(1, 4, 16, 16)
    stripes = torch.arange(16).remainder(2).mul(2.0).sub(1).expand(1, 4, 16, 16)
    assert (blur(flat) - flat).abs().max() < 1e-6 and blur(stripes).abs().max() < 1e-6
    assert blur(x).std() < 0.6 * x.std()


def test_less_nu_is_more_of_the_picture(pipe, image):
    copy = pipe.decode(pipe.encode(image))
    for band in ("full", "ramp"):
        far = [
            (magicmix(pipe, image, PROMPT, kmin=0.1, kmax=0.8, nu=nu, band=band, steps=8) - copy)
            .square()
            .mean()
            for nu in (0.2, 0.9)
        ]
        assert far[0] < far[1]


def test_ghosting_is_one_for_a_double_exposure_and_zero_without():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 3, 16, 16, generator=g) * 2 - 1 for _ in range(2))
    assert (ghosting(0.5 * a + 0.5 * b, a, b) - 1).abs().max() < 1e-5
    assert (ghosting(0.75 * a + 0.25 * b, a, b) - 0.75).abs().max() < 1e-5  # 4 x 3/4 x 1/4
    # from either, pixel by pixel
    for clear in (a, b, torch.where(torch.rand(3, 1, 16, 16, generator=g) > 0.5, a, b)):
        assert ghosting(clear, a, b).abs().max() < 1e-5
    other = 0.5 * (a + b) + 5 * torch.ones_like(a)
    assert ghosting(other, a, b).max() < 0.05  # a third picture is no ghost
    assert ghosting(a, a, a).isnan().all()  # nothing to tell apart


def test_layout_is_place_and_extent_whatever_the_colour():
    moved, other = shapes.edit(CIRCLE, "position", "right"), shapes.edit(CIRCLE, "color", "green")
    a, b, c = (shapes.render(s) for s in (CIRCLE, moved, other))
    square = shapes.render(shapes.edit(other, "shape", "square"))
    assert (
        layout_likeness(a, a) == 1 and layout_likeness(a, c) > 0.9 and layout_likeness(a, b) < 0.2
    )
    assert layout_likeness(a, b) < layout_likeness(a, square)


def test_the_choice_is_the_setting_with_the_best_product(pipe, image, monkeypatch):
    """With layout and ghosts out of play, it is the
    picture that the score likes best, row by row.
    """
    grid = ((0.1, 0.9, 0.2), (0.1, 0.9, 0.6), (0.1, 0.9, 0.999))
    monkeypatch.setattr(module, "ghosting", lambda out, source, free: torch.zeros(len(out)))
    monkeypatch.setattr(module, "layout_likeness", lambda a, b: torch.ones(len(a)))
    drawn, calls = [], []
    real = module.magicmix
    monkeypatch.setattr(
        module, "magicmix", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1]
    )

    def score(pipe, x, prompt):  # picture, free, then the grid: likes 1 and 2
        calls.append(x)
        return torch.tensor(
            [[0.0, 0.0], [1.0, 1.0], [0.2, 0.3], [0.9, 0.4], [0.5, 0.8]][len(calls) - 1]
        )

    settings, out = choose(pipe, image, PROMPT, grid=grid, steps=5, seed=2, score=score)
    assert settings == [grid[1], grid[2]]
    assert torch.equal(out, torch.stack([drawn[2][0], drawn[3][1]])) and torch.equal(
        calls[1], drawn[0]
    )


def test_a_row_does_not_depend_on_the_batch(pipe, image):
    both = magicmix(pipe, image, [PROMPT, "a red ring"], steps=4, seed=5)
    assert (both[1:] - magicmix(pipe, image[1:], "a red ring", steps=4, seed=6)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(kmin=0.8, kmax=0.5), "kmin=0.8"),
        (dict(kmax=1.2), "kmax=1.2"),
        (dict(kmin=-0.1), "kmin=-0.1"),
        (dict(nu=1.1), "nu=1.1"),
        (dict(band="high"), "band='high'"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1.0"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        magicmix(pipe, image, PROMPT, **{"steps": 4} | bad)
