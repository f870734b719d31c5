"""Full-size networks on the meta device: parameter counts, and the names and shapes of public
checkpoints.
"""

import hashlib
from functools import cache

import pytest
import torch

from minidiff.core.cond import Cond
from minidiff.models import BACKBONES
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.sizes import SIZES
from minidiff.models.text import CLIPText
from minidiff.models.vae import VAE
from minidiff.weights.store import PARTS, build


@cache
def meta(size):
    return build(size, device="meta")


def digest(net):
    """First 16 hex digits of the SHA-256 of the sorted lines "key (shape)"."""
    lines = sorted(f"{k} {tuple(v.shape)}" for k, v in net.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    "size, part, tensors, numbers, names",
    [
        ("sd15", "net", 686, 859_520_964, "5159ace1d6e60acb"),
        ("sd15", "vae", 248, 83_653_863, "600696bc94ffc80f"),
        ("sd15", "text", 196, 123_060_480, "0240ea74fae34c19"),
        ("sd21", "net", 686, 865_910_724, "61d626becb5b11d8"),
        ("sd21", "vae", 248, 83_653_863, "600696bc94ffc80f"),
        ("sd21", "text", 372, 340_387_840, "b3fb33659b67fd51"),
        ("dit-xl-2", "net", 292, 675_129_632, "af6f07b0d6cf8bb4"),
    ],
)
def test_every_tensor_has_the_name_and_the_shape_of_the_public_checkpoint(
    size, part, tensors, numbers, names
):
    net = getattr(meta(size), part)
    assert (len(net.state_dict()), count(net), digest(net)) == (tensors, numbers, names)


@pytest.mark.parametrize(
    "size, numbers",
    [
        ("dit-s-2", 32_963_360),
        ("dit-b-2", 130_512_416),
        ("dit-l-2", 458_102_816),
        ("ddpm-cifar10", 35_746_307),
    ],
)
def test_parameter_counts_are_those_of_the_papers_code(size, numbers):
    assert count(meta(size).net) == numbers


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_of_the_same_classes_and_keeps_the_shape_of_its_samples(size):
    spec, pipe = SIZES[size], meta(size)
    nets = {BACKBONES[name].make for name in BACKBONES if name in spec}
    kinds = nets, (VAE, type(None)), (CLIPText, type(None))
    assert all(type(m) in k for m, k in zip((pipe.net, pipe.vae, pipe.text), kinds))
    assert all(
        p.is_meta and not p.requires_grad
        for m in (pipe.net, pipe.vae, pipe.text)
        if m
        for p in m.parameters()
    )
    if size in ("dit-b-2", "dit-l-2", "dit-xl-2"):  # dit-s-2, only larger
        return
    c, h, w = spec["shape"]
    with torch.device("meta"), torch.no_grad():
        x, t = torch.empty(2, c, h, w), torch.zeros(2, dtype=torch.long)
        label = torch.zeros(2, dtype=torch.long) if pipe.net.classes else None
        text = (
            pipe.text(torch.zeros(2, spec["text"]["context"], dtype=torch.long))
            if pipe.text
            else None
        )
        out = pipe.net(x, t, Cond(text=text, label=label))
        variance = "dit" in spec and spec["dit"].get("learn_sigma", True)
        assert out.shape == (2, c * (2 if variance else 1), h, w)
        if pipe.vae:
            image = pipe.vae.to_image(x)
            assert (
                image.shape == (2, 3, *pipe.image_size)
                and pipe.vae.to_latent(image).shape == x.shape
            )


@pytest.mark.parametrize("size", [s for s in SIZES if "image" in SIZES[s]])
def test_both_towers_of_a_clip_project_to_one_width(size):
    spec = SIZES[size]
    with torch.device("meta"):
        image = CLIPImage(**spec["image"])
        pixels = torch.empty(1, 3, spec["image"]["image_size"], spec["image"]["image_size"])
        assert image(pixels).shape == (1, spec["image"]["project_dim"])
    if size.startswith("tiny"):
        assert spec["text"]["project_dim"] == spec["image"]["project_dim"]


def test_the_three_tiny_models_are_small_enough_to_ship():
    """Half-precision files of a few megabytes each."""
    numbers = {s: count(meta(s).net) for s in PARTS}
    assert set(numbers) == {"tiny", "tiny-dit", "tiny-pixel"} and max(numbers.values()) < 8e6


@pytest.mark.parametrize("size", ["tiny-attention-unet", "tiny-r2unet", "tiny-dual-unet"])
def test_the_other_unets_have_about_the_parameters_of_tiny(size):
    assert 0.9 < count(meta(size).net) / count(meta("tiny").net) < 1.1
