"""The Attention U-Net: gates on the skips of the one UNet; and what all the other U-Nets share."""

import pytest
import torch

from minidiff.core.cond import Cond
from minidiff.core.taps import tap, tap_names
from minidiff.guidance.freeu import freeu
from minidiff.models import BACKBONES
from minidiff.models.attention_unet import AttentionGate, AttentionUNet
from minidiff.models.dual_attention_unet import SqueezeExcite
from minidiff.models.unet import UNet

SMALL = dict(
    channels=(16, 32), layers=1, attention=("cross", "cross"), heads=4, context=12, groups=4
)
OTHERS = ("attention_unet", "r2unet", "dual_attention_unet")
SD_TENTH = dict(channels=(32, 64, 128, 128), context=76)


def make(name="attention_unet", **kw):
    torch.manual_seed(0)
    return BACKBONES[name].make(**SMALL | kw).eval()


def inputs(b=2, size=8, width=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, 4, size, size, generator=g)
    text = torch.randn(b, 5, width, generator=g)
    return x, torch.tensor([7, 421, 990])[:b], Cond(text=text)


# ---- the gate ------------------------------------------------------------------------------------


@torch.no_grad()
def test_alpha_by_hand():
    """relu(x + g) on two channels, then 2 a - b + 0.5 through the sigmoid."""
    gate = AttentionGate(4, 2, groups=1).double()
    gate.norm_x, gate.norm_g = torch.nn.Identity(), torch.nn.Identity()
    for conv in (gate.W_x, gate.W_g, gate.psi):
        conv.weight.zero_()
        conv.bias.zero_()
    gate.W_x.weight[0, 0] = gate.W_x.weight[1, 1] = 1
    gate.W_g.weight[0, 0] = gate.W_g.weight[1, 1] = 1
    gate.psi.weight[0, :, 0, 0] = torch.tensor([2.0, -1.0])
    gate.psi.bias.fill_(0.5)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 4, 1, 1)
    g = torch.tensor([-3.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1)
    alpha = 1 / (1 + torch.tensor(2.5, dtype=torch.float64).exp())  # psi(0, 3) = -2.5
    assert (gate(x, g) - alpha * x).abs().max() < 1e-12


@torch.no_grad()
def test_a_gate_that_is_wide_open_is_the_plain_unet():
    """Also where its weights come from the plain one's names."""
    gated, (x, t, cond) = make(), inputs()
    plain = make("unet")
    missing = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("gate.") for key in missing.missing_keys)
    with tap(gated, "alpha", lambda a, name: torch.ones_like(a)):
        assert torch.equal(gated(x, t, cond), plain(x, t, cond))
    for gate in gated.gate:
        gate.psi.weight.zero_()
        gate.psi.bias.fill_(100.0)
    assert torch.equal(gated(x, t, cond), plain(x, t, cond))


@torch.no_grad()
def test_each_skip_has_its_own_map_of_its_size():
    net, (x, t, cond), seen = make(), inputs(), {}
    with tap(net, r"^gate\.\d+\.alpha$", lambda a, name: seen.update({name: a})):
        net(x, t, cond)
    sizes = {name: tuple(a.shape) for name, a in seen.items()}
    assert sizes == {
        "gate.0.alpha": (2, 1, 8, 8),
        "gate.1.alpha": (2, 1, 8, 8),
        "gate.2.alpha": (2, 1, 4, 4),
        "gate.3.alpha": (2, 1, 4, 4),
    }
    assert all(0 < a.min() and a.max() < 1 and a.std() > 0 for a in seen.values())


@pytest.mark.parametrize("i", range(4))
@torch.no_grad()
def test_a_shut_gate_is_a_skip_of_zeros(i):
    net, (x, t, cond) = make(), inputs()
    with tap(net, rf"^gate\.{i}\.alpha$", lambda a, name: torch.zeros_like(a)):
        shut = net(x, t, cond)
    with tap(net, rf"^skip\.{i}$", lambda s, name: torch.zeros_like(s)):
        cut = net(x, t, cond)
    assert torch.equal(shut, cut) and (shut - net(x, t, cond)).abs().max() > 1e-4


def test_the_unet_says_which_widths_meet():
    with torch.device("meta"):
        net = UNet()
    assert net.joins == [
        *[(320, 320)] * 2,
        *[(640, 320)] * 2,
        (640, 640),
        *[(1280, 640)] * 2,
        *[(1280, 1280)] * 5,
    ]
    assert all(
        block.norm1.num_channels == sum(net.joins[11 - k])
        for k, block in enumerate(r for level in net.up_blocks for r in level.resnets)
    )


# ---- what the other U-Nets share -----------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_taps_as_the_unet(name):
    plain, other = set(tap_names(make("unet"))), set(tap_names(make(name)))
    assert plain <= other
    assert {n.split(".")[0] for n in other - plain} <= {"gate", "excite"}


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_stable_diffusions_layout_at_a_tenth_of_its_width(name):
    torch.manual_seed(0)
    net = BACKBONES[name].make(**SD_TENTH).eval()
    x, t, cond = inputs(1, 64, 76)
    out = net(x, t, cond)
    assert out.shape == x.shape and out.isfinite().all()
    assert len(tap_names(net, r"^skip\.")) == 12
    assert len(tap_names(net, r"attn2\.probs$")) == 16


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_freeu_weighs_backbone_and_skips(name):
    net, (x, t, cond) = make(name), inputs()
    plain = net(x, t, cond)
    for b, s, same in (((1, 1), (1, 1), True), ((1.2, 1.4), (0.9, 0.2), False)):
        out = freeu(lambda x, t, c: net(x, t, c), net, b=b, s=s)(x, t, cond)
        assert torch.equal(out, plain) == same


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_attention_control_edits_its_maps(name):
    """What prompt-to-prompt does: the second row takes the first one's maps of words."""
    net, (x, t, cond) = make(name), inputs()
    x = x[:1].expand(2, -1, -1, -1)
    t = t[:1].expand(2)
    seen = []

    def first(maps, name):
        seen.append(name)
        return maps[:1].expand_as(maps)

    apart = (net(x, t, cond)[0] - net(x, t, cond)[1]).abs().max()
    with tap(net, r"attn2\.(probs|v)$", first):
        out = net(x, t, cond)
    assert (out[0] - out[1]).abs().max() < 1e-5 < 1e-3 < apart
    assert len(seen) == 2 * len(tap_names(net, r"attn2\.probs$"))


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_rows_do_not_mix_and_time_and_text_count(name):
    net, (x, t, cond) = make(name), inputs(3)
    out = net(x, t, cond)
    for i in range(3):
        assert (net(x[i : i + 1], t[i : i + 1], cond[i]) - out[i : i + 1]).abs().max() < 1e-5
    assert (net(x, t + 100, cond) - out).abs().amax((1, 2, 3)).min() > 1e-3
    assert (net(x, t, cond[[1, 2, 0]]) - out).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_reach_every_parameter(name):
    net, (x, t, cond) = make(name), inputs()
    for part in net.modules():
        if isinstance(part, SqueezeExcite):  # whose ReLU may sleep where it has one unit
            torch.nn.init.ones_(part.W_1.bias)
    net(x, t, cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_odd_sizes_and_classes_run(name):
    net = make(name, classes=5)
    x, t, cond = inputs(size=9)
    label = torch.tensor([0, 5])
    assert net(x[..., :7], t, cond.replace(label=label)).shape == (2, 4, 9, 7)


def test_a_gate_is_small():
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    extra = count(make()) - count(make("unet"))
    want = 0
    for below, skip in make("unet").joins:
        inner = skip // 2
        want += (skip + 1) * inner + (below + 1) * inner + 4 * inner + inner + 1
    assert extra == want and isinstance(make(), AttentionUNet)
