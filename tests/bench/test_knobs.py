"""The settings of the methods: where they come from, and that they exist."""

import inspect
import math

import pytest

from minidiff.bench import knobs, methods
from minidiff.techniques import ALL


def test_settings_come_from_the_file_by_kind_and_the_name_overrides_them(tmp_path):
    known = {
        "sdedit": {"chosen": {"move": {"strength": 0.7}}, "per_kind": True},
        "inpaint": {"chosen": {"scale": 5.0}},
    }
    assert (
        knobs.chosen("sdedit", "move", known)
        == knobs.chosen("sdedit+mask", "move", known)
        == {"strength": 0.7}
    )
    assert knobs.chosen("sdedit", "add", known) == {} and knobs.chosen("inpaint", "add", known) == {
        "scale": 5.0
    }
    assert knobs.chosen("sdedit@strength=.2,steps=10", "move", known) == {
        "strength": 0.2,
        "steps": 10,
    }
    assert knobs.chosen("edict+misread", "add") == knobs.chosen("edict", "add")
    path = tmp_path / "knobs.json"
    one, two = (
        knobs.save(n, {"chosen": {"strength": v}}, path) for n, v in (("a", 0.1), ("b", 0.2))
    )
    assert one["hash"] != two["hash"] and knobs.load(path) == {"a": one, "b": two}
    sdedit = methods.method("sdedit").fn
    prints = {
        knobs.digest("sdedit", "tiny", sdedit, o)
        for o in ({}, {"strength": 0.6}, {"strength": 0.5}, {"steps": 9})
    }
    assert len(prints) == 3  # .6 is the default


def test_one_choice_for_all_kinds_and_the_best_of_each_beside_it():
    known = {
        "edict": {"chosen": {"scale": 2.0}, "per_kind": {"move": {"scale": 5.0}}},
    }
    assert knobs.chosen("edict", "move", known) == {"scale": 2.0}
    assert knobs.chosen("edict@per_kind", "move", known) == {"scale": 5.0}
    assert knobs.chosen("edict@per_kind,steps=9", "add", known) == {"steps": 9}
    assert knobs.chosen("ddib", "move", {"inverted": {"chosen": {"scale": 1.5}}}) == {"scale": 1.5}


def test_everything_that_is_swept_is_an_option_and_few_enough_to_try():
    for technique in ALL:
        sweep = technique.sweep
        asked = inspect.signature(technique.load()).parameters
        own = math.prod(len(values) for values in sweep.tries.values())
        assert sweep.tries.keys() | sweep.fixed.keys() <= asked.keys(), technique.name
        assert own <= 4, technique.name
        assert not sweep.curve[0] or sweep.curve[0] in asked, technique.name
        assert technique.guidance == "scale" or technique.guidance in asked, technique.name


def test_guidance_is_a_knob_of_every_method_that_has_it_controls_included():
    for name in ("sdedit", "masactrl", "plug-and-play", "negative-prompt", "inverted", "resample"):
        assert {tried["scale"] for tried in knobs.combinations(name)} == {1, 1.5, 2, 3, 5}, name
    assert {tried["text"] for tried in knobs.combinations("semantic-guidance")} > {300}
    assert len(knobs.combinations("sdedit+mask")) == 5 * 4
    assert knobs.guidance("boundary") == {} and len(knobs.combinations("boundary")) == 3
    with pytest.raises(ValueError, match="nothing to fit"):
        knobs.combinations("copy")


def test_shipped_knobs_are_of_methods_and_options_that_exist():
    for name in knobs.load():
        methods.method(name)
