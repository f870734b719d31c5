"""T2I-Adapter: the published names, features and noise as diffusers computes them, one run per
picture, clear refusals.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import minidiff
from minidiff.control.controlnet import ControlNet, controlled
from minidiff.control.t2i_adapter import T2IAdapter, adapted
from minidiff.core import schedule
from minidiff.core.cfg import cfg, cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.taps import tap, tap_names
from minidiff.models.unet import UNet
from minidiff.pipe.pipe import Pipe
from minidiff.samplers.ddim import ddim

GOLDEN = Path(__file__).parents[2] / "../shared/cards/golden/t2i_full_diff.json"
WIDTHS = (32, 64, 128, 128)
KINDS = {"full": ("full_adapter", WIDTHS, 2), "light": ("light_adapter", WIDTHS[:3], 4)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def perturb(net, seed=3):
    """Norms and biases off their start; hint convolutions strong enough for the hint to be seen at
    the output.
    """
    g = generator(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn(p.shape, generator=g))
            elif not p.any() or name.startswith(("controlnet_cond", "conv_in", "body", "adapter")):
                p.copy_(1.5 * torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5)
    return net.eval()


def hints(n=2, size=64, channels=3, seed=5):
    return torch.rand(n, channels, size, size, generator=generator(seed))


def sizes(net):
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


@pytest.fixture(scope="module")
def tiny():
    pipe = minidiff.build("tiny", seed=0)
    for name, p in pipe.net.named_parameters():
        if p.ndim == 1:
            p.add_(0.2 * torch.randn(p.shape, generator=generator(len(name))))
    return pipe


@pytest.fixture(scope="module")
def adapter():
    torch.manual_seed(0)
    return perturb(T2IAdapter(channels=(48, 96), factor=4)).requires_grad_(False)


def tiny_inputs(pipe, b=2):
    return pipe.noise(b, seed=1), pipe.embed(["a red circle on a blue background"] * b)


# ---- names ---------------------------------------------------------------------------------------


def test_at_stable_diffusion_size_it_has_the_public_names_and_shapes():
    with torch.device("meta"):
        net = T2IAdapter()
    shapes = {f"adapter.{k}": s for k, s in sizes(net).items()}
    assert len(shapes) == 38 and sum(p.numel() for p in net.parameters()) == 77_369_280
    assert (
        hashlib.sha256(
            "\n".join(sorted(f"{k} {s}" for k, s in shapes.items())).encode()
        ).hexdigest()[:16]
        == "8d15e738595ba7eb"
    )
    with torch.device("meta"):
        assert T2IAdapter(in_channels=1).conv_in.weight.shape == (320, 64, 3, 3)


@pytest.mark.skipif(
    not GOLDEN.exists(), reason="lists of public names are not part of the repository"
)
def test_the_public_list_is_met_name_by_name():
    with torch.device("meta"):
        ours = sizes(T2IAdapter())
    assert ours == {
        k.removeprefix("adapter."): tuple(s) for k, s in json.loads(GOLDEN.read_text()).items()
    }


@pytest.mark.oracle
@pytest.mark.parametrize("channels", [1, 3])
def test_the_light_one_has_diffusers_names_and_shapes_at_full_size(channels):
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    with torch.device("meta"):
        ours = T2IAdapter(channels, light=True)
        theirs = diffusers.T2IAdapter(channels, [320, 640, 1280], 4, adapter_type="light_adapter")
    assert {f"adapter.{k}": s for k, s in sizes(ours).items()} == sizes(theirs)


# ---- the network itself --------------------------------------------------------------------------


@torch.no_grad()
def test_features_have_the_levels_sizes_also_where_halving_rounds(adapter):
    assert [tuple(f.shape) for f in adapter(hints(size=64))] == [(2, 48, 16, 16), (2, 96, 8, 8)]
    assert [tuple(f.shape[2:]) for f in adapter(hints(size=36))] == [(9, 9), (5, 5)]


@torch.no_grad()
def test_with_silent_blocks_it_is_a_folded_hint_pooled_from_level_to_level():
    """Blocks that add nothing, a first convolution that copies: level l is the average of 2^l x 2^l
    first-level pixels.
    """
    net = T2IAdapter(in_channels=1, channels=(16, 16, 16), factor=4)
    for p in net.body.parameters():
        p.zero_()
    net.conv_in.weight.copy_(F.pad(torch.eye(16)[:, :, None, None], (1, 1, 1, 1)))
    net.conv_in.bias.zero_()
    hint = hints(1, 32, channels=1)
    # 1 16 8 8
    folded = torch.stack([hint[:, 0, i::4, j::4] for i in range(4) for j in range(4)], dim=1)
    for f, size in zip(net(hint), (1, 2, 4)):
        assert (f - F.avg_pool2d(folded, size)).abs().max() < 1e-6


# ---- another implementation ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed (development extra)")


@pytest.fixture(scope="module")
def unets(diffusers):
    torch.manual_seed(0)
    theirs = perturb(
        diffusers.UNet2DConditionModel(
            block_out_channels=WIDTHS,
            norm_num_groups=8,
            cross_attention_dim=24,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
    )
    net = UNet(channels=WIDTHS, groups=8, context=24).eval()
    net.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 16, 16, generator=generator(1))
    return (
        Pipe(net, schedule.scaled_linear(), (4, 16, 16), name="small"),
        theirs,
        x,
        Cond(text=torch.randn(2, 7, 24, generator=generator(2))),
    )


def twins(diffusers, kind, channels=3, seed=6):
    name, widths, layers = KINDS[kind]
    theirs = perturb(diffusers.T2IAdapter(channels, list(widths), layers, adapter_type=name), seed)
    ours = T2IAdapter(channels, WIDTHS, light=kind == "light").eval()
    # strict
    ours.load_state_dict({k.removeprefix("adapter."): v for k, v in theirs.state_dict().items()})
    return ours, theirs


def close(a, b):
    return (a - b).abs().max() <= 1e-5 * b.std()


@pytest.mark.oracle
@pytest.mark.parametrize("kind, channels", [("full", 3), ("full", 1), ("light", 3)])
@torch.no_grad()
def test_features_and_adapted_noise_equal_diffusers(diffusers, unets, kind, channels):
    (pipe, unet, x, cond), (ours, theirs) = unets, twins(diffusers, kind, channels)
    hint = hints(size=128, channels=channels)
    features = theirs(hint)
    for a, b in zip(ours(hint), features, strict=True):
        assert a.shape == b.shape and close(a, b)
    plain = pipe.eps(x, 600, cond)
    for scale in (1.0, 0.6):
        want = unet(
            x, 599, cond.text, down_intrablock_additional_residuals=[scale * f for f in features]
        ).sample
        assert close(adapted(pipe, ours, hint, scale)(x, 600, cond), want)
        other = unet(
            x,
            599,
            cond.text,
            down_intrablock_additional_residuals=[scale * f for f in theirs(1 - hint)],
        ).sample
        assert min((want - plain).std(), (want - other).std()) > 0.05 * plain.std()


@pytest.mark.oracle
@torch.no_grad()
def test_rounded_sizes_equal_diffusers(diffusers):
    ours, theirs = twins(diffusers, "full")
    for a, b in zip(ours(hints(size=96)), theirs(hints(size=96)), strict=True):  # 12, 6, 3, 2
        assert a.shape == b.shape and close(a, b)


@pytest.mark.oracle
@torch.no_grad()
def test_the_weighted_sum_of_several_adapters_equals_diffusers(diffusers, unets):
    pipe, unet, x, cond = unets
    (a, their_a), (b, their_b) = twins(diffusers, "full"), twins(diffusers, "light", seed=7)
    h1, h2 = hints(size=128), hints(size=128, seed=8)
    both = adapted(pipe, b, h2, 0.4, denoise=adapted(pipe, a, h1, 0.9))(x, 600, cond)
    summed = [0.9 * f + 0.4 * g for f, g in zip(their_a(h1), their_b(h2))]
    assert close(both, unet(x, 599, cond.text, down_intrablock_additional_residuals=summed).sample)


@pytest.mark.oracle
@torch.no_grad()
def test_with_a_controlnet_on_top_it_equals_diffusers(diffusers, unets):
    """The ControlNet reads the plain noisy latents; only the UNet's encoder sees the adapter."""
    pipe, unet, x, cond = unets
    (ours, theirs), (h1, h2) = twins(diffusers, "full"), (hints(size=128), hints(size=128, seed=8))
    torch.manual_seed(2)
    net = perturb(ControlNet(channels=WIDTHS, groups=8, context=24), seed=9)
    control = diffusers.ControlNetModel(
        block_out_channels=WIDTHS, norm_num_groups=8, cross_attention_dim=24
    )
    control.load_state_dict(net.state_dict())
    down, mid = control(x, 599, cond.text, h2, return_dict=False)
    want = unet(
        x,
        599,
        cond.text,
        down_intrablock_additional_residuals=theirs(h1),
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample
    assert close(controlled(pipe, net, h2, denoise=adapted(pipe, ours, h1))(x, 600, cond), want)
    assert close(adapted(pipe, ours, h1, denoise=controlled(pipe, net, h2))(x, 600, cond), want)


# ---- at work on the tiny model -------------------------------------------------------------------


@torch.no_grad()
def test_scale_zero_is_the_plain_network_and_the_taps_are_free_afterwards(tiny, adapter):
    x, cond = tiny_inputs(tiny)
    assert torch.equal(adapted(tiny, adapter, hints(), 0.0)(x, 500, cond), tiny.eps(x, 500, cond))
    assert not any(tiny.net.get_submodule(n).fns for n in tap_names(tiny.net))


@torch.no_grad()
def test_what_is_added_is_in_the_levels_last_skip_and_flows_on(tiny):
    """Skips of tiny: conv_in, level 0, its halving, level 1. At level 0: the first is as it was,
    the others differ.
    """
    x, cond = tiny_inputs(tiny)
    skips = []
    with tap(tiny.net, r"^skip", lambda y, name: skips.append(y)):
        tiny.eps(x, 500, cond)
        with tap(tiny.net, r"^level\.0$", lambda y, name: y + 1):
            tiny.eps(x, 500, cond)
    before, after = skips[:4], skips[4:]
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1] + 1)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(after[2:], before[2:]))


@torch.no_grad()
def test_the_hint_changes_the_noise_row_by_row_and_each_level_counts(tiny, adapter):
    x, cond = tiny_inputs(tiny)
    hint, plain = hints(), tiny.eps(x, 500, cond)
    out = adapted(tiny, adapter, hint)(x, 500, cond)
    other = adapted(tiny, adapter, torch.cat([hint[:1], 1 - hint[1:]]))(x, 500, cond)
    assert torch.equal(other[0], out[0]) and (other[1] - out[1]).abs().max() > 1e-2
    for scale in ([1.0, 0.0], [0.0, 1.0]):
        assert (adapted(tiny, adapter, hint, scale)(x, 500, cond) - plain).abs().max() > 1e-2


@torch.no_grad()
def test_it_runs_once_for_a_whole_guided_picture(tiny, adapter):
    x, cond = tiny_inputs(tiny)
    calls = []
    handle = adapter.register_forward_pre_hook(lambda m, args: calls.append(1))
    eps = adapted(tiny, adapter, hints())
    a = ddim(cfg_batched(eps, tiny.null(), 3.0), tiny.schedule, x, cond, steps=3)
    handle.remove()
    assert len(calls) == 1 and a.isfinite().all()
    one, two = (
        cfg_batched(eps, tiny.null(), 3.0)(x, 500, cond),
        cfg(eps, tiny.null(), 3.0)(x, 500, cond),
    )
    assert (one - two).abs().max() < 1e-4  # both branches see the hint


@torch.no_grad()
def test_outside_its_interval_the_network_is_left_alone(tiny, adapter):
    x, cond = tiny_inputs(tiny)
    some, always = (
        adapted(tiny, adapter, hints(), interval=(400, 1000)),
        adapted(tiny, adapter, hints()),
    )
    assert torch.equal(some(x, 400, cond), tiny.eps(x, 400, cond)) and torch.equal(
        some(x, 401, cond), always(x, 401, cond)
    )


def test_its_weights_can_learn_through_the_frozen_network(tiny):
    x, cond = tiny_inputs(tiny)
    net = T2IAdapter(channels=(48, 96), factor=4, light=True)
    adapted(tiny, net, hints())(x, 500, cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    assert all(p.grad is None for p in tiny.net.parameters())


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(hint=hints(channels=1)), r"shape \(2, 1, 64, 64\), expected \(b, 3, H, W\)"),
        (dict(hint=2 * hints() - 1), r"expected \[0, 1\]"),
        (dict(hint=hints(size=62)), r"takes \(b, 3, H, W\), H and W multiples of 4"),
        (
            dict(hint=hints(size=32)),
            r"fits latents of \(8, 8\), these are \(16, 16\): it must be 4 times larger",
        ),
        (dict(hint=hints(3)), "3 hints for a batch of 2 rows"),
        (dict(scale=[1.0, 0.5, 0.0]), r"scale has shape \(3,\), expected one number or 2 of them"),
    ],
)
def test_wrong_hints_and_scales_are_refused(tiny, adapter, bad, message):
    x, cond = tiny_inputs(tiny)
    with pytest.raises(ValueError, match=message):
        adapted(tiny, adapter, **{"hint": hints(), **bad})(x, 500, cond)


def test_an_adapter_of_another_network_is_refused(adapter):
    for name, message in (
        ("tiny-pixel", r"\(48, 96\) channels, tiny-pixel has \(32, 64, 96\)"),
        ("tiny-dit", "has none"),
    ):
        with pytest.raises(ValueError, match=message):
            adapted(minidiff.build(name), adapter, hints())
