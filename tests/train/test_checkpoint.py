"""What a training keeps, what it refuses to go on with, and who may write in its folder."""

import os
import pickle

import pytest
import torch
from torch import nn

from minidiff.train.checkpoint import (
    CHECKPOINT,
    averaged_weights,
    check_free,
    check_settings,
    locked,
    read_facts,
    restore,
    save_checkpoint,
)
from minidiff.train.fit import fit
from minidiff.train.optim import optimisers

OPTIONS = dict(steps=4, lr=1e-2, muon_lr=2e-2, warmup=1, ema=0.5, seed=3, progress=False)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batch(step):
    return {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(step))}


def loss(net, rows):
    return net(rows["x"]).pow(2).mean()


def train(folder, **options):
    return fit(network(), loss, batch, out=folder, **{**OPTIONS, **options})


def facts(step=1, **settings):
    return {"step": step, "cpu_seconds": 0.5, "loss": 0.25, "settings": settings}


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 2),
        ("steps", 40),
        ("seed", 4),
        ("optimiser", "adamw"),
        ("lr", 0.5),
        ("muon_lr", 0.5),
        ("weight_decay", 0.1),
        ("warmup", 2),
        ("decay", 0.9),
        ("clip", 0.5),
        ("ema", 0.9),
    ],
)
def test_another_setting_is_another_training_and_refused_by_name(tmp_path, name, value):
    train(tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match=rf"holds a training with {name} .*{name} {value!r} was"):
        train(tmp_path, **{name: value})
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_settings_of_the_recipe_are_kept_and_compared_too(tmp_path):
    settings = {"prediction": "v", "pairs": (2, 0.5)}
    train(tmp_path, settings=settings, stop_at=2)
    assert read_facts(tmp_path)["settings"]["pairs"] == [2, 0.5]
    with pytest.raises(ValueError, match="holds a training with prediction 'v', and prediction 'e"):
        train(tmp_path, settings=settings | {"prediction": "eps"})
    train(tmp_path, settings=settings)
    assert read_facts(tmp_path)["step"] == OPTIONS["steps"]


def test_only_what_is_asked_is_compared_and_an_empty_folder_fits_everything(tmp_path):
    check_settings(tmp_path, {"seed": 1})
    net = network()
    save_checkpoint(tmp_path, net, {}, [], facts(seed=1, start=None))
    check_settings(tmp_path, {"start": None})
    with pytest.raises(ValueError, match="with seed 1, and seed 2 was asked for"):
        check_settings(tmp_path, {"seed": 2, "start": None})


# ---- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_state_comes_back_to_the_bit(tmp_path, kind):
    net = train(None, steps=3)
    movers = optimisers(net, kind)
    loss(net, batch(0)).backward()
    for mover in movers:
        mover.step()
    average = {name: p.detach() / 3 for name, p in net.named_parameters()}
    save_checkpoint(tmp_path, net, average, movers, facts())
    other = network()
    fresh = optimisers(other, kind)
    kept = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    restore(tmp_path, other, kept, fresh)
    for name, p in net.named_parameters():
        assert torch.equal(p, other.state_dict()[name]) and torch.equal(average[name], kept[name])
    for old, new in zip(movers, fresh):
        states = zip(old.state_dict()["state"].values(), new.state_dict()["state"].values())
        assert all(torch.equal(a[k], b[k]) for a, b in states for k in a)


def test_averaged_weights_take_the_raw_ones_where_there_is_no_average(tmp_path):
    net = network()
    save_checkpoint(tmp_path, net, {"0.bias": torch.full((4,), 7.0)}, [], facts())
    found = averaged_weights(tmp_path)
    assert (found.pop("0.bias") == 7).all()
    assert all(torch.equal(v, net.state_dict()[name]) for name, v in found.items()) and found


@pytest.mark.parametrize("where", ["weight", "average", "optimiser"])
def test_nothing_that_is_not_finite_is_saved(tmp_path, where):
    net = network()
    movers = optimisers(net, "adamw")
    loss(net, batch(0)).backward()
    movers[0].step()
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    save_checkpoint(tmp_path, net, average, movers, facts())
    before = (tmp_path / CHECKPOINT).read_bytes()
    broken = {
        "weight": net[2].weight.data,
        "average": average["2.weight"],
        "optimiser": movers[0].state[net[2].weight]["exp_avg"],
    }[where]
    broken[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="holds NaN or infinite numbers after step 2"):
        save_checkpoint(tmp_path, net, average, movers, facts(step=2))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    evidence = tmp_path / "evidence"
    program = pickle.dumps(Command(f"touch {evidence}"))
    (tmp_path / CHECKPOINT).write_bytes(program)
    for read in (train, averaged_weights):
        with pytest.raises(ValueError, match="does not continue this training"):
            read(tmp_path)
    assert not evidence.exists()


# ---- who may write -------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_training_at_a_time(tmp_path):
    folder = tmp_path / "run"
    check_free(folder)
    with locked(folder):
        for attempt in (train, check_free):
            with pytest.raises(ValueError, match=f"process {os.getpid()} is training in .*run"):
                attempt(folder)
    check_free(folder)
    train(folder)
    assert sorted(p.name for p in folder.iterdir()) == [".lock", CHECKPOINT, "log.jsonl"]


def test_a_part_is_named_by_its_process(tmp_path, monkeypatch):
    parts = []
    replace = os.replace

    def watched(part, path):
        parts.append(os.path.basename(part))
        replace(part, path)

    monkeypatch.setattr(os, "replace", watched)
    save_checkpoint(tmp_path, network(), {}, [], facts())
    assert len(parts) == 1 and str(os.getpid()) in parts[0]
