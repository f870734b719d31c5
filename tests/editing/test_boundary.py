"""Boundary diffusion: the machine against its optimality
conditions, the push, and the search on pictures it never saw.
"""

import numpy as np
import pytest
import torch

import minidiff
from minidiff.core.denoise import sample
from minidiff.core.taps import tap
from minidiff.editing import boundary as module
from minidiff.editing.boundary import (
    H,
    Plane,
    boundaries,
    boundary,
    linear_svm,
    mixing_step,
    plane,
    states,
)
from minidiff.inversion.ddim import invert

A, B = "a red circle on a blue background", "a green circle on a blue background"


@pytest.fixture(scope="module")
def planes(pipe):
    """Two made-up walls at the two times of a four-step grid."""
    g = torch.Generator().manual_seed(3)

    def one(*shape):
        a = torch.randn(shape, generator=g)
        return Plane(a / a.norm(), 0.5, 4.0, 0.9)

    return {t: (one(4, 16, 16), one(96, 8, 8)) for t in (500, 750)}


# ---- the machine ----


def test_two_points_have_the_wall_halfway_between():
    w, b = linear_svm(np.array([[-2.0, 0.0], [2.0, 0.0]]), np.array([-1.0, 1.0]))
    assert np.abs(w - [0.5, 0]).max() < 1e-5 and abs(b) < 1e-5  # the margin is 1 / |w| = 2


@pytest.mark.parametrize("n, d", [(40, 3), (20, 200)])
def test_the_machine_meets_its_optimality_conditions(n, d):
    """w = sum u_i y_i x_i with 0 <= u <= C is checked
    through the primal: no other w has a smaller objective.
    """
    rng = np.random.default_rng(0)
    y = np.sign(rng.normal(size=n))
    x = rng.normal(size=(n, d)) + 0.6 * y[:, None] * (np.arange(d) == 0)
    w, b = linear_svm(x, y, C=0.5, sweeps=3000)

    def objective(w, b):
        return (w @ w + b * b) / 2 + 0.5 * np.maximum(0, 1 - y * (x @ w + b)).sum()

    least = objective(w, b)
    others = [
        objective(w + e * rng.normal(size=d), b + e * rng.normal())
        for e in (1e-1, 1e-2, 1e-3)
        for _ in range(30)
    ]
    assert least <= min(others) + 1e-7


def test_flipped_labels_flip_the_normal():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 5)), np.repeat([-1.0, 1.0], 15)
    (w, b), (w2, b2) = linear_svm(x, y), linear_svm(x, -y)
    assert np.abs(w + w2).max() < 1e-9 and abs(b + b2) < 1e-9


@pytest.mark.parametrize(
    "x, y",
    [
        (np.zeros((3, 2)), np.ones(3)),
        (np.zeros((3, 2)), np.array([0, 1, 1])),
        (np.zeros((3, 2)), np.array([-1.0, 1.0])),
    ],
)
def test_labels_must_be_of_both_kinds(x, y):
    with pytest.raises(ValueError, match="-1, 1"):
        linear_svm(x, y)


# ---- the plane ----


def clouds(n, gap, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, 2, 3, 3, generator=g) + 5  # far from 0: the offset matters
    b[:, 0, 0, 0] += gap
    return a, b


def test_the_plane_stands_between_the_kinds_across_their_difference():
    a, b = clouds(60, 8.0)
    p = plane(a, b)
    assert abs(p.normal.norm().item() - 1) < 1e-5 and p.normal[0, 0, 0] > 0.8 and p.accuracy == 1
    assert (p.distance(a) < 0).all() and (p.distance(b) > 0).all()
    assert abs(p.distance(b).mean().item() - p.depth) < 1e-4
    q = plane(b, a)
    # labels flipped, wall the same
    assert (q.normal + p.normal).abs().max() < 1e-4 and abs(q.offset + p.offset) < 1e-3


def test_accuracy_is_that_of_pictures_it_was_not_fitted_to():
    """With more axes than pictures a plane parts any
    two sets; unseen ones are then a coin's toss.
    """
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, 8, 8, 8, generator=g)
    p = plane(a, b)
    assert (p.distance(a) < 0).all() and (p.distance(b) > 0).all() and 0.3 < p.accuracy < 0.7


def test_a_push_lands_at_the_distance_asked_for_and_nowhere_else_to_go(planes):
    p, v = planes[500][1], torch.randn(3, 96, 8, 8, generator=torch.Generator().manual_seed(0))
    for d in (-2.0, 0.0, 7.0):
        assert (p.distance(p.push(v, d)) - d).abs().max() < 1e-4
    assert (p.push(v, p.distance(v)) - v).abs().max() < 1e-6  # already there: not moved
    moved = (p.push(v, 7.0) - v).flatten(1)
    along = (moved @ p.normal.flatten())[:, None] * p.normal.flatten()
    assert (moved - along).abs().max() < 1e-5  # only along the normal


def test_the_search_takes_the_middle_of_the_times_that_tell_them_apart():
    scores = {900: 0.6, 700: 1.0, 300: 0.96, 500: 0.95}
    walls = {t: (Plane(torch.zeros(1, 1, 1), 0.0, 1.0, score), None) for t, score in scores.items()}
    assert (
        mixing_step(walls) == 500
        and mixing_step(walls, share=1.0) == 700
        and mixing_step(walls, share=0.96) == 300
    )


# ---- the edit ----


def test_states_are_those_of_the_inversion_and_of_the_tap(pipe, image):
    z, cond = pipe.encode(image), pipe.null(2)
    x, h = states(pipe, z, cond, [500], 4)[500]
    assert torch.equal(x, invert(pipe, image, steps=4)[2])
    seen = []
    with tap(pipe.net, H, lambda v, name: seen.append(v)):
        pipe.eps(x, 500, cond)
    assert torch.equal(h, seen[0])


def test_each_space_is_pushed_to_its_own_distance(pipe, image, planes, monkeypatch):
    reached = {"z": [], "h": []}

    def eps(x, t, cond, own=pipe.eps):
        reached["z"].append((t, planes[750][0].distance(x)))
        with tap(pipe.net, H, lambda h, name: reached["h"].append((t, planes[750][1].distance(h)))):
            return own(x, t, cond)

    for space in ("z", "h", "both"):
        reached["z"].clear(), reached["h"].clear()
        with monkeypatch.context() as m:
            m.setattr(pipe, "eps", eps, raising=False)
            boundary(
                pipe,
                image,
                A,
                B,
                space=space,
                planes={750: planes[750]},
                distance=3.0,
                hold=2,
                steps=4,
            )
        z = {t: d for t, d in reached["z"]}[750] - 12  # 3 times the depth of 4
        # the three steps from 750 to 0
        h = [(d - 12).abs().max() < 1e-3 for _, d in reached["h"][-3:]]
        assert (z.abs().max() < 1e-3) == (space != "h"), space
        assert h == ([True, True, False] if space != "z" else [False] * 3), space


def test_same_prompts_rebuild_the_picture(pipe, image):
    out = boundary(pipe, image, A, A, steps=4)
    x = invert(pipe, image, steps=4)[2]
    exact = sample(pipe.eps, pipe.schedule, x, [500, 250, 0], pipe.null(2))
    assert (out - pipe.decode(exact)).abs().max() < 1e-5


def test_a_push_to_where_it_is_changes_nothing(pipe, image, planes):
    one = {500: planes[500]}
    x = states(pipe, pipe.encode(image[:1]), pipe.null(), [500], 4)[500][0]
    stay = planes[500][0].distance(x).item() / 4
    out = boundary(pipe, image[:1], A, B, space="z", planes=one, distance=stay, steps=4)
    assert (out - boundary(pipe, image[:1], A, A, steps=4)).abs().max() < 1e-4


def test_labels_come_from_the_caller(pipe, image, planes, monkeypatch):
    monkeypatch.setattr(
        module,
        "drawn",
        lambda *a, **k: pytest.fail("pictures were drawn although planes were given"),
    )
    z = pipe.noise(8, 5)
    own = boundaries(pipe, z[:4], z[4:] + 1, [500], steps=4)
    assert own[500][0].normal.shape == (4, 16, 16) and own[500][1].normal.shape == (96, 8, 8)
    assert boundary(pipe, image, A, B, planes=own, steps=4).isfinite().all()
    with pytest.raises(ValueError, match="4 of each"):
        boundaries(pipe, z[:3], z[3:], [500], steps=4)


def test_prompts_alone_are_enough_and_hopeless_planes_are_told(pipe, image):
    with pytest.warns(UserWarning, match="unseen pictures"):
        walls = {
            500: (
                Plane(torch.zeros(4, 16, 16), 0.0, 1.0, 0.5),
                Plane(torch.zeros(96, 8, 8), 0.0, 1.0, 0.5),
            )
        }
        boundary(pipe, image, A, B, planes=walls, steps=4)


@pytest.mark.weights
def test_colours_of_the_ground_can_be_told_apart_from_prompts_alone():
    pipe = minidiff.load("tiny")
    a, b = (
        module.drawn(pipe, f"a red circle on a {c} background", 8, steps=10)
        for c in ("white", "black")
    )
    found = boundaries(pipe, a, b, [500], steps=10)[500]
    assert found[0].accuracy == found[1].accuracy == 1


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(mix=0.0), "mix=0"),
        (dict(mix=1.5), "mix=1.5"),
        (dict(eta=2.0), "eta=2"),
        (dict(space="x"), "'x'"),
        (dict(hold=0), "hold=0"),
        (dict(steps=0), "steps"),
    ],
)
def test_bad_arguments_are_refused(pipe, image, bad, said):
    with pytest.raises(ValueError, match=said):
        boundary(pipe, image, A, B, **bad)


def test_a_transformer_has_no_bottleneck(image):
    with pytest.raises(ValueError, match="no bottleneck"):
        boundary(minidiff.build("tiny-dit"), image, A, B, steps=2)
