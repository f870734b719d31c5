"""R2U-Net: convolutions that run several times."""

import pytest
import torch

from minidiff.models.blocks import ResBlock
from minidiff.models.r2unet import R2UNet, RecurrentBlock, recurrent
from minidiff.models.unet import UNet

SMALL = dict(channels=(16, 32), layers=1, attention=(None, None), mid=None, context=None, groups=4)


def net_of(recurrence):
    torch.manual_seed(0)
    return R2UNet(recurrence=recurrence, **SMALL).eval()


def test_the_recurrence_by_hand():
    """f(x) = 2 x + 1 at x = 1: 3, then f(4) = 9, then f(10) = 21."""
    asked = []

    def f(x):
        asked.append(x)
        return 2 * x + 1

    assert [recurrent(f, 1.0, t) for t in (0, 1, 2)] == [3.0, 9.0, 21.0]
    assert asked == [1.0, 1.0, 4.0, 1.0, 4.0, 10.0]  # t + 1 evaluations


def test_a_linear_f_gives_the_geometric_sum():
    a = torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=torch.float64)
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    want = sum(torch.linalg.matrix_power(a, k) for k in range(1, 5)) @ x
    assert (recurrent(lambda v: a @ v, x, 3) - want).abs().max() < 1e-12


@torch.no_grad()
def test_public_codes_loop_asks_as_often_and_gives_the_same():
    """The usual code asks f once more inside its first round."""
    torch.manual_seed(0)
    conv = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU()).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    for t in (1, 2, 3):
        for k in range(t):
            if k == 0:
                h = conv(x)
            h = conv(x + h)
        assert (recurrent(conv, x, t) - h).abs().max() < 1e-12


def test_recurrence_costs_no_parameters():
    counts = [sum(p.numel() for p in net_of(t).parameters()) for t in (0, 1, 2, 5)]
    assert len(set(counts)) == 1
    assert net_of(0).state_dict().keys() == net_of(2).state_dict().keys()


@torch.no_grad()
def test_rounds_are_convolutions():
    net, x = net_of(2), torch.randn(1, 4, 8, 8)
    calls = []
    for name, block in net.named_modules():
        if isinstance(block, RecurrentBlock):
            block.conv1.register_forward_hook(lambda *_, name=name: calls.append((name, 1)))
            block.conv2.register_forward_hook(lambda *_, name=name: calls.append((name, 2)))
    net(x, torch.tensor([7]))
    assert len(calls) == 3 * len(set(calls)) and len(set(calls)) == 2 * 8


@torch.no_grad()
def test_without_recurrence_it_is_a_resblock_behind_a_convolution():
    torch.manual_seed(0)
    block = RecurrentBlock(4, 8, 6, 4, recurrence=0)
    plain = ResBlock(8, 8, 6, 4)
    state = block.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("conv_shortcut")})
    x, temb = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
    assert torch.allclose(block(x, temb), plain(block.conv_shortcut(x), temb), atol=1e-6)
    again = RecurrentBlock(4, 8, 6, 4, recurrence=2)
    again.load_state_dict(state)
    assert (again(x, temb) - block(x, temb)).abs().max() > 1e-2


@torch.no_grad()
def test_more_rounds_see_farther():
    """A 3x3 convolution asked t + 1 times, twice: 2 (t + 1) pixels to each side. GroupNorm would
    look everywhere, so it is put aside."""
    for t, reach in ((0, 2), (2, 6)):
        torch.manual_seed(0)
        block = RecurrentBlock(4, 4, None, 4, recurrence=t).double()
        block.norm1, block.norm2 = torch.nn.Identity(), torch.nn.Identity()
        for conv in (block.conv1, block.conv2):
            conv.weight.abs_()
        x = torch.ones(1, 4, 1, 21, dtype=torch.float64)
        y = x.clone()
        y[..., 10] += 1
        changed = (block(y) != block(x)).any(1)[0, 0].nonzero().flatten() - 10
        assert (changed.min().item(), changed.max().item()) == (-reach, reach)


@torch.no_grad()
def test_the_tap_sees_the_branch_and_time_speaks_in_every_round():
    torch.manual_seed(0)
    block = RecurrentBlock(4, 8, 6, 4)
    x, temb = torch.randn(2, 4, 5, 5), torch.randn(2, 6)
    block.h.fns.append(torch.zeros_like)
    assert torch.equal(block(x, temb), block.conv_shortcut(x))
    block.h.fns.clear()
    seen = []
    block.norm2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    block(x, temb)
    assert len(seen) == 3
    assert (block(x, temb) - block(x, -temb)).abs().max() > 1e-3


@torch.no_grad()
def test_time_may_scale_and_shift_here_too():
    torch.manual_seed(0)
    net = R2UNet(time="scale_shift", **SMALL).eval()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([7, 500])
    assert net(x, t).shape == x.shape and isinstance(net, UNet)
    assert (net(x, t) - net(x, t + 100)).abs().max() > 1e-3


@pytest.mark.parametrize("recurrence", [-1, 1.5])
def test_what_is_no_number_of_rounds_is_refused(recurrence):
    with pytest.raises(ValueError, match="expected a whole number from 0"):
        R2UNet(recurrence=recurrence, **SMALL)
