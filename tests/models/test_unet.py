"""The UNet against diffusers at reduced width; its taps, slots and conditions."""

import math

import pytest
import torch
from torch import nn

from minidiff.core.cond import Cond
from minidiff.core.taps import tap, tap_names
from minidiff.models.blocks import Downsample, ResBlock, Upsample, timestep_embedding
from minidiff.models.unet import UNet

SMALL = dict(
    channels=(16, 32), layers=1, attention=("cross", "cross"), heads=4, context=12, groups=4
)
CLASSES = dict(
    in_channels=3,
    out_channels=3,
    channels=(16, 32),
    layers=1,
    attention=(None, "self"),
    mid="self",
    heads=2,
    context=None,
    classes=5,
    groups=4,
)


def make(seed=0, **kw):
    torch.manual_seed(seed)
    return UNet(**{**SMALL, **kw}).eval()


def inputs(b=2, channels=4, size=8, tokens=5, width=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    x, text = (
        torch.randn(b, channels, size, size, generator=g),
        torch.randn(b, tokens, width, generator=g),
    )
    return x, torch.tensor([7, 421, 990])[:b], Cond(text=text)


def twin(theirs, **ours):
    """Our network with the weights of a diffusers one under the same names; norms and biases moved
    off their start.
    """
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn(p.shape, generator=g))
    net = UNet(**ours).eval()
    net.load_state_dict(theirs.state_dict())  # strict: the identity map
    return net, theirs.eval()


def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed (development extra)")


CONDITIONAL = dict(
    sample_size=16,
    block_out_channels=(16, 32, 48, 48),
    layers_per_block=2,
    norm_num_groups=8,
    cross_attention_dim=24,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
OURS = dict(channels=(16, 32, 48, 48), groups=8, context=24)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "heads, linear",
    [(4, False), ((1, 2, 3, 3), True)],
    ids=["stable-diffusion-1", "stable-diffusion-2"],
)
@torch.no_grad()
def test_the_text_conditional_unet_equals_diffusers(heads, linear):
    torch.manual_seed(0)
    net, theirs = twin(
        diffusers().UNet2DConditionModel(
            **CONDITIONAL, attention_head_dim=heads, use_linear_projection=linear
        ),
        **OURS,
        heads=heads,
        linear=linear,
    )
    x, t, cond = inputs(size=16, tokens=7, width=24)
    want = theirs(x, t, cond.text).sample
    assert (net(x, t, cond) - want).abs().max() <= 1e-5 and want.std() > 0.1
    assert (
        net(x, t, Cond(text=0 * cond.text)) - theirs(x, t, 0 * cond.text).sample
    ).abs().max() <= 1e-5
    with tap(net, "probs", lambda p, name: None):  # explicit attention, too
        assert (net(x, t, cond) - want).abs().max() <= 1e-5


@pytest.mark.oracle
@torch.no_grad()
def test_sizes_that_no_level_can_halve_evenly_equal_diffusers():
    """11 -> 6 -> 3 -> 2 rows on the way down, and the same on the way up."""
    torch.manual_seed(0)
    net, theirs = twin(
        diffusers().UNet2DConditionModel(**CONDITIONAL, attention_head_dim=4), **OURS, heads=4
    )
    x, t, cond = inputs(size=16, tokens=7, width=24)
    for rows, columns in ((11, 16), (9, 13)):
        part = x[..., :rows, :columns]
        assert (net(part, t, cond) - theirs(part, t, cond.text).sample).abs().max() <= 1e-5


@pytest.mark.oracle
@torch.no_grad()
def test_the_pixel_unet_of_ddpm_equals_diffusers():
    torch.manual_seed(0)
    theirs = diffusers().UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        norm_eps=1e-6,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    net, theirs = twin(
        theirs,
        in_channels=3,
        out_channels=3,
        channels=(16, 32, 32),
        layers=2,
        heads=1,
        groups=8,
        attention=(None, "self", None),
        mid="self",
        context=None,
        eps=1e-6,
        cos_first=False,
        shift=1,
        pad=0,
    )
    x, t, _ = inputs(channels=3, size=16)
    want = theirs(x, t).sample
    assert (net(x, t) - want).abs().max() <= 1e-5 and want.std() > 0.1


def test_the_timestep_embedding_has_the_published_numbers():
    """t = 7 at width 320, cosines first (Stable Diffusion); the 2020 DDPM code: sines first,
    divisor 159.
    """
    sd = timestep_embedding(torch.tensor([7]), 320)[0]
    assert (sd[:3] - torch.tensor([0.7539023, 0.9475738, 0.9990132])).abs().max() < 1e-6
    assert (sd[160:163] - torch.tensor([0.6569866, 0.3195370, -0.0444140])).abs().max() < 1e-6
    ddpm = timestep_embedding(torch.tensor([7]), 320, cos_first=False, shift=1)[0]
    want = [math.sin(7 * math.exp(-math.log(1e4) * k / 159)) for k in (0, 1, 159)]
    assert (ddpm[[0, 1, 159]] - torch.tensor(want)).abs().max() < 1e-6
    assert abs(ddpm[160].item() - math.cos(7)) < 1e-6


@torch.no_grad()
def test_encode_middle_decode_compose_to_forward_exactly():
    net, (x, t, cond) = make(), inputs()
    temb = net.embed_time(t, cond, x.dtype)
    h, skips = net.encode(x, temb, cond)
    assert [tuple(s.shape[1:]) for s in skips] == [
        (16, 8, 8),
        (16, 8, 8),
        (16, 4, 4),
        (32, 4, 4),
    ] and skips[-1] is h
    middle = net.middle(h, temb, cond)
    assert torch.equal(net.decode(middle, skips, temb, cond), net(x, t, cond))
    with tap(net, "^h$", lambda y, name: y + 1):  # the tap sees what decode starts from
        assert torch.equal(net.decode(middle + 1, skips, temb, cond), net(x, t, cond))


@torch.no_grad()
def test_taps_see_every_skip_and_the_bottleneck():
    net, (x, t, cond) = make(layers=2), inputs()
    seen = {}
    with tap(net, r"^(skip\.\d+|h)$", lambda y, name: seen.update({name: tuple(y.shape[1:])})):
        watched = net(x, t, cond)
    assert seen == {
        "h": (32, 4, 4),
        "skip.0": (16, 8, 8),
        "skip.1": (16, 8, 8),
        "skip.2": (16, 8, 8),
        "skip.3": (16, 4, 4),
        "skip.4": (32, 4, 4),
        "skip.5": (32, 4, 4),
    }
    assert torch.equal(watched, net(x, t, cond))


def test_stable_diffusion_has_twelve_skips_and_sixteen_transformers():
    with torch.device("meta"):
        net = UNet()
    assert len(tap_names(net, r"^skip\.")) == 12
    assert len(tap_names(net, r"attn2\.probs$")) == len(tap_names(net, r"attn1\.probs$")) == 16
    assert len(tap_names(net, r"resnets\.\d\.h$")) == 22 and tap_names(net, r"^h$") == ["h"]


@pytest.mark.parametrize("name", ["skip.0", "skip.3", "h"])
@torch.no_grad()
def test_every_skip_and_the_bottleneck_reach_the_output(name):
    net, (x, t, cond) = make(), inputs()
    with tap(net, f"^{name}$", lambda y, name: torch.zeros_like(y)):
        cut = net(x, t, cond)
    assert (cut - net(x, t, cond)).abs().max() > 1e-3


@torch.no_grad()
def test_what_is_added_at_a_skip_leaves_the_way_down_alone():
    net, (x, t, cond) = make(), inputs()
    down, up = {}, {}
    for store, edit in ((down, False), (up, True)):
        with (
            tap(net, r"^down_blocks.*\.h$", lambda y, name, store=store: store.update({name: y})),
            tap(net, r"^skip\.1$", lambda y, name, edit=edit: y + 1 if edit else y),
        ):
            net(x, t, cond)
    assert all(torch.equal(down[k], up[k]) for k in down) and len(down) == 2


class Slot(nn.Module):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, x, cond):
        self.log.append(("slot", tuple(x.shape), cond))
        return x


@torch.no_grad()
def test_slots_run_between_self_and_cross_attention():
    net, (x, t, cond), log = make(), inputs(), []
    plain = net(x, t, cond)
    block = net.mid_block.attentions[0].transformer_blocks[0]
    block.slots.append(Slot(log))
    with (
        tap(net, r"^mid_block.*attn1\.out$", lambda y, name: log.append(("self",))),
        tap(net, r"^mid_block.*attn2\.q$", lambda y, name: log.append(("cross",))),
    ):
        out = net(x, t, cond)
    assert (
        [e[0] for e in log] == ["self", "slot", "cross"]
        and log[1][1] == (2, 16, 32)
        and log[1][2] is cond
    )
    assert torch.equal(out, plain)


@torch.no_grad()
def test_extra_channels_come_from_the_image_and_count_for_nothing_at_zero_weight():
    """How a text-to-image checkpoint becomes an inpainting one: old slices copied, new ones
    zero.
    """
    wide, net, (x, t, cond) = make(in_channels=9), make(), inputs()
    state = net.state_dict()
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], torch.zeros(16, 5, 3, 3)], dim=1)
    wide.load_state_dict(state)
    image = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(2))
    assert (wide(x, t, cond.replace(image=image)) - net(x, t, cond)).abs().max() < 1e-6
    wide.conv_in.weight.normal_(generator=torch.Generator().manual_seed(4))
    a, b = (wide(x, t, cond.replace(image=i)) for i in (image, image.flip(1)))
    assert (a - b).abs().max() > 1e-2
    seen = []
    wide.conv_in.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    wide(x, t, cond.replace(image=image))
    assert torch.equal(seen[0], torch.cat([x, image], dim=1))  # x first


def test_wrong_channel_counts_are_refused_with_both_numbers():
    net, (x, t, cond) = make(), inputs()
    with pytest.raises(
        ValueError, match=r"input has 9 channels \(with cond.image\), the network takes 4"
    ):
        net(x, t, cond.replace(image=torch.zeros(2, 5, 8, 8)))
    with pytest.raises(ValueError, match=r"input has 4 channels .* takes 9"):
        make(in_channels=9)(x, t, cond)
    with pytest.raises(ValueError, match="2 levels of channels but 3 attention kinds"):
        make(attention=("cross", "cross", None))


@torch.no_grad()
def test_a_class_conditional_network_needs_a_label_and_uses_it():
    net, (x, t, _) = make(**CLASSES), inputs(channels=3)
    for cond in (None, Cond(), Cond(extra={"level": torch.zeros(2)})):
        with pytest.raises(ValueError, match="label"):
            net(x, t, cond)
    outs = [net(x, t, Cond(label=torch.full((2,), k))) for k in range(6)]  # 5: no class
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outs) for b in outs[:i])


@torch.no_grad()
def test_time_and_text_change_the_output_and_rows_do_not_mix():
    net, (x, t, cond) = make(), inputs(3)
    out = net(x, t, cond)
    assert (net(x, t + 100, cond) - out).abs().amax((1, 2, 3)).min() > 1e-3
    assert (net(x, t, cond[[1, 2, 0]]) - out).abs().amax((1, 2, 3)).min() > 1e-3
    for i in range(3):
        assert (net(x[i : i + 1], t[i : i + 1], cond[i]) - out[i : i + 1]).abs().max() < 1e-5


@torch.no_grad()
def test_zero_text_says_the_same_in_any_number_of_words():
    """Keys and values have no bias, so rows of zeros add one constant: a null condition of any
    length.
    """
    net, (x, t, _) = make(), inputs()
    one, seven = (net(x, t, Cond(text=torch.zeros(2, n, 12))) for n in (1, 7))
    assert (one - seven).abs().max() < 1e-5


@torch.no_grad()
def test_the_mask_hides_words():
    net, (x, t, cond) = make(), inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0]]).bool().expand(2, -1)
    assert (
        net(x, t, cond.replace(mask=mask)) - net(x, t, Cond(text=cond.text[:, :3]))
    ).abs().max() < 1e-5


def test_gradients_reach_the_text_and_every_parameter():
    net, (x, t, cond) = make(), inputs()
    text = cond.text.requires_grad_()
    net(x, t, Cond(text=text)).square().mean().backward()
    assert text.grad.abs().amax((0, 2)).min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@torch.no_grad()
def test_a_resblock_adds_its_branch_to_the_shortcut():
    torch.manual_seed(0)
    block, x, temb = ResBlock(8, 16, 32, groups=4), torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    with tap(block, "h", lambda y, name: torch.zeros_like(y)):
        assert torch.equal(block(x, temb), block.conv_shortcut(x))
    assert not hasattr(ResBlock(8, 8, groups=4), "conv_shortcut") and not hasattr(
        ResBlock(8, 8, groups=4), "time_emb_proj"
    )
    # the time is added to all pixels alike, after the first convolution: one constant per channel
    block.conv2.weight.zero_()
    assert torch.equal(block(x, temb), block(x, -temb))
    seen = []
    block.norm2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    block(x, temb), block(x, 0 * temb)
    gap = seen[0] - seen[1]
    assert (gap - gap[:, :, :1, :1]).abs().max() < 1e-5 and gap.abs().max() > 0.1


@torch.no_grad()
def test_the_two_paddings_of_a_stride_2_convolution():
    """On the ramp 0..15: with pad 1 the first window starts outside the picture, with pad 0 the
    last one ends there.
    """
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    for pad, want in ((1, [[10.0, 24.0], [51.0, 90.0]]), (0, [[45.0, 39.0], [66.0, 50.0]])):
        net = Downsample(1, pad)
        net.conv.weight.fill_(1.0)
        net.conv.bias.zero_()
        assert (net(ramp)[0, 0] - torch.tensor(want)).abs().max() <= 1e-4


@torch.no_grad()
def test_upsampling_repeats_pixels_then_convolves():
    net = Upsample(1)
    net.conv.weight.copy_(torch.eye(3)[1][:, None] * torch.eye(3)[1])  # the identity kernel
    net.conv.bias.zero_()
    x = torch.arange(4.0).view(1, 1, 2, 2)
    repeated = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (net(x) - repeated).abs().max() <= 1e-5
