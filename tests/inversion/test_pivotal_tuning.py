"""Pivotal tuning: targets that lead along the path exactly, a locality term that starts at zero,
and what is put back.
"""

import pytest
import torch

import minidiff
from minidiff.core.cfg import cfg_batched
from minidiff.core.process import ddim_step
from minidiff.data import shapes
from minidiff.editing.prompt_to_prompt import prompt_to_prompt
from minidiff.editing.real_pictures import pivotal_tuning
from minidiff.evaluate.metrics import psnr
from minidiff.inversion.ddim import Inverted, invert, replay
from minidiff.inversion.pivotal_tuning import (
    leading,
    near,
    pivot_loss,
    random_words,
    tune,
)
from minidiff.train.finetune import READS_TEXT, tuned

A, B = "a red circle on a blue background", "a green circle on a blue background"
FAST = dict(updates=2, steps=3)


@pytest.fixture(scope="module")
def pipe():
    return minidiff.build("tiny", seed=0)


@pytest.fixture(scope="module")
def image():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---- targets ----


def test_the_target_leads_from_state_to_state(pipe):
    """Whatever the two states are, in float64 to rounding."""
    x_t, x_s = pipe.noise(3, 1).double(), pipe.noise(3, 2).double()
    t, s = torch.tensor([1000, 600, 40]), torch.tensor([960, 300, 0])
    eps = leading(pipe.schedule, x_t, x_s, t, s)
    assert (ddim_step(pipe.schedule, x_t, eps, t, s) - x_s).abs().max() < 1e-10


def test_the_targets_of_an_inversion_replay_it(pipe, image):
    states, ts = (
        invert(pipe, image, A, steps=4)[::-1],
        pipe.schedule.timesteps(4, spacing="trailing"),
    )
    x = states[0]
    for i in range(4):
        t, s = (torch.full((2,), v) for v in ts[i : i + 2])
        x = ddim_step(pipe.schedule, x, leading(pipe.schedule, x, states[i + 1], t, s), t, s)
    assert (x - states[-1]).abs().max() < 1e-4


def test_the_loss_of_a_denoiser_that_knows_the_way_is_zero(pipe, image):
    states = invert(pipe, image[:1], A, steps=4)
    ts = torch.tensor(pipe.schedule.timesteps(4, spacing="trailing"))
    path = torch.cat(states[::-1])

    def knows(x, t, cond):
        rows = torch.tensor([ts.tolist().index(v) for v in t.tolist()])
        return leading(pipe.schedule, path[rows], path[rows + 1], ts[rows], ts[rows + 1])

    rows, cond = torch.arange(4), pipe.embed(A)
    assert pivot_loss(pipe, knows, states, ts, rows, cond) == 0
    plain, strong = (
        pivot_loss(pipe, cfg_batched(pipe.eps, pipe.null(), w), states, ts, rows, cond)
        for w in (1.0, 8.0)
    )
    assert 0 < strong and plain < strong  # at 1 only the inversion's own error is left


# ---- locality ----


def test_points_near_the_words_are_at_the_distance_asked_for(pipe):
    text, other = pipe.embed(A).text, random_words(pipe, 5, torch.Generator().manual_seed(0))
    moved = near(text, other, 30.0)
    assert torch.allclose((moved - text).flatten(1).norm(dim=1), torch.full((5,), 30.0), rtol=1e-4)
    assert (
        torch.equal(near(text, other, 0.0), text.expand(5, -1, -1))
        and near(text, text, 30.0).isfinite().all()
    )


def test_random_words_are_framed_prompts(pipe, monkeypatch):
    seen = []
    text = pipe.text
    monkeypatch.setattr(pipe, "text", lambda ids: seen.append(ids) or text(ids))
    random_words(pipe, 6, torch.Generator().manual_seed(0))
    ids, tok = seen[0], pipe.tokenizer
    assert (
        (ids[:, 0] == tok.bos).all()
        and (ids[:, 9] == tok.eos).all()
        and (ids[:, 10:] == tok.pad).all()
    )
    assert not torch.isin(ids[:, 1:9], torch.tensor([tok.bos, tok.eos, tok.pad])).any()


def test_the_locality_term_starts_at_zero_and_then_does_not_stay_there(pipe, image):
    states = invert(pipe, image[:1], A, steps=3)
    with tuned(pipe.net, READS_TEXT) as weights:
        losses = tune(pipe, weights, states, A, updates=3, lr=1e-2, locality=0.1, batch=2)
    assert losses[0][1] < 1e-10 < 1e-8 < losses[2][1]


def test_locality_holds_the_network(pipe, image):
    states, found = invert(pipe, image[:1], A, steps=3), []
    for locality in (1e-6, 100.0):
        with tuned(pipe.net, READS_TEXT) as weights:
            found.append(
                tune(pipe, weights, states, A, updates=3, lr=1e-2, locality=locality, batch=2)[-1][
                    1
                ]
            )
    assert found[1] < found[0]


# ---- the whole edit ----


def test_without_updates_it_edits_a_plain_guided_replay(pipe, image):
    out = pivotal_tuning(pipe, image[:1], A, B, updates=0, steps=3)
    states = invert(pipe, image[:1], A, steps=3)
    plain = prompt_to_prompt(pipe, A, B, inverted=Inverted(states), steps=3, cross=0.8, self_=0.8)[
        1:
    ]
    assert torch.equal(out, plain)


def test_the_weights_are_put_back(pipe, image):
    before = {n: p.clone() for n, p in pipe.net.named_parameters()}
    a, b = (pivotal_tuning(pipe, image[:1], A, B, steps=3, updates=u, lr=1e-2) for u in (0, 2))
    assert not torch.equal(a, b) and all(
        torch.equal(p, before[n]) for n, p in pipe.net.named_parameters()
    )


def test_each_picture_is_tuned_alone(pipe, image):
    both = pivotal_tuning(pipe, image, [A, B], [B, A], **FAST, seed=1)
    alone = pivotal_tuning(pipe, image[1:], B, A, **FAST, seed=2)
    assert (both[1:] - alone).abs().max() < 1e-3  # inverted in one batch, so not bit for bit


@pytest.mark.parametrize(
    "bad",
    [
        dict(updates=-1),
        dict(locality=-1.0),
        dict(reach=-1.0),
        dict(steps=0),
        dict(cross=2.0),
        dict(self_=-1.0),
        dict(source=[A] * 3),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        pivotal_tuning(pipe, image, **{"source": A, "target": B} | FAST | bad)


def test_models_without_text_are_refused(image):
    with pytest.raises(ValueError, match="text"):
        pivotal_tuning(
            minidiff.build("tiny-pixel"), image[..., ::2, ::2], "red circle", "green circle"
        )


@pytest.mark.weights
def test_tuning_brings_the_guided_replay_back():
    s = shapes.Scene((shapes.Obj("star", "green", "large"),), "left", "white", "striped")
    image, pipe, prompt = (
        shapes.render(s),
        minidiff.load("tiny"),
        "a green star on a white background",
    )
    copy, states, found = pipe.decode(pipe.encode(image)), invert(pipe, image, prompt, steps=10), []
    for updates in (0, 8):
        with tuned(pipe.net, READS_TEXT) as weights:
            tune(pipe, weights, states, prompt, updates=updates)
            found.append(psnr(replay(pipe, states[-1], prompt, steps=10, scale=3.0), copy).item())
    assert found[1] > found[0] + 2, found
