"""The autoencoder against diffusers at reduced width; its posterior, its paddings, its latents."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from minidiff.core.taps import tap
from minidiff.models.blocks import GroupNorm, ResBlock
from minidiff.models.vae import VAE, Gaussian

SMALL = dict(channels=(8, 16), layers=1, groups=4, latent=4)


def make(seed=0, **kw):
    torch.manual_seed(seed)
    return VAE(**{**SMALL, **kw}).eval()


def picture(b=2, size=16, seed=1):
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.oracle
@torch.no_grad()
def test_encoder_and_decoder_equal_diffusers():
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    for p in theirs.parameters():
        if p.ndim == 1:
            p.add_(0.2 * torch.randn_like(p))  # norms and biases off their start
    ours = VAE(channels=(8, 16, 32, 32), layers=2, groups=4).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: the identity map
    x, z = picture(size=32), torch.randn(2, 4, 4, 4)
    want, q = theirs.encode(x).latent_dist, ours.encode(x)
    assert (q.mean - want.mean).abs().max() <= 1e-5 and (q.logvar - want.logvar).abs().max() <= 1e-5
    assert want.mean.std() > 0.05 and ours.scale == theirs.config.scaling_factor
    assert (ours.decode(z) - theirs.decode(z).sample).abs().max() <= 1e-5
    noise = torch.randn(2, 4, 4, 4)
    assert (q.sample(noise) - (want.mean + want.std * noise)).abs().max() <= 1e-5


@pytest.mark.parametrize("patch, levels, factor", [(1, 2, 2), (2, 2, 4), (2, 1, 2), (1, 3, 4)])
@torch.no_grad()
def test_a_picture_shrinks_by_patch_times_two_per_level(patch, levels, factor):
    vae, x = make(patch=patch, channels=(8, 16, 16)[:levels], latent=3), picture(size=24)
    q = vae.encode(x)
    assert vae.factor == factor and q.mean.shape == q.logvar.shape == (
        2,
        3,
        24 // factor,
        24 // factor,
    )
    assert vae.decode(q.mean).shape == x.shape


@torch.no_grad()
def test_patches_fold_into_channels_and_out_again():
    """With patch 2 the first and the last convolution work at half resolution: each 2x2 square is
    12 channels.
    """
    vae, seen = make(patch=2), []
    vae.encoder.conv_in.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    vae.decoder.conv_out.register_forward_hook(lambda m, args, out: seen.append(out))
    x = picture()
    y = vae.decode(vae.encode(x).mean)
    assert seen[0].shape == seen[1].shape == (2, 12, 8, 8)
    for folded, image in zip(seen, (x, y)):
        # red, row by row
        assert torch.equal(folded[:, :4, 1, 2].flatten(), image[:, 0, 2:4, 4:6].flatten())
        assert torch.equal(folded[:, 8:, 7, 0].flatten(), image[:, 2, 14:, :2].flatten())  # blue


@torch.no_grad()
def test_downsampling_pads_at_the_end_only():
    """A window that starts at the first pixel: what lies at the far edge, not at the near one,
    meets zeros.
    """
    vae, seen = make(), {}
    down = vae.encoder.down_blocks[0].downsamplers[0]
    down.conv.register_forward_pre_hook(lambda m, args: seen.update(padded=args[0]))
    down.register_forward_pre_hook(lambda m, args: seen.update(plain=args[0]))
    vae.encode(picture())
    padded, plain = seen["padded"], seen["plain"]
    assert padded.shape[2:] == (17, 17) and torch.equal(padded[..., :16, :16], plain)
    assert padded[..., 16, :].abs().max() == 0 and padded[..., 16].abs().max() == 0
    assert down.conv.padding == (0, 0)


def test_kl_is_that_of_torch_distributions():
    g = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 4, 3, 3, generator=g), torch.randn(2, 4, 3, 3, generator=g)
    want = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    assert abs(Gaussian(mean, logvar).kl() - want) < 1e-5 and want > 0.1
    assert Gaussian(torch.zeros(3), torch.zeros(3)).kl() == 0


def test_samples_have_the_posterior_mean_and_deviation():
    q = Gaussian(torch.tensor(1.5), torch.tensor(-2.0))
    z = q.sample(torch.randn(40_000, generator=torch.Generator().manual_seed(0)))
    assert abs(z.mean() - 1.5) < 0.01 and abs(z.std() - torch.tensor(-1.0).exp()) < 0.01
    assert torch.equal(q.sample(torch.zeros(3)), torch.full((3,), 1.5))


@torch.no_grad()
def test_logvar_is_clamped_where_its_exponential_would_overflow():
    vae = make()
    for bias, want in ((1e4, 20.0), (-1e4, -30.0)):
        vae.quant_conv.bias[4:] = bias
        assert (vae.encode(picture()).logvar - want).abs().max() == 0


@torch.no_grad()
def test_the_scale_goes_in_and_comes_out_again():
    vae, x = make(scale=0.18215), picture()
    mean = vae.encode(x).mean
    assert (vae.to_latent(x) - 0.18215 * mean).abs().max() < 1e-6
    assert (vae.to_image(vae.to_latent(x)) - vae.decode(mean).clamp(-1, 1)).abs().max() < 1e-5
    vae.scale = 7.0
    assert (vae.to_image(vae.to_latent(x)) - vae.decode(mean).clamp(-1, 1)).abs().max() < 1e-5
    loud = vae.to_image(1e3 * vae.to_latent(x))
    assert loud.abs().max() <= 1 and vae.decode(1e3 * mean).abs().max() > 1


@pytest.mark.parametrize("size", [(16, 18), (10, 16), (17, 17)], ids=str)
def test_sides_that_do_not_divide_are_refused_with_the_number_they_must_divide_by(size):
    with pytest.raises(ValueError, match=f"picture of {size[0]}x{size[1]}.*multiples of 4"):
        make(patch=2).encode(torch.zeros(1, 3, *size))


@torch.no_grad()
def test_the_network_is_convolutional_but_for_the_middle():
    """Any size that divides passes; rows of a batch do not mix."""
    vae, x = make(), picture(3, 24)
    out = vae.decode(vae.encode(x).mean)
    assert (
        out.shape == x.shape and (vae.decode(vae.encode(x[1:2]).mean) - out[1:2]).abs().max() < 1e-5
    )
    assert vae.encode(torch.zeros(1, 3, 8, 20)).mean.shape == (1, 4, 4, 10)


def test_gradients_reach_every_parameter():
    vae, x = make(patch=2), picture()
    q = vae.encode(x)
    (vae.decode(q.sample(torch.randn(q.mean.shape))).square().mean() + q.kl()).backward()
    still = [n for n, p in vae.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_decoding_without_gradients_is_the_same_picture():
    """The lean path (channels last, in place) against the plain one that gradients take."""
    vae, z = make(channels=(16, 32), layers=2, patch=2), torch.randn(2, 4, 6, 10)
    kept, want = z.clone(), vae.decode(z)
    with torch.no_grad():
        lean = vae.decode(z)
    assert want.requires_grad and not lean.requires_grad and want.std() > 0.05
    assert (lean - want).abs().max() <= 1e-5 and lean.is_contiguous() and torch.equal(z, kept)


def test_encoding_without_gradients_gives_the_same_numbers():
    vae, x = make(channels=(16, 32), layers=2), picture()
    kept, want = x.clone(), vae.encode(x)
    with torch.no_grad():
        lean = vae.encode(x)
    assert (
        (lean.mean - want.mean).abs().max() <= 1e-5
        and (lean.logvar - want.logvar).abs().max() <= 1e-5
        and torch.equal(x, kept)
    )


@pytest.mark.parametrize("c_out", [8, 16], ids=["same width", "with a shortcut"])
@torch.no_grad()
def test_what_a_listener_kept_is_not_written_over(c_out):
    torch.manual_seed(0)
    block, x, seen = ResBlock(8, c_out, groups=4), torch.randn(1, 8, 4, 4), []
    kept, plain = x.clone(), block(x)
    with tap(block, "h", lambda h, name: seen.extend([h, h.clone()])):
        out = block(x)
    assert torch.equal(out, plain) and torch.equal(*seen) and torch.equal(x, kept)


@torch.no_grad()
def test_group_norm_of_a_large_channels_last_map_is_exact():
    """Where PyTorch's kernel loses four digits: a mean far from zero over many pixels."""
    torch.manual_seed(0)
    norm = GroupNorm(4, 8, eps=1e-6)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = 1.5 * torch.randn(2, 8, 400, 300) + torch.randn(2, 8, 1, 1) + 3
    want = torch.nn.functional.group_norm(
        x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6
    )
    last = x.contiguous(memory_format=torch.channels_last)
    for y in (norm(x), norm(last)):
        assert (y - want).abs().max() < 5e-6
    assert norm(last).is_contiguous(memory_format=torch.channels_last)
    assert (torch.nn.GroupNorm.forward(norm, last) - want).abs().max() > 2e-5


@torch.no_grad()
def test_bfloat16_decodes_to_about_the_same_picture():
    vae, x = make(channels=(16, 32), layers=2), picture()
    z = vae.encode(x).mean
    want = vae.decode(z)
    half = vae.to(torch.bfloat16)
    out = half.decode(z.bfloat16())
    assert out.dtype == half.encode(x.bfloat16()).mean.dtype == torch.bfloat16
    assert (out.float() - want).abs().max() < 0.1 * want.std() + 0.05 and want.std() > 0.1
