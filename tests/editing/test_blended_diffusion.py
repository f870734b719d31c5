"""Blended Diffusion: the distance and its gradients,
what CLIP is shown, the blend, and the choice among runs.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import minidiff
from minidiff.core.denoise import noise, noises
from minidiff.core.process import eps_to_x0, posterior, q_sample
from minidiff.data.shapes import VOCAB
from minidiff.editing import blended_diffusion as module
from minidiff.editing.blended_diffusion import blended_diffusion, spherical, views
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import TINY_IMAGE, TINY_TEXT
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.pipe.masks import to_latent_mask

PROMPT = "a green star on a blue background"


@pytest.fixture(scope="module")
def clip():
    """A small CLIP of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = dict(layers=1, width=32, heads=2, project_dim=16)
        model = CLIP(CLIPText(**TINY_TEXT | small), CLIPImage(**TINY_IMAGE | small))
    return model.eval().requires_grad_(False), Tokenizer.words(VOCAB)


def window(b=1):
    m = torch.zeros(b, 1, 64, 64)
    m[..., 18:40, 10:31] = 1
    return m


def test_the_distance_is_half_the_squared_angle():
    angle = torch.tensor([0.0, 0.3, 1.0, 2.0, 3.0], dtype=torch.float64)
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.stack([angle.cos(), angle.sin()], 1)
    assert (spherical(a, b) - angle**2 / 2).abs().max() < 1e-6


def test_its_gradient_is_that_of_finite_differences_and_finite_at_both_ends():
    g = torch.Generator().manual_seed(0)
    a, b = (
        F.normalize(torch.randn(3, 8, generator=g, dtype=torch.float64), dim=1) for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda x: spherical(x, b), a.requires_grad_())
    x = b.clone().requires_grad_()
    # equal: no pull, and no NaN
    assert torch.autograd.grad(spherical(x, b).sum(), x)[0].abs().max() == 0
    x = (-b).requires_grad_()
    d = spherical(x, b)
    assert (
        torch.autograd.grad(d.sum(), x)[0].isfinite().all()
        and (d - math.pi**2 / 2).abs().max() < 0.02
    )


def test_views_are_small_moves_and_a_row_has_its_own(image):
    streams = lambda *seeds: [torch.Generator().manual_seed(s) for s in seeds]  # noqa: E731
    v = views(image, 3, streams(1, 2))
    assert v.shape == (6, 3, 64, 64)
    assert torch.equal(v[3:], views(image[1:], 3, streams(2)))
    flat = torch.full((1, 3, 8, 8), 0.7)
    assert (views(flat, 4, streams(0)) - 0.7).abs().max() < 1e-6  # nothing dark comes in at the rim
    assert (views(image, 1, streams(0, 0), reach=0.0) - image).abs().max() < 1e-5


def test_an_empty_mask_returns_the_picture(pipe, image, clip):
    assert torch.equal(
        blended_diffusion(pipe, image, PROMPT, mask=0 * window(), steps=2, runs=1, clip=clip), image
    )


def test_outside_the_mask_pixels_are_the_pictures(pipe, image, clip):
    out = blended_diffusion(
        pipe, image, PROMPT, mask=window(), steps=3, runs=1, views_=1, clip=clip
    )
    assert ((out - image) * (1 - window())).abs().max() == 0 and (
        (out - image) * window()
    ).abs().max() > 0.05


def test_without_weights_it_is_the_blend_of_an_unguided_ancestral_chain(pipe, image, clip):
    run = dict(mask=window(), steps=4, strength=0.75, runs=1, seed=3, clip=clip)
    out = blended_diffusion(pipe, image, PROMPT, weight=0.0, limit=0.0, **run)
    sch, z, m = pipe.schedule, pipe.encode(image), to_latent_mask(window(), pipe)
    n, fresh = noise(z.shape, 3), noises(z, 3)
    x = q_sample(sch, z, 750, n)
    with torch.no_grad():
        for t, s in ((750, 500), (500, 250), (250, 0)):
            mean, var = posterior(sch, x, eps_to_x0(sch, x, pipe.eps(x, t, pipe.null()), t), t, s)
            x = m * (mean + var**0.5 * next(fresh)) + (1 - m) * q_sample(sch, z, s, n)
    assert (out - (window() * pipe.decode(x) + (1 - window()) * image)).abs().max() < 1e-5


def test_the_pull_is_the_gradient_through_the_network(pipe, image, clip, monkeypatch):
    """Along the pull the loss falls; and the first order says by how much."""
    model, tokenize = clip
    sch, t = pipe.schedule, 400
    words = model.embed_text(tokenize([PROMPT] * 2))

    def loss(x):
        x0 = eps_to_x0(sch, x, pipe.eps(x, t, pipe.null()), t)
        f = float(sch.sigma[t])
        return spherical(
            model.embed_image(pipe.vae.decode((f * x0 + (1 - f) * x) / pipe.vae.scale)), words
        )

    seen = []
    real = torch.autograd.grad
    monkeypatch.setattr(
        module.torch.autograd,
        "grad",
        lambda y, x: seen.append((x.detach().clone(), real(y, x)[0])) or (seen[-1][1],),
    )
    monkeypatch.setattr(module, "views", lambda x, k, streams: x)
    blended_diffusion(
        pipe,
        image,
        PROMPT,
        mask=torch.ones(1, 1, 64, 64),
        steps=5,
        strength=0.4,
        runs=1,
        views_=1,
        weight=1.0,
        limit=0.0,
        clip=clip,
    )
    x, g = seen[0]  # rows, at t = 400
    h = 1e-2 / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        slope = (loss(x + h * g) - loss(x - h * g)) / 2
    expected = (h * g.square()).sum((1, 2, 3))
    assert (slope / expected - 1).abs().max() < 0.05


def test_every_second_step_asks_clip_half_as_often(pipe, image, clip, monkeypatch):
    calls, real = [], module.spherical
    monkeypatch.setattr(module, "spherical", lambda a, b: calls.append(1) or real(a, b))
    for every in (1, 2):
        blended_diffusion(
            pipe,
            image,
            PROMPT,
            mask=window(),
            steps=8,
            strength=1.0,
            runs=1,
            views_=1,
            every=every,
            clip=clip,
        )
    assert len(calls) == 8 + 4


def test_the_run_clip_likes_best_is_kept(pipe, image, clip):
    model, tokenize = clip
    run = dict(mask=torch.ones(1, 1, 64, 64), steps=2, views_=1, clip=clip)
    runs = [blended_diffusion(pipe, image, PROMPT, runs=1, seed=k * 10**6, **run) for k in range(3)]
    best = torch.stack(
        [(model.embed_image(x) @ model.embed_text(tokenize([PROMPT])).T)[:, 0] for x in runs]
    ).argmax(0)
    out = blended_diffusion(pipe, image, PROMPT, runs=3, **run)
    assert all((out[i] - runs[k][i]).abs().max() < 1e-6 for i, k in enumerate(best.tolist()))


def test_a_row_does_not_depend_on_the_batch(pipe, image, clip):
    run = dict(mask=window(), steps=3, runs=1, views_=2, clip=clip)
    both = blended_diffusion(pipe, image, [PROMPT, "a red ring"], seed=5, **run)
    assert (
        both[1:] - blended_diffusion(pipe, image[1:], "a red ring", seed=6, **run)
    ).abs().max() < 1e-4


def test_models_on_pixels_paint_too_and_black_surrounds_differ(image, clip):
    pixel, small = minidiff.build("tiny-pixel"), image[..., ::2, ::2]
    run = dict(mask=window()[..., ::2, ::2], steps=3, runs=1, views_=1, clip=clip, weight=3000.0)
    a, b = (blended_diffusion(pixel, small, PROMPT, see=see, **run) for see in ("picture", "black"))
    assert a.shape == small.shape and (a - b).abs().max() > 1e-4


def test_no_gradient_is_left_on(pipe, image, clip):
    out = blended_diffusion(
        pipe, image, PROMPT, mask=window(), steps=2, runs=1, views_=1, clip=clip
    )
    assert not out.requires_grad and not any(
        p.requires_grad or p.grad is not None for p in pipe.net.parameters()
    )


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(strength=1.5), "strength=1.5"),
        (dict(steps=0), "steps=0"),
        (dict(weight=-1.0), "weight=-1.0"),
        (dict(views_=0), "views_=0"),
        (dict(every=0), "every=0"),
        (dict(runs=0), "runs=0"),
        (dict(see="white"), "see='white'"),
        (dict(mask=torch.ones(1, 1, 32, 32)), r"mask is \(1, 1, 32, 32\)"),
        (dict(mask=window() * 0.5), "only 0 .keep."),
    ],
)
def test_bad_arguments_are_refused(pipe, image, clip, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        blended_diffusion(pipe, image, PROMPT, **{"mask": window(), "steps": 2, "clip": clip} | bad)


@pytest.mark.weights
def test_the_pull_makes_the_shipped_clip_more_content():
    from minidiff.bench.items import items

    pipe, found = minidiff.load("tiny"), items("dev", 3, ("recolour",))
    image, mask = (torch.cat([getattr(i, k) for i in found]) for k in ("image", "mask"))
    model, tokenize = module.clip_of(pipe)
    target = [i.target for i in found]
    words, run = model.embed_text(tokenize(target)), dict(mask=mask, steps=15, runs=1, views_=2)
    liking = [
        (model.embed_image(blended_diffusion(pipe, image, target, weight=w, **run)) * words)
        .sum(1)
        .mean()
        for w in (0.0, 500.0)
    ]
    assert liking[1] > liking[0] + 0.05
