"""pix2pix-zero: the direction, the two losses against
closed forms, the gradient, and the limits of its knobs.
"""

import math

import pytest
import torch

import minidiff
from minidiff.core.process import ddim_step
from minidiff.core.taps import tap_names
from minidiff.editing import pix2pix_zero as module
from minidiff.editing.pix2pix_zero import (
    cross_maps,
    direction,
    invert_white,
    kl_loss,
    map_distance,
    pair_loss,
    phrases,
    pix2pix_zero,
    whitened,
)
from minidiff.inversion.ddim import invert, replay

A, B = "a red circle on a blue background", "a red square on a blue background"


@pytest.fixture(scope="module", params=["tiny", "tiny-dit"])
def pipe(request, awake):
    return awake(request.param)


def unit(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---- the direction ----


class Plain:
    """A tokenizer whose words are what stands between spaces."""

    words_of = staticmethod(str.split)


def test_phrases_hold_the_difference_and_keep_the_places_of_words():
    before, after = phrases(Plain, "a red circle here", "a red star here")
    assert before == ["a red circle here", "a red circle"]
    assert after == [p.replace("circle", "star") for p in before]


@pytest.mark.parametrize(
    "a, b", [("a b", "a x b"), ("a x b", "a b"), ("a a", "a"), ("", "a"), ("a", "a"), ("a", "b c")]
)
def test_phrases_come_in_pairs_and_start_with_the_prompts(a, b):
    before, after = phrases(Plain, a, b)
    assert len(before) == len(after) >= 1 and (before[0], after[0]) == (a, b)
    assert all(p in a and q in b for p, q in zip(before, after))


def test_the_direction_is_the_mean_difference_and_turns_around(pipe):
    before, after = [A, "a red circle"], [B]
    d = direction(pipe, before, after)
    by_hand = pipe.embed(B).text - (pipe.embed(A).text + pipe.embed("a red circle").text) / 2
    assert d.shape == by_hand.shape and torch.allclose(d, by_hand, atol=1e-6)
    assert torch.allclose(direction(pipe, after, before), -d, atol=1e-6)
    assert direction(pipe, [A], [A]).abs().max() == 0
    with pytest.raises(ValueError, match="some of each"):
        direction(pipe, [A], [])


# ---- the losses ----


def test_kl_is_zero_for_unit_moments_and_the_closed_form_elsewhere():
    e = unit(2, 4, 16, 16)
    e = (e - e.mean((1, 2, 3), keepdim=True)) / e.std((1, 2, 3), keepdim=True, correction=0)
    assert kl_loss(e).abs().max() < 1e-6
    wanted = torch.full((2,), 4 + 1 - 1 - math.log(4)).double()
    assert torch.allclose(kl_loss(2 * e + 1), wanted, atol=1e-6)


def test_pair_loss_of_stripes_is_the_closed_form():
    """Columns +1 -1 +1 ...: along x the correlation is +-1
    at any shift, along y 1; halved, the stripes are gone.
    """
    e = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 3, 16, 16)
    assert torch.allclose(pair_loss(e), torch.tensor([2.0 * 3]))
    # 3 sizes: 16, 8, 4
    assert torch.allclose(pair_loss(torch.ones(1, 1, 16, 16)), torch.tensor([2.0 * 3]))


def test_white_noise_correlates_least():
    white = unit(1, 4, 16, 16)
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1) * 3
    assert pair_loss(white) < 0.2 * pair_loss(smooth)


def test_rows_of_the_losses_are_apart():
    e = unit(3, 4, 16, 16)
    for loss in (pair_loss, kl_loss):
        assert torch.allclose(loss(e)[1:2], loss(e[1:2]))


def test_whitening_lowers_both_losses_and_zero_strength_leaves_the_noise():
    e = torch.nn.functional.avg_pool2d(unit(2, 4, 16, 16), 3, 1, 1) * 2 + 0.3
    out = whitened(e, 5.0, 5)
    assert (pair_loss(out) < 0.7 * pair_loss(e)).all() and (kl_loss(out) < kl_loss(e)).all()
    assert (
        torch.equal(whitened(e, 0.0, 5), e)
        and torch.equal(whitened(e, 5.0, 0), e)
        and not out.requires_grad
    )


def test_without_whitening_it_is_plain_inversion(pipe, image):
    ours, plain = invert_white(pipe, image, A, steps=3, whiten=0.0), invert(pipe, image, A, steps=3)
    assert len(ours) == 4 and all(torch.equal(a, b) for a, b in zip(ours, plain))


# ---- the gradient ----


def test_the_gradient_of_the_map_distance_is_right():
    """Against finite differences, in float64, along a random direction."""
    p = minidiff.build("tiny", seed=0).to(dtype=torch.float64)
    x, y = unit(1, 4, 16, 16), unit(1, 4, 16, 16).flip(2)
    cond, other = p.embed(A), p.embed(B)
    with torch.no_grad():
        wanted = cross_maps(p, y, 500, cond)
    loss = lambda v: map_distance(cross_maps(p, v, 500, other), wanted).sum()  # noqa: E731
    z = x.clone().requires_grad_()
    slope = (torch.autograd.grad(loss(z), z)[0] * y).sum()
    with torch.no_grad():
        numeric = (loss(x + 1e-5 * y) - loss(x - 1e-5 * y)) / 2e-5
    assert abs(slope - numeric) < 1e-6 * max(1.0, abs(numeric)) and slope.abs() > 1e-8


def test_a_step_along_it_brings_the_maps_nearer(pipe):
    x, cond = pipe.noise(1), pipe.embed(B)
    with torch.no_grad():
        wanted = cross_maps(pipe, pipe.noise(1, seed=5), 500, pipe.embed(A))
    z = x.clone().requires_grad_()
    loss = map_distance(cross_maps(pipe, z, 500, cond), wanted).sum()
    grad = torch.autograd.grad(loss, z)[0]
    with torch.no_grad():
        lower = map_distance(cross_maps(pipe, x - 0.01 * grad, 500, cond), wanted).sum()
    assert grad.abs().max() > 0 and lower < loss


def test_the_distance_counts_every_layer_pixel_and_token_and_averages_heads():
    maps = [torch.zeros(2, 4, 3, 5), torch.zeros(2, 4, 6, 5)]
    assert torch.equal(map_distance(maps, [m + 1 for m in maps]), torch.tensor([45.0, 45.0]))


# ---- the whole edit ----


def test_equal_prompts_without_hold_are_the_replay(pipe, image):
    for scale in (1.0, 3.0):
        out = pix2pix_zero(pipe, image, A, A, hold=0, scale=scale, steps=4)
        plain = replay(pipe, invert(pipe, image, A, steps=4)[-1], A, steps=4, scale=scale)
        assert (out - plain).abs().max() < 1e-5


def test_sentences_replace_the_target(pipe, image):
    a = pix2pix_zero(pipe, image, A, B, before=[A], after=[B], hold=0, steps=3)
    b = pix2pix_zero(pipe, image, A, "", before=[A], after=[B], hold=0, steps=3)
    plain = replay(pipe, invert(pipe, image, A, steps=3)[-1], B, steps=3, scale=pipe.scale)
    assert torch.equal(a, b) and (a - plain).abs().max() < 1e-4  # text(A) + text(B) - text(A)


def test_hold_changes_the_edit(pipe, image):
    a, b = (pix2pix_zero(pipe, image, A, B, hold=h, steps=3) for h in (0.0, 1.0))
    assert a.isfinite().all() and b.isfinite().all() and (a - b).abs().max() > 1e-6


@pytest.mark.parametrize("steps", [2, 6])
def test_the_steps_share_one_pull(pipe, image, monkeypatch, steps):
    """Under a pull that is 1 everywhere the pulls of all steps add up to `hold`, however many."""
    entered, left = [], []

    def watched(sch, x, eps, t, s):
        entered.append(x)
        left.append(ddim_step(sch, x, eps, t, s))
        return left[-1]

    monkeypatch.setattr(module, "ddim_step", watched)
    monkeypatch.setattr(module, "cross_maps", lambda pipe, x, t, cond: [x])
    monkeypatch.setattr(module, "map_distance", lambda maps, wanted: maps[0].sum((1, 2, 3)))
    pix2pix_zero(pipe, image, A, B, hold=0.6, steps=steps)
    pulls = [left[i - 1] - entered[i] for i in range(steps, 2 * steps)]  # behind the inversion's
    assert (sum(pulls) - 0.6).abs().max() < 1e-4


def test_rows_do_not_depend_on_each_other(pipe, image):
    knobs = dict(steps=2, whiten=5.0, rounds=2)
    both = pix2pix_zero(pipe, image, [A, B], [B, A], **knobs)
    alone = torch.cat(
        [pix2pix_zero(pipe, image[:1], A, B, **knobs), pix2pix_zero(pipe, image[1:], B, A, **knobs)]
    )
    assert (both - alone).abs().max() < 1e-3


def test_taps_are_gone_and_weights_have_no_gradients(pipe, image):
    pix2pix_zero(pipe, image, A, B, steps=2)
    assert not any(pipe.net.get_submodule(n).fns for n in tap_names(pipe.net))
    assert all(w.grad is None for w in pipe.net.parameters())


@pytest.mark.parametrize(
    "bad",
    [
        dict(hold=-1.0),
        dict(whiten=-1.0),
        dict(rounds=-1),
        dict(steps=0),
        dict(before=[A]),
        dict(after=[B]),
        dict(before=[], after=[B]),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        pix2pix_zero(pipe, image, A, B, **bad)


def test_wrong_numbers_of_prompts_are_refused(pipe, image):
    with pytest.raises(ValueError):
        pix2pix_zero(pipe, image, A, [B] * 3, steps=2)


def test_models_that_read_no_text_are_refused():
    with pytest.raises(ValueError, match="text"):
        pix2pix_zero(
            minidiff.build("tiny-pixel"), -torch.ones(1, 3, 32, 32), "red circle", "red star"
        )


def test_it_imports_nothing_of_the_toy_world():
    import inspect

    import minidiff.editing.pix2pix_zero as module

    assert "minidiff.data" not in inspect.getsource(module)


@pytest.mark.weights
def test_whitening_makes_the_inverted_noise_whiter():
    from minidiff.bench.items import items

    pipe, it = minidiff.load("tiny"), items("dev", 1, ("recolour",))[0]
    plain, white = (
        invert_white(pipe, it.image, it.source, steps=10, whiten=w)[-1] for w in (0.0, 20.0)
    )
    assert kl_loss(white) < kl_loss(plain) and pair_loss(white) < pair_loss(plain)
