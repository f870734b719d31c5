"""Which methods the bench can run, and what each is given."""

import pytest

from minidiff.bench import methods
from minidiff.bench.controls import CONTROLS
from minidiff.bench.items import given, items


def test_inputs_are_read_off_the_signature():
    said = {
        n: methods.method(n).inputs
        for n in ("sdedit", "sdedit+mask", "edict", "imagic", "inpaint", "copy", "truth")
    }
    assert said == {
        "sdedit": "P",
        "sdedit+mask": "PM",
        "edict": "PS",
        "imagic": "PF",
        "inpaint": "PM",
        "copy": "",
        "truth": "",
    }
    assert {*CONTROLS, "sdedit", "sdedit+mask", "inpaint", "sdedit@strength=0.4"} <= {
        *methods.everything()
    }
    for name in methods.everything():
        methods.method(name)


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
