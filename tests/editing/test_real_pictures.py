"""Direct inversion, its closed form, negative-prompt: what
comes back exactly, and what the correction is equal to.
"""

import pytest
import torch

from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.editing.real_pictures import (
    direct_inversion,
    edit_each,
    negative_prompt,
    p2p_edit_friendly,
)
from minidiff.inversion.ddim import Inverted, invert, replay
from minidiff.inversion.edit_friendly import edit_friendly

A, B = "a red circle on a blue background", "a green circle on a blue background"
N = 3


@pytest.fixture(scope="module")
def pipe(awake):
    return awake("tiny", 0.1).to(dtype=torch.float64)


@pytest.fixture(scope="module")
def image():
    return (
        torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * 2
        - 1
    )


@pytest.fixture(scope="module")
def states(pipe, image):
    return invert(pipe, image, [A, B], steps=N)


def first(states):
    """The states of picture 0 alone."""
    return [x[:1] for x in states]


def rows(pipe, inverted, scale, target=A, **knobs):
    """Latents of the rows [source, edit], without any sharing of attention unless asked for."""
    return prompt_to_prompt(
        pipe,
        A,
        target,
        inverted=inverted,
        steps=N,
        scale=scale,
        **dict(cross=0.0, self_=0.0) | knobs,
    )


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_source_row_is_the_picture_at_every_scale(pipe, states, scale, share):
    source = rows(pipe, Inverted(first(states), share=share), scale)[:1]
    assert (source - pipe.decode(states[0][:1])).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_identical_prompts_with_the_whole_share_return_the_picture(pipe, image, states, scale):
    edit = direct_inversion(pipe, image, [A, B], [A, B], share=1.0, steps=N, scale=scale)
    assert (edit - pipe.decode(states[0])).abs().max() < 1e-9


def test_identical_prompts_without_a_share_are_the_guided_replay(pipe, image, states):
    edit = direct_inversion(pipe, image, [A, B], [A, B], cross=0.0, self_=0.0, steps=N)
    assert (edit - replay(pipe, states[-1], [A, B], steps=N, scale=pipe.scale)).abs().max() < 1e-9
    assert (edit - pipe.decode(states[0])).abs().max() > 1e-3  # which does not return the picture


def test_the_offset_is_the_closed_form_null(pipe, states):
    """The closed form as it is written, by the null
    prediction, against `share`, which never divides.
    """
    z, scale, share = first(states), 4.0, 0.6
    x = z[-1]
    null, source, target = pipe.null(), pipe.embed(A), pipe.embed(B)
    with torch.no_grad():
        for i, (t, s) in enumerate(step_pairs(pipe.schedule.timesteps(N, spacing="trailing"))):
            (a_t, s_t), (a_s, s_s) = pipe.schedule.at(t), pipe.schedule.at(s)
            star = (z[-2 - i] - a_s / a_t * z[-1 - i]) / (s_s - a_s / a_t * s_t)
            u = (star - scale * pipe.eps(z[-1 - i], t, source)) / (1 - scale)
            e_null = pipe.eps(x, t, null) + share * (u - pipe.eps(z[-1 - i], t, null))
            x = ddim_step(
                pipe.schedule, x, e_null + scale * (pipe.eps(x, t, target) - e_null), t, s
            )
    edit = rows(pipe, Inverted(first(states), share=share), scale, B)[1:]
    assert (edit - pipe.decode(x)).abs().max() < 1e-9


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_edit_friendly_noise_returns_the_picture_and_without_shared_maps_is_that_method(
    pipe, image, scale
):
    how = dict(steps=N, scale=scale, seed=3)
    same = p2p_edit_friendly(pipe, image, [A, B], [A, B], **how)
    assert (same - pipe.decode(pipe.encode(image))).abs().max() < 1e-9
    ours = p2p_edit_friendly(pipe, image, [A, B], [B, A], cross=0.0, self_=0.0, **how)
    theirs = edit_friendly(pipe, image, [A, B], [B, A], strength=1.0, source_scale=scale, **how)
    assert (ours - theirs).abs().max() < 1e-6
    assert (ours - same).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_negative_prompt_returns_the_unguided_round_trip_at_every_scale(pipe, image, states, scale):
    edit = negative_prompt(pipe, image, [A, B], [A, B], steps=N, scale=scale)
    assert (edit - replay(pipe, states[-1], [A, B], steps=N)).abs().max() < 1e-9


def test_negative_prompt_leads_away_from_the_source_and_not_from_the_target(pipe, image, states):
    edit = negative_prompt(pipe, image, [A, A], [B, B], cross=0.0, self_=0.0, steps=N, scale=3.0)
    away, cond = pipe.embed(A), pipe.embed(B)
    x = invert(pipe, image[:1], A, steps=N)[-1]
    with torch.no_grad():
        for t, s in step_pairs(pipe.schedule.timesteps(N, spacing="trailing")):
            e = pipe.eps(x, t, away)
            x = ddim_step(pipe.schedule, x, e + 3.0 * (pipe.eps(x, t, cond) - e), t, s)
    assert (edit[:1] - pipe.decode(x)).abs().max() < 1e-9


def test_pictures_of_a_batch_do_not_depend_on_each_other(pipe, image):
    both = direct_inversion(pipe, image, [A, B], [B, A], share=0.5, steps=3)
    alone = direct_inversion(pipe, image[1:], B, A, share=0.5, steps=3)
    assert (both[1:] - alone).abs().max() < 1e-9


@pytest.mark.parametrize("bad", [dict(share=1.5), dict(share=-0.1), dict(steps=0), dict(cross=2.0)])
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        direct_inversion(pipe, image, A, B, **dict(steps=2) | bad)


def test_as_many_prompts_as_pictures(pipe, states):
    with pytest.raises(ValueError, match="2 picture"):
        edit_each(pipe, Inverted(states), [A, B, A], B, steps=N)
