"""UniTune: without tuning it is SDEdit, with tuning the
word remembers, and afterwards the network is as it was.
"""

import pytest
import torch

import minidiff
from minidiff.data import shapes
from minidiff.editing.sdedit import sdedit
from minidiff.editing.unitune import unitune
from minidiff.evaluate.metrics import psnr
from minidiff.models.tokenizer import Tokenizer

PROMPT = "a red circle on a blue background"


def test_without_tuning_it_is_sdedit_bit_for_bit(pipe, image):
    out = unitune(pipe, image[:1], PROMPT, updates=0, strength=0.6, steps=5, scale=3.0, seed=7)
    assert torch.equal(
        out, sdedit(pipe, image[:1], f"<new1> {PROMPT}", strength=0.6, steps=5, scale=3.0, seed=7)
    )


def test_tuning_changes_the_result_and_leaves_no_trace(pipe, image):
    before = {n: p.clone() for n, p in pipe.net.named_parameters()}
    plain, tuned = (unitune(pipe, image[:1], PROMPT, updates=u, steps=3, batch=2) for u in (0, 2))
    assert not torch.equal(plain, tuned)
    assert all(
        torch.equal(p, before[n]) and not p.requires_grad for n, p in pipe.net.named_parameters()
    )


def test_each_picture_is_tuned_alone(pipe, image):
    both = unitune(
        pipe,
        image,
        [PROMPT, "a green star on a white background"],
        updates=2,
        steps=2,
        batch=2,
        seed=3,
    )
    alone = unitune(
        pipe, image[1:], "a green star on a white background", updates=2, steps=2, batch=2, seed=4
    )
    assert both.shape == image.shape and torch.equal(both[1:], alone)


def test_strength_zero_is_the_autoencoders_copy(pipe, image):
    assert torch.equal(
        unitune(pipe, image[:1], PROMPT, updates=1, batch=2, strength=0),
        pipe.decode(pipe.encode(image[:1])),
    )


def test_the_rare_word_is_in_no_caption():
    assert "<new1>" not in shapes.VOCAB
    assert Tokenizer.words(shapes.VOCAB).words_of(f"<new1> {PROMPT}")[0] == "<new1>"


@pytest.mark.parametrize(
    "bad", [dict(strength=1.5), dict(steps=0), dict(updates=-1), dict(target=[PROMPT] * 3)]
)
def test_bad_arguments_are_refused(pipe, image, bad):
    with pytest.raises(ValueError):
        unitune(pipe, image, **{"target": PROMPT} | bad)


def test_models_without_text_are_refused(image):
    with pytest.raises(ValueError, match="text"):
        unitune(minidiff.build("tiny-pixel"), image[..., ::2, ::2], "red circle")


@pytest.mark.weights
def test_the_word_alone_brings_the_picture_back():
    """With no other words, and from mostly noise, the
    tuned network ends nearer to the picture it was shown.
    """
    s = shapes.Scene((shapes.Obj("star", "green", "large"),), "left", "white", "striped")
    image, pipe = shapes.render(s), minidiff.load("tiny")
    found = [
        psnr(unitune(pipe, image, "", updates=u, strength=0.9, steps=6), image).item()
        for u in (0, 16)
    ]
    assert found[1] > found[0] + 1, found
