"""Packed convolution weights: the same numbers, for the length of the block only, and never
stale.
"""

import pytest
import torch
from torch import nn

from minidiff.core.cond import Cond
from minidiff.models import packing
from minidiff.models.packing import PackedConv2d, packed
from minidiff.models.unet import UNet


def make():
    torch.manual_seed(0)
    return UNet(
        channels=(16, 32), layers=1, attention=("cross", "cross"), heads=4, context=12, groups=4
    ).eval()


def inputs(b=2, size=8, dtype=None):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(b, 4, size, size, generator=g), torch.randn(b, 5, 12, generator=g)
    return x.to(dtype), torch.tensor([7, 421, 990])[:b], Cond(text=text.to(dtype))


def kinds(net):
    return {type(m) for m in net.modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize(
    "conv, shape",
    [
        (nn.Conv2d(8, 16, 3, padding=1), (2, 8, 9, 7)),
        (nn.Conv2d(8, 16, 1), (1, 8, 5, 5)),
        (nn.Conv2d(8, 8, 3, stride=2), (1, 8, 9, 9)),
        (nn.Conv2d(4, 320, 3, padding=1, bias=False), (1, 4, 8, 8)),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), (2, 8, 8, 8)),
        (nn.Conv2d(8, 8, 3, padding="same"), (1, 8, 6, 6)),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (1, 8, 6, 6)),
        (nn.Conv2d(8, 8, 3), (8, 6, 6)),
    ],
    ids=[
        "3x3",
        "1x1",
        "stride",
        "no bias",
        "dilation and groups",
        "same",
        "reflect",
        "no batch axis",
    ],
)
@torch.no_grad()
def test_every_kind_of_convolution_gives_its_plain_result(conv, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    want = conv(x)
    with packed(conv):
        assert (conv(x) - want).abs().max() <= 1e-5 and want.std() > 0.1


@pytest.mark.parametrize(
    "dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float64, 1e-12)], ids=str
)
@torch.no_grad()
def test_the_packed_unet_is_the_plain_one(dtype, error):
    net, (x, t, cond) = make().to(dtype), inputs(dtype=dtype)
    want = net(x, t, cond)
    with packed(net):
        out = net(x, t, cond)
        again = net(x, t, cond)
    assert (
        out.dtype == dtype
        and (out - want).abs().max() <= error
        and (again - out).abs().max() <= error
        and want.std() > 0.1
    )


@torch.no_grad()
def test_weights_are_packed_once_for_a_shape_and_anew_for_another(monkeypatch):
    net, calls = make(), []
    real = packing.reorder
    monkeypatch.setattr(packing, "reorder", lambda *a: calls.append(1) or real(*a))
    want = {size: net(*inputs(size=size)) for size in (8, 16)}
    n = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    with packed(net):
        for size, count in ((8, n), (8, n), (16, 2 * n), (16, 2 * n)):
            assert (net(*inputs(size=size)) - want[size]).abs().max() <= 1e-5 and len(
                calls
            ) == count


@torch.no_grad()
def test_weights_changed_inside_the_block_are_used():
    """An adapter merged into weights that were already packed."""
    net = make()
    with packed(net):
        before = net(*inputs())
        net.mid_block.resnets[0].conv1.weight.mul_(2)
        after = net(*inputs())
    assert (after - net(*inputs())).abs().max() <= 1e-5 and (after - before).abs().max() > 1e-3


@torch.no_grad()
def test_names_and_classes_are_what_they_were_also_after_an_error():
    net = make()
    names, kept = list(net.state_dict()), [dict(vars(m)) for m in net.modules()]
    with pytest.raises(ZeroDivisionError), packed(net):
        assert kinds(net) == {PackedConv2d} and list(net.state_dict()) == names
        net(*inputs())
        1 / 0  # noqa: B018
    assert kinds(net) == {nn.Conv2d} and [dict(vars(m)) for m in net.modules()] == kept


def test_gradients_pass_as_if_nothing_were_packed():
    net, (x, t, cond) = make(), inputs()
    x.requires_grad_()
    (want,) = torch.autograd.grad(net(x, t, cond).square().sum(), x)
    with packed(net):
        (out,) = torch.autograd.grad(net(x, t, cond).square().sum(), x)
    assert (out - want).abs().max() <= 1e-5 and want.abs().max() > 1e-3


@torch.no_grad()
def test_without_the_private_operators_the_plain_convolution_runs(monkeypatch):
    monkeypatch.setattr(packing, "reorder", lambda *a: None)
    net = make()
    want = net(*inputs())
    with packed(net):
        assert (net(*inputs()) - want).abs().max() <= 1e-5


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN"
)
@torch.no_grad()
def test_this_build_has_the_private_operators():
    """If a new PyTorch loses them nothing breaks but the gain: this test says so."""
    net = make()
    with packed(net):
        net(*inputs())
        assert all(
            m.pack.layout == torch._mkldnn for m in net.modules() if isinstance(m, nn.Conv2d)
        )
