"""The noisy classifier: what it is asked, what it is told, and that it learns."""

import numpy as np
import pytest
import torch

from minidiff.core import schedule
from minidiff.data import shapes
from minidiff.models.noisy_classifier import HEADS, NOTHING, NoisyClassifier, labels, named
from minidiff.shipped.noisy_classifier import accuracy, classifier_batches, classifier_loss

SCH = schedule.scaled_linear(1000)


def test_labels_are_the_scenes_own_and_two_objects_have_no_single_shape():
    one = shapes.Scene((shapes.Obj("star", "red", "large"),), "left", "grey", "dotted")
    two = shapes.Scene(
        (shapes.Obj("star", "red", "large"), shapes.Obj("ring", "blue", "large")),
        "left",
        "grey",
        "dotted",
    )
    a, b = labels([one, two]).tolist()
    assert [v[i] for v, i in zip(HEADS.values(), a)] == [
        "one",
        "grey",
        "dotted",
        "star",
        "red",
        "large",
    ]
    assert b == [1, *a[1:3], NOTHING, NOTHING, NOTHING]


def test_a_caption_names_the_classes_of_its_scene():
    rng = np.random.default_rng(0)
    for s in [shapes.scene(rng, objects=1) for _ in range(30)]:
        found = named(shapes.caption(s))
        texture = {} if s.texture == "plain" and "texture" not in found else {"texture": s.texture}
        expected = {
            "shape": s.objects[0].shape,
            "color": s.objects[0].color,
            "background": s.background,
            **texture,
        }
        assert (
            expected.items() <= {h: HEADS[h][i] for h, i in found.items()}.items()
            and found["count"] == 0
        )
    assert named("red background") == {"background": HEADS["background"].index("red")}
    assert named("red") == {"color": HEADS["color"].index("red"), "count": 0}


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "names no class"),
        ("a zebra", "There are background: red"),
        ("a red star above a blue ring", "names red and blue|names star and ring"),
    ],
)
def test_phrases_it_cannot_follow_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        named(text)


def test_it_is_told_the_time():
    torch.manual_seed(0)
    net, x = NoisyClassifier(), torch.randn(2, 4, 16, 16)
    assert (net(x, 10)["shape"] - net(x, 900)["shape"]).abs().max() > 1e-2
    mixed = net(x, torch.tensor([10, 900]))["shape"]
    assert torch.allclose(mixed[0], net(x, 10)["shape"][0], atol=1e-5)
    assert torch.allclose(mixed[1], net(x, 900)["shape"][1], atol=1e-5)


def test_a_missing_answer_costs_nothing():
    torch.manual_seed(0)
    net = NoisyClassifier()
    b = classifier_batches(
        torch.randn(8, 4, 16, 16), torch.zeros(8, 6, dtype=torch.long), 4, 0, 1000
    )(0)
    full = classifier_loss(net, b, SCH)
    b["label"][:, 3:] = NOTHING
    assert 0 < classifier_loss(net, b, SCH) < full


def test_times_reach_from_the_cleanest_to_the_noisiest():
    z, label = torch.zeros(4, 4, 2, 2), torch.zeros(4, 6, dtype=torch.long)
    t = classifier_batches(z, label, 100, 0, T=3)(0)["t"]
    assert set(t.tolist()) == {1, 2, 3}


def test_it_learns_colours_it_can_see_and_not_those_under_noise():
    """Latents whose mean is the class: told apart at t = 50, not at t = 1000."""
    from minidiff.train.fit import fit

    torch.manual_seed(0)
    label = torch.randint(0, 8, (256, 6)).clamp(
        max=torch.tensor([len(v) - 1 for v in HEADS.values()])
    )
    color = label[:, 4]
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
    assert accuracy(net, SCH, z, label, 50)["color"] > 0.9
    assert accuracy(net, SCH, z, label, 1000)["color"] < 0.5


@pytest.mark.weights
def test_the_shipped_one_reads_clean_latents_and_less_in_noise():
    import minidiff
    from minidiff.guidance.classifier_guidance import noisy_classifier

    rng, pipe = np.random.default_rng(5), minidiff.load("tiny")
    scenes = [shapes.scene(rng, objects=1, split="test") for _ in range(64)]
    z = pipe.encode(shapes.render(scenes))
    found = [
        accuracy(noisy_classifier(), pipe.schedule, z, labels(scenes), t) for t in (1, 500, 1000)
    ]
    assert found[0]["color"] > 0.9 and found[0]["background"] > 0.9 and found[0]["shape"] > 0.6
    assert (
        found[0]["shape"] > found[1]["shape"] > found[2]["shape"] - 0.05 and found[2]["color"] < 0.5
    )
