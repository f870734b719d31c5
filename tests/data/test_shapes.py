"""The toy world: what is drawn, what is said, what an edit changes and what it must not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minidiff.data import shapes
from minidiff.data.shapes import (
    BACKGROUNDS,
    COLORS,
    PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Obj,
    Scene,
    caption,
    centers,
    coverage,
    distance,
    edit,
    edit_mask,
    held_out,
    object_masks,
    random_caption,
    render,
    scene,
    short_caption,
)
from minidiff.models.tokenizer import Tokenizer

LEVEL = 2 / 255  # one grey level in [-1, 1]


def draw(n, seed=0, **kw):
    rng = np.random.default_rng(seed)
    return [scene(rng, **kw) for _ in range(n)]


def alone(shape="circle", color="red", size="medium", position="center", background="white", **kw):
    return Scene((Obj(shape, color, size),), position, background, **kw)


def other(s, what, rng):
    """A value of the attribute that the scene does not have."""
    o = s.objects[0]
    pool, now = {
        "shape": (SHAPES, o.shape),
        "color": (tuple(COLORS), o.color),
        "size": (tuple(SIZES), o.size),
        "position": (tuple(PAIRS if len(s.objects) == 2 else POSITIONS), s.position),
        "background": (tuple(BACKGROUNDS), s.background),
        "texture": (TEXTURES, s.texture),
    }[what]
    return rng.choice([v for v in pool if v != now])


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_lie_in_minus_one_to_one_and_are_deterministic():
    scenes = draw(40)
    x = render(scenes)
    assert (
        x.shape == (40, 3, 64, 64) and x.dtype == torch.float32 and -1 <= x.min() and x.max() <= 1
    )
    assert (
        torch.equal(x, render(scenes))
        and torch.equal(x, render(draw(40)))
        and draw(5, seed=1) != draw(5)
    )
    assert (x[1:] - x[:-1]).abs().amax((1, 2, 3)).min() > 0.1


def test_a_scene_looks_the_same_in_any_batch():
    scenes = draw(8)
    assert (torch.cat([render(s) for s in scenes]) - render(scenes)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [32, 16])
def test_smaller_pictures_are_area_averages(size):
    scenes, f = draw(6), 64 // size
    mean = render(scenes).unflatten(2, (size, f)).unflatten(4, (size, f)).mean((3, 5))
    assert (render(scenes, size) - mean).abs().max() < 1e-6


def test_the_middle_of_an_object_has_its_colour_and_the_corner_that_of_the_ground():
    for color, rgb in COLORS.items():
        x = render(replace(alone("square", color), tint=(0.01, 0.02, -0.02)))[0]
        assert (x[:, 31, 31] - (2 * torch.tensor(rgb) - 1)).abs().max() < 1e-5
        ground = torch.tensor(BACKGROUNDS["white"]) + torch.tensor([0.01, 0.02, -0.02])
        assert (x[:, 2, 2] - (2 * ground - 1)).abs().max() < 1e-5


def test_tints_are_added_to_the_colours():
    s = replace(alone(), objects=(Obj("circle", "green", "large", tint=(0.03, -0.04, 0.02)),))
    want = 2 * (torch.tensor(COLORS["green"]) + torch.tensor([0.03, -0.04, 0.02])) - 1
    assert (render(s)[0, :, 31, 31] - want).abs().max() < 1e-5


def test_textures_have_two_tones_and_plain_has_one():
    for texture in TEXTURES:
        for background in ("white", "black"):
            x = render(Scene((), "center", background, texture))[0, 0]
            assert (
                abs(x.min() - x.max()) < 1e-6
                if texture == "plain"
                else 0.25 < x.max() - x.min() < 0.31
            )
    a, b = (
        render(Scene((), "center", "blue", "striped", phase))[0]
        for phase in ((0.0, 0.0), (5.0, 0.0))
    )
    assert (a[..., 5:] - b[..., :-5]).abs().max() < 1e-5  # the phase shifts the stripes
    assert (a - a[:, :1]).abs().max() == 0  # stripes are upright


@pytest.mark.parametrize("texture, period", [("striped", 10), ("checkered", 16), ("dotted", 12)])
def test_textures_repeat_with_their_period(texture, period):
    x = render(Scene((), "center", "grey", texture, (3.3, 1.7)))[0]
    assert (x[..., period:] - x[..., :-period]).abs().max() < 1e-5
    assert (x[..., period // 2 :] - x[..., : -(period // 2)]).abs().max() > 0.2
    if texture != "striped":
        assert (x[:, period:] - x[:, :-period]).abs().max() < 1e-5


# ---- shapes --------------------------------------------------------------------------------------


def mask_of(shape, size="medium", angle=0.0):
    # centre 32, 32
    return object_masks(Scene((Obj(shape, "red", size, 0.5, 0.5, angle),), "center", "white"), 1)[
        0, 0
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_upright_shape_is_symmetric_from_left_to_right(shape):
    m = mask_of(shape)[1:, 1:]  # pixels 1..63 around the centre 32
    assert (m - m.flip(1)).abs().max() < 1e-4
    upside_down = (m - m.flip(0)).abs().max()
    assert upside_down > 0.5 if shape in ("triangle", "star") else upside_down < 1e-4


@pytest.mark.parametrize(
    "shape, quarter",
    [
        ("circle", 1),
        ("ring", 1),
        ("square", 1),
        ("cross", 1),
        ("diamond", 2),
        ("triangle", 4),
        ("star", 4),
    ],
)
def test_turning_by_the_angle_of_its_symmetry_changes_nothing(shape, quarter):
    """Quarter turns; a diamond is longer than wide, a triangle and a star need the full circle
    here.
    """
    m = mask_of(shape)
    assert (mask_of(shape, angle=quarter * torch.pi / 2) - m).abs().max() < 1e-3
    if quarter > 1:
        assert (mask_of(shape, angle=torch.pi / 2) - m).abs().max() > 0.5
    if shape in ("triangle", "star"):
        turn = 2 * torch.pi / (3 if shape == "triangle" else 5)
        area = mask_of(shape).sum()
        assert abs(mask_of(shape, angle=turn).sum() / area - 1) < 0.01


def test_a_positive_angle_turns_clockwise_as_seen():
    """y points down: the tip of a triangle moves right."""
    m = mask_of("triangle", "large", angle=0.3)
    top = m[:24]
    column = (top * torch.arange(64)).sum() / top.sum()
    assert column > 33


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_scale_with_the_square_of_the_size(shape):
    area = {k: mask_of(shape, k).sum().item() / r**2 for k, r in SIZES.items()}
    assert max(area.values()) / min(area.values()) < 1.04


def test_areas_are_those_of_geometry():
    r = SIZES["large"]
    for shape, want in {
        "circle": torch.pi * r**2,
        "square": (1.72 * r) ** 2,
        "diamond": 2 * 0.72 * 1.15 * r**2,
        "ring": torch.pi * r**2 * (1 - 0.48**2),
        "cross": (2 * 2 * 0.68 - 0.68**2) * r**2,
        "triangle": 3**1.5 / 4 * (1.2 * r) ** 2,
    }.items():
        assert abs(mask_of(shape, "large").sum().item() / want - 1) < 0.02, shape


def test_every_two_shapes_look_different_at_every_size():
    for size in SIZES:
        m = torch.stack([mask_of(s, size) for s in SHAPES]).flatten(1)
        gap = (m[:, None] - m[None]).abs().sum(-1) / m.sum(1).min()
        assert gap[~torch.eye(7, dtype=torch.bool)].min() > 0.2


def test_masks_are_coverages_and_the_renders_follow_them():
    scenes = draw(20, objects=2)
    m = object_masks(scenes)
    assert m.shape == (20, 2, 64, 64) and m.min() == 0 and m.max() == 1
    x, bare = render(scenes), render([replace(s, objects=(), position="center") for s in scenes])
    outside = (m.amax(1, keepdim=True) == 0).expand_as(x)
    assert (x - bare)[outside].abs().max() == 0
    top = torch.tensor([COLORS[s.objects[1].color] for s in scenes]) + torch.tensor(
        [s.objects[1].tint for s in scenes]
    )
    inside = (m[:, 1:] == 1).expand_as(x)
    assert (x - (2 * top.clamp(0, 1) - 1)[:, :, None, None].expand_as(x))[inside].abs().max() < 1e-5


def test_coverage_at_a_free_place_is_the_mask_of_a_scene_there():
    s = alone("star", "red", "small", "left")
    (x, y), r = centers(s)[0], SIZES["small"]
    values = (torch.tensor([v]) for v in (x, y, r, 0.0))
    assert torch.equal(coverage("star", *values)[0], object_masks(s, 1)[0, 0])


def test_a_window_of_the_distance_is_a_part_of_it():
    values = torch.tensor([[30.0], [35.0], [11.0], [0.3]])
    whole = distance("star", *values)
    window = (slice(10, 50), slice(20, 41))
    assert torch.equal(distance("star", *values, window=window), whole[:, 10:50, 20:41])


def test_an_object_sits_where_its_position_says():
    axis = torch.arange(64.0)
    for position in POSITIONS:
        m = object_masks(alone("circle", position=position), 1)[0, 0]
        x, y = (m.sum(0) * axis).sum() / m.sum(), (m.sum(1) * axis).sum() / m.sum()
        dx, dy = POSITIONS[position]
        assert abs(x - 31.5 - dx) < 0.01 and abs(y - 31.5 - dy) < 0.01
    for word, (dx, dy) in (
        ("left", (-1, 0)),
        ("right", (1, 0)),
        ("above", (0, -1)),
        ("below", (0, 1)),
    ):
        pair = Scene((Obj("circle", "red", "small"), Obj("star", "blue", "small")), word, "white")
        (ax, ay), (bx, by) = centers(pair)
        assert np.sign([ax - bx, ay - by]).tolist() == [dx, dy]  # the first object is left of ...


# ---- sampling ------------------------------------------------------------------------------------


def test_an_object_never_has_the_colour_word_of_its_ground_and_two_objects_differ():
    for s in draw(1500):
        assert all(o.color != s.background for o in s.objects)
        if len(s.objects) == 2:
            a, b = s.objects
            assert a.color != b.color and a.shape != b.shape


def test_every_word_is_drawn_and_pairs_as_often_as_asked():
    scenes = draw(1500)
    objects = [o for s in scenes for o in s.objects]
    assert {o.shape for o in objects} == set(SHAPES) and {o.color for o in objects} == set(COLORS)
    assert {o.size for o in objects} == set(SIZES) and {s.background for s in scenes} == set(
        BACKGROUNDS
    )
    assert {s.texture for s in scenes} == set(TEXTURES) and {s.position for s in scenes} == {
        *POSITIONS,
        *PAIRS,
    }
    assert abs(sum(len(s.objects) == 2 for s in scenes) / 1500 - 0.3) < 0.05
    assert abs(sum(len(s.objects) == 2 for s in draw(500, pairs=0.8)) / 500 - 0.8) < 0.08
    assert {len(s.objects) for s in draw(50, objects=1)} == {1} and {
        len(s.objects) for s in draw(50, objects=2)
    } == {2}


def test_a_tenth_of_all_tuples_is_held_out_and_the_splits_share_none():
    every = {
        (shape, color, ground): held_out(alone(shape, color, background=ground))
        for shape in SHAPES
        for color in COLORS
        for ground in BACKGROUNDS
    }
    assert abs(sum(every.values()) / len(every) - 0.1) < 0.03
    # no shape is spared
    assert all(any(every[shape, c, g] for c in COLORS for g in BACKGROUNDS) for shape in SHAPES)

    def tuples(split):
        return {(o.shape, o.color, s.background) for s in draw(400, split=split) for o in s.objects}

    assert not any(every[t] for t in tuples("train"))
    one = {
        (s.objects[0].shape, s.objects[0].color, s.background)
        for s in draw(300, split="test", objects=1)
    }
    assert all(every[t] for t in one) and not tuples("train") & one
    assert all(
        any(every[o.shape, o.color, s.background] for o in s.objects)
        for s in draw(100, split="test")
    )
    assert 0 < sum(map(held_out, draw(400))) < 100  # "all" holds both


def test_two_objects_hardly_overlap():
    """Whatever the shapes, at the largest size and the nearest jitter: at most some tips touch."""
    m = object_masks(draw(600, objects=2))
    both = m.prod(1).sum((1, 2))
    assert both.max() < 40 and (both < 3).float().mean() > 0.9
    assert (both / m.sum((2, 3)).amin(1)).max() < 0.12


def test_objects_stay_in_the_picture():
    m = object_masks(draw(300), 2)
    seen, whole = m.sum((2, 3)), torch.tensor([m.shape[0]])
    assert len(seen) == whole and (m[:, :, [0, -1]].sum() + m[..., [0, -1]].sum()) / m.sum() < 0.01


# ---- language ------------------------------------------------------------------------------------


def test_captions_name_what_is_there():
    s = Scene((Obj("circle", "red", "small"),), "left", "blue", "striped")
    assert caption(s) == "a small red circle on the left on a striped blue background"
    assert caption(s, size=False) == "a red circle on the left on a striped blue background"
    assert caption(s, position=False) == "a small red circle on a striped blue background"
    assert (
        short_caption(s)
        == caption(s, size=False, position=False, texture=False)
        == "a red circle on a blue background"
    )
    pair = Scene((Obj("circle", "red", "small"), Obj("star", "pink", "large")), "above", "white")
    assert caption(pair) == "a small red circle above a large pink star on a plain white background"
    assert (
        short_caption(replace(pair, position="left"))
        == "a red circle left of a pink star on a white background"
    )
    assert caption(Scene((), "center", "grey", "dotted")) == "a dotted grey background"


def test_every_caption_fits_the_context_and_uses_words_of_the_vocabulary():
    tok, rng = Tokenizer.words(shapes.VOCAB, context=20), np.random.default_rng(0)
    scenes = draw(300)
    said = [c for s in scenes for c in (caption(s), short_caption(s), random_caption(s, rng))]
    assert max(map(tok.length, said)) <= 20 and {w for c in said for w in c.split()} == set(
        shapes.VOCAB
    )
    assert all(tok.decode(row) == c for row, c in zip(tok(said), said))
    longest = Scene(
        (Obj("circle", "red", "small"), Obj("star", "pink", "large")), "left", "white", "checkered"
    )
    assert tok.length(caption(longest)) <= 20


def test_different_scenes_have_different_full_captions():
    """The caption of everything is lossless but for the nuisances."""

    def words(s):
        return (
            tuple((o.shape, o.color, o.size) for o in s.objects),
            s.position,
            s.background,
            s.texture,
        )

    found = {}
    for s in draw(800):
        assert found.setdefault(caption(s), words(s)) == words(s)


def test_a_third_of_the_training_captions_are_short():
    rng, s = (
        np.random.default_rng(0),
        Scene((Obj("circle", "red", "small"),), "left", "blue", "striped"),
    )
    said = [random_caption(s, rng) for _ in range(2000)]
    lost = (1 + 2 * 0.25 * 0.25 * 0.15) / 3  # short, or long with all groups lost
    assert abs(said.count(short_caption(s)) / 2000 - lost) < 0.04
    assert abs(said.count(caption(s)) / 2000 - 2 / 3 * 0.75 * 0.75 * 0.85) < 0.04


# ---- edits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["shape", "color", "size", "position", "background", "texture"])
def test_an_edit_changes_one_field_and_its_inverse_returns_the_scene(what):
    rng = np.random.default_rng(0)
    for s in draw(30):
        value = other(s, what, rng)
        b = edit(s, what, value)
        before = (
            getattr(s.objects[0], what) if what in ("shape", "color", "size") else getattr(s, what)
        )
        assert b != s and edit(b, what, before) == s
        assert value in caption(b).split() or what == "position"


def test_an_edit_of_the_second_object_leaves_the_first():
    for s in draw(20, objects=2):
        b = edit(s, "size", next(k for k in SIZES if k != s.objects[1].size), index=1)
        assert b.objects[0] == s.objects[0] and b.objects[1].size != s.objects[1].size


@pytest.mark.parametrize("what", ["shape", "color", "size", "position", "texture", "delete"])
def test_only_pixels_inside_the_mask_change(what):
    rng = np.random.default_rng(1)
    for s in draw(12, seed=2):
        b = edit(s, what, None if what == "delete" else other(s, what, rng))
        m, gap = edit_mask(s, b), (render(s) - render(b)).abs()
        assert m.shape == (1, 1, 64, 64) and set(m.unique().tolist()) <= {0.0, 1.0}
        assert (gap * (1 - m)).max() <= 2 * LEVEL and m.sum() > 0
        assert m.mean() < 0.9 or what == "texture"


def test_the_mask_of_no_change_is_empty_and_grows_by_pixels():
    s = alone()
    assert edit_mask(s, s).sum() == 0
    b = edit(s, "color", "blue")
    tight, wide = edit_mask(s, b, grow=0), edit_mask(s, b, grow=3)
    assert torch.equal(F.max_pool2d(tight, 7, 1, 3), wide) and tight.sum() < wide.sum()
    assert torch.equal(edit_mask(s, b), edit_mask(b, s))


def test_a_recolouring_stays_within_the_object():
    for s in draw(20, seed=3, objects=1):
        b = edit(s, "color", next(c for c in COLORS if c not in (s.objects[0].color, s.background)))
        touched, object_ = edit_mask(s, b, grow=0), object_masks(s, 1)
        assert touched[object_ == 0].sum() == 0
        assert touched[object_ > 0.5].mean() > 0.99  # and covers it


def test_deleting_one_of_two_keeps_the_pixels_of_the_other():
    for s in draw(30, seed=4, objects=2):
        m = object_masks(s)
        for gone in (0, 1):
            b = edit(s, "delete", index=gone)
            kept = m[:, 1 - gone : 2 - gone]
            assert len(b.objects) == 1 and (object_masks(b, 1) - kept).abs().max() < 1e-4
            apart = ((kept > 0) & (m[:, gone : gone + 1] == 0)).expand(1, 3, 64, 64)
            assert (render(b) - render(s))[apart].abs().max() < 1e-4
            bare = (m.amax(1, keepdim=True) == 0).expand(1, 3, 64, 64)
            assert (render(b) - render(s))[bare].abs().max() == 0
            name = {
                ("left", 0): "right",
                ("left", 1): "left",
                ("above", 0): "bottom",
                ("above", 1): "top",
                ("right", 0): "left",
                ("right", 1): "right",
                ("below", 0): "top",
                ("below", 1): "bottom",
            }
            assert b.position == name[s.position, gone]


def test_deleting_the_only_object_leaves_the_ground_and_adding_it_brings_it_back():
    s = alone("star", texture="dotted")
    empty = edit(s, "delete")
    assert empty.objects == () and caption(empty) == "a dotted white background"
    assert edit(empty, "add", s.objects[0]) == s
    assert object_masks(empty).abs().max() == 0


def test_adding_puts_the_new_object_below():
    s, new = alone("star"), Obj("ring", "green", "small")
    b = edit(s, "add", new)
    assert (
        b.objects == (s.objects[0], new)
        and short_caption(b) == "a red star above a green ring on a white background"
    )
    assert centers(b)[0][1] < centers(b)[1][1]
    with pytest.raises(ValueError, match="at most two"):
        edit(b, "add", new)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value, choices",
    [
        ("shape", "hexagon", "circle, square"),
        ("color", "brown", "red, orange"),
        ("size", "huge", "small, medium, large"),
        ("position", "above", "center, left"),
        ("background", "orange", "red, yellow"),
        ("texture", "wavy", "plain, striped"),
    ],
)
def test_a_value_of_another_world_is_refused_with_the_choices(field, value, choices):
    with pytest.raises(
        ValueError, match=f"{field} '{value}' is not in this world; choose one of {choices}"
    ):
        edit(alone(), field, value)
    with pytest.raises(ValueError, match=f"choose one of {choices}"):
        alone(**{field: value})


def test_other_bad_input_is_refused_with_what_was_expected():
    o = Obj("circle", "red", "small")
    for call, message in [
        (lambda: Scene((o, o, o), "left", "white"), "number of objects 3"),
        (lambda: Scene((o, o), "center", "white"), "position 'center'.*left, right, above, below"),
        (lambda: edit(alone(), "mood", "sad"), "cannot edit 'mood'; choose shape"),
        (lambda: edit(alone(), "color", "blue", index=1), r"index 1, but the scene has 1 object"),
        (lambda: edit(alone(), "delete", index=-1), r"index -1, but the scene has 1 object"),
        (lambda: edit(edit(alone(), "delete"), "delete"), "has 0 object"),
        (lambda: render(alone(), 48), "size 48.*16, 32 or a multiple of 64"),
        (
            lambda: scene(np.random.default_rng(0), split="dev"),
            "split 'dev'.*'train', 'test' or 'all'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
