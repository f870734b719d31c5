"""The stream: equal to one frame after the other, one call a frame, and what the filter saves."""

import dataclasses

import pytest
import torch

from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import noise
from minidiff.core.process import eps_to_x0, q_sample
from minidiff.data.toy2d import gmm8
from minidiff.samplers.stream import (
    Flight,
    Similar,
    Stream,
    next_level,
    one_by_one,
    skip_probability,
    streamed,
    take_off,
    tick,
)

D = torch.float64
SCH = schedule.linear()
TIMES = (900, 600, 350, 120)
DATA = gmm8()
COND, NULL = Cond(label=torch.tensor([3])), Cond(label=torch.tensor([-1]))
FRAMES = [DATA.sample(1, seed=k) for k in range(9)]


def stream(times=TIMES, denoise=None, **kw):
    noises = noise((len(times), 2), 5, dtype=D)
    return Stream(denoise or DATA.denoise(SCH), SCH, times, noises, COND, NULL, **kw)


class Calls:
    """Counts the calls and the rows of each."""

    def __init__(self, denoise):
        self.denoise, self.rows = denoise, []

    def __call__(self, x, t, cond):
        self.rows.append(len(x))
        return self.denoise(x, t, cond)


@pytest.mark.parametrize("guidance", ["none", "full", "self", "initialize"])
@pytest.mark.parametrize("times", [(500,), (900, 200), TIMES])
def test_every_output_is_that_of_its_frame_treated_alone(guidance, times):
    s = stream(times, guidance=guidance, scale=1.6, delta=0.9)
    outs, late = list(streamed(s, FRAMES)), len(times) - 1
    assert outs[:late] == [None] * late
    for k, out in enumerate(outs[late:]):
        assert (out - one_by_one(s, FRAMES[k])).abs().max() < 1e-10


def test_a_still_frame_gives_the_plain_few_step_sampler():
    """Written out: noise, guess, noise the guess to the next level."""
    s, x = stream(), FRAMES[0]
    for i, t in enumerate(TIMES):
        z = q_sample(SCH, x, t, s.noises[i : i + 1])
        x = eps_to_x0(SCH, z, s.denoise(z, t, COND), t)
    *_, before, last = streamed(s, [FRAMES[0]] * 7)
    assert (last - x).abs().max() < 1e-10 and (before - last).abs().max() < 1e-12


def test_the_next_level_is_the_time_after_and_the_noise_of_that_time():
    s, x0 = stream(), noise((3, 2), 1, dtype=D)
    got = next_level(SCH, x0, TIMES, s.noises)
    for i in range(3):
        a, sig = SCH.at(TIMES[i + 1])
        assert (got[i] - (a * x0[i] + sig * s.noises[i + 1])).abs().max() < 1e-12


@pytest.mark.parametrize(
    "guidance, rows", [("none", 4), ("self", 4), ("initialize", 5), ("full", 8)]
)
def test_one_call_a_frame_whatever_the_guidance(guidance, rows):
    net = Calls(DATA.denoise(SCH))
    list(streamed(stream(denoise=net, guidance=guidance), FRAMES))
    assert len(net.rows) == len(FRAMES) and net.rows[3:] == [rows] * (len(FRAMES) - 3)
    net.rows.clear()
    one_by_one(stream(denoise=net), FRAMES[0])
    assert net.rows == [1] * 4


def test_full_guidance_is_classifier_free_guidance():
    guided = cfg(DATA.denoise(SCH), NULL, 1.6)
    full, plain = stream(guidance="full", scale=1.6), stream(denoise=guided)
    for a, b in zip(list(streamed(full, FRAMES))[3:], list(streamed(plain, FRAMES))[3:]):
        assert (a - b).abs().max() < 1e-10


def knows(point):
    """A network whose unconditional half knows that the picture is `point`."""

    def eps(x, t, cond):
        a, s = SCH.at(t, x)
        eps_c = DATA.denoise(SCH)(x, t, Cond(label=cond.label.clamp(min=0)))
        return torch.where(cond.label[:, None] < 0, (x - a * point) / s, eps_c)

    return eps


def test_residual_guidance_is_full_guidance_where_the_unconditional_model_knows_the_picture():
    frame, other = FRAMES[0], torch.tensor([[0.3, -0.8]], dtype=D)
    for guidance, point in (("self", frame), ("initialize", other)):
        s = stream(denoise=knows(point), guidance=guidance, scale=1.6)
        full = dataclasses.replace(s, guidance="full")
        assert (one_by_one(s, frame) - one_by_one(full, frame)).abs().max() < 1e-9
    s = stream(denoise=knows(other), guidance="self", scale=1.6)  # it knows another picture
    full = dataclasses.replace(s, guidance="full")
    assert (one_by_one(s, frame) - one_by_one(full, frame)).abs().max() > 1e-2


def test_at_the_first_level_the_virtual_noise_of_the_frame_is_the_noise_it_was_given():
    s, x = stream((700,), guidance="self", scale=1.6, delta=0.8), FRAMES[0]
    z = q_sample(SCH, x, 700, s.noises)
    eps = 1.6 * s.denoise(z, 700, COND) + (1 - 1.6) * 0.8 * s.noises
    assert (one_by_one(s, x) - eps_to_x0(SCH, z, eps, 700)).abs().max() < 1e-10


def test_a_new_prompt_meets_frames_on_their_way():
    s = stream((900, 200))
    flight, _ = tick(s, take_off(FRAMES[0]), FRAMES[0])
    other = dataclasses.replace(s, cond=Cond(label=torch.tensor([7])))
    _, out = tick(other, flight, FRAMES[1])
    z = flight.states
    want = eps_to_x0(SCH, z, s.denoise(z, 200, other.cond), 200)
    assert (out - want).abs().max() < 1e-10


# ---- the filter ----------------------------------------------------------------------------------


def turned(degrees):
    angle = torch.tensor(degrees * torch.pi / 180, dtype=D)
    return torch.stack([angle.cos(), angle.sin()])[None]


def test_the_probability_of_a_skip_is_the_papers_line():
    at = turned(0.0)
    assert skip_probability(at, at, 0.98) == pytest.approx(1)
    cos = turned(8.0)[0, 0].item()
    assert skip_probability(at, turned(8.0), 0.98) == pytest.approx(1 - (1 - cos) / 0.02)
    assert skip_probability(at, turned(12.0), 0.98) == 0  # its cosine is .978
    similar, n = Similar(longest=1, seed=1), 1000
    share = sum(similar(turned(0.0 if k % 2 == 0 else 8.0)) for k in range(n)) / n
    p = skip_probability(at, turned(8.0), 0.98)
    assert abs(share - p / 2) < 0.1  # the coin is tossed, and the same seed tosses it alike
    again = Similar(longest=1, seed=1)
    assert share == sum(again(turned(0.0 if k % 2 == 0 else 8.0)) for k in range(n)) / n


def test_a_clip_with_every_frame_doubled_costs_half():
    net = Calls(DATA.denoise(SCH))
    s = stream((900, 200), denoise=net)
    shown = [turned(40.0 * k) for k in range(9)]
    clip = [frame for frame in shown for _ in (0, 1)]
    outs = list(streamed(s, clip, Similar()))
    assert len(net.rows) == len(clip) / 2
    want = list(streamed(s, shown))
    assert all((a - b).abs().max() == 0 for a, b in zip(outs[2::2], want[1:]))
    assert all((a - b).abs().max() == 0 for a, b in zip(outs[3::2], want[1:]))


def test_a_still_scene_is_treated_again_after_the_longest_pause():
    similar = Similar(longest=3)
    assert [similar(turned(0.0)) for _ in range(9)] == [False, True, True, True] * 2 + [False]


@pytest.mark.parametrize(
    "kw, complaint",
    [
        (dict(times=(200, 900)), "smaller than the one before"),
        (dict(times=(900, 0)), "smaller than the one before"),
        (dict(times=(1200, 300)), "must lie in 0..1000"),
        (dict(guidance="half"), "choose one of none, full"),
    ],
)
def test_bad_input_is_refused(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        stream(**kw)


def test_what_is_lacking_is_said():
    noises = noise((2, 2), dtype=D)
    with pytest.raises(ValueError, match="2 noises for 1 times"):
        Stream(DATA.denoise(SCH), SCH, (900,), noises)
    with pytest.raises(ValueError, match="needs both cond and null"):
        Stream(DATA.denoise(SCH), SCH, (900, 200), noises, COND, guidance="full")
    with pytest.raises(ValueError, match="threshold=1"):
        Similar(1.0)
    assert isinstance(take_off(FRAMES[0]), Flight)
