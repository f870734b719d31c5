"""Plug-and-Play: where it copies, that it copies
there and nowhere else, and the limits of its knobs.
"""

import pytest
import torch

import minidiff
from minidiff.core.taps import tap, tap_names
from minidiff.editing.plug_and_play import copy_source, plug_and_play, sites
from minidiff.inversion.ddim import invert, replay

A, B = "a red circle on a blue background", "a green square on a blue background"


@pytest.fixture(scope="module", params=["tiny", "tiny-dit"])
def pipe(request, awake):
    return awake(request.param)


def states_seen(pipe, image, names, **knobs):
    """What the taps `names` saw in every step of an edit, as [[tensor per tap] per step]."""
    seen = []
    with tap(pipe.net, names, lambda x, name: seen.append(x)):
        plug_and_play(pipe, image, A, B, **knobs)
    return seen


# ---- where ----


def test_on_stable_diffusion_the_sites_are_the_papers():
    at, attends = sites(minidiff.build("sd15", device="meta").net)
    assert tap_names(torch.nn.Module(), at) == []
    net = minidiff.build("sd15", device="meta").net
    assert tap_names(net, at) == ["up_blocks.1.resnets.1.h"]  # decoder layer 4 of 0..11
    layers = {n.split(".transformer")[0] for n in tap_names(net, attends)}
    assert layers == {f"up_blocks.{i}.attentions.{j}" for i in (1, 2, 3) for j in range(3)} - {
        "up_blocks.1.attentions.0"
    }
    assert all(".attn1." in n and n[-1] in "qk" for n in tap_names(net, attends))


def test_sites_are_in_the_decoder_or_a_third_into_the_transformer(pipe):
    at, attends = sites(pipe.net)
    if hasattr(pipe.net, "up_blocks"):
        assert (
            tap_names(pipe.net, at) == ["up_blocks.0.resnets.1.h"]
            and len(tap_names(pipe.net, attends)) == 2 * 3
        )
    else:
        assert (
            tap_names(pipe.net, at) == ["blocks.2.out"]
            and len(tap_names(pipe.net, attends)) == 2 * 4
        )
    assert not [n for n in tap_names(pipe.net, attends) if "attn2" in n or n.endswith(".v")]


def test_a_resblocks_tap_is_its_branch_before_the_skip_is_added():
    from minidiff.models.blocks import ResBlock

    block, x = ResBlock(8, 8, groups=2), torch.rand(1, 8, 4, 4)
    with tap(block, "^h$", lambda h, name: torch.zeros_like(h)):
        assert torch.equal(block(x), x)  # without the branch: only the skip


def test_networks_without_such_blocks_are_refused():
    with pytest.raises(ValueError, match="neither"):
        sites(torch.nn.Linear(1, 1))


# ---- what ----


def test_the_copy_is_row_by_row_and_off_when_off():
    x = torch.rand(6, 2, 5)
    out = copy_source(2, True)(x, "")
    assert (
        torch.equal(out, torch.cat([x[:2], x[:2], x[:2]])) and copy_source(2, False)(x, "") is None
    )


def test_while_injecting_all_rows_share_features_and_maps(pipe, image):
    at, attends = sites(pipe.net)
    branch = []
    x, cond = pipe.noise(3), pipe.embed([A, "", B])
    with (
        torch.no_grad(),
        tap(pipe.net, at, copy_source(1, True)),
        tap(pipe.net, at, lambda h, name: branch.append(h)),
    ):
        pipe.eps(x, 500, cond)
    assert all(torch.equal(branch[0][0], branch[0][i]) for i in (1, 2))
    probs = attends.replace("[qk]$", "probs$")
    seen = states_seen(pipe, image, probs, features=0, attention=0.5, steps=4)
    per = len(tap_names(pipe.net, probs))
    steps = [p for p in seen if len(p) == 6]  # not the inversion's, of 2 rows
    same = [torch.equal(p[:2], p[2:4]) and torch.equal(p[:2], p[4:]) for p in steps]
    # .5 of 4 steps are 2, not 3
    assert len(steps) == 4 * per and all(same[: 2 * per]) and not any(same[2 * per :])


def test_features_are_copied_at_the_right_steps(pipe, image):
    """The tap of the block behind sees equal branches only
    in the first share of the steps; q and k stay alone here.
    """
    at, _ = sites(pipe.net)
    free = states_seen(pipe, image, at, features=0, attention=0, steps=4)
    held = states_seen(pipe, image, at, features=0.25, attention=0, steps=4)
    assert torch.equal(free[4], held[4])  # first step: what comes in is the same
    assert (free[5][2:] - held[5][2:]).abs().max() > 1e-4  # but what came out was not
    assert torch.equal(free[5][:2], held[5][:2])  # and the source row never changes


# ---- limits ----


def test_without_injection_it_is_the_inverted_noise_replayed(pipe, image):
    out = plug_and_play(pipe, image, A, B, features=0, attention=0, steps=4)
    plain = replay(pipe, invert(pipe, image, A, steps=4)[-1], B, steps=4, scale=pipe.scale)
    assert (out - plain).abs().max() < 1e-4


def test_equal_prompts_at_scale_one_are_the_round_trip(pipe, image):
    """Without injection to rounding; fully injected, the source's
    own features lead back as well as the inversion does.
    """
    states = invert(pipe, image, A, steps=8)
    back, copy = replay(pipe, states[-1], A, steps=8), pipe.decode(states[0])
    for away in (0.0, 1.0):
        out = plug_and_play(
            pipe, image, A, A, features=0, attention=0, scale=1.0, away=away, steps=8
        )
        assert (out - back).abs().max() < 1e-4
    held = plug_and_play(pipe, image, A, A, features=1, attention=1, scale=1.0, steps=8)
    assert (held - copy).square().mean() < 1.5 * (back - copy).square().mean() + 1e-4


def test_away_changes_the_guided_edit_and_not_its_first_step(pipe, image):
    a, b = (plug_and_play(pipe, image, A, B, away=v, steps=4) for v in (0.0, 1.0))
    assert (a - b).abs().max() > 1e-4
    one = [plug_and_play(pipe, image, A, B, away=v, steps=1) for v in (0.0, 1.0)]
    assert (one[0] - one[1]).abs().max() < 1e-4  # its weight starts at 0


def test_rows_do_not_depend_on_each_other(pipe, image):
    both = plug_and_play(pipe, image, [A, B], [B, A], steps=3)
    alone = torch.cat(
        [
            plug_and_play(pipe, image[:1], A, B, steps=3),
            plug_and_play(pipe, image[1:], B, A, steps=3),
        ]
    )
    assert (both - alone).abs().max() < 1e-4


def test_taps_are_gone_afterwards(pipe, image):
    plug_and_play(pipe, image, A, B, steps=2)
    assert not any(pipe.net.get_submodule(n).fns for n in tap_names(pipe.net))


@pytest.mark.parametrize(
    "bad", [dict(features=1.2), dict(attention=-0.1), dict(away=2), dict(steps=0)]
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        plug_and_play(pipe, image, A, B, **bad)


def test_wrong_numbers_of_prompts_and_wrong_sizes_are_refused(pipe, image):
    with pytest.raises(ValueError, match="3 texts"):
        plug_and_play(pipe, image, A, [B] * 3, steps=2)
    with pytest.raises(ValueError, match="pixels"):
        plug_and_play(pipe, -torch.ones(1, 3, 63, 63), A, B, steps=2)


def test_pixel_models_have_features_too():
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert (
        plug_and_play(minidiff.build("tiny-pixel"), image, "red circle", "green circle", steps=2)
        .isfinite()
        .all()
    )


@pytest.mark.weights
def test_more_injection_keeps_more_of_the_layout():
    from minidiff.bench.items import items

    pipe, some = minidiff.load("tiny"), items("dev", 4, ("recolour",))
    image = torch.cat([it.image for it in some])
    prompts = [it.source for it in some], [it.target for it in some]
    free, held = (
        plug_and_play(pipe, image, *prompts, features=v, attention=v, steps=15) for v in (0.0, 1.0)
    )
    assert (held - image).abs().mean() < (free - image).abs().mean()
