"""Telling a text tower what belongs together: the labels, the loss, and a tower that learns it."""

import numpy as np
import pytest
import torch

from minidiff.data import shapes
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.shipped.words import SAYS, UNSAID, Taught, belongings, told, word_batch, word_loss
from minidiff.train.fit import fit

TOK = Tokenizer.words(shapes.VOCAB)


def tower(causal=False, width=64):
    torch.manual_seed(0)
    return CLIPText(len(TOK), width, 2, 4, 20, act="gelu", eos_id=2, causal=causal)


def test_every_word_of_a_caption_is_given_its_own_object():
    said = belongings("a small red star above a ring on a striped blue background")
    star, ring = (
        dict(shape="star", color="red", size="small", place="top"),
        dict(shape="ring", place="bottom"),
    )
    assert said == [star] * 5 + [ring] * 2 + [dict(background="blue", texture="striped")] * 5
    left, right = belongings("a red star left of a red ring on a red background")[:8:5]
    assert left["place"] == "left" and right["place"] == "right" and right["shape"] == "ring"
    assert belongings("a red cross in the center on a white background")[0]["place"] == "center"
    assert belongings("a blue background") == [dict(background="blue")] * 3


def test_the_labels_are_the_scenes():
    rng = np.random.default_rng(0)
    for s in (shapes.scene(rng) for _ in range(300)):
        said = belongings(shapes.caption(s))
        assert len(said) == len(shapes.caption(s).split())
        place = {"above": "top", "below": "bottom"}.get(s.position, s.position)
        assert said[0] == dict(
            shape=s.objects[0].shape, color=s.objects[0].color, size=s.objects[0].size, place=place
        )
        assert said[-1] == dict(background=s.background, texture=s.texture)
        if len(s.objects) == 2:
            assert dict(shape=s.objects[1].shape, color=s.objects[1].color) in [
                {k: w[k] for k in ("shape", "color") if k in w} for w in said
            ]
            assert {w["place"] for w in said if "place" in w} in (
                {"left", "right"},
                {"top", "bottom"},
            )


def test_a_batch_labels_words_only_and_is_a_function_of_seed_and_step():
    a, b = word_batch(TOK, 16, 3, 7), word_batch(TOK, 16, 3, 7)
    assert all(torch.equal(v, b[k]) for k, v in a.items()) and not torch.equal(
        a["ids"], word_batch(TOK, 16, 3, 8)["ids"]
    )
    assert not torch.equal(a["ids"], word_batch(TOK, 16, 4, 7)["ids"])
    for name in SAYS:
        labelled = a[name] != UNSAID
        assert labelled.any() and (a["ids"][labelled] > 2).all() and a[name].max() < len(SAYS[name])


def test_the_loss_keeps_a_tower_that_says_nothing_new_where_it_was():
    batch, clip = word_batch(TOK, 8, 0, 0), tower()
    net = Taught(clip, len(TOK))
    without, with_ = (word_loss(net, batch, clip, lam) for lam in (0.0, 5.0))
    assert torch.equal(without, with_)  # its states are the old ones
    moved = tower()
    with torch.no_grad():
        moved.final_layer_norm.bias += 0.5
    assert abs((word_loss(net, batch, moved, 4.0) - without).item() - 4 * 0.25) < 1e-5


@pytest.mark.parametrize("causal, knows", [(False, True), (True, False)])
def test_only_a_tower_that_reads_both_ways_can_tell_the_first_noun_its_place(causal, knows):
    clip = tower(causal)
    text = tower(causal)
    net = Taught(text, len(TOK))
    fit(
        net,
        lambda n, b: word_loss(n, b, clip, 0.0),
        lambda k: word_batch(TOK, 32, 1, k),
        steps=150,
        optimiser="adamw",
        lr=3e-3,
        ema=0.9,
        warmup=10,
        progress=False,
    )
    batch = word_batch(TOK, 128, 2, 0)
    first = torch.zeros_like(batch["place"], dtype=torch.bool)
    first[:, 1:3] = True  # the article and the word after it
    batch["place"] = torch.where(first, batch["place"], UNSAID)
    share = told(net, batch)["place"]
    assert share > 0.9 if knows else share < 0.6  # four or five places: chance is below .3
