import json

import pytest
import torch

import minidiff
from minidiff.cli import doctor
from minidiff.weights import store as shelf


@pytest.fixture
def clinic(tmp_path, monkeypatch):
    """A package that ships two untrained models."""
    monkeypatch.setattr(shelf, "TINY", tmp_path)
    monkeypatch.setattr(shelf, "PARTS", {"tiny": {"net": "unet"}, "tiny-pixel": {"net": "pixel"}})
    monkeypatch.setattr(
        shelf, "manifest", lambda: {"unet": {"sha256": "1"}, "pixel": {"sha256": "2"}}
    )
    monkeypatch.setattr(shelf, "load_weights", lambda name: {})
    monkeypatch.setattr(
        shelf, "load", lambda name, device=None: minidiff.build(name, seed=1, device=device)
    )
    doctor.store()
    return tmp_path / "doctor.json"


def change(path, name, **fields):
    numbers = json.loads(path.read_text())
    numbers[name] |= fields
    path.write_text(json.dumps(numbers))


def test_a_sound_installation_passes(clinic):
    facts = doctor.examine("cpu")
    assert facts["passed"] and facts["two steps of tiny"].startswith("ok")
    assert facts["weights"] == "ok, 2 files as shipped" and facts["torch"] == torch.__version__


def test_another_result_of_the_same_weights_fails(clinic):
    values = json.loads(clinic.read_text())["tiny"]["values"]
    change(clinic, "tiny", values=[v + (0.01 if i == 7 else 0) for i, v in enumerate(values)])
    facts = doctor.examine("cpu")
    assert not facts["passed"] and facts["two steps of tiny"].startswith("FAILED: off by 1.0e-02")
    assert facts["two steps of tiny-pixel"].startswith("ok")


def test_numbers_of_other_weights_are_not_compared(clinic):
    change(clinic, "tiny-pixel", files={"pixel": "3"})
    assert "no numbers for these weights" in doctor.examine("cpu")["two steps of tiny-pixel"]


def test_a_model_that_gives_nan_fails(clinic, monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda pipe: [float("nan")] * 16)
    assert "off by nan" in doctor.examine("cpu")["two steps of tiny"]


def test_a_damaged_or_missing_file_fails_and_does_not_raise(clinic, monkeypatch):
    def damaged(name):
        raise ValueError(f"{name} is not the file\nthat was shipped")

    monkeypatch.setattr(shelf, "load_weights", damaged)
    clinic.unlink()
    facts = doctor.examine("cpu")
    assert facts["weights"] == "FAILED: unet is not the file that was shipped"
    assert facts["two steps of tiny"].startswith("FAILED") and not facts["passed"]


def test_a_model_without_its_weights_fails(clinic, monkeypatch):
    monkeypatch.setattr(shelf, "manifest", lambda: {"unet": {"sha256": "1"}})
    facts = doctor.examine("cpu")
    assert (
        facts["weights"].startswith("FAILED: weights of pixel are not in") and not facts["passed"]
    )
    assert "two steps of tiny" in facts and "two steps of tiny-pixel" not in facts


def test_the_probe_depends_on_every_weight_it_uses():
    pipe = minidiff.build("tiny", seed=1)
    before = doctor.probe(pipe)
    assert len(before) == 16 and before == doctor.probe(pipe)
    pipe.text.final_layer_norm.bias.data += 0.1
    assert max(abs(a - b) for a, b in zip(before, doctor.probe(pipe))) > doctor.TOLERANCE["cpu"]


@pytest.mark.weights
def test_the_shipped_weights_give_the_stored_numbers():
    facts = doctor.examine("cpu")
    assert facts["passed"], facts
    assert {"two steps of tiny", "two steps of tiny-dit", "two steps of tiny-pixel"} <= facts.keys()
