"""Which methods the bench can run, and what each is given."""

import pytest

from minidiff.bench import knobs, methods
from minidiff.bench.controls import CONTROLS
from minidiff.bench.items import given, items
from minidiff.techniques import ALL


def test_inputs_are_read_off_the_signature():
    said = {
        n: methods.method(n).inputs
        for n in (
            "sdedit",
            "sdedit+mask",
            "edict",
            "direct-inversion",
            "imagic",
            "inpaint",
            "copy",
            "truth",
        )
    }
    assert said == {
        "sdedit": "P",
        "sdedit+mask": "PM",
        "edict": "PS",
        "direct-inversion": "PSW",
        "imagic": "PF",
        "inpaint": "PM",
        "copy": "",
        "truth": "",
    }


def test_the_full_table_has_one_row_for_one_function_and_none_that_no_item_serves():
    rows = methods.everything()
    assert {*CONTROLS, "sdedit", "sdedit+mask", "blended-latent", "sdedit@strength=0.4"} <= {*rows}
    assert not {"inpaint", "ddib", "diffusion-clip", "prompt-to-prompt"} & {*rows}
    for name in rows:
        methods.method(name)
    for technique in ALL:
        assert technique.same_as in ("", *rows), technique.name


def test_every_method_runs_in_the_same_number_of_steps():
    steps = {name: methods.method(name).options("move").get("steps") for name in ("zecon", "ilvr")}
    assert steps == {"zecon": methods.STEPS, "ilvr": methods.STEPS}
    assert methods.at_steps("sdedit", methods.STEPS) == "sdedit"
    assert methods.at_steps("sdedit@scale=2", 10) == "sdedit@scale=2,steps=10"
    assert methods.method("sdedit@steps=10").options("move")["steps"] == 10
    assert methods.at_steps("delta-denoising", 10) == "delta-denoising"  # it counts otherwise


def test_methods_that_draw_start_from_the_picture():
    for name in ("semantic-guidance", "classifier-guidance", "ilvr"):
        assert max(knobs.sweep(name).tries["strength"]) < 1, name


@pytest.mark.parametrize(
    "name, told",
    [
        ("sdxl", "no method called"),
        ("instruct-pix2pix", "instruction"),
        ("prompt-to-prompt", "a picture to edit"),
        ("sdedit@strength=x", "strength='x'"),
        ("copy+mask", "takes no mask"),
        ("sdedit@strenght=.5", "no option strenght"),
        ("ddnm", "task"),
        ("sdedit+misread", "reads no source caption"),
    ],
)
def test_methods_that_cannot_run_are_refused_with_the_reason(name, told):
    with pytest.raises(ValueError, match=told):
        methods.method(name)


def test_a_misread_caption_reaches_those_that_read_one():
    m = methods.method("edict+misread@steps=9")
    assert m.misread and not m.masked and m.inputs == "PS"
    assert methods.method("diffedit+mask+misread").masked
    item = items("test", 1)[0]
    assert given(m.fn, item, misread=True)["source"] == item.misread
    assert given(m.fn, item)["source"] == item.source
