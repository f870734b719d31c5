from dataclasses import replace

import numpy as np
import pytest
import torch

from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene
from minidiff.evaluate import synthesis
from minidiff.evaluate.synthesis import fit_ground, read, silhouette_iou, silhouettes


def scenes(n, objects, seed=0):
    rng = np.random.default_rng(seed)
    return [shapes.scene(rng, objects=objects) for _ in range(n)]


def square(color="red", size="medium", **kw):
    return Scene((Obj("square", color, size, **kw),), "left", "blue", "striped", (3.3, 0.0))


def test_every_background_is_recovered_to_the_pixel():
    rng = np.random.default_rng(0)
    for name in shapes.BACKGROUNDS:
        for texture in shapes.TEXTURES:
            s = replace(shapes.scene(rng, objects=1), background=name, texture=texture)
            s = replace(s, objects=(replace(s.objects[0], color="cyan"),))
            ground, truth = (
                fit_ground((shapes.render(s)[0] + 1) / 2),
                (shapes.render(replace(s, objects=())) + 1) / 2,
            )
            assert (ground.background, ground.texture) == (name, texture)
            assert (ground.image - truth).abs().max() < 0.06  # phases to 1/8 pixel


@pytest.mark.parametrize("objects", [1, 2])
def test_clean_renders_match_their_ideal_silhouette(objects):
    ss = scenes(12, objects, seed=3)
    assert silhouette_iou(shapes.render(ss), ss).min() >= 0.97


def test_no_shape_fits_another_one():
    s = square()
    as_shape = [shapes.edit(s, "shape", name) for name in shapes.SHAPES]
    pictures = shapes.render(as_shape)
    for i, truth in enumerate(as_shape):
        iou = silhouette_iou(pictures, [truth] * len(as_shape))
        assert iou[i] >= 0.97 and iou[torch.arange(len(iou)) != i].max() < 0.87, truth.objects[
            0
        ].shape


def test_places_sizes_and_angles_that_the_scene_does_not_know_are_found():
    for true in (square(dx=3.3, dy=-2.6, angle=0.17), square(size="large", dx=-1.7, angle=-0.1)):
        fit = silhouettes(shapes.render(true), [square()])[0][0]
        (x, y), o = shapes.centers(true)[0], true.objects[0]
        assert abs(fit.x - x) < 0.3 and abs(fit.y - y) < 0.3 and abs(fit.angle - o.angle) < 0.04
        assert (
            abs(fit.radius - shapes.SIZES[o.size]) < 0.4 and fit.iou >= 0.97 and fit.size == o.size
        )


def test_wavy_edges_lower_the_overlap_the_more_they_wave():
    s = square()
    empty, axis = shapes.render(replace(s, objects=())), torch.arange(64.0)
    (x0, y0), color = (
        shapes.centers(s)[0],
        torch.tensor(shapes.COLORS["red"])[:, None, None] * 2 - 1,
    )
    x, y = axis[None, :] - x0, axis[:, None] - y0
    found = []
    for height in (0.0, 1.0, 2.0, 3.0):
        wave = height * torch.sin(4 * torch.atan2(y, x) * 2)
        mask = (0.5 - (torch.maximum(x.abs(), y.abs()) - 0.86 * 12 - wave)).clamp(0, 1)
        found.append(silhouette_iou(empty + mask * (color - empty), [s]).item())
    assert found[0] >= 0.97 and found[0] - 0.03 > found[1] > found[2] > found[3] and found[3] < 0.87


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_the_window_of_a_search_holds_all_of_a_shape_at_every_angle(shape):
    for angle in torch.linspace(-0.7, 0.7, 15).tolist():
        tries = torch.tensor([[31.5, 31.5, 19.0, angle]])
        drawn = shapes.coverage(shape, *tries.unbind(1))[0]
        drawn[synthesis.window_of(tries)] = 0
        assert drawn.sum() == 0


def test_specks_far_away_cost_their_own_area_and_do_not_mislead_the_search():
    s = square(size="small")
    image, red = shapes.render(s), torch.tensor(shapes.COLORS["red"]).view(1, 3, 1, 1) * 2 - 1
    area = (2 * 0.86 * 9) ** 2
    image[..., 52:60, 54:62] = red  # 64 pixels
    assert silhouette_iou(image, [s]).item() == pytest.approx(area / (area + 64), abs=0.02)


def test_a_ring_filled_with_another_color_has_no_clean_hole():
    s = Scene((Obj("ring", "red", "large"),), "center", "white", "dotted")
    clean, disc = (
        shapes.render(s),
        shapes.coverage("circle", *torch.tensor([[31.5], [31.5], [6.0], [0.0]])),
    )
    filled = clean + disc[:, None] * (
        torch.tensor(shapes.COLORS["cyan"]).view(1, 3, 1, 1) * 2 - 1 - clean
    )
    a, b = (silhouettes(x, [s])[0][0].hole for x in (clean, filled))
    assert a < 0.03 and b > 0.3


def test_two_objects_of_one_color_are_told_apart_by_their_places():
    s = Scene(
        (Obj("circle", "green", "medium"), Obj("square", "green", "small")),
        "above",
        "white",
        "plain",
    )
    fits = silhouettes(shapes.render(s), [s])[0]
    assert (
        min(f.iou for f in fits) >= 0.97
        and abs(fits[0].y - 15.5) < 0.3
        and abs(fits[1].y - 47.5) < 0.3
    )


def test_a_picture_without_the_object_scores_nothing():
    s = square()
    assert silhouette_iou(shapes.render(replace(s, objects=())), [s]) < 0.3
    assert silhouette_iou(shapes.render(replace(s, objects=())), [replace(s, objects=())]).isnan()


@pytest.mark.parametrize("objects, n", [(1, 7), (2, 3)])
def test_clean_renders_are_read_right(objects, n):
    ss = scenes(n, objects, seed=11)
    for found, s in zip(read(shapes.render(ss), ss), ss):
        assert [(o["shape"], o["color"], o["size"]) for o in found["objects"]] == [
            (o.shape, o.color, o.size) for o in s.objects
        ]
        assert (found["position"], found["background"], found["texture"]) == (
            s.position,
            s.background,
            s.texture,
        )
        assert min(o["margin"] for o in found["objects"]) > 1.5


def test_reading_believes_the_picture_not_the_scene():
    told, shown = (
        square(),
        Scene((Obj("star", "green", "large"),), "right", "yellow", "checkered", (2.2, 7.1)),
    )
    found = read(shapes.render(shown), [told])[0]
    assert [found["objects"][0][k] for k in ("shape", "color", "size")] == [
        "star",
        "green",
        "large",
    ]
    assert (found["position"], found["background"], found["texture"]) == (
        "right",
        "yellow",
        "checkered",
    )


def test_pictures_and_scenes_must_fit():
    for images in (torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 64, 64)):
        with pytest.raises(ValueError, match=r"expected \(b, 3, 64, 64\)"):
            silhouette_iou(images, [square()])
