"""Null-text inversion: errors that only fall, gradients that are right, rows that do not see each
other.
"""

import pytest
import torch

import minidiff
import minidiff.inversion.null_text as module
from minidiff.core.cond import Cond
from minidiff.core.denoise import step_pairs
from minidiff.core.process import ddim_step
from minidiff.editing.real_pictures import null_text
from minidiff.inversion.ddim import invert, replay
from minidiff.inversion.null_text import learn_null, learn_nulls

A, B = "a red circle on a blue background", "a green circle on a blue background"
N = 3


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


def first(pipe, states, **knobs):
    """The first step of the learning, from the noise."""
    t, s = pipe.schedule.timesteps(N, spacing="trailing")[:2]
    return learn_null(
        pipe,
        states[-1],
        states[-2],
        t,
        s,
        pipe.embed([A, B]),
        pipe.null(2).text,
        **dict(scale=7.5, inner=6, lr=0.02, enough=0.0) | knobs,
    )


def replayed(pipe, learned, source, scale):
    x, cond = learned.states[-1], pipe.embed(source)
    with torch.no_grad():
        for i, (t, s) in enumerate(step_pairs(pipe.schedule.timesteps(N, spacing="trailing"))):
            e = pipe.eps(x, t, learned.nulls[i])
            x = ddim_step(pipe.schedule, x, e + scale * (pipe.eps(x, t, cond) - e), t, s)
    return x


def test_the_error_never_rises_inside_a_step_and_falls(pipe, states):
    errors = first(pipe, states)[2]
    assert (errors.diff(dim=0) <= 0).all() and (errors[-1] < 0.9 * errors[0]).all(), errors


def test_a_rate_that_is_far_too_high_does_no_harm(pipe, states):
    text, land, errors = first(pipe, states, lr=100.0)
    assert (errors[-1] <= errors[0]).all()
    t, s = pipe.schedule.timesteps(N, spacing="trailing")[:2]
    e, cond = pipe.eps(states[-1], t, Cond(text=text)), pipe.eps(states[-1], t, pipe.embed([A, B]))
    y = ddim_step(pipe.schedule, states[-1], e + 7.5 * (cond - e), t, s)
    assert (y - land).abs().max() < 1e-12  # tokens and states belong together
    assert ((y - states[-2]).pow(2).mean((1, 2, 3)) - errors[-1]).abs().max() < 1e-12


def test_the_gradient_of_the_tokens_is_that_of_finite_differences(pipe, states):
    t, s = pipe.schedule.timesteps(N, spacing="trailing")[:2]
    cond, x, goal = pipe.embed([A, B]), states[-1], states[-2]

    def loss(text):
        e = pipe.eps(x, t, Cond(text=text))
        return (
            (ddim_step(pipe.schedule, x, e + 3.0 * (pipe.eps(x, t, cond) - e), t, s) - goal)
            .pow(2)
            .mean((1, 2, 3))
            .sum()
        )

    text = pipe.null(2).text.double().requires_grad_()
    (g,) = torch.autograd.grad(loss(text), text)
    d = torch.randn(text.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        slope = (loss(text + 1e-5 * d) - loss(text - 1e-5 * d)) / 2e-5
    assert abs(slope - (g * d).sum()) < 1e-6 * slope.abs().clamp_min(1e-3), (slope, (g * d).sum())


def test_no_learning_is_the_plain_guided_replay(pipe, image, states):
    learned = learn_nulls(pipe, states, [A, B], scale=pipe.scale, inner=0)
    plain = replay(pipe, states[-1], [A, B], steps=N, scale=pipe.scale)
    assert (pipe.decode(replayed(pipe, learned, [A, B], pipe.scale)) - plain).abs().max() < 1e-9
    edit = null_text(pipe, image, [A, B], [A, B], inner=0, cross=0.0, self_=0.0, steps=N)
    assert (edit - plain).abs().max() < 1e-9


def test_learning_brings_the_replay_closer_to_the_picture(pipe, states):
    error = lambda learned: (replayed(pipe, learned, [A, B], 7.5) - states[0]).pow(2).mean().item()  # noqa: E731
    few, none = (
        learn_nulls(pipe, states, [A, B], scale=7.5, inner=k, lr=0.02, tolerance=0.0)
        for k in (5, 0)
    )
    assert error(few) < 0.8 * error(none), (error(few), error(none))


def test_steps_that_are_good_enough_stop_at_once(pipe, states):
    assert len(first(pipe, states, enough=1e9)[2]) == 1
    asked, eps = [], pipe.eps
    pipe.eps = lambda *a: asked.append(1) or eps(*a)
    try:
        learn_nulls(pipe, states, [A, B], inner=10, tolerance=1e9)
    finally:
        del pipe.eps
    assert len(asked) == 2 * N  # one for the prompt, one for the null


def test_rows_learn_on_their_own(pipe, states):
    alone = learn_nulls(pipe, [x[1:] for x in states], B, scale=3.0, inner=2)
    both = learn_nulls(pipe, states, [A, B], scale=3.0, inner=2)
    assert max((a.text - b.text[1:]).abs().max() for a, b in zip(alone.nulls, both.nulls)) < 1e-8


def test_each_step_starts_from_the_null_of_the_step_before(pipe, states):
    learned = learn_nulls(pipe, states, [A, B], scale=3.0, inner=1, tolerance=0.0)
    moved = [(n.text - pipe.null(2).text).abs().max().item() for n in learned.nulls]
    assert moved[0] > 0 and max(moved) > 1.5 * 0.01  # further than one update reaches


def test_the_rate_falls_to_half_and_the_tolerance_grows_step_by_step(pipe, states, monkeypatch):
    asked = []

    def watched(pipe, x, goal, t, s, cond, text, **knobs):
        asked.append((knobs["lr"], knobs["enough"]))
        return text, goal, None

    monkeypatch.setattr(module, "learn_null", watched)
    learn_nulls(pipe, states, "a red circle", lr=0.5, tolerance=0.1)
    n = len(states) - 1
    want = [(0.5 * (1 - i / (2 * n)), 0.1 * (1 + 2 * i)) for i in range(n)]
    assert n > 1 and asked == [pytest.approx(pair) for pair in want]


def test_weights_get_no_gradient(pipe, states):
    learn_nulls(pipe, states, [A, B], inner=1)
    assert all(w.grad is None for w in pipe.net.parameters())


def test_without_guidance_there_is_nothing_to_learn(pipe, states):
    learned = learn_nulls(pipe, states, [A, B], scale=1.0, inner=5, tolerance=0.0)
    assert all(torch.equal(n.text, pipe.null(2).text) for n in learned.nulls)


@pytest.mark.parametrize("bad", [dict(inner=-1), dict(lr=0.0), dict(tolerance=-1.0), dict(steps=0)])
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        null_text(pipe, image, A, B, **dict(steps=1) | bad)


def test_models_without_text_are_refused():
    pixel = minidiff.build("tiny-pixel")
    with pytest.raises(ValueError, match="text"):
        learn_nulls(pixel, [pixel.noise(1)] * 2, "red circle")
