import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import minidiff
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene
from minidiff.evaluate.oracle import ATTRIBUTES, FULL, NAME, SHORT, Oracle, compare, oracle, stated
from minidiff.models.attribute_net import AttributeNet

ONE = Scene((Obj("star", "red", "small"),), "left", "grey", "dotted")
TWO = Scene((Obj("star", "red", "small"), Obj("ring", "blue", "large")), "right", "grey", "plain")


def found(s, position=None):
    """What a perfect reading of a scene returns, objects as listed."""
    return {
        "objects": [{"shape": o.shape, "color": o.color, "size": o.size} for o in s.objects],
        "position": position or s.position,
        "background": s.background,
        "texture": s.texture,
    }


def wrong(verdict):
    return {k for k, v in verdict.items() if not v}


def scenes(n, objects, seed=0):
    rng = np.random.default_rng(seed)
    return [shapes.scene(rng, objects=objects, split="test") for _ in range(n)]


def test_a_reading_equal_to_the_scene_is_right_in_everything():
    seen = found(replace(TWO, objects=TWO.objects[::-1]), "left")  # canonical: the left one first
    assert not wrong(compare(seen, TWO)) and not wrong(compare(found(ONE), ONE))


@pytest.mark.parametrize(
    "what, value",
    [
        ("shape", "ring"),
        ("color", "blue"),
        ("size", "large"),
        ("position", "top"),
        ("background", "white"),
        ("texture", "plain"),
    ],
)
def test_one_changed_attribute_makes_that_one_wrong(what, value):
    assert wrong(compare(found(shapes.edit(ONE, what, value)), ONE)) == {what}


def test_two_objects_in_each_others_places_have_only_the_position_wrong():
    assert wrong(compare(found(TWO, "left"), TWO)) == {"position"}


def test_a_missing_object_makes_its_looks_and_the_relation_wrong():
    assert wrong(compare(found(ONE), TWO)) == {
        "count",
        "shape",
        "color",
        "size",
        "position",
        "texture",
    }


def test_a_second_object_makes_count_and_position_wrong():
    seen = found(replace(TWO, texture="dotted"), "left")
    assert wrong(compare(seen, ONE)) == {"count", "position"}


def test_what_a_prompt_states_is_what_its_caption_says():
    told = stated([ONE, TWO], [FULL, SHORT])
    assert all(told[a][0] for a in ATTRIBUTES)
    assert [a for a in ATTRIBUTES if told[a][1]] == [
        "count",
        "shape",
        "color",
        "position",
        "background",
    ]
    assert [a for a in ATTRIBUTES if stated([ONE], NAME)[a]] == ["count", "shape", "color"]
    assert [a for a in ATTRIBUTES if stated([replace(ONE, objects=())])[a]] == [
        "count",
        "background",
        "texture",
    ]
    with pytest.raises(ValueError, match="groups"):
        stated([ONE], ("colour",))
    with pytest.raises(ValueError, match="groups"):
        stated([ONE], [FULL, FULL])


def test_joint_asks_only_for_what_was_stated(monkeypatch):
    o = Oracle(AttributeNet())
    monkeypatch.setattr(o, "read", lambda images: [found(shapes.edit(ONE, "texture", "plain"))] * 2)
    right = o.judge(torch.zeros(2, 3, 64, 64), [ONE, ONE], [FULL, SHORT])
    assert right["joint"].tolist() == [False, True] and right["texture"].tolist() == [False, False]
    with pytest.raises(ValueError, match="2 pictures for 1 scenes"):
        o.judge(torch.zeros(2, 3, 64, 64), [ONE])


def test_even_an_untrained_oracle_reads_places_that_fit_the_number_of_objects():
    torch.manual_seed(0)
    for r in Oracle(AttributeNet()).read(torch.randn(32, 3, 64, 64)):
        allowed = {0: (None,), 1: shapes.POSITIONS, 2: ("left", "above")}[len(r["objects"])]
        assert r["position"] in allowed


@pytest.mark.weights
@pytest.mark.parametrize("objects", [1, 2])
def test_held_out_renders_are_judged_right(objects):
    ss = scenes(600, objects)
    assert oracle().judge(shapes.render(ss), ss)["joint"].float().mean() >= 0.99


@pytest.mark.weights
def test_the_true_edit_fails_exactly_the_attribute_it_changes():
    ss = scenes(60, 1, seed=1)
    for what, value in (
        ("shape", "cross"),
        ("color", "cyan"),
        ("size", "large"),
        ("position", "bottom"),
        ("background", "white"),
        ("texture", "striped"),
    ):
        now = lambda s: getattr(s if hasattr(s, what) else s.objects[0], what)  # noqa: B023, E731
        old = [s for s in ss if now(s) != value and "cyan" != s.objects[0].color]
        right = oracle().judge(shapes.render([shapes.edit(s, what, value) for s in old]), old)
        assert {a: round(v.float().mean().item()) for a, v in right.items()} == {
            a: int(a not in (what, "joint")) for a in right
        }


@pytest.mark.weights
def test_deleted_objects_are_seen_to_be_gone():
    ss = scenes(60, 2, seed=2)
    fewer = [shapes.edit(s, "delete", index=i % 2) for i, s in enumerate(ss)]
    none = [shapes.edit(s, "delete") for s in fewer]
    for truth in (fewer, none):
        right = oracle().judge(shapes.render(truth), truth)
        assert right["count"].float().mean() >= 0.98 and right["joint"].float().mean() >= 0.95


@pytest.mark.weights
def test_features_put_renders_near_renders_and_noise_far_away():
    from minidiff.evaluate.metrics import frechet

    a, b = (oracle().features(shapes.render(scenes(150, 1, seed=i))) for i in (3, 4))
    noise = oracle().features(
        torch.randn(150, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    )
    assert frechet(a, noise) > 10 * frechet(a, b)


def imported(path):
    """Dotted names a file imports anywhere, functions included; relative ones made absolute."""
    package = ("minidiff", *path.relative_to(Path(minidiff.__file__).parent).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            yield from (base, *(f"{base}.{a.name}" for a in node.names))


def test_no_technique_reaches_an_oracle_not_even_through_another_module():
    """What grades the methods must not guide them."""
    package = Path(minidiff.__file__).parent
    names = {}  # {file: what it imports}

    def reached(path):
        seen = set()
        todo = [path]
        while todo:
            file = todo.pop()
            if file not in names:
                names[file] = set(imported(file))
            for name in names[file] - seen:
                seen.add(name)
                module = package.parent / Path(*name.split(".")).with_suffix(".py")
                if name.startswith("minidiff.") and module.exists():
                    todo.append(module)
        return seen

    def judges(path):
        rooms = ("minidiff.evaluate", "minidiff.bench", "minidiff.proofs")
        graders = (*rooms, "minidiff.models.attribute_net")
        return sorted(name for name in reached(path) if name.startswith(graders))

    rooms = "core models samplers guidance inversion editing restoration control".split()
    files = [file for room in rooms for file in sorted((package / room).rglob("*.py"))]
    files.remove(package / "models/attribute_net.py")
    assert len(files) > 20
    for file in files:
        assert not judges(file), (file.name, judges(file))
    assert judges(package / "bench/scores.py")  # the test can fail


def test_the_scan_of_imports_sees_every_way_to_write_one(tmp_path, monkeypatch):
    monkeypatch.setattr(minidiff, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "editing").mkdir()
    for line in (
        "import minidiff.evaluate.oracle as o",
        "from minidiff.evaluate import oracle",
        "def f():\n    from minidiff.evaluate.oracle import oracle",
        "from ..evaluate import oracle",
        "from ..evaluate.oracle import Oracle",
    ):
        (tmp_path / "editing" / "x.py").write_text(line)
        assert "minidiff.evaluate.oracle" in set(imported(tmp_path / "editing" / "x.py")), line
