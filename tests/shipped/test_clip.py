"""Training the tiny CLIP: twins, batches, the loss, and the distances between words."""

import math
from dataclasses import replace

import numpy as np
import torch

from minidiff.data import shapes
from minidiff.models.clip import CLIP
from minidiff.models.image_encoder import CLIPImage
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.shipped.clip import TWINS, clip_batches, clip_loss, retrieval, twin, word_distances

TOK = Tokenizer.words(shapes.VOCAB)


def make(seed=0):
    torch.manual_seed(seed)
    return CLIP(
        CLIPText(len(TOK), 32, 1, 4, 20, act="gelu", eos_id=2, project_dim=16),
        CLIPImage(64, 16, 32, 1, 4, 16, act="gelu"),
    )


def attributes(s):
    """Every nameable field of a scene; nuisances apart."""
    plain = dict(dx=0.0, dy=0.0, angle=0.0, tint=(0.0, 0.0, 0.0))
    objects = tuple(replace(o, **plain) for o in s.objects)
    found = {"position": s.position, "background": s.background, "texture": s.texture}
    for i, o in enumerate(objects):
        found |= {f"{k}{i}": getattr(o, k) for k in ("shape", "color", "size")}
    return found


def test_twins_differ_in_exactly_the_attribute_named_and_keep_every_nuisance():
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(300):
        a = shapes.scene(rng)
        b, what = twin(a, rng)
        x, y = attributes(a), attributes(b)
        changed = [k for k in x if x[k] != y[k]]
        assert len(changed) == 1 and changed[0].startswith(what)
        for o, p in zip(a.objects, b.objects):
            assert (o.dx, o.dy, o.angle, o.tint) == (p.dx, p.dy, p.angle, p.tint)
        assert (a.phase, a.tint) == (b.phase, b.tint)
        kinds.add(what)
    assert kinds == set(TWINS)


def test_shapes_are_the_most_common_twins():
    rng = np.random.default_rng(1)
    drawn = [twin(shapes.scene(rng), rng)[1] for _ in range(800)]
    assert (
        abs(drawn.count("shape") / 800 - 3 / 8) < 0.06
        and abs(drawn.count("texture") / 800 - 1 / 8) < 0.04
    )


def test_captions_of_twins_always_differ_in_one_phrase_and_share_their_form():
    ids = clip_batches(TOK, 400, seed=0)(0)["ids"]
    for a, b in zip(ids[::2], ids[1::2]):
        u, v = TOK.decode(a).split(), TOK.decode(b).split()
        assert u != v
        if len(u) == len(v):  # "at the top" and "on the left" have three words
            assert 1 <= sum(x != y for x, y in zip(u, v)) <= 3
        else:  # "above" and "left of"
            assert {"above", "below"} & {*u, *v} and abs(len(u) - len(v)) == 1


def test_batches_are_a_function_of_seed_and_step():
    a, b, other = clip_batches(TOK, 4, 5), clip_batches(TOK, 4, 5), clip_batches(TOK, 4, 6)
    assert all(torch.equal(v, b(2)[k]) for k, v in a(2).items())
    for k in ("image", "ids"):
        assert not torch.equal(a(2)[k], a(3)[k]) and not torch.equal(a(2)[k], other(2)[k])
    assert a(0)["image"].shape == (4, 3, 64, 64) and a(0)["ids"].shape == (4, 20)


def test_the_loss_is_the_contrastive_one_plus_half_the_naming_of_words():
    clip, batch = make(), clip_batches(TOK, 6, 0)(0)
    ids, h = batch["ids"], clip.text(batch["ids"])
    logits = clip(batch["image"], ids)
    me = torch.arange(6)
    both = (torch.log_softmax(logits, 1)[me, me] + torch.log_softmax(logits, 0)[me, me]).mean() / -2
    table, naming = clip.text.token_embeds(torch.arange(len(TOK))), []
    for row, states in zip(ids, h):
        for i, state in zip(row, states):
            if i not in (0, 2):  # padding and end
                naming.append(-torch.log_softmax(table @ state, 0)[i])
    want = both + 0.5 * torch.stack(naming).mean()
    assert abs(clip_loss(clip, batch) - want) < 1e-4
    assert abs(clip_loss(clip, batch, identity=0.0) - both) < 1e-4
    assert both.item() > 0.5 * math.log(6)


def test_the_temperature_counts_up_to_a_hundred():
    clip, batch = make(), clip_batches(TOK, 4, 0)(0)
    found = []
    for scale in (50.0, 100.0, 400.0):
        clip.logit_scale.data.fill_(math.log(scale))
        found.append(clip_loss(clip, batch).item())
    assert abs(found[1] - found[2]) < 1e-4 < abs(found[0] - found[1])


def test_the_loss_reaches_both_towers_and_the_temperature():
    clip = make()
    clip_loss(clip, clip_batches(TOK, 4, 0)(0)).backward()
    assert all(p.grad is not None for p in clip.parameters()) and clip.logit_scale.grad.abs() > 0


class Table(torch.nn.Module):
    """A text tower whose state is a fixed vector per token."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, ids):
        return self.table[ids]


def test_word_distances_look_at_the_slot_and_divide_by_the_typical_norm():
    table = torch.zeros(len(TOK), 2)
    place = {"circle": (3.0, 0.0), "square": (0.0, 3.0), "star": (-3.0, 0.0)}
    for word, vector in place.items():
        table[TOK.ids(word)[0]] = torch.tensor(vector)
    found = word_distances(Table(table), TOK, ("circle", "square", "star"))
    assert set(found) == {("circle", "square"), ("circle", "star"), ("square", "star")}
    assert (
        abs(found["circle", "square"] - 2**0.5) < 1e-5 and abs(found["circle", "star"] - 2) < 1e-5
    )
    end = word_distances(
        Table(table), TOK, ("circle", "square"), template="a {} circle on a red background"
    )
    assert abs(end["circle", "square"] - 2**0.5) < 1e-5


def test_a_word_is_at_distance_zero_from_itself_and_distances_are_symmetric():
    text = make().text
    assert word_distances(text, TOK, ("star", "star"))["star", "star"] < 1e-5
    one, two = (word_distances(text, TOK, pair) for pair in (("ring", "star"), ("star", "ring")))
    assert abs(one["ring", "star"] - two["star", "ring"]) < 1e-6 and one["ring", "star"] > 1e-3


class Fixed(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, image, ids):
        return self.logits


def test_retrieval_counts_the_best_caption_and_the_better_twin():
    logits = torch.tensor(
        [[5.0, 1.0, 0.0, 0.0], [6.0, 5.0, 0.0, 0.0], [0.0, 9.0, 5.0, 1.0], [0.0, 0.0, 1.0, 5.0]]
    )
    batch = {"image": None, "ids": None}
    assert retrieval(Fixed(logits), batch) == {"top1": 0.5, "twin": 0.75}
    assert retrieval(Fixed(10 * torch.eye(4)), batch) == {"top1": 1.0, "twin": 1.0}
