"""ZeCon: the contrast in closed form, gradients where they belong, and the identity cases."""

import math

import pytest
import torch

import minidiff
from minidiff.editing import zecon as module
from minidiff.editing.diffusion_clip import invert_to
from minidiff.editing.zecon import crops, features, patch_nce, some_places, zecon

A, B = "a red circle on a white background", "a red circle on a striped white background"


def streams(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


# ---- the contrast ----


@pytest.mark.parametrize("p", [2, 8])
def test_of_orthogonal_patches_that_are_alike_it_is_known(p):
    k = torch.eye(p, dtype=torch.float64)[None]
    for tau in (0.07, 0.5):
        assert (
            abs(patch_nce(3 * k, k, tau).item() - math.log(1 + (p - 1) * math.exp(-1 / tau)))
            < 1e-12
        )


def test_of_patches_all_the_same_it_is_the_log_of_their_number():
    same = torch.ones(2, 16, 8)
    assert (patch_nce(same, same) - math.log(16)).abs().max() < 1e-5


def test_exchanged_places_raise_it_and_a_change_alike_everywhere_hardly_does():
    g = torch.Generator().manual_seed(0)
    k = torch.randn(1, 16, 32, generator=g)
    here, swapped = patch_nce(k, k), patch_nce(k.roll(1, 1), k)
    alike = patch_nce(k + 0.5 * torch.randn(1, 1, 32, generator=g), k)
    assert here < alike < 0.5 and swapped > 10


def test_each_row_asks_which_source_place_a_new_place_is():
    """Not the other way round: here two new places look
    like source place 0, which only the rows of q punish.
    """
    k = torch.eye(2)[None]
    q = torch.tensor([[[1.0, 0], [1, 0]]])
    # -(log p(0|0) + log p(1|0)) / 2
    assert abs(patch_nce(q, k, 1.0).item() - (2 * math.log(1 + math.e) - 1) / 2) < 1e-6
    a, b = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    unit = lambda v: v / v.norm(dim=1, keepdim=True)  # noqa: E731
    exact = (unit(a[0]) @ unit(b[0]).T / 0.07).log_softmax(1).diag().mean().item()
    assert abs(patch_nce(a, b).item() + exact) < 1e-5


def test_its_gradient_is_right():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 4, 3, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: patch_nce(v, k, 0.5), q.requires_grad_())


# ---- features and crops ----


def test_features_are_those_of_the_places_and_send_gradients_to_the_picture_only(pipe):
    z = pipe.noise(2).requires_grad_()
    where = [torch.tensor([[0, 17], [5, 255]]), torch.tensor([[3, 2], [1, 0]])]
    f = features(pipe, z, where)
    assert [tuple(v.shape) for v in f] == [(2, 2, 48), (2, 2, 96)]
    sum(v.square().sum() for v in f).backward()
    assert z.grad.abs().amax((1, 2, 3)).min() > 0 and all(
        p.grad is None for p in pipe.net.parameters()
    )
    whole = features(
        pipe, z.detach(), [torch.arange(256).expand(2, -1), torch.arange(64).expand(2, -1)]
    )
    assert torch.equal(whole[0][1, 255], f[0][1, 1].detach()) and torch.equal(
        whole[1][0, 3], f[1][0, 0].detach()
    )


def test_places_differ_within_a_row_and_follow_its_own_stream():
    a, b = some_places([256, 16], 64, streams(1, 2)), some_places([256, 16], 64, streams(2))
    assert [tuple(v.shape) for v in a] == [(2, 64), (2, 16)] and len(set(a[0][0].tolist())) == 64
    assert torch.equal(a[0][1:], b[0]) and torch.equal(a[1][1:], b[1])


def test_crops_are_cut_alike_and_lie_inside(image):
    now, then = crops([image, 2 * image], 3, streams(4, 5))
    assert (
        now.shape == (6, 3, 64, 64)
        and (then - 2 * now).abs().max() < 1e-5
        and not torch.equal(now[0], now[1])
    )
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    for c in crops([ramp], 20, streams(0))[0]:
        width = (c[0, 0, -1] - c[0, 0, 0]).item()
        assert 0.45 < width / 2 <= 1.001 and c.min() >= -1 - 1e-5 and c.max() <= 1 + 1e-5
    whole = crops([image], 1, streams(0, 1), least=1.0)[0]
    assert (whole - image).abs().max() < 1e-4


# ---- the whole edit: these load the tiny CLIP ----


@pytest.mark.weights
def test_without_pull_or_direction_it_is_the_round_trip(pipe, image):
    ts = pipe.timesteps(5, 0.6)
    from minidiff.core.denoise import sample

    x = invert_to(pipe, image, pipe.null(2), ts)
    back = pipe.decode(sample(pipe.eps, pipe.schedule, x, ts, pipe.null(2)))
    for knobs in (dict(style=0.0), dict(target=A)):
        out = zecon(pipe, image, **{"source": A, "target": B, "steps": 5, "strength": 0.6} | knobs)
        assert (out - back).abs().max() < 1e-5
    assert (zecon(pipe, image, A, B, steps=5, strength=0.6) - back).abs().max() > 1e-3
    assert torch.equal(
        zecon(pipe, image, A, B, strength=0.0, steps=5), pipe.decode(pipe.encode(image))
    )


@pytest.mark.weights
def test_the_pull_has_the_size_of_the_steps_noise(pipe, image, monkeypatch):
    sizes = []
    own = module.guidance

    def spy(*args):
        sizes.append(own(*args))
        return sizes[-1]

    monkeypatch.setattr(module, "guidance", spy)
    # whichever term is the strongest
    for weights in (dict(content=0, mse=0), dict(content=1e4), dict(content=0, mse=1e4)):
        zecon(pipe, image, A, B, steps=5, strength=0.6, **weights)
        assert (
            all((p.square().mean((1, 2, 3)).sqrt() - 1).abs().max() < 1e-4 for p in sizes)
            and len(sizes) == 3
        )
        sizes.clear()


@pytest.mark.weights
def test_a_picture_does_not_depend_on_its_batch_and_weights_get_no_gradient(pipe, image):
    both = zecon(pipe, image, A, B, steps=4, seed=3)
    # gradients magnify rounding
    assert (both[1:] - zecon(pipe, image[1:], A, B, steps=4, seed=4)).abs().max() < 5e-3
    assert all(p.grad is None for p in [*pipe.net.parameters(), *pipe.vae.parameters()])


@pytest.mark.weights
def test_the_contrast_keeps_more_of_the_picture():
    pipe = minidiff.load("tiny")
    from minidiff.data import shapes

    image = shapes.render(shapes.Scene((shapes.Obj("star", "red", "large"),), "left", "white"))
    z = pipe.encode(image)
    where = [torch.arange(256)[None], torch.arange(64)[None]]

    def strayed(content):
        out = pipe.encode(zecon(pipe, image, A, B, steps=10, style=2.0, content=content, mse=0.0))
        with torch.no_grad():
            return sum(
                patch_nce(q, k).item()
                for q, k in zip(features(pipe, out, where), features(pipe, z, where))
            )

    assert strayed(3.0) < strayed(0.0)


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(strength=1.5), "strength"),
        (dict(steps=0), "steps"),
        (dict(style=-1.0), "style=-1"),
        (dict(content=-1.0), "content=-1"),
        (dict(crops_=0), "crops_=0"),
        (dict(places=0), "places=0"),
        (dict(eta=2.0), "eta=2"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, said):
    with pytest.raises(ValueError, match=said):
        zecon(pipe, image, A, B, **bad)


def test_a_transformer_has_no_encoder_levels(image):
    with pytest.raises(ValueError, match="no UNet"):
        zecon(minidiff.build("tiny-dit"), image, A, B, steps=2)
