"""The noisy classifier: what it is asked, what it is told, and that it learns."""

import numpy as np
import pytest
import torch

from minidiff.core import schedule
from minidiff.data import shapes
from minidiff.data.attributes import HEADS, NOTHING, labels
from minidiff.models.noisy_classifier import NoisyClassifier, named
from minidiff.shipped.noisy_classifier import accuracy, classifier_batches, classifier_loss

SCH = schedule.scaled_linear(1000)


def words_of(found: dict[str, int]) -> dict:
    return {head: HEADS[head][i] for head, i in found.items()}


def test_a_caption_names_the_classes_of_its_scene():
    rng = np.random.default_rng(0)
    for s in [shapes.scene(rng) for _ in range(200)]:
        said = named(shapes.caption(s))
        answers = dict(zip(HEADS, labels([s])[0].tolist()))
        known = {head: answer for head, answer in answers.items() if answer != NOTHING}
        assert said == known


def test_a_part_of_a_caption_is_enough():
    assert words_of(named("red background")) == {"background": "red"}
    assert words_of(named("red")) == {"a_color": "red", "count": 1}
    assert words_of(named("on the left")) == {"place": ("one", "left"), "count": 1}
    assert words_of(named("red star below ring")) == {
        "a_shape": "ring",
        "b_color": "red",
        "b_shape": "star",
        "place": ("two", "above"),
        "count": 2,
    }


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "names no class"),
        ("a zebra", "There are background: red"),
        ("a red star and a blue ring", "names red and blue: give one color"),
        ("a ring above a red star and a cross", "names star and cross: give one shape"),
    ],
)
def test_phrases_it_cannot_follow_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        named(text)


def test_it_is_told_the_time():
    torch.manual_seed(0)
    net, x = NoisyClassifier(), torch.randn(2, 4, 16, 16)
    assert (net(x, 10)["a_shape"] - net(x, 900)["a_shape"]).abs().max() > 1e-2
    mixed = net(x, torch.tensor([10, 900]))["a_shape"]
    assert torch.allclose(mixed[0], net(x, 10)["a_shape"][0], atol=1e-5)
    assert torch.allclose(mixed[1], net(x, 900)["a_shape"][1], atol=1e-5)


def test_a_missing_answer_costs_nothing():
    torch.manual_seed(0)
    net = NoisyClassifier()
    b = classifier_batches(
        torch.randn(8, 4, 16, 16), torch.zeros(8, 10, dtype=torch.long), 4, 0, 1000
    )(0)
    full = classifier_loss(net, b, SCH)
    b["label"][:, 4:] = NOTHING
    assert 0 < classifier_loss(net, b, SCH) < full


def test_times_reach_from_the_cleanest_to_the_noisiest():
    z, label = torch.zeros(4, 4, 2, 2), torch.zeros(4, 10, dtype=torch.long)
    t = classifier_batches(z, label, 100, 0, T=3)(0)["t"]
    assert set(t.tolist()) == {1, 2, 3}


def test_it_learns_colours_it_can_see_and_not_those_under_noise():
    """Latents whose mean is the class: told apart at t = 50, not at t = 1000."""
    from minidiff.train.fit import fit

    torch.manual_seed(0)
    label = torch.randint(0, 8, (256, 10)).clamp(
        max=torch.tensor([len(v) - 1 for v in HEADS.values()])
    )
    color = label[:, list(HEADS).index("a_color")]
    mean = 2 * torch.eye(4)[color % 4] * (color // 4 * 2 - 1)[:, None]  # one channel up or down
    z = torch.randn(256, 4, 16, 16) * 0.3 + mean[:, :, None, None]
    net = NoisyClassifier()
    fit(
        net,
        lambda m, b: classifier_loss(m, b, SCH),
        classifier_batches(z, label, 32, 0, 1000),
        steps=60,
        progress=False,
        warmup=5,
        ema=0.9,
    )
    assert accuracy(net, SCH, z, label, 50)["a_color"] > 0.9
    assert accuracy(net, SCH, z, label, 1000)["a_color"] < 0.5


@pytest.mark.weights
def test_the_shipped_one_reads_clean_latents_of_one_and_two_objects_and_less_in_noise():
    import minidiff
    from minidiff.guidance.classifier_guidance import noisy_classifier

    rng, pipe = np.random.default_rng(5), minidiff.load("tiny")
    scenes = [shapes.scene(rng, objects=1 + i % 2, split="test") for i in range(96)]
    z = pipe.encode(shapes.render(scenes))
    found = [
        accuracy(noisy_classifier(), pipe.schedule, z, labels(scenes), t) for t in (1, 500, 1000)
    ]
    clean, noisy, noise = found
    assert all(share > 0.9 for share in clean.values()), clean
    for head in ("a_shape", "b_shape", "a_color", "b_color"):
        assert clean[head] > noisy[head] > noise[head] - 0.05
    assert noise["a_color"] < 0.5
