import pytest
import torch

import minidiff
from minidiff.analysis.diffusion_classifier import diffusion_classifier, noise_error
from minidiff.core.denoise import noise
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene, caption


@pytest.fixture(scope="module")
def tiny():
    return minidiff.load("tiny")


def named(shape, color="red"):
    return Scene((Obj(shape, color, "large"),), "center", "white", "plain")


SHAPES = list(shapes.SHAPES)


@pytest.mark.weights
def test_it_tells_shapes_and_colours_apart_without_drawing_anything(tiny):
    image = shapes.render([named("star"), named("square")])
    said = [caption(named(s)) for s in SHAPES]
    found = diffusion_classifier(tiny, image, said, seed=1)
    assert [SHAPES[i] for i in found.best] == ["star", "square"]
    assert found.evaluations == 3 * len(said)
    colors = ["red", "blue", "green"]
    found = diffusion_classifier(tiny, image, [caption(named("star", c)) for c in colors])
    assert found.best.tolist() == [0, 0]


def test_equal_descriptions_have_equal_errors_with_shared_noise_and_differ_without(tiny):
    image = shapes.render(named("star"))
    same = ["a red star"] * 3
    shared = diffusion_classifier(tiny, image, same).errors[0]
    assert (shared - shared[0]).abs().max() < 1e-6
    own = diffusion_classifier(tiny, image, same, shared=False).errors[0]
    assert own.std() > 1e-4


def test_one_error_by_hand(tiny):
    z, n = tiny.encode(shapes.render(named("star"))), noise((1, *tiny.shape), 3)
    alpha, sigma = tiny.schedule.at(500)
    eps = tiny.eps(alpha * z + sigma * n, 500, tiny.embed("a red star"))
    got = noise_error(tiny, z, ["a red star", ""], 500, n)
    assert (got[0] - (eps - n).square().mean()).abs() < 1e-6 and got[1] != got[0]


def test_halving_drops_the_worse_half_and_saves_evaluations(tiny):
    image = shapes.render(named("star"))
    said = [caption(named(s)) for s in SHAPES]
    found = diffusion_classifier(tiny, image, said, times=(500,), rounds=3, halve=True)
    assert found.evaluations == 7 + 4 + 2
    assert torch.isinf(found.errors).sum() == 5
    full = diffusion_classifier(tiny, image, said, times=(500,), rounds=1)
    kept = torch.isfinite(found.errors[0]).nonzero().flatten().tolist()
    assert full.errors[0].argmin().item() in full.errors[0].topk(4, largest=False).indices.tolist()
    assert set(kept) <= set(full.errors[0].topk(4, largest=False).indices.tolist())


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(prompts="a red star"), "expected a list"),
        (dict(prompts=[]), "expected a list"),
        (dict(prompts=["a red star"]), "expected one list of two or more"),
        (dict(prompts=[["a", "b"], ["a", "b"], ["a", "b"]]), "3 list"),
        (dict(times=()), "times="),
        (dict(times=(1001,)), "times="),
        (dict(rounds=0), "rounds=0"),
    ],
)
def test_bad_questions_are_refused(tiny, kw, says):
    told = dict(prompts=["a red star", "a blue star"]) | kw
    with pytest.raises(ValueError, match=says):
        diffusion_classifier(tiny, shapes.render([named("star")] * 2), **told)
