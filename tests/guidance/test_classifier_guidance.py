"""Classifier guidance where the classifier is a formula: Bayes' rule to the last bit, and the right
component reached.
"""

import pytest
import torch

import minidiff
from minidiff.core import schedule
from minidiff.core.cfg import cfg
from minidiff.core.cond import Cond
from minidiff.core.denoise import Counted, noise
from minidiff.core.process import q_sample
from minidiff.data.attributes import HEADS
from minidiff.data.toy2d import Mixture, energy_distance, gmm8
from minidiff.guidance import classifier_guidance as module
from minidiff.guidance.classifier_guidance import classifier_guidance, gradient, log_prob, pull
from minidiff.models.noisy_classifier import NoisyClassifier
from minidiff.samplers.ddim import ddim

SCH = schedule.linear(1000)
RING = gmm8(1.0, 0.15)
EPS = RING.denoise(SCH)
ANY = Cond(label=torch.tensor([-1]))


def posterior(mixture: Mixture, label):
    """log p(label | x_t, t) of the mixture, up to the log weight of the class, which has no
    gradient.
    """

    def score(x, t):
        a, s = SCH.at(t, x)
        return mixture.log_prob(x, a, s, label) - mixture.log_prob(x, a, s)

    return score


def points(b=6):
    return noise((b, 2), dtype=torch.float64), torch.arange(b) % 8


@pytest.mark.parametrize("t", [1, 300, 700, 1000])
def test_scale_1_with_the_exact_classifier_is_the_conditional_score(t):
    x, y = points()
    out = pull(EPS, SCH, posterior(RING, y), 1.0)(x, t, ANY.expand(6))
    true = EPS(x, t, Cond(label=y))
    assert (out - true).abs().max() < 1e-10 * max(true.abs().max(), 1)
    assert t == 1000 or (EPS(x, t, ANY.expand(6)) - true).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
def test_with_exact_scores_the_two_guidances_are_one(scale):
    x, y = points()
    ours = pull(EPS, SCH, posterior(RING, y), scale)(x, 400, ANY.expand(6))
    assert (ours - cfg(EPS, ANY, scale)(x, 400, Cond(label=y))).abs().max() < 1e-10


def test_rows_may_have_their_own_times():
    x, y = points()
    ts = torch.tensor([1, 50, 300, 400, 700, 1000])
    out = pull(EPS, SCH, posterior_at_rows(y), 3.0)(x, ts, ANY.expand(6))
    for i, t in enumerate(ts.tolist()):
        alone = pull(EPS, SCH, posterior(RING, y[i : i + 1]), 3.0)(x[i : i + 1], t, ANY)
        assert (out[i : i + 1] - alone).abs().max() < 1e-10


def posterior_at_rows(y):
    def score(x, ts):
        return torch.cat(
            [posterior(RING, y[i : i + 1])(x[i : i + 1], t) for i, t in enumerate(ts.tolist())]
        )

    return score


def test_the_guided_sampler_reaches_its_component():
    """A mixture of unequal weights and slanted covariances, and a class made of two of its three
    modes.
    """
    covs = [[[0.04, 0.03], [0.03, 0.04]], [[0.09, 0], [0, 0.01]], [[0.02, 0], [0, 0.02]]]
    mixture = Mixture(
        [[2.0, 0], [-1.0, 1.5], [-1.0, -1.5]], covs, weights=[0.1, 0.6, 0.3], classes=[0, 1, 0]
    )
    x, net = noise((400, 2), dtype=torch.float64), mixture.denoise(SCH)
    for y in (0, 1):
        out = ddim(pull(net, SCH, posterior(mixture, y), 1.0), SCH, x, Cond(), steps=100)
        near = torch.cdist(out, mixture.means).argmin(1)
        assert (mixture.classes[near] == y).float().mean() > 0.99
        # the component, not only its place
        assert energy_distance(out, mixture.sample(400, 3, label=y)) < 0.02
    free = ddim(net, SCH, x, Cond(), steps=100)
    assert (
        0.3
        < (mixture.classes[torch.cdist(free, mixture.means).argmin(1)] == 1).double().mean()
        < 0.8
    )


def test_more_scale_means_less_variety():
    x = noise((200, 2), dtype=torch.float64)
    run = lambda s: ddim(pull(EPS, SCH, posterior(RING, 0), s), SCH, x, ANY.expand(200), steps=40)  # noqa: E731
    spread = [run(s)[:, 1].std() for s in (1.0, 3.0, 8.0)]
    assert spread[0] > 2 * spread[1] > 3 * spread[2]


def test_scale_0_is_the_denoiser_itself_and_asks_no_classifier():
    assert pull(EPS, SCH, None, 0.0) is EPS


def test_it_costs_one_evaluation_a_step_and_keeps_no_graph():
    net = Counted(EPS)
    x, y = points()
    with torch.no_grad():
        out = pull(net, SCH, posterior(RING, y), 2.0)(x, 500, ANY.expand(6))
    assert net.nfe == 6 and not out.requires_grad and not x.requires_grad


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    net, x, h = NoisyClassifier().double(), noise((2, 4, 16, 16), dtype=torch.float64), 1e-5
    score = log_prob(net, [{"a_shape": 2, "a_color": 1}, {"background": 0}])
    g = gradient(lambda v: score(v, 500), x)
    for i, c, r, k in ((0, 0, 3, 5), (1, 2, 8, 8), (1, 3, 15, 0)):
        d = torch.zeros_like(x)
        d[i, c, r, k] = h
        slope = (score(x + d, 500) - score(x - d, 500)).sum() / (2 * h)
        assert (slope - g[i, c, r, k]).abs() < 1e-6 * max(1, slope.abs())


def test_log_prob_adds_the_heads_that_a_row_names():
    torch.manual_seed(0)
    net, x = NoisyClassifier(), noise((2, 4, 16, 16))
    out = {h: v.log_softmax(1) for h, v in net(x, 100).items()}
    both = log_prob(net, [{"a_shape": 1, "a_color": 3}, {"background": 2}])(x, 100)
    assert torch.allclose(
        both, torch.stack([out["a_shape"][0, 1] + out["a_color"][0, 3], out["background"][1, 2]])
    )


# ---- on pictures ---------------------------------------------------------------------------------


@pytest.fixture
def pipe(monkeypatch):

    torch.manual_seed(1)
    net = NoisyClassifier().eval().requires_grad_(False)
    monkeypatch.setattr(module, "noisy_classifier", lambda: net)
    return minidiff.build("tiny", seed=0)


def test_scale_0_is_unconditional_generation(pipe, image):
    out = classifier_guidance(pipe, image, "red star", scale=0.0, steps=3, seed=4)
    assert (out - pipe.generate(["", ""], steps=3, seed=4, scale=1.0, eta=1.0)).abs().max() < 1e-5


def test_the_picture_counts_below_strength_1_alone(pipe, image):
    run = lambda x, s: classifier_guidance(pipe, x, "red star", strength=s, steps=4)  # noqa: E731
    assert (
        torch.equal(run(image, 1.0), run(-image, 1.0))
        and (run(image, 0.5) - run(-image, 0.5)).abs().max() > 0.1
    )
    assert torch.equal(run(image, 0.0), pipe.decode(pipe.encode(image)))


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_below_strength_1_the_picture_is_noised_to_the_first_time_and_carried_on(pipe, image, eta):
    """Unguided, written out."""
    ts, z = pipe.timesteps(4, 0.5), pipe.encode(image)
    x = q_sample(pipe.schedule, z, ts[0], noise(z.shape, 7))
    want = pipe.decode(module.ancestral(pipe.eps, pipe.schedule, x, ts, pipe.null(), eta, 7))
    how = dict(strength=0.5, steps=4, scale=0.0, seed=7)
    got = classifier_guidance(pipe, image, "red star", eta=eta, **how)
    assert (got - want).abs().max() < 1e-5


def test_the_classifier_is_asked_at_the_time_of_the_state(pipe, image, monkeypatch):
    seen = []
    monkeypatch.setattr(
        module, "log_prob", lambda net, wanted: lambda x, t: seen.append(t) or x.sum((1, 2, 3))
    )
    classifier_guidance(pipe, image, "red star", steps=4)
    assert seen == [1000, 750, 500, 250]


def test_rows_are_their_own(pipe, image):
    both = classifier_guidance(
        pipe, image, ["red star", "black background"], steps=3, scale=20.0, seed=5
    )
    alone = classifier_guidance(pipe, image[1:], "black background", steps=3, scale=20.0, seed=6)
    assert (both[1:] - alone).abs().max() < 1e-4


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (dict(strength=1.5), "strength=1.5"),
        (dict(steps=0), "steps=0"),
        (dict(scale=-1.0), "scale=-1.0"),
        (dict(target="a zebra"), "names no class"),
        (dict(target="red blue star"), "names red and blue"),
        (dict(target=["red"] * 3), "3 texts as target for 2 picture"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        classifier_guidance(pipe, image, **{"target": "red star"} | bad)


def test_latents_it_cannot_read_are_refused(image):
    with pytest.raises(ValueError, match="reads the latents of tiny and tiny-dit only"):
        classifier_guidance(minidiff.build("tiny-pixel"), image[..., ::2, ::2], "red star")


@pytest.mark.weights
def test_the_shipped_classifier_turns_unconditional_pictures_red():
    from minidiff.data.shapes import COLORS

    pipe, image = minidiff.load("tiny"), torch.full((4, 3, 64, 64), -0.01)  # middle grey
    score = log_prob(module.noisy_classifier(), [{"a_color": HEADS["a_color"].index("red")}] * 4)
    found = {
        s: classifier_guidance(pipe, image, "red", scale=s, steps=15, seed=3) for s in (0.0, 6.0)
    }
    assert (
        score(pipe.encode(found[6.0]), 1) > score(pipe.encode(found[0.0]), 1) + 1
    ).float().mean() >= 0.75
    near = lambda x: ((x + 1) / 2 - torch.tensor(COLORS["red"]).view(3, 1, 1)).norm(dim=1) < 0.25  # noqa: E731
    assert near(found[6.0]).float().mean() > 2 * near(found[0.0]).float().mean()
