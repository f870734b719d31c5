"""Inpainting: what the network is shown, and what may not
change. Parity with diffusers is in test_sd_parity.py.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

import minidiff
from minidiff.editing.inpaint import inpaint, surroundings
from minidiff.pipe.masks import to_latent_mask

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def nine(pipe):
    """The same network with five more input channels, whose weights are random too."""
    from minidiff.models.sizes import SIZES
    from minidiff.models.unet import UNet

    torch.manual_seed(0)
    return replace(pipe, net=UNet(**SIZES["tiny"]["unet"] | {"in_channels": 9}).eval())


def window(b=1):
    m = torch.zeros(b, 1, 64, 64)
    m[..., 18:40, 10:31] = 1
    return m


class Spy(nn.Module):
    """A network of nine channels that predicts no noise and keeps what it was given."""

    in_channels = 9

    def __init__(self):
        super().__init__()
        self.anchor, self.seen = nn.Parameter(torch.zeros(1)), []

    def forward(self, x, t, cond):
        self.seen.append((x, cond.image))
        return torch.zeros_like(x)


@pytest.mark.parametrize("kind", ["pipe", "nine"])
def test_pixels_outside_the_mask_are_the_pictures(request, kind, image):
    model = request.getfixturevalue(kind)
    out = inpaint(model, image, PROMPT, mask=window(), steps=3)
    assert ((out - image) * (1 - window())).abs().max() == 0 and (
        (out - image) * window()
    ).abs().max() > 0.1
    assert torch.equal(inpaint(model, image, PROMPT, mask=0 * window(), steps=2), image)


def test_the_network_sees_the_mask_then_the_picture_without_what_is_to_be_drawn(pipe, image):
    spy = replace(pipe, net=Spy(), prediction="eps")
    inpaint(spy, image, PROMPT, mask=window(2), steps=2, scale=2.0)
    for x, beside in spy.net.seen:
        assert len(x) == 4 and beside.shape == (4, 5, 16, 16)  # rows: [null, cond]
        assert torch.equal(beside[:2], beside[2:])
        assert torch.equal(beside[:2, :1], window(2)[..., ::4, ::4])  # every fourth pixel
        assert (beside[:2, 1:] - pipe.encode(image * (1 - window()))).abs().max() < 1e-6
    filled = image.clone()
    filled[..., 18:40, 10:31] = 0.3
    assert torch.equal(surroundings(pipe, image, window()), surroundings(pipe, filled, window()))


def test_what_the_hole_held_counts_below_strength_1_alone(nine, image):
    other = torch.where(window() > 0, -image, image)
    a, b = (inpaint(nine, x, PROMPT, mask=window(), steps=3, seed=1) for x in (image, other))
    assert ((a - b) * window()).abs().max() < 1e-5
    a, b = (
        inpaint(nine, x, PROMPT, mask=window(), steps=3, strength=0.7, seed=1)
        for x in (image, other)
    )
    assert ((a - b) * window()).abs().max() > 1e-2


def test_the_blend_leaves_the_latents_outside_exactly_clean(pipe, image):
    for end in (0, 1):
        z = inpaint(replace(pipe, end=end), image, PROMPT, mask=window(), steps=3, decode=False)
        outside = 1 - to_latent_mask(window(), pipe)
        assert ((z - pipe.encode(image)) * outside).abs().max() == 0


def test_a_full_mask_at_full_strength_is_generation(pipe, image):
    out = inpaint(pipe, image[:1], PROMPT, mask=torch.ones(1, 1, 64, 64), steps=3, seed=4)
    assert (out - pipe.generate(PROMPT, steps=3, seed=4)).abs().max() < 1e-5


def test_strength_zero_draws_nothing(pipe, image):
    out = inpaint(pipe, image, PROMPT, mask=torch.ones(1, 1, 64, 64), strength=0)
    assert torch.equal(out, pipe.decode(pipe.encode(image)))


def test_pixel_models_inpaint_too(image):
    out = inpaint(
        minidiff.build("tiny-pixel"),
        image[..., ::2, ::2],
        "red circle",
        mask=window()[..., ::2, ::2],
        steps=2,
    )
    assert out.shape == (2, 3, 32, 32) and out.isfinite().all()


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(strength=1.5), "strength=1.5"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1.0"),
        (
            dict(mask=torch.ones(1, 1, 32, 32)),
            r"mask is \(1, 1, 32, 32\), the picture \(2, 3, 64, 64\)",
        ),
        (dict(mask=torch.ones(64)), "mask: expected"),
        (dict(mask=torch.ones(3, 1, 64, 64)), "mask is"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        inpaint(pipe, image, PROMPT, **{"mask": window(), "steps": 2} | bad)


def test_a_network_for_something_else_is_refused(pipe, image):
    net = Spy()
    net.in_channels = 8
    with pytest.raises(ValueError, match="takes 8 channels; to inpaint, 4 or 9 are needed"):
        inpaint(replace(pipe, net=net), image, PROMPT, mask=window())


@pytest.mark.weights
def test_the_blend_draws_what_was_asked_and_keeps_the_rest():
    """Half of the attributes' change is in the hole:
    more of the prompt's colour there than before.
    """
    from minidiff.data import shapes

    scene = shapes.Scene((shapes.Obj("circle", "blue", "large"),), "center", "white", "plain")
    image, pipe = shapes.render(scene), minidiff.load("tiny")
    image = image if image.ndim == 4 else image[None]
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:56, 8:56] = 1
    out = inpaint(
        pipe,
        image,
        "a large red circle in the center on a plain white background",
        mask=mask,
        steps=20,
    )
    assert torch.equal(out * (1 - mask), image * (1 - mask))
    red = lambda x: (x[:, 0] - x[:, 2])[..., 24:40, 24:40].mean().item()  # noqa: E731
    assert red(image) < -0.5 and red(out) > 0.5
