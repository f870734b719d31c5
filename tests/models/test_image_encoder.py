"""The image tower: real layout, agreement with transformers, CLIP's preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.core.taps import tap
from minidiff.models import text
from minidiff.models.image_encoder import MEAN, STD, CLIPImage


def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    size = dict(image_size=16, patch=4, width=32, layers=2, heads=4, project_dim=24) | kw
    return CLIPImage(**size).eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_large_tower_has_the_published_number_of_weights():
    with torch.device("meta"):
        net = CLIPImage(224, 14, 1024, 24, 16, 768)
    # attention 4 d^2 + 4 d, MLP 8 d^2 + 5 d, two norms 4 d
    width, block = 1024, 12 * 1024**2 + 13 * 1024
    embeddings = width + 3 * 14**2 * width + 257 * width
    assert (
        sum(p.numel() for p in net.parameters())
        == embeddings + 24 * block + 4 * width + 768 * width
        == 303_966_208
    )
    assert net.state_dict()["embeddings.position_embedding.weight"].shape == (257, 1024)


@pytest.mark.oracle
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_vector_and_patch_states_equal_transformers(image, act):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        hidden_act=act,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        projection_dim=24,
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ours = tiny(act=act)
    ours.load_state_dict(
        {k.removeprefix("vision_model."): v for k, v in theirs.state_dict().items()}
    )
    with torch.no_grad():
        want = theirs(ours.preprocess(image), output_hidden_states=True)
        assert (ours(image) - want.image_embeds).abs().max() < 1e-5
        assert (ours.hidden(image) - want.last_hidden_state).abs().max() < 1e-5
        assert (ours.hidden(image, layer=-2) - want.hidden_states[-2]).abs().max() < 1e-5


def test_preprocess_centres_and_scales_with_clips_numbers():
    net = tiny()
    for value in (-1.0, 0.0, 1.0):
        x = net.preprocess(torch.full((1, 3, 16, 16), value))
        for c in range(3):
            assert (x[0, c] - ((value + 1) / 2 - MEAN[c]) / STD[c]).abs().max() < 1e-6


def test_resizing_agrees_with_pillow_bicubic():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    picture = small.resize((50, 40), Image.Resampling.BICUBIC)  # smooth, wider than high
    want = np.asarray(picture.resize((20, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16)))
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    got = tiny().preprocess(x)[0].permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)
    assert np.abs(got.numpy() * 255 - want).max() < 2  # pillow rounds after each of its two passes


def test_a_wide_picture_is_seen_through_its_centre():
    net, wide = tiny(), torch.zeros(1, 3, 16, 32)
    edges = wide.clone()
    edges[..., :8], edges[..., 24:] = 1, -1
    assert torch.equal(net(wide), net(edges))
    edges[..., 12] = 1
    assert (net(wide) - net(edges)).abs().max() > 1e-3


def test_every_pixel_of_the_crop_has_a_gradient(image):
    net = tiny()
    x = torch.nn.functional.interpolate(image, 40).mul(0.5).requires_grad_()
    net(x).square().sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1)) > 0).all()


def test_patches_attend_in_both_directions(image):
    net, seen = tiny(), []
    with tap(net, r"layers\.0\.self_attn\.probs$", lambda p, name: seen.append(p)):
        net(image)
    assert seen[0].shape == (2, 4, 17, 17) and (seen[0] > 0).all()


def test_moving_a_patch_changes_the_vector(image):
    net = tiny()
    assert (net(image) - net(image.roll(4, dims=-1))).abs().max() > 1e-3


def test_both_towers_are_built_from_one_block():
    assert type(tiny().encoder) is text.Encoder
    assert type(text.CLIPText(9, 8, 1, 2, 4).encoder) is text.Encoder


def test_bad_sizes_and_pictures_are_refused():
    with pytest.raises(ValueError, match="16 is no multiple of the patch size 5"):
        tiny(patch=5)
    for shape in ((3, 16, 16), (1, 1, 16, 16)):
        with pytest.raises(ValueError, match="expected"):
            tiny()(torch.zeros(shape))
