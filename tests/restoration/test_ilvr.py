"""ILVR: the exchange is exact, its limits are known, and both sides of it are at the same time."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import minidiff
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import noise, noises
from minidiff.core.process import ddim_step
from minidiff.editing.sdedit import sdedit
from minidiff.pipe.pipe import Pipe
from minidiff.restoration import ilvr as module
from minidiff.restoration.ilvr import ilvr, low_band, refine

PROMPT = "a red circle on a blue background"


@pytest.mark.parametrize("factor", [1, 2, 4, 16])
def test_phi_is_a_projection_and_self_adjoint(factor):
    x, y = noise((2, 3, 16, 16), dtype=torch.float64).unbind()
    phi = lambda v: low_band(v[None], factor)[0]  # noqa: E731
    assert (phi(phi(x)) - phi(x)).abs().max() < 1e-12
    assert ((phi(x) * y).sum() - (x * phi(y)).sum()).abs() < 1e-10


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_after_the_exchange_the_low_band_is_the_references_and_the_rest_is_kept(factor):
    x, y = noise((2, 1, 4, 16, 16), dtype=torch.float64).unbind()
    out = refine(x, y, factor)
    assert (low_band(out, factor) - low_band(y, factor)).abs().max() < 1e-12
    assert ((out - low_band(out, factor)) - (x - low_band(x, factor))).abs().max() < 1e-12
    assert (out - x).abs().max() > 0.1 and (out - y).abs().max() > 0.1


def test_the_exchange_is_the_projection_of_super_resolution():
    """What DDNM does to clean estimates for the operator "mean of blocks", ILVR does to noisy
    states.
    """
    from minidiff.restoration.operators import superres

    x, y = noise((2, 1, 3, 16, 16), dtype=torch.float64).unbind()
    op = superres(4)
    assert (refine(x, y, 4) - op.project(x, op.A(y))).abs().max() < 1e-12


def test_factor_1_returns_the_reference(pipe, image):
    assert (
        ilvr(pipe, image, PROMPT, factor=1, steps=3) - pipe.decode(pipe.encode(image))
    ).abs().max() < 1e-5


def test_the_low_band_of_the_result_is_exactly_the_references(pipe, image, monkeypatch):
    for end in (0, 1):  # Stable Diffusion's end counts as clean, too
        model = replace(pipe, end=end)
        kept = []
        monkeypatch.setattr(type(model), "decode", lambda self, z, kept=kept: kept.append(z) or z)
        ilvr(model, image, PROMPT, factor=4, steps=3)
        assert (low_band(kept[0], 4) - low_band(pipe.encode(image), 4)).abs().max() < 1e-5
        monkeypatch.undo()


def test_stop_1_is_plain_ancestral_sampling(pipe, image):
    denoise, sch = cfg_batched(pipe.eps, pipe.null(), pipe.scale), pipe.schedule
    x, fresh, ts = pipe.noise(2, 5), noises(pipe.noise(2, 5), 5), pipe.timesteps(3)
    for t, s in pairwise(ts):
        x = ddim_step(sch, x, denoise(x, t, pipe.embed(PROMPT)), t, s, 1.0, next(fresh))
    assert (
        ilvr(pipe, image, PROMPT, stop=1.0, steps=3, seed=5) - pipe.decode(x)
    ).abs().max() < 1e-5


def test_without_noise_and_stop_1_it_is_generation(pipe, image):
    out = ilvr(pipe, image[:1], PROMPT, stop=1.0, eta=0.0, steps=3, seed=5)
    assert (out - pipe.generate(PROMPT, steps=3, seed=5)).abs().max() < 1e-5


def test_less_strength_starts_from_the_reference_and_none_returns_it(pipe, image):
    assert torch.equal(
        ilvr(pipe, image, PROMPT, strength=0.0, steps=4), pipe.decode(pipe.encode(image))
    )
    free = dict(stop=1.0, eta=0.0, steps=4, seed=5, strength=0.5)  # nothing is held: SDEdit
    assert (
        ilvr(pipe, image, PROMPT, **free)
        - sdedit(pipe, image, PROMPT, strength=0.5, steps=4, seed=5)
    ).abs().max() < 1e-5


def test_the_reference_is_noised_to_the_time_the_state_is_at(pipe, image, monkeypatch):
    seen = []
    noised = Pipe.noised
    monkeypatch.setattr(
        Pipe, "noised", lambda self, z, t, n: seen.append((t, n)) or noised(self, z, t, n)
    )
    ilvr(pipe, image, PROMPT, steps=4)
    assert [t for t, _ in seen] == [750, 500, 250, 0]  # after the moves from 1000, 750, 500, 250
    assert all((a - b).abs().max() > 0.1 for (_, a), (_, b) in pairwise(seen))
    seen.clear()
    ilvr(pipe, image, PROMPT, steps=4, stop=0.5)
    assert [t for t, _ in seen] == [750, 500]  # moves that start at t > .5 T


def test_noise_of_the_reference_is_not_the_noise_of_the_move(pipe, image, monkeypatch):
    used, moved = [], []
    noised = Pipe.noised
    monkeypatch.setattr(
        Pipe, "noised", lambda self, z, t, n: used.append(n) or noised(self, z, t, n)
    )
    monkeypatch.setattr(module, "ddim_step", lambda *a: moved.append(a[-1]) or ddim_step(*a))
    ilvr(pipe, image, PROMPT, steps=2)
    assert all((a - b).abs().max() > 0.1 for a in used for b in moved)


def test_a_row_does_not_depend_on_the_others(pipe, image):
    prompts = [PROMPT, "a green star on a white background"]
    both = ilvr(pipe, image, prompts, steps=3, seed=7)
    assert (both[1:] - ilvr(pipe, image[1:], prompts[1], steps=3, seed=8)).abs().max() < 1e-4
    assert torch.equal(both, ilvr(pipe, image, prompts, steps=3, seed=7))


def test_pixel_models_and_other_sizes(pipe, image):
    small = image[..., ::2, ::2]
    out = ilvr(minidiff.build("tiny-pixel"), small, "red circle", factor=8, steps=2)
    assert (low_band(out, 8) - low_band(small, 8)).abs().max() < 1 and out.shape == small.shape
    assert ilvr(pipe, torch.rand(1, 3, 48, 80) * 2 - 1, PROMPT, steps=2).shape == (1, 3, 48, 80)


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(factor=3), "factor=3: blocks must tile the latents of 16 x 16"),
        (dict(factor=0), "factor=0"),
        (dict(factor=32), "factor=32"),
        (dict(factor=2.0), "factor=2.0"),
        (dict(stop=1.5), "stop=1.5: a share"),
        (dict(eta=-1.0), "eta=-1.0: a share"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1.0"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(pipe, image, bad, complaint, monkeypatch):
    monkeypatch.setattr(type(pipe), "eps", None)
    with pytest.raises(ValueError, match=complaint):
        ilvr(pipe, image, PROMPT, **bad)


@pytest.mark.weights
def test_larger_blocks_leave_more_freedom():
    import numpy as np

    from minidiff.data import shapes
    from minidiff.evaluate.metrics import psnr

    scenes = [shapes.scene(np.random.default_rng(i), objects=1) for i in range(4)]
    image, pipe = shapes.render(scenes), minidiff.load("tiny")
    found = [
        psnr(ilvr(pipe, image, PROMPT, factor=f, steps=15), image).mean().item()
        for f in (1, 2, 4, 16)
    ]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] + 5, found
