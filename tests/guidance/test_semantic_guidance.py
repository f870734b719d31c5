"""Semantic guidance: gradients that are gradients, terms that add up, and the shortcut where it is
exact.
"""

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.denoise import noise
from minidiff.core.process import eps_to_x0
from minidiff.data.toy2d import Mixture
from minidiff.guidance import semantic_guidance as module
from minidiff.guidance.classifier_guidance import gradient
from minidiff.guidance.semantic_guidance import (
    apart,
    gram,
    look,
    look_ahead,
    semantic_guidance,
    wish,
)
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText

SCH = schedule.linear(1000)
NONE = dict(text=0.0, content=0.0, structure=0.0, style=0.0)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    net = CLIP(
        CLIPText(**SIZES["tiny"]["text"] | {"causal": True}), CLIPImage(**SIZES["tiny"]["image"])
    )
    return net.eval().requires_grad_(False)


# ---- the guidance, where the answer is known -----------------------------------------------------


def toy(variance):
    one = Mixture([[0.5, -1.0]], [[[variance, 0], [0, variance]]])
    return one.denoise(SCH), noise((5, 2), dtype=torch.float64)


@pytest.mark.parametrize("t", [20, 400, 950])
def test_the_shortcut_is_exact_for_data_of_unit_variance_and_only_there(t):
    score = lambda x0: -(x0 - 3).square().sum(1)  # noqa: E731
    for variance, same in ((1.0, True), (0.05, False)):
        net, x = toy(variance)
        quick, true = (
            look_ahead(net, SCH, score, through)(x, t, None) for through in (False, True)
        )
        assert ((quick - true).abs().max() < 1e-9 * quick.abs().max().clamp_min(1)) == same or (
            t == 20 and not same
        )


def test_the_shortcut_is_exact_on_tables_that_do_not_keep_the_variance_too():
    """Flow: alpha^2 + sigma^2 is not 1."""
    sch = schedule.flow(1000)
    net = Mixture([[0.0, 0.0]], torch.eye(2)[None]).denoise(sch)
    x = noise((5, 2), dtype=torch.float64)

    def exact(x_t, t, cond):  # with a graph: E[x0 | x_t] of unit data
        a, s = sch.at(t)
        return x_t * s / (a * a + s * s)

    assert (exact(x, 500, None) - net(x, 500)).abs().max() < 1e-9
    score = lambda x0: (x0**3).sum(1)  # noqa: E731
    short, through = (look_ahead(exact, sch, score, way)(x, 500, None) for way in (False, True))
    assert (short - through).abs().max() < 1e-9 < (short - exact(x, 500, None)).abs().max()


def test_structure_compares_the_patches_of_the_first_block(clip, image):
    other = image.flip(3)
    only = NONE | {"structure": 2.0}
    score = wish(clip, words=None, reference=image, **only)
    first, reference = (look(clip, picture)[1][0] for picture in (other, image))
    assert (
        (score(other) + 2 * apart(first, reference)).abs().max()
        < 1e-5
        < apart(first, reference).min()
    )


def test_through_is_the_gradient_of_finite_differences():
    net, x = toy(0.3)
    score, h, t = lambda x0: x0.sin().sum(1), 1e-5, 400
    out = look_ahead(net, SCH, score, True)(x, t, None)
    value = lambda v: score(eps_to_x0(SCH, v, net(v, t, None), t)).sum()  # noqa: E731
    for i, k in ((0, 0), (3, 1)):
        d = torch.zeros_like(x)
        d[i, k] = h
        slope = (value(x + d) - value(x - d)) / (2 * h)
        assert ((net(x, t, None) - out)[i, k] - SCH.at(t)[1] * slope).abs() < 1e-6


def test_guidance_raises_what_it_is_asked_to_raise():
    net, x = toy(0.3)
    score = lambda x0: x0[:, 0]  # noqa: E731
    for through in (False, True):
        eps = look_ahead(net, SCH, score, through)(x, 500, None)
        assert (
            eps_to_x0(SCH, x, eps, 500)[:, 0] > eps_to_x0(SCH, x, net(x, 500, None), 500)[:, 0]
        ).all()


# ---- the wish ------------------------------------------------------------------------------------


def test_every_term_is_best_at_the_reference_and_they_add_up(clip, image):
    words = clip.embed_text(torch.tensor([[1, 5, 9, 2] + [0] * 16] * 2))
    make = lambda **k: wish(clip, words=words, reference=image, **NONE | k)  # noqa: E731
    assert (make(content=2.0)(image) - 2).abs().max() < 1e-5
    assert (
        make(structure=1.0)(image).abs().max() < 1e-6 and make(style=1.0)(image).abs().max() < 1e-6
    )
    other, w = image.flip(0), dict(text=3.0, content=2.0, structure=0.5, style=0.7)
    parts = sum(make(**{k: v})(other) for k, v in w.items())
    assert (make(**w)(other) - parts).abs().max() < 1e-5
    assert make(structure=1.0)(other).max() < -1e-3 and make(style=1.0)(other).max() < -1e-3


def test_style_does_not_know_places_and_structure_does(clip, image):
    _, states = look(clip, image)
    shuffled = states[0][:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert (
        apart(gram(shuffled), gram(states[0])).max() < 1e-8
        and apart(shuffled, states[0]).min() > 0.01
    )
    assert len(states) == 3 and states[0].shape == (2, 64, 128)


def test_the_gradient_of_the_wish_is_that_of_finite_differences(clip, image):
    import copy

    clip, x = copy.deepcopy(clip).double(), image.double()
    score = wish(
        clip, words=None, reference=x.flip(2), text=0.0, content=2.0, structure=0.5, style=0.3
    )
    g, h = gradient(score, x), 1e-5
    for i, c, r, k in ((0, 0, 10, 20), (1, 2, 40, 3)):
        d = torch.zeros_like(x)
        d[i, c, r, k] = h
        slope = (score(x + d) - score(x - d)).sum() / (2 * h)
        assert (slope - g[i, c, r, k]).abs() < 1e-7 + 1e-5 * slope.abs()


# ---- on pictures ---------------------------------------------------------------------------------


def test_with_nothing_asked_it_is_unconditional_generation(pipe, image):
    plain = pipe.generate(["", ""], steps=3, scale=1.0, seed=4)
    assert (semantic_guidance(pipe, image, eta=0.0, steps=3, seed=4) - plain).abs().max() < 1e-5
    assert torch.equal(
        semantic_guidance(pipe, image, strength=0.0), pipe.decode(pipe.encode(image))
    )


def test_gradient_passes_the_decoder_and_the_row_is_its_own(pipe, image, clip):
    run = lambda x, p, **k: semantic_guidance(pipe, x, p, clip=clip, steps=2, **k)  # noqa: E731
    prompts = ["a red circle", "a blue star"]
    both = run(image, prompts, content=300.0, seed=5)
    assert (both[1:] - run(image[1:], prompts[1], content=300.0, seed=6)).abs().max() < 1e-3
    assert (both - run(image, "", seed=5)).abs().max() > 0.01


def test_it_looks_at_the_end_not_at_the_state(pipe, image, clip, monkeypatch):
    seen = []

    def spy(denoise, sch, score, through):
        def counted(x):
            seen.append(x.std().item())
            return score(x)

        return look_ahead(denoise, sch, counted, through)

    monkeypatch.setattr(module, "look_ahead", spy)
    semantic_guidance(pipe, image, "", content=1.0, clip=clip, steps=2)
    assert len(seen) == 2  # once a step, and never x_t itself


def test_pixel_models_too(image, clip):
    out = semantic_guidance(
        minidiff.build("tiny-pixel"), image[..., ::2, ::2], "a red circle", clip=clip, steps=2
    )
    assert out.shape == (2, 3, 32, 32) and out.isfinite().all()


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(strength=1.5), "strength=1.5"),
        (dict(steps=0), "steps=0"),
        (dict(content=-1.0), "content=-1.0 is negative"),
        (dict(prompt="x", text=-1.0), "text=-1.0 is negative"),
        (dict(eta=2.0), "eta=2.0"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        semantic_guidance(pipe, image, **bad)


def test_a_foreign_model_needs_a_clip_of_its_own(pipe, image):
    from dataclasses import replace

    with pytest.raises(ValueError, match="pass one as clip="):
        semantic_guidance(replace(pipe, name="sd15"), image, "a cat")


@pytest.mark.weights
def test_a_reference_raises_the_likeness_to_it():
    import numpy as np

    from minidiff.data import shapes
    from minidiff.weights.store import load_clip

    clip, pipe = load_clip(), minidiff.load("tiny")
    image = shapes.render([shapes.scene(np.random.default_rng(i), objects=1) for i in range(3)])
    alike = lambda x: (clip.embed_image(x) * clip.embed_image(image)).sum(1).mean().item()  # noqa: E731
    found = [alike(semantic_guidance(pipe, image, content=c, steps=15)) for c in (0.0, 1000.0)]
    assert found[1] > found[0] + 0.3, found
