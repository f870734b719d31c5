"""EDICT: there and back to rounding, at any scale, on a network that knows nothing; and what breaks
that.
"""

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import sample
from minidiff.inversion import edict as module
from minidiff.inversion.ddim import ddim_invert
from minidiff.inversion.edict import down, edict, edict_invert, edict_sample, up

A, B = "a red circle on a blue background", "a green circle on a blue background"


def round_trip(pipe, z, steps, scale, **knobs):
    ts, denoise, cond = pipe.timesteps(steps), module.doubled(pipe, scale), pipe.embed(A)
    x, y = edict_invert(denoise, pipe.schedule, z, z, ts, cond, **knobs)
    back = edict_sample(denoise, pipe.schedule, x, y, ts, cond, **knobs)
    return max((v - z).abs().max().item() for v in back), (x - z).abs().max().item()


@pytest.mark.parametrize("steps, scale", [(10, 1.0), (25, 3.0), (50, 7.0)])
def test_the_round_trip_is_exact_on_a_random_network(pipe, image, steps, scale):
    error, moved = round_trip(pipe, pipe.encode(image[:1]), steps, scale)
    assert error < 1e-9 and moved > 0.1, (error, moved)


def test_ddim_inversion_is_a_thousand_times_worse(pipe, image):
    z, ts, cond = pipe.encode(image), pipe.timesteps(10), pipe.embed(A)
    denoise = cfg_batched(pipe.eps, pipe.null(), 3.0)
    back = sample(
        denoise, pipe.schedule, ddim_invert(denoise, pipe.schedule, z, cond, steps=10)[-1], ts, cond
    )
    assert (back - z).abs().max() > 1e3 * max(round_trip(pipe, z, 10, 3.0)[0], 1e-12)


@pytest.mark.parametrize(
    "knobs", [dict(leapfrog=False), dict(p=1.0), dict(p=0.8), dict(p=1.0, leapfrog=False)]
)
def test_every_variant_inverts(pipe, image, knobs):
    # an odd number: parity from the noise
    assert round_trip(pipe, pipe.encode(image), 11, 3.0, **knobs)[0] < 1e-9


def test_only_the_states_need_float64(image, awake):
    pipe = awake("tiny", 0.1)
    error, _ = round_trip(pipe, pipe.encode(image).double(), 25, 3.0)
    assert pipe.dtype == torch.float32 and error < 1e-9, error


def test_the_inverse_must_count_parity_from_the_noise(pipe, image):
    z, ts, denoise, cond = (
        pipe.encode(image),
        pipe.timesteps(4),
        module.doubled(pipe, 3.0),
        pipe.embed(A),
    )
    x, y = z, z
    for i in range(4):  # counted from the clean end: swapped
        x, y = up(denoise, pipe.schedule, x, y, ts[4 - i], ts[3 - i], cond, 0.93, i % 2 == 1)
    back = edict_sample(denoise, pipe.schedule, x, y, ts, cond)
    assert max((v - z).abs().max() for v in back) > 1e-6


def test_one_step_by_hand():
    """The coupled moves and the mixing on numbers, with eps(v, t) = v / 2."""
    sch = schedule.scaled_linear()
    (a_t, s_t), (a_s, s_s) = sch.at(600), sch.at(400)
    A_, B_ = a_s / a_t, s_s - a_s / a_t * s_t
    x, y = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[-2.0]], dtype=torch.float64)
    half = lambda v, t, c: v / 2  # noqa: E731
    x1 = A_ * 1.0 + B_ * -1.0
    y1 = A_ * -2.0 + B_ * x1 / 2
    want_x = 0.9 * x1 + 0.1 * y1
    want_y = 0.9 * y1 + 0.1 * want_x  # the second line uses the new x
    got = down(half, sch, x, y, 600, 400, None, 0.9, False)
    assert abs(got[0].item() - want_x) < 1e-12 and abs(got[1].item() - want_y) < 1e-12
    swapped = down(half, sch, x, y, 600, 400, None, 1.0, True)
    y1 = A_ * -2.0 + B_ * 0.5
    assert (
        abs(swapped[1].item() - y1) < 1e-12 and abs(swapped[0].item() - (A_ + B_ * y1 / 2)) < 1e-12
    )


def test_mixing_leaves_the_pair_of_equals_alone_and_shrinks_the_difference_by_p_squared():
    zero = lambda v, t, c: torch.zeros_like(v)  # noqa: E731
    sch, x, y = (
        schedule.scaled_linear(),
        torch.ones(1, 1, dtype=torch.float64),
        torch.zeros(1, 1, dtype=torch.float64),
    )
    a, b = down(zero, sch, x, y, 600, 400, None, 0.9, False)
    factor = sch.at(400)[0] / sch.at(600)[0]
    assert abs((a - b).item() - 0.81 * factor) < 1e-12
    a, b = down(zero, sch, x, x, 600, 400, None, 0.9, False)
    assert torch.equal(a, b)


def test_identical_prompts_return_the_autoencoders_copy(pipe, image):
    assert (edict(pipe, image, A, A, steps=6) - pipe.decode(pipe.encode(image))).abs().max() < 1e-9


def test_strength_zero_is_the_copy_and_another_prompt_an_edit(pipe, image):
    copy = pipe.decode(pipe.encode(image))
    assert torch.equal(edict(pipe, image, A, B, strength=0.0, steps=4), copy)
    assert (edict(pipe, image, A, B, steps=4) - copy).abs().max() > 1e-3


def test_pictures_of_a_batch_do_not_depend_on_each_other(pipe, image):
    both = edict(pipe, image, [A, B], [B, A], steps=4)
    assert (both[1:] - edict(pipe, image[1:], B, A, steps=4)).abs().max() < 1e-9


def test_states_that_are_driven_apart_are_warned_about(pipe, image):
    with pytest.warns(UserWarning, match="apart"):
        edict(pipe, image, A, B, p=0.3, steps=6)


@pytest.mark.parametrize(
    "bad", [dict(p=0.0), dict(p=1.1), dict(strength=1.2), dict(steps=0), dict(scale=-1.0)]
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        edict(pipe, image, A, B, **dict(steps=2) | bad)
