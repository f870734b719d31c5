"""The settings of the methods: where they come from, and that they exist."""

import inspect

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


def test_everything_that_is_swept_is_an_option_and_few_enough_to_try():
    for technique in ALL:
        name, sweep = technique.name, technique.sweep
        if not sweep.tries:
            continue
        asked = inspect.signature(technique.load()).parameters
        assert sweep.tries.keys() <= asked.keys() and 1 < len(knobs.combinations(name)) <= 9, name
        assert not sweep.curve[0] or sweep.curve[0] in asked, name


def test_shipped_knobs_are_of_methods_and_options_that_exist():
    for name in knobs.load():
        methods.method(name)
