"""Asyrp: identity cases, the one asymmetric line
against the closed form, and the shared encoder.
"""

import pytest
import torch

import minidiff
from minidiff.core.process import ddim_step, eps_to_x0
from minidiff.core.taps import tap_names
from minidiff.editing import asyrp as module
from minidiff.editing.asyrp import (
    DeltaBlock,
    asyrp,
    both_eps,
    bottleneck,
    drift,
    learned_shift,
    mean_shift,
)
from minidiff.inversion.ddim import invert, replay

A, B = "a red circle on a blue background", "a green circle on a blue background"
NONE = lambda h, t: torch.zeros_like(h)  # noqa: E731


@pytest.fixture(scope="module")
def push(pipe):
    h = 20 * torch.randn(1, 96, 8, 8, generator=torch.Generator().manual_seed(1))
    return lambda x, t: h.expand_as(x)


def test_no_shift_leaves_both_answers_equal_bit_for_bit(pipe, push):
    x, cond = pipe.noise(2), pipe.embed([A, B])
    plain, edited = both_eps(pipe, x, 600, cond, NONE)
    assert torch.equal(plain, edited)
    plain_step = ddim_step(pipe.schedule, x, plain, 600, 500)
    # rounding: two terms or three
    assert (drift(pipe, x, 600, 500, cond, NONE) - plain_step).abs().max() < 1e-5
    assert torch.equal(
        drift(pipe, x, 600, 500, cond, NONE, symmetric=True), drift(pipe, x, 600, 500, cond, NONE)
    )
    again, moved = both_eps(pipe, x, 600, cond, push)
    # the plain rows are never touched
    assert torch.equal(again, plain) and (moved - plain).abs().max() > 1e-3


def test_two_answers_equal_the_decoder_run_twice_on_one_encoder(pipe, push):
    x, cond, net, t = pipe.noise(2), pipe.embed([A, B]), pipe.net, torch.full((2,), 599)
    temb = net.embed_time(t, cond, x.dtype)
    h, skips = net.encode(x, temb, cond)
    h = net.middle(h, temb, cond)
    two = [net.decode(v, skips, temb, cond) for v in (h, h + push(h, 600))]
    from minidiff.core.process import to_eps

    for ours, v in zip(both_eps(pipe, x, 600, cond, push), two):
        assert (ours - to_eps(pipe.schedule, x, v, 600, "v")).abs().max() < 1e-5


@pytest.mark.parametrize("t, s", [(1000, 980), (600, 580), (300, 280)])
def test_the_change_enters_the_clean_picture_only(pipe, push, t, s):
    x, cond = pipe.noise(1), pipe.embed(A)
    plain, edited = both_eps(pipe, x, t, cond, push)
    (a_s, sig_s), (a_t, sig_t) = pipe.schedule.at(s), pipe.schedule.at(t)
    base = ddim_step(pipe.schedule, x, plain, t, s)
    one, both = (drift(pipe, x, t, s, cond, push, symmetric) - base for symmetric in (False, True))
    delta = edited - plain
    # A sigma_t ...
    assert (one + a_s * sig_t / a_t * delta).abs().max() < 1e-4 * a_s / a_t
    # ... against sigma_s - A sigma_t
    assert (both - (sig_s - a_s * sig_t / a_t) * delta).abs().max() < 1e-4 * a_s / a_t
    assert one.abs().max() > 8 * both.abs().max()  # they nearly cancel
    x0 = eps_to_x0(pipe.schedule, x, edited, t)
    assert (
        drift(pipe, x, t, s, cond, push) - (a_s * x0 + sig_s * plain)
    ).abs().max() < 1e-4 * a_s / a_t


@pytest.mark.parametrize("row", ["null", "source"])
@pytest.mark.parametrize(
    "knobs", [dict(strength=0.0), dict(target=A), dict(until=1.0), dict(delta=NONE)]
)
def test_without_a_shift_it_is_the_round_trip(pipe, image, row, knobs):
    out = asyrp(
        pipe, image, **{"source": A, "target": B, "row": row, "steps": 4, "pictures": 2} | knobs
    )
    prompt = A if row == "source" else ""
    assert (
        out - replay(pipe, invert(pipe, image, prompt, steps=4)[-1], prompt, steps=4)
    ).abs().max() < 1e-4


def test_the_shift_is_used_above_its_time_only_and_times_strength(pipe, image):
    seen = []
    asyrp(pipe, image, A, B, delta=lambda h, t: seen.append(t) or 0 * h, until=0.5, steps=10)
    assert seen == [1000, 900, 800, 700, 600]
    one = lambda k, d: asyrp(pipe, image, A, B, delta=d, strength=k, until=0.5, steps=4)  # noqa: E731
    assert (one(2.0, lambda h, t: h) - one(1.0, lambda h, t: 2 * h)).abs().max() < 1e-5


def test_the_mean_shift_is_the_difference_of_means(pipe):
    z = pipe.noise(6, 7)
    cond = pipe.null()
    shift = mean_shift(pipe, z[:3], z[3:], (cond, cond), [500, 800], seed=2)
    from minidiff.core.denoise import noise
    from minidiff.core.process import q_sample

    n = noise(z[:3].shape, 2)
    h = [
        bottleneck(pipe, q_sample(pipe.schedule, v, 800, n), 800, pipe.null(3)).mean(0)
        for v in (z[:3], z[3:])
    ]
    assert (shift(torch.zeros(1, 96, 8, 8), 800)[0] - (h[1] - h[0])).abs().max() < 1e-6
    same = mean_shift(pipe, z[:3], z[:3], (cond, cond), [500])
    assert same(torch.zeros(1, 96, 8, 8), 500).abs().max() == 0  # the same noises for both


def test_drawn_pairs_start_from_the_same_noise(pipe):
    a, b = (module.drawn(pipe, p, 3, steps=2, seed=1) for p in (A, [A, B]))
    assert torch.equal(a[[0, 2]], b[[0, 2]]) and not torch.equal(a[1], b[1])


def test_the_learned_function_starts_at_no_edit_and_its_gradient_is_right():
    torch.manual_seed(0)
    f, h = DeltaBlock(16).double(), torch.randn(2, 16, 4, 4, dtype=torch.float64)
    assert f(h, 300).abs().max() == 0
    torch.nn.init.normal_(f.conv2.weight)
    assert (f(h, 300) - f(h, 800)).abs().max() > 1e-2  # it knows the time
    assert torch.autograd.gradcheck(lambda v: f(v, 300), h.requires_grad_())


@pytest.mark.parametrize("teacher", ["prompt", pytest.param("clip", marks=pytest.mark.weights)])
def test_the_function_is_taught_and_the_network_stays(pipe, teacher):
    image = torch.full((1, 3, 64, 64), -0.01)  # middle grey
    before = {n: p.clone() for n, p in pipe.net.named_parameters()}
    f = learned_shift(pipe, image, A, B, rounds=1, steps=3, teacher=teacher)
    assert f.conv2.weight.abs().max() > 0 and not f.conv2.weight.requires_grad
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in pipe.net.named_parameters())


def test_the_prompts_lesson_is_the_difference_of_the_two_predictions(pipe, image):
    x = pipe.noise(2)
    a, b = (eps_to_x0(pipe.schedule, x, pipe.eps(x, 600, pipe.embed([p] * 2)), 600) for p in (A, B))
    loss = module.by_prompt(pipe, image, A, B, scale=3.0)
    assert loss(x, 600, a, a + 3 * (b - a)) < 1e-10 and loss(x, 600, a, a + 4 * (b - a)) > 1e-10


def test_noise_is_added_below_the_boost_only_and_by_seed(pipe, image):
    run = lambda **kw: asyrp(pipe, image, A, A, steps=4, **kw)  # noqa: E731
    a, b, c = (run(boost=0.5, seed=s) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(run(), run(seed=1))


def test_taps_are_gone_afterwards_even_when_it_fails(pipe, image):
    with pytest.raises(RuntimeError):
        asyrp(pipe, image, A, B, delta=lambda h, t: torch.zeros(7), steps=2)
    assert not any(pipe.net.get_submodule(n).fns for n in tap_names(pipe.net))


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(until=1.5), "until=1.5"),
        (dict(boost=-1), "boost=-1"),
        (dict(steps=0), "steps"),
        (dict(row="target"), "null"),
        (dict(pictures=0), "pictures=0"),
        (dict(learn=-1), "learn=-1"),
        (dict(teacher="me"), "'me'"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, said):
    with pytest.raises(ValueError, match=said):
        asyrp(pipe, image, A, B, **bad)


def test_a_transformer_has_no_bottleneck(image):
    with pytest.raises(ValueError, match="no bottleneck"):
        asyrp(minidiff.build("tiny-dit"), image, A, B, steps=2)
