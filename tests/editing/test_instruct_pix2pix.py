"""InstructPix2Pix: the three rows and their two
scales. Parity with diffusers is in test_sd_parity.py.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import minidiff
from minidiff.core.cond import Cond
from minidiff.editing.instruct_pix2pix import instruct_pix2pix, two_scales
from minidiff.models.sizes import SIZES
from minidiff.models.unet import UNet

TEXT = "a red circle"


@pytest.fixture(scope="module")
def base():
    return minidiff.build("tiny", seed=0)


@pytest.fixture(scope="module")
def pipe(base):
    torch.manual_seed(0)
    return replace(base, net=UNet(**SIZES["tiny"]["unet"] | {"in_channels": 8}).eval())


def edit(pipe, image, **kw):
    return instruct_pix2pix(pipe, image, TEXT, **{"steps": 3} | kw)


def test_the_two_scales_weigh_three_predictions_as_in_the_paper():
    """A stand-in whose noise is 1 with a picture and 10 more with words, over a floor of 100."""

    def net(x, t, cond):
        return (
            100
            + cond.image.sign().abs()[:, :, :1, :1]
            + 10 * cond.text.mean((1, 2)).view(-1, 1, 1, 1)
            + 0 * x
        )

    x, image = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    cond, null = (Cond(text=torch.full((2, 3, 5), w), image=image) for w in (1.0, 0.0))
    assert (
        two_scales(net, null, 7.5, 1.5)(x, 9, cond) - (100 + 1.5 * 1 + 7.5 * 10)
    ).abs().max() < 1e-4
    assert (two_scales(net, null, 1.0, 1.0)(x, torch.tensor([9, 9]), cond) - 111).abs().max() < 1e-4
    assert (two_scales(net, null, 0.0, 0.0)(x, 9, cond) - 100).abs().max() < 1e-4


def test_without_weights_for_the_picture_it_is_the_base_model(base, pipe, image):
    """New input channels start at zero: then both pictures
    give the same, and at equal scales it is plain guidance.
    """
    state = dict(base.net.state_dict())
    state["conv_in.weight"] = torch.cat(
        [state["conv_in.weight"], torch.zeros_like(state["conv_in.weight"])], dim=1
    )
    pipe = replace(pipe, net=deepcopy(pipe.net))
    pipe.net.load_state_dict(state)
    out = edit(pipe, image, scale=3.0, image_scale=1.0)
    assert (out - edit(pipe, -image, scale=3.0, image_scale=2.0)).abs().max() < 1e-5
    assert (out - base.generate([TEXT] * 2, steps=3, scale=3.0)).abs().max() < 1e-4


def test_the_picture_counts_and_is_seen_unscaled(base, image):
    torch.manual_seed(0)
    seen = []

    class Spy(UNet):
        def forward(self, x, t, cond=None):
            seen.append(cond.image)
            return super().forward(x, t, cond)

    pipe = replace(base, net=Spy(**SIZES["tiny"]["unet"] | {"in_channels": 8}).eval())
    pipe.vae.scale, scale = 0.5, pipe.vae.scale
    try:
        a = edit(pipe, image, decode=False)
        mean = pipe.vae.encode(image).mean
    finally:
        pipe.vae.scale = scale
    assert all(
        (s[:4] - torch.cat([mean] * 2)).abs().max() < 1e-5 and s[4:].abs().max() == 0 for s in seen
    )
    assert a.shape == (2, 4, 16, 16) and (a - edit(pipe, -image, decode=False)).abs().max() > 1e-2


def test_every_sampler_and_size_serves(pipe, image):
    outs = [edit(pipe, image[..., :48], sampler=s) for s in ("ddim", "plms", "dpm++")]
    assert (
        all(o.shape == (2, 3, 64, 48) and o.isfinite().all() for o in outs)
        and (outs[0] - outs[2]).abs().max() > 1e-3
    )


def test_a_network_without_room_for_a_picture_is_refused(base, image):
    with pytest.raises(
        ValueError,
        match=r"tiny takes 4 channels; one that edits by instruction takes 8 \(4 of state",
    ):
        edit(base, image)
    with pytest.raises(ValueError, match="tiny-pixel takes 3 channels"):
        edit(minidiff.build("tiny-pixel"), image[..., :32, :32])
