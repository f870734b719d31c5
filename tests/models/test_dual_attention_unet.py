"""The dual-attention U-Net: skips gated by place and by channel. What it shares with the other
U-Nets is tested in test_attention_unet.py.
"""

import pytest
import torch

from minidiff.core.taps import tap
from minidiff.models.attention_unet import AttentionUNet
from minidiff.models.dual_attention_unet import DualAttentionUNet, SqueezeExcite

SMALL = dict(channels=(16, 32), layers=1, attention=(None, None), mid=None, context=None, groups=4)


def make(**kw):
    torch.manual_seed(0)
    return DualAttentionUNet(**SMALL | kw).eval()


def inputs():
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([7, 421])


@torch.no_grad()
def test_squeeze_and_excitation_by_hand():
    """Means (1, -2); relu(1 - 2 + 3) = 2; sigmoid of (2, -2 + 1)."""
    net = SqueezeExcite(2, 2).double()
    net.W_1.weight.fill_(1.0)
    net.W_1.bias.fill_(3.0)
    net.W_2.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    net.W_2.bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[0.0, 2.0], [-1.0, -3.0]], dtype=torch.float64).view(1, 2, 1, 2)
    s = torch.sigmoid(torch.tensor([2.0, -1.0], dtype=torch.float64)).view(1, 2, 1, 1)
    assert (net(x) - s * x).abs().max() < 1e-12


@torch.no_grad()
def test_the_channel_gate_does_not_see_where_anything_is():
    torch.manual_seed(0)
    net, x = SqueezeExcite(8, 4), torch.randn(2, 8, 6, 6)
    assert (net(x).roll(2, -1) - net(x.roll(2, -1))).abs().max() < 1e-6
    assert (net(x).flip(-2) - net(x.flip(-2))).abs().max() < 1e-6


@pytest.mark.parametrize("ratio, inner", [(4, 4), (16, 1), (1000, 1)])
def test_the_ratio_never_leaves_less_than_one_channel(ratio, inner):
    assert SqueezeExcite(16, ratio).W_1.out_features == inner


def test_a_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match="ratio=0: expected 1 or more"):
        make(ratio=0)


@torch.no_grad()
def test_with_open_channels_it_is_the_attention_unet():
    """To the bit, and with its weights."""
    dual, (x, t) = make(), inputs()
    single = AttentionUNet(**SMALL).eval()
    own = {k: v for k, v in dual.state_dict().items() if not k.startswith("excite.")}
    single.load_state_dict(own)  # strict
    with tap(dual, r"^excite\.\d+\.s$", lambda s, name: torch.ones_like(s)):
        assert torch.equal(dual(x, t), single(x, t))
    assert (dual(x, t) - single(x, t)).abs().max() > 1e-4


@torch.no_grad()
def test_the_gate_of_places_sees_what_the_gate_of_channels_left():
    dual, (x, t), seen = make(), inputs(), []
    dual.gate[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with tap(dual, r"^excite\.0\.s$", lambda s, name: torch.zeros_like(s)):
        dual(x, t)
    assert seen[0].abs().max() == 0
    sizes = {}
    with tap(dual, r"alpha$|\.s$", lambda a, name: sizes.update({name: tuple(a.shape)})):
        dual(x, t)
    assert sizes["excite.3.s"] == (2, 32, 1, 1) and sizes["gate.3.alpha"] == (2, 1, 4, 4)
    assert len(sizes) == 8
