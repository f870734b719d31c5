"""DiffusionCLIP: the loss, the identity cases,
mixtures of networks, and what tuning leaves behind.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import minidiff
from minidiff.core.denoise import noise
from minidiff.data import shapes
from minidiff.editing import diffusion_clip as module
from minidiff.editing.diffusion_clip import (
    clip_loss,
    diffusion_clip,
    direction,
    invert_to,
    mixed,
    restyle,
    times,
    tune,
)
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer

A, B = "a red circle on a blue background", "a green circle on a blue background"
FAST = dict(train_steps=2, batch=2, lr=1e-2)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    clip = CLIP(
        CLIPText(**SIZES["tiny"]["text"] | {"causal": True}), CLIPImage(**SIZES["tiny"]["image"])
    )
    return clip.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def untrained_judge(judge, monkeypatch, request):
    if not request.node.get_closest_marker("weights"):
        monkeypatch.setattr(module, "load_clip", lambda: judge)


@pytest.fixture(scope="module")
def style(pipe, image, judge):
    return tune(pipe, image, A, B, updates=1, judge=judge, **FAST)


# ---- the loss ----


class Flat:
    """A CLIP whose picture vector is the picture."""

    def embed_image(self, x):
        return F.normalize(x.flatten(1), dim=1)


def test_the_loss_is_minus_log_of_half_of_one_plus_the_cosine():
    before = F.normalize(torch.tensor([[1.0, 0, 0, 0]]), dim=1)
    out = torch.tensor([[0.0, 1, 0, 0]]).view(1, 1, 2, 2)  # moves along (-1, 1, 0, 0)
    for way, cos in (
        ([-1.0, 1, 0, 0], 1),
        ([1.0, 1, 0, 0], 0),
        ([0.0, 0, 1, 0], 0),
        ([-1.0, 0, 0, 0], 0.5**0.5),
    ):
        loss = clip_loss(Flat(), out, before, F.normalize(torch.tensor([way]), dim=1))
        assert loss.item() == pytest.approx(-math.log((1 + cos) / 2), abs=1e-5)


def test_the_wrong_way_is_finite_and_so_is_its_gradient():
    before, out = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]], requires_grad=True)

    class Plain:
        def embed_image(self, x):
            return x

    loss = clip_loss(Plain(), out, before, F.normalize(torch.tensor([[1.0, -1]]), dim=1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(-math.log(1e-4), rel=1e-3) and out.grad.isfinite().all()


def test_the_words_direction_is_a_unit_vector_and_turns_with_them(judge):
    tok = Tokenizer.words(shapes.VOCAB)
    d = direction(judge, tok, [A, B], [B, A])
    assert torch.allclose(d.norm(dim=1), torch.ones(2)) and torch.allclose(d[0], -d[1], atol=1e-6)


# ---- tuning ----


def test_without_updates_it_is_the_inversions_copy(pipe, image):
    cond, ts = pipe.embed(A).expand(2), times(pipe, 0.6, 3)
    copy = pipe.decode(
        module.sample(pipe.eps, pipe.schedule, invert_to(pipe, image, cond, ts), ts, cond)
    )
    assert (
        diffusion_clip(pipe, image, A, B, updates=0, strength=0.6, steps=3, **FAST) - copy
    ).abs().max() < 1e-5


def test_identical_prompts_are_the_copy_too(pipe, image):
    a, b = (
        diffusion_clip(pipe, image, A, A, updates=u, strength=0.6, steps=2, **FAST) for u in (0, 3)
    )
    assert torch.equal(a, b)


def test_tuning_moves_the_weights_and_puts_them_back(pipe, style):
    own = dict(pipe.net.named_parameters())
    assert style.keys() == own.keys() and any(not torch.equal(v, own[n]) for n, v in style.items())
    assert not any(p.requires_grad or p.grad is not None for p in own.values())
    fresh = minidiff.build("tiny", seed=0).net.state_dict()
    assert all(torch.equal(p, fresh[n]) for n, p in own.items())


def test_the_loss_falls(pipe, image, judge, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "clip_loss", lambda *a: seen.append(clip_loss(*a)) or seen[-1])
    tune(pipe, image, A, B, updates=6, judge=judge, keep=0.0, lr=3e-3, train_steps=2, batch=2)
    assert seen[-1].mean() < seen[0].mean() - 0.01, [v.mean().item() for v in seen]


def test_only_the_weights_asked_for_are_in_the_style(pipe, image, judge):
    style = tune(pipe, image[:1], A, B, updates=0, judge=judge, weights=r"attn2\.to_k", **FAST)
    assert style and all("attn2.to_k" in n for n in style)


# ---- mixtures ----


def test_a_mixture_with_all_weight_on_one_network_is_that_network(pipe, style):
    x, cond = noise((2, *pipe.shape)), pipe.embed([A, B])
    assert torch.equal(mixed(pipe, [{}, style], [1, 0])(x, 500, cond), pipe.eps(x, 500, cond))
    worn = minidiff.build("tiny", seed=0)
    worn.net.load_state_dict(style, strict=False)
    assert torch.equal(mixed(pipe, [{}, style], [0, 2])(x, 500, cond), worn.eps(x, 500, cond))


def test_a_mixture_is_the_weighted_mean_and_weights_may_depend_on_time(pipe, style):
    x, cond = noise((1, *pipe.shape)), pipe.embed(A)
    a, b = (mixed(pipe, [s], [1.0])(x, 500, cond) for s in ({}, style))
    assert torch.allclose(
        mixed(pipe, [{}, style], [1, 3])(x, 500, cond), 0.25 * a + 0.75 * b, atol=1e-6
    )
    gamma = lambda t: (1, 0) if t > 300 else (0, 1)  # noqa: E731
    both = mixed(pipe, [{}, style], gamma)
    assert torch.equal(both(x, 500, cond), a) and not torch.equal(
        both(x, 200, cond), pipe.eps(x, 200, cond)
    )


def test_degree_zero_is_the_network_as_it_was(pipe, image):
    a = diffusion_clip(pipe, image, A, B, updates=1, degree=0.0, strength=0.6, steps=2, **FAST)
    assert torch.equal(a, restyle(pipe, image, A, pipe.eps, strength=0.6, steps=2))


def test_mixtures_refuse_other_numbers_of_weights(pipe, style):
    for gamma in ([1.0], [0.0, 0.0], [1, 1, 1]):
        with pytest.raises(ValueError, match="one for each"):
            mixed(pipe, [{}, style], gamma)(noise((1, *pipe.shape)), 500, pipe.embed(A))


# ---- the whole edit ----


def test_examples_teach_and_other_pictures_are_edited(pipe, image):
    out = diffusion_clip(
        pipe, image[:1], A, B, examples=image[1:], updates=1, strength=0.6, steps=2, **FAST
    )
    again = diffusion_clip(pipe, image[:1], A, B, updates=1, strength=0.6, steps=2, **FAST)
    assert out.shape == (1, 3, 64, 64) and not torch.equal(out, again)


@pytest.mark.parametrize(
    "bad",
    [
        dict(strength=0.0),
        dict(strength=1.2),
        dict(updates=-1),
        dict(degree=2.0),
        dict(steps=0),
        dict(train_steps=0),
        dict(source=[A] * 3),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        diffusion_clip(pipe, image, **{"source": A, "target": B} | bad)


def test_models_without_text_are_refused(image):
    with pytest.raises(ValueError, match="text"):
        diffusion_clip(
            minidiff.build("tiny-pixel"), image[..., ::2, ::2], "red circle", "green circle"
        )
