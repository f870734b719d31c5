"""Imagic: stages, the ends of the walk, the choice of
eta on curves whose knee is known, and its warning.
"""

import warnings

import pytest
import torch

import minidiff
from minidiff.data import shapes
from minidiff.editing import imagic as module
from minidiff.editing.imagic import ETAS, choose_eta, imagic, learned, said_and_moved
from minidiff.evaluate.metrics import psnr

PROMPT = "a red circle on a blue background"
FAST = dict(text_updates=2, net_updates=2, batch=2, steps=2)


# ---- the three stages ----


def test_eta_one_is_the_words_and_eta_zero_what_was_learned(pipe, image):
    """With no update e_opt is the target: then the walk
    stands still, and is plain sampling of the target.
    """
    with learned(
        pipe,
        image[:1],
        PROMPT,
        **FAST | dict(text_updates=0, net_updates=0),
        inverted=False,
        seed=3,
    ) as walk:
        a, b = walk([0.0, 1.0]).split(1)
        assert torch.equal(walk.e_opt, walk.e_target) and (a - b).abs().max() < 1e-5
    assert (a - pipe.generate(PROMPT, steps=2, seed=3)).abs().max() < 1e-4


def test_stage_a_moves_every_token_and_no_weight(pipe, image):
    before = {n: p.clone() for n, p in pipe.net.named_parameters()}
    with learned(pipe, image[:1], PROMPT, **FAST | dict(net_updates=0)) as walk:
        assert (walk.e_opt - walk.e_target).abs().amax((0, 2)).min() > 0
        assert all(torch.equal(p, before[n]) for n, p in pipe.net.named_parameters())


def test_stage_b_tunes_what_reads_the_text_and_puts_it_back(pipe, image):
    before = {n: p.clone() for n, p in pipe.net.named_parameters()}
    with learned(pipe, image[:1], PROMPT, **FAST):
        changed = {n for n, p in pipe.net.named_parameters() if not torch.equal(p, before[n])}
        assert changed and all("attn2.to_k" in n or "attn2.to_v" in n for n in changed)
    assert all(torch.equal(p, before[n]) for n, p in pipe.net.named_parameters())


def test_both_stages_see_the_same_times_and_noises(pipe, image, monkeypatch):
    seen = []
    fit = module.fit_picture
    monkeypatch.setattr(
        module, "fit_picture", lambda *a, **k: seen.append((k["batch"], k["seed"])) or fit(*a, **k)
    )
    with learned(pipe, image[:1], PROMPT, **FAST, seed=9):
        pass
    assert seen == [(2, 9), (2, 9)]


def test_the_walk_is_straight_in_the_text(pipe, image):
    with learned(pipe, image[:1], PROMPT, **FAST) as walk:
        seen = []
        pipe_eps, walk.pipe = walk.pipe.eps, Spy(walk.pipe, seen)
        walk([0.0, 0.25, 1.0])
    text = seen[0]
    assert torch.allclose(text[1], 0.25 * text[2] + 0.75 * text[0], atol=1e-6) and pipe_eps


class Spy:
    """A pipe that notes the text of the conditional rows."""

    def __init__(self, pipe, seen):
        self.pipe, self.seen, self.schedule = pipe, seen, pipe.schedule
        self.timesteps = pipe.timesteps
        self.null, self.decode = pipe.null, pipe.decode

    def eps(self, x, t, cond):
        self.seen.append(cond.text[-3:])
        return self.pipe.eps(x, t, cond)


# ---- the choice of eta ----


def curves(said, moved, asked):
    def measure(etas):
        asked.extend(etas)
        return torch.tensor([said(e) for e in etas]), torch.tensor([moved(e) for e in etas])

    return measure


def test_the_knee_of_known_curves_is_found_in_seven_looks():
    """To half the distance of the five points."""
    for at in (0.3, 0.5, 0.8):
        asked = []
        eta, gain = choose_eta(curves(lambda e, at=at: min(e / at, 1.0), lambda e: e**2, asked))
        true = (
            max(range(1001), key=lambda i: min(i / 1000 / at, 1.0) - 0.5 * (i / 1000) ** 2) / 1000
        )
        assert abs(eta - true) <= 0.125 and gain == pytest.approx(1, abs=0.2)
        assert len(asked) == 7 and all(0 <= e <= 1 for e in asked)


def test_a_sudden_change_is_taken_not_shunned():
    """As the tiny model does it: everything happens between .5 and .75, and then little more."""
    eta, _ = choose_eta(curves(lambda e: (e > 0.6) + 0.01 * e, lambda e: (e > 0.6) + 0.2 * e, []))
    assert 0.6 < eta <= 0.75


def test_a_knee_at_the_end_stays_inside():
    eta, _ = choose_eta(curves(lambda e: e, lambda e: 0.0 if e < 1 else 1e-9, []))
    assert 0.75 <= eta <= 1
    assert choose_eta(curves(lambda e: -e, lambda e: e, []))[0] == 0


def test_no_gain_is_reported_as_none():
    assert choose_eta(curves(lambda e: -e, lambda e: e, []))[1] == pytest.approx(0)


class Same:
    """A CLIP to which all pictures are alike."""

    def to(self, device):
        return self

    def embed_text(self, ids):
        return torch.ones(1, 4) / 2

    def embed_image(self, x):
        return torch.ones(len(x), 4) / 2

    @property
    def image(self):
        return self

    def hidden(self, x):
        return torch.ones(len(x), 5, 4)


def test_it_warns_when_clip_sees_nothing_of_the_words(pipe, image, monkeypatch):
    monkeypatch.setattr(module, "load_clip", Same)
    with pytest.warns(UserWarning, match="no more of"):
        out = imagic(pipe, image[:1], PROMPT, **FAST)
    assert out.shape == (1, 3, 64, 64)


def test_a_given_eta_asks_no_clip_and_warns_of_nothing(pipe, image, monkeypatch):
    monkeypatch.setattr(module, "load_clip", lambda: pytest.fail("asked for"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = imagic(
            pipe, image, [PROMPT, "a green star on a white background"], eta=0.5, **FAST, seed=2
        )
    b = imagic(pipe, image[1:], "a green star on a white background", eta=0.5, **FAST, seed=3)
    assert torch.equal(a[1:], b)


def test_a_picture_has_not_moved_from_itself():
    torch.manual_seed(0)

    class Clip(Same):
        def hidden(self, x):
            return x.flatten(2).transpose(1, 2)

    x = torch.rand(2, 3, 2, 2)
    _, moved = said_and_moved(Clip(), x, x[:1], torch.ones(1, 4) / 2)
    assert moved[0].abs() < 1e-6 < moved[1]


@pytest.mark.parametrize(
    "bad",
    [
        dict(eta=2.0),
        dict(eta=-0.1),
        dict(steps=0),
        dict(text_updates=-1),
        dict(net_updates=-1),
        dict(target=[PROMPT] * 3),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        imagic(pipe, image, **{"target": PROMPT} | FAST | bad)


def test_models_without_text_are_refused(image):
    with pytest.raises(ValueError, match="text"):
        imagic(minidiff.build("tiny-pixel"), image[..., ::2, ::2], "red circle")


@pytest.mark.weights
def test_learning_brings_the_picture_back():
    """eta 0 reconstructs better than the same sampling of the words without stages A and B."""
    s = shapes.Scene((shapes.Obj("star", "green", "large"),), "left", "white", "striped")
    image, pipe, found = shapes.render(s), minidiff.load("tiny"), []
    for n in (0, 15):
        with learned(
            pipe,
            image,
            "a red star on a white background",
            text_updates=n,
            net_updates=n,
            batch=4,
            steps=6,
        ) as w:
            found.append(psnr(w([0.0]), image).item())
    assert found[1] > found[0] + 1 and len(ETAS) == 5, found
