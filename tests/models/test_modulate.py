"""Norms that a condition scales and shifts: one family."""

import pytest
import torch
import torch.nn.functional as F

from minidiff.models.blocks import ResBlock
from minidiff.models.dit import DiTBlock
from minidiff.models.modulate import (
    FAMILY,
    Modulate,
    adain,
    group_norm,
    instance_norm,
    layer_norm,
    modulate,
    statistics,
)
from minidiff.models.unet import UNet

D = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_tokens_and_maps_are_modulated_channel_by_channel():
    shift, scale = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    ones = torch.ones(1, 2, 3, 3)
    want = torch.tensor([11.0, 3.0])[None, :, None, None].expand(1, 2, 3, 3)
    assert torch.equal(modulate(ones, shift, scale), want)
    tokens = ones.flatten(2).transpose(1, 2)
    assert torch.equal(modulate(tokens, shift, scale), want.flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match=r"shape \(1, 2\): expected tokens"):
        modulate(torch.ones(1, 2), shift, scale)


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 7, 4)])
def test_zero_shift_and_scale_are_the_identity_to_the_bit(shape):
    x, zero = rand(*shape), torch.zeros(2, 4, dtype=D)
    assert torch.equal(modulate(x, zero, zero), x)
    film = Modulate("film", 4, width=3).double()
    for p in film.parameters():
        torch.nn.init.zeros_(p)
    assert torch.equal(film(x, rand(2, 3)), x)


def test_adain_has_the_statistics_of_the_style_and_the_pattern_of_the_content():
    x, y = 3 * rand(2, 4, 6, 6) - 1, 0.2 * rand(2, 4, 9, 5, seed=1) + 2
    out = adain(x, y)
    for got, want in zip(statistics(out), statistics(y)):
        assert (got - want).abs().max() < 1e-5
    assert (instance_norm(out) - instance_norm(x)).abs().max() < 1e-4
    assert (adain(x, x) - x).abs().max() < 1e-5
    half = torch.lerp(x, out, 0.5)
    mean = (statistics(x)[0] + statistics(y)[0]) / 2
    assert (statistics(half)[0] - mean).abs().max() < 1e-5


def test_the_statistics_by_hand():
    mean, std = statistics(torch.tensor([1.0, 3.0, 1.0, 3.0]).view(1, 1, 2, 2))
    assert (mean.item(), std.item()) == (2.0, 1.0)  # not the unbiased one


def test_the_norms_are_those_of_torch_and_meet_where_they_should():
    x = rand(2, 4, 5, 5)
    assert (instance_norm(x) - F.instance_norm(x, eps=1e-6)).abs().max() < 1e-12
    assert (group_norm(x, 4) - instance_norm(x)).abs().max() < 1e-12  # a group for each channel
    tokens = x.flatten(2).transpose(1, 2)
    assert layer_norm(tokens).mean(-1).abs().max() < 1e-12
    assert (
        group_norm(x[:, :, :1, :1], 1).flatten() - layer_norm(x[:, :, 0, 0]).flatten()
    ).abs().max() < 1e-12  # one pixel: a group of all channels is a token


def maps(name):
    return rand(2, 4, 5, 5) if FAMILY[name].norm is not layer_norm else rand(2, 7, 4)


@pytest.mark.parametrize("name", FAMILY)
def test_every_row_is_its_norm_and_the_one_line(name):
    torch.manual_seed(0)
    net, x = Modulate(name, 4, width=3, styles=3, groups=2).double(), maps(name)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    c = rand(2, 4, 3, 3, seed=5) if FAMILY[name].source == "picture" else rand(2, 3, seed=5)
    shift, scale = net.numbers(c)[:2]
    want = (
        FAMILY[name].norm(x, 2) * (1 + scale.view(2, -1, *[1] * (x.ndim - 2)))
        if (x.ndim == 4)
        else FAMILY[name].norm(x, 2) * (1 + scale[:, None])
    )
    want = want + (shift[:, :, None, None] if x.ndim == 4 else shift[:, None])
    assert (net(x, c) - want).abs().max() < 1e-12
    assert (net(x[1:], c[1:]) - net(x, c)[1:]).abs().max() < 1e-12  # rows do not mix


def test_with_the_same_numbers_only_the_norm_tells_film_cin_and_adagn_apart():
    x, c = rand(2, 4, 5, 5), rand(2, 3)
    film, adagn = (Modulate(n, 4, width=3, groups=4).double() for n in ("film", "adagn"))
    cin = Modulate("cin", 4, styles=3).double()
    adagn.load_state_dict(film.state_dict())
    with torch.no_grad():
        film.to_affine.bias.zero_()
        adagn.to_affine.bias.zero_()
        cin.to_affine.weight.copy_(film.to_affine.weight)
    assert (film(instance_norm(x), c) - cin(x, c)).abs().max() < 1e-12
    assert (adagn(x, c) - cin(x, c)).abs().max() < 1e-12
    style = rand(2, 4, 3, 3, seed=7)
    mean, std = statistics(style)
    assert (adain(x, style) - Modulate("adain", 4)(x, style)).abs().max() == 0
    assert (adain(x, style) - modulate(instance_norm(x), mean, std - 1)).abs().max() == 0


def test_styles_of_a_table_blend():
    cin, x = Modulate("cin", 4, styles=3).double(), rand(2, 4, 5, 5)
    assert (cin(x, torch.tensor([0, 2])) - instance_norm(x)).abs().max() == 0  # untrained
    torch.nn.init.normal_(cin.to_affine.weight)
    a, b = (cin(x, torch.full((2,), k)) for k in (0, 2))
    both = cin(x, torch.tensor([[0.5, 0.0, 0.5]], dtype=D).expand(2, -1))
    assert (both - (a + b) / 2).abs().max() < 1e-12 and (a - b).abs().max() > 0.1


def test_adaln_zero_starts_as_the_norm_with_a_shut_gate():
    net, x, c = Modulate("adaln_zero", 4, width=3).double(), rand(2, 7, 4), rand(2, 3)
    assert torch.equal(net(x, c), layer_norm(x)) and net.gate(c).abs().max() == 0
    with pytest.raises(ValueError, match="adaLN has no gate"):
        Modulate("adaln", 4, width=3).gate(c)


def test_a_dit_block_is_two_rows_of_the_family():
    torch.manual_seed(0)
    block, x, c = DiTBlock(8, 2, None).double(), rand(2, 5, 8), rand(2, 8, seed=1)
    halves = [Modulate("adaln_zero", 8, width=8).double() for _ in range(2)]
    layer = block.adaLN_modulation[1]
    for k, half in enumerate(halves):
        rows = slice(24 * k, 24 * (k + 1))
        half.load_state_dict(
            {"to_affine.weight": layer.weight[rows], "to_affine.bias": layer.bias[rows]}
        )
    one, two, said = *halves, F.silu(c)
    y = x + one.gate(said)[:, None] * block.attn(one(x, said))
    y = y + two.gate(said)[:, None] * block.mlp(two(y, said))
    assert (block(x, c, None) - y).abs().max() < 1e-12


def test_a_resblock_with_scale_shift_is_adagn():
    torch.manual_seed(0)
    block, x, temb = ResBlock(4, 4, 6, 2, scale_shift=True).double(), rand(2, 4, 5, 5), rand(2, 6)
    scale, shift = block.time_emb_proj(F.silu(temb)).chunk(2, 1)  # ADM's order
    h = group_norm(block.conv1(F.silu(F.group_norm(x, 2, eps=1e-5))), 2)
    h = F.silu(modulate(h, shift, scale))
    assert (block(x, temb) - (x + block.conv2(h))).abs().max() < 1e-4  # eps 1e-6 and 1e-5


def test_what_is_missing_or_unknown_is_said():
    for name, need in (("film", "width="), ("adaln_zero", "width="), ("cin", "styles=")):
        with pytest.raises(ValueError, match=f"{name} makes gamma and beta of c: give {need}"):
            Modulate(name, 4)
    with pytest.raises(ValueError, match="'spade' is not one of film, cin"):
        Modulate("spade", 4)
    with pytest.raises(ValueError, match='time=\'film\': expected "add" or "scale_shift"'):
        UNet(time="film")


@pytest.mark.oracle
@torch.no_grad()
def test_the_unet_with_scale_shift_equals_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        flip_sin_to_cos=True,
        freq_shift=0,
        resnet_time_scale_shift="scale_shift",
        add_attention=False,
    ).eval()
    for p in theirs.parameters():
        if p.ndim == 1:
            p.add_(0.2 * torch.randn(p.shape))
    net = UNet(
        in_channels=3,
        out_channels=3,
        channels=(16, 32),
        layers=1,
        attention=(None, None),
        mid=None,
        context=None,
        groups=8,
        time="scale_shift",
    ).eval()
    net.load_state_dict(theirs.state_dict())  # strict
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([7, 800])
    want = theirs(x, t).sample
    assert (net(x, t) - want).abs().max() <= 1e-5 and want.std() > 0.1
