"""ControlNet: the published names, nothing changed at the start, diffusers' numbers with real
residuals, clear refusals.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import minidiff
from minidiff.control.controlnet import ControlNet, controlled
from minidiff.core import schedule
from minidiff.core.cfg import cfg, cfg_batched
from minidiff.core.cond import Cond
from minidiff.core.denoise import Counted
from minidiff.core.taps import tap_names
from minidiff.models.sizes import SIZES
from minidiff.models.unet import UNet
from minidiff.pipe.pipe import Pipe
from minidiff.samplers.ddim import ddim

GOLDEN = Path(__file__).parents[2] / "../shared/cards/golden/sd1_controlnet_diff.json"
THEIRS = dict(
    block_out_channels=(32, 64, 128, 128),
    norm_num_groups=8,
    cross_attention_dim=24,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
)
OURS = dict(channels=(32, 64, 128, 128), groups=8, context=24)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def perturb(net, seed=3):
    """Move norms, biases and zero convolutions off their start and let the hint's signal survive
    its convolutions, so that none of them can be forgotten unseen.
    """
    g = generator(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn(p.shape, generator=g))
            elif not p.any():
                p.copy_(torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5)
            elif name.startswith("controlnet_cond_embedding"):
                p.mul_(3)
    return net.eval()


def hints(n=2, size=64, seed=5):
    return torch.rand(n, 3, size, size, generator=generator(seed))


def tiny_inputs(pipe, b=2):
    return pipe.noise(b, seed=1), pipe.embed(["a red circle on a blue background"] * b)


@pytest.fixture(scope="module")
def tiny():
    pipe = minidiff.build("tiny", seed=0)
    perturb(pipe.net)
    return pipe


@pytest.fixture(scope="module")
def active(tiny):
    return perturb(ControlNet.from_unet(tiny.net, factor=4), seed=4).requires_grad_(False)


# ---- names ---------------------------------------------------------------------------------------


def sizes(net):
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


def digest(shapes):
    return hashlib.sha256(
        "\n".join(sorted(f"{k} {s}" for k, s in shapes.items())).encode()
    ).hexdigest()[:16]


def test_at_stable_diffusion_size_it_has_the_public_names_and_shapes():
    with torch.device("meta"):
        net = ControlNet()
    shapes = sizes(net)
    assert len(shapes) == 340 and sum(p.numel() for p in net.parameters()) == 361_279_120
    assert digest(shapes) == "405e1981f291b84c" and net.factor == 8
    assert net.taps == [*(f"skip.{k}" for k in range(12)), "h"]


@pytest.mark.skipif(
    not GOLDEN.exists(), reason="lists of public names are not part of the repository"
)
def test_the_public_list_is_met_name_by_name():
    with torch.device("meta"):
        assert sizes(ControlNet()) == {
            k: tuple(s) for k, s in json.loads(GOLDEN.read_text()).items()
        }


def test_what_it_shares_with_the_unet_has_the_unets_names_and_numbers_but_not_its_memory(tiny):
    net = ControlNet.from_unet(tiny.net, factor=4)
    theirs, ours = tiny.net.state_dict(), net.state_dict()
    shared = [k for k in ours if not k.startswith("controlnet_")]
    assert shared == [
        k for k in theirs if not k.startswith(("up_blocks", "conv_norm_out", "conv_out"))
    ]
    assert all(
        torch.equal(ours[k], theirs[k]) and ours[k].data_ptr() != theirs[k].data_ptr()
        for k in shared
    )
    assert all(p.requires_grad for p in net.parameters()) and not any(
        p.requires_grad for p in tiny.net.parameters()
    )
    again = ControlNet((16, 32, 96), **SIZES["tiny"]["unet"])
    assert sizes(again) == sizes(net)


# ---- nothing changes at the start ----------------------------------------------------------------


@torch.no_grad()
def test_a_new_controlnet_changes_nothing_for_any_hint(tiny):
    x, cond = tiny_inputs(tiny)
    for seed in (5, 6):
        eps = controlled(tiny, ControlNet.from_unet(tiny.net, factor=4), hints(seed=seed))
        assert torch.equal(eps(x, 500, cond), tiny.eps(x, 500, cond))


def test_yet_its_zero_convolutions_can_learn_and_the_hint_follows(tiny):
    """First step: gradient at every zero convolution, none yet behind them; after it the hint has
    one, too.
    """
    net, (x, cond) = ControlNet.from_unet(tiny.net, factor=4), tiny_inputs(tiny)
    zeros = [net.controlnet_mid_block, *net.controlnet_down_blocks]
    loss = lambda: controlled(tiny, net, hints())(x, 500, cond).square().mean()  # noqa: E731
    loss().backward()
    assert all(z.weight.grad.abs().max() > 0 and z.bias.grad.abs().max() > 0 for z in zeros)
    assert (
        net.conv_in.weight.grad.abs().max()
        == net.controlnet_cond_embedding.conv_out.weight.grad.abs().max()
        == 0
    )
    with torch.no_grad():
        for z in zeros:
            z.weight.sub_(z.weight.grad)
    loss().backward()
    assert (
        net.conv_in.weight.grad.abs().max() > 0
        and net.controlnet_cond_embedding.conv_out.weight.grad.abs().max() > 0
    )
    assert all(p.grad is None for p in tiny.net.parameters())


@torch.no_grad()
def test_scale_zero_is_the_plain_network_and_the_taps_are_free_afterwards(tiny, active):
    x, cond = tiny_inputs(tiny)
    assert torch.equal(controlled(tiny, active, hints(), 0.0)(x, 500, cond), tiny.eps(x, 500, cond))
    assert not any(tiny.net.get_submodule(n).fns for n in tap_names(tiny.net))


# ---- another implementation ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins():
    """A UNet and two ControlNets of diffusers at reduced width, and ours with their weights."""
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (development extra)"
    )
    torch.manual_seed(0)
    unet = perturb(
        diffusers.UNet2DConditionModel(
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, **THEIRS
        )
    )
    controls = [
        perturb(
            diffusers.ControlNetModel(
                conditioning_embedding_out_channels=(16, 32, 96, 256), **THEIRS
            ),
            seed,
        )
        for seed in (7, 8)
    ]
    net, ours = UNet(**OURS).eval(), [ControlNet(**OURS).eval() for _ in controls]
    for a, b in zip([net, *ours], [unet, *controls]):
        a.load_state_dict(b.state_dict())  # strict: the same names
    x = torch.randn(2, 4, 16, 16, generator=generator(1))
    cond = Cond(text=torch.randn(2, 7, 24, generator=generator(2)))
    return (
        Pipe(net, schedule.scaled_linear(), (4, 16, 16), name="small"),
        ours,
        unet,
        controls,
        x,
        cond,
    )


def theirs_eps(unet, parts, x, t, cond, **kw):
    """Residuals of several of their ControlNets summed, then their UNet; t is the schedule's index,
    1 more than theirs.
    """
    found = [
        c(x, t - 1, cond.text, hint, conditioning_scale=s, return_dict=False, **kw)
        for c, hint, s in parts
    ]
    down = [sum(each) for each in zip(*(f[0] for f in found))]
    return unet(
        x,
        t - 1,
        cond.text,
        down_block_additional_residuals=down,
        mid_block_additional_residual=sum(f[1] for f in found),
    ).sample


def close(a, b):
    return (a - b).abs().max() <= 1e-5 * b.std()


@pytest.mark.oracle
@torch.no_grad()
def test_the_controlled_noise_equals_diffusers(twins):
    pipe, (ours, _), unet, (control, _), x, cond = twins
    hint, plain = hints(size=128), pipe.eps(x, 600, cond)
    for scale in (1.0, 0.6):
        want = theirs_eps(unet, [(control, hint, scale)], x, 600, cond)
        assert close(controlled(pipe, ours, hint, scale)(x, 600, cond), want)
        assert (want - plain).std() > 0.1 * plain.std()  # the residuals count for something
        other = theirs_eps(unet, [(control, 1 - hint, scale)], x, 600, cond)
        assert (want - other).std() > 0.01 * plain.std()  # and the hint in them


@pytest.mark.oracle
@torch.no_grad()
def test_every_residual_equals_diffusers_one_by_one(twins):
    _, (ours, _), _, (control, _), x, cond = twins
    hint, t = hints(size=128), torch.tensor([7, 421])
    down, mid = control(x, t, cond.text, hint, return_dict=False)
    found = ours(x, t, cond, hint)
    assert list(found) == [*(f"skip.{k}" for k in range(12)), "h"]
    for a, b in zip(found.values(), [*down, mid]):
        assert a.shape == b.shape and close(a, b) and b.std() > 0.01


@pytest.mark.oracle
@torch.no_grad()
def test_one_scale_per_residual_gives_diffusers_guess_mode(twins):
    pipe, (ours, _), unet, (control, _), x, cond = twins
    hint = hints(size=128)
    want = theirs_eps(unet, [(control, hint, 0.9)], x, 600, cond, guess_mode=True)
    got = controlled(pipe, ours, hint, 0.9 * torch.logspace(-1, 0, 13))(x, 600, cond)
    assert close(got, want) and not close(controlled(pipe, ours, hint, 0.9)(x, 600, cond), want)


@pytest.mark.oracle
@torch.no_grad()
def test_the_residuals_of_several_controlnets_add_up_as_in_diffusers(twins):
    pipe, (one, two), unet, (a, b), x, cond = twins
    h1, h2 = hints(size=128), hints(size=128, seed=6)
    both = controlled(pipe, two, h2, 0.5, denoise=controlled(pipe, one, h1))
    assert close(both(x, 600, cond), theirs_eps(unet, [(a, h1, 1.0), (b, h2, 0.5)], x, 600, cond))
    swapped = controlled(pipe, one, h1, denoise=controlled(pipe, two, h2, 0.5))
    assert close(swapped(x, 600, cond), both(x, 600, cond))


# ---- at work on the tiny model -------------------------------------------------------------------


@torch.no_grad()
def test_the_hint_changes_the_noise_row_by_row(tiny, active):
    x, cond = tiny_inputs(tiny)
    hint = hints()
    out = controlled(tiny, active, hint)(x, 500, cond)
    other = controlled(tiny, active, torch.cat([hint[:1], 1 - hint[1:]]))(x, 500, cond)
    assert torch.equal(other[0], out[0]) and (other[1] - out[1]).abs().max() > 1e-3
    assert (out - tiny.eps(x, 500, cond)).abs().max() > 0.01
    for i in range(2):
        alone = controlled(tiny, active, hint[i : i + 1])(x[i : i + 1], 500, cond[i])
        assert (alone - out[i : i + 1]).abs().max() < 1e-5


@torch.no_grad()
def test_guidance_goes_around_it_in_one_call_or_two(tiny, active):
    x, cond = tiny_inputs(tiny)
    eps = controlled(tiny, active, hints())
    two, one = (
        cfg(eps, tiny.null(), 3.0)(x, 500, cond),
        cfg_batched(eps, tiny.null(), 3.0)(x, 500, cond),
    )
    by_hand = eps(x, 500, tiny.null(2)) + 3 * (eps(x, 500, cond) - eps(x, 500, tiny.null(2)))
    assert (one - two).abs().max() < 1e-4 and (two - by_hand).abs().max() < 1e-5


@torch.no_grad()
def test_outside_its_interval_it_is_not_run(tiny, active):
    x, cond = tiny_inputs(tiny)
    calls = []
    handle = active.register_forward_pre_hook(lambda m, args: calls.append(args[1].tolist()))
    some, always = (
        controlled(tiny, active, hints(), interval=(400, 800)),
        controlled(tiny, active, hints()),
    )
    for t in (400, 801):
        assert torch.equal(some(x, t, cond), tiny.eps(x, t, cond)) and not calls
    for t in (401, 800):
        assert torch.equal(some(x, t, cond), always(x, t, cond))
    assert calls == [[400] * 2] * 2 + [[799] * 2] * 2  # the network's time is one less
    mixed = some(x, torch.tensor([300, 700]), cond)  # rows at times of their own
    handle.remove()
    assert (mixed[0] - tiny.eps(x, 300, cond)[0]).abs().max() < 1e-5
    assert (mixed[1] - always(x, 700, cond)[1]).abs().max() < 1e-5


@torch.no_grad()
def test_a_whole_picture_is_drawn_with_one_run_per_evaluation(tiny, active):
    eps = Counted(controlled(tiny, active, hints()))
    x, cond = tiny_inputs(tiny)
    a = tiny.decode(ddim(eps, tiny.schedule, x, cond, steps=3))
    assert a.shape == (2, 3, 64, 64) and a.isfinite().all() and eps.nfe == 6
    assert (a - tiny.decode(ddim(tiny.eps, tiny.schedule, x, cond, steps=3))).abs().max() > 0.01


@torch.no_grad()
def test_pixel_models_with_classes_take_hints_of_their_own_size():
    pipe = minidiff.build("tiny-pixel", seed=0)
    net = ControlNet.from_unet(pipe.net, factor=1)
    x, cond, hint = pipe.noise(2), pipe.embed(["red circle", "blue star"]), hints(size=32)
    assert torch.equal(controlled(pipe, net, hint)(x, 300, cond), pipe.eps(x, 300, cond))
    eps = controlled(pipe, perturb(net), hint)
    assert (eps(x, 300, cond) - pipe.eps(x, 300, cond)).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"cond\.label"):
        net(x, torch.tensor([299, 299]), Cond(), hint)


@torch.no_grad()
def test_a_controlnet_of_four_channels_steers_an_inpainting_network_of_nine():
    small = dict(
        channels=(16, 32), layers=1, attention=("cross", "cross"), heads=4, context=12, groups=4
    )
    torch.manual_seed(0)
    pipe = Pipe(UNet(in_channels=9, **small).eval(), schedule.scaled_linear(), (4, 8, 8))
    x, image = (
        torch.randn(2, 4, 8, 8, generator=generator(1)),
        torch.randn(2, 5, 8, 8, generator=generator(2)),
    )
    cond = Cond(text=torch.randn(2, 3, 12, generator=generator(3)), image=image)
    seen = []
    for net in (ControlNet((16, 32, 96), **small), ControlNet.from_unet(pipe.net, factor=4)):
        net.conv_in.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        assert controlled(pipe, perturb(net), hints(size=32))(x, 500, cond).shape == x.shape
    assert torch.equal(seen[0], x) and torch.equal(seen[1], torch.cat([x, image], dim=1))


def test_in_half_precision_and_on_meta_it_is_built_where_the_unet_is():
    with torch.device("meta"):
        unet = UNet(
            channels=(16, 32), layers=1, attention=("cross", "cross"), heads=4, context=12, groups=4
        )
    net = ControlNet.from_unet(unet.to(torch.bfloat16).eval())
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {
        ("meta", torch.bfloat16)
    } and not net.training


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(hint=torch.rand(2, 1, 64, 64)), r"shape \(2, 1, 64, 64\), expected \(b, 3, H, W\)"),
        (dict(hint=torch.zeros(2, 3, 64, 64, dtype=torch.uint8)), "uint8"),
        (dict(hint=255 * hints()), r"values from .* expected \[0, 1\]: divide bytes by 255"),
        (dict(hint=2 * hints() - 1), r"take \(x \+ 1\) / 2"),
        (
            dict(hint=hints(size=32)),
            r"hint of shape \(2, 3, 32, 32\): at this size the ControlNet takes \(b, 3, 64, 64\)",
        ),
        (dict(hint=hints(3)), "3 hints for a batch of 2 rows"),
        (dict(scale=[1.0, 0.5]), r"scale has shape \(2,\), expected one number or 5 of them"),
    ],
)
def test_wrong_hints_and_scales_are_refused(tiny, active, bad, message):
    x, cond = tiny_inputs(tiny)
    with pytest.raises(ValueError, match=message):
        controlled(tiny, active, **{"hint": hints(), **bad})(x, 500, cond)


@torch.no_grad()
def test_holes_of_an_inpainting_hint_are_not_mistaken_for_a_wrong_range(tiny, active):
    x, cond = tiny_inputs(tiny)
    hint = hints()
    hint[:, :, 10:20, 10:20] = -1
    assert controlled(tiny, active, hint)(x, 500, cond).isfinite().all()


def test_a_controlnet_of_another_network_is_refused(tiny, active):
    for name, message in (
        ("tiny-dit", "feeds 5 taps .* tiny-dit has 0"),
        ("tiny-pixel", "tiny-pixel has 7"),
    ):
        with pytest.raises(ValueError, match=message):
            controlled(minidiff.build(name), active, hints())
    narrow = ControlNet((16, 32, 96), **{**SIZES["tiny"]["unet"], "context": 64})
    with pytest.raises(
        ValueError,
        match=r"not for tiny: its .*attn2.to_k.weight is \(48, 64\), the network's \(48, 128\)",
    ):
        controlled(tiny, narrow, hints())
    with pytest.raises(ValueError, match="DiT has no way down"):
        ControlNet.from_unet(minidiff.build("tiny-dit").net)
    with pytest.raises(ValueError, match="factor=3"):
        ControlNet.from_unet(tiny.net, factor=3)
    with pytest.raises(ValueError, match=r"input has 3 channels .* takes 4"):
        active(torch.zeros(1, 3, 16, 16), torch.tensor([1]), Cond(), hints(1))
