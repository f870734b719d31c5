"""The training loop: every step a function of (seed, step), so that no way of stopping changes the
result.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minidiff.train import fit as module
from minidiff.train.checkpoint import (
    CHECKPOINT,
    averaged_weights,
    read_checkpoint,
    read_facts,
)
from minidiff.train.fit import fit, schedule_lr
from minidiff.train.optim import Muon

STEPS, EVERY = 40, 5

CODE = """
import sys, time
import torch
from torch import nn
from minidiff.train.fit import fit

torch.set_num_threads(1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(.2), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))


def batch(step):
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 6, generator=g)
    return {"x": x, "y": x[:, :2].sin() + .1 * torch.randn(8, 2, generator=g)}


def loss(net, b):
    return (net(b["x"]) - b["y"]).pow(2).mean()
"""
exec(CODE, world := {})  # the same few lines here and in child processes
make, batch, loss = world["net"], world["batch"], world["loss"]
SETUP = dict(
    steps=STEPS,
    lr=1e-2,
    muon_lr=2e-2,
    warmup=5,
    decay=0.3,
    ema=0.9,
    save_every=EVERY,
    seed=3,
    progress=False,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def train(out=None, batch=batch, loss=loss, net=None, **kw):
    return fit(net or make(), loss, batch, out=out, **{**SETUP, **kw})


@pytest.fixture(scope="module")
def whole():
    """The weights of a run that nothing disturbed."""
    return train().state_dict()


def same(net, state):
    return all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def step_of(folder):
    return read_facts(folder)["step"]


def raw_weights(folder):
    saved = read_checkpoint(folder)
    return {k.removeprefix("net."): v for k, v in saved.items() if k.startswith("net.")}


def test_training_learns_and_returns_averaged_weights_in_eval_mode(whole, tmp_path):
    net, test = train(tmp_path), [batch(s) for s in range(1000, 1010)]

    def error(n):
        return sum(loss(n, b).item() for b in test)

    assert error(net) < 0.7 * error(make().eval()) and not net.training and same(net, whole)
    assert same(net, averaged_weights(tmp_path)) and not same(net, raw_weights(tmp_path))
    assert step_of(tmp_path) == STEPS


# ---- resuming ------------------------------------------------------------------------------------

CHILD = (
    CODE
    + f"""
def slow(step):
    time.sleep(60 if step == {STEPS - 15} else .02)         # never done before the parent has had its say
    return batch(step)


fit(net(), loss, slow, out=sys.argv[1], **{SETUP!r})
"""
)


def test_a_run_killed_at_an_arbitrary_moment_resumes_to_the_same_bits(whole, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        end = time.monotonic() + 200
        while not (tmp_path / CHECKPOINT).exists():
            assert child.poll() is None and time.monotonic() < end, "the child never saved"
            time.sleep(0.005)
        time.sleep(0.137)  # in the middle of anything
        assert child.poll() is None
        with pytest.raises(ValueError, match=f"process {child.pid} is training in"):
            train(tmp_path)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL and 0 < step_of(tmp_path) < STEPS
    assert same(train(tmp_path), whole)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_stopping_anywhere_and_going_on_changes_no_bit(tmp_path, kind):
    for stop in (1, 7, 8, 31, 39):
        train(tmp_path, optimiser=kind, stop_at=stop)
        assert step_of(tmp_path) == stop
    assert same(train(tmp_path, optimiser=kind), train(optimiser=kind).state_dict())


def test_a_finished_run_trains_no_further(whole, tmp_path):
    train(tmp_path)

    def never(step):
        raise AssertionError("no batch is needed any more")

    assert same(train(tmp_path, batch=never), whole)


def test_ctrl_c_saves_the_step_reached_and_raises(whole, tmp_path):
    def interrupted(step):
        if step == 13:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, batch=interrupted, save_every=1000)
    assert step_of(tmp_path) == 13
    assert same(train(tmp_path), whole)


def test_ctrl_c_in_the_middle_of_a_step_loses_or_doubles_nothing(whole, tmp_path):
    def interrupted(net, b):
        if torch.equal(b["x"], batch(13)["x"]):
            raise KeyboardInterrupt
        return loss(net, b)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=interrupted, save_every=1000)
    assert step_of(tmp_path) == 13 and same(train(tmp_path), whole)


def test_ctrl_c_between_two_optimisers_keeps_the_last_whole_step(whole, tmp_path, monkeypatch):
    """Half of the weights have moved and the average has not: no such state is ever saved."""
    move, calls = Muon.step, []

    def step(self, *args):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return move(self, *args)

    with monkeypatch.context() as m:
        m.setattr(Muon, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert step_of(tmp_path) == 10 and same(train(tmp_path), whole)


def test_a_half_written_checkpoint_beside_the_good_one_does_not_matter(whole, tmp_path):
    train(tmp_path, stop_at=20)
    half = (tmp_path / CHECKPOINT).read_bytes()[:700]
    (tmp_path / f".{CHECKPOINT}.123.part").write_bytes(half)  # of a killed process
    assert same(train(tmp_path), whole)


def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_rubbish(whole, tmp_path, monkeypatch):
    train(tmp_path, stop_at=20)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        m.setattr(module, "_rewind_log", lambda path, step: None)  # it writes first
        with pytest.raises(OSError, match=r"cannot write .*checkpoint.*No space left") as e:
            train(tmp_path)
    assert "\n" not in str(e.value)
    assert step_of(tmp_path) == 20 and not list(tmp_path.glob(".*.part"))
    assert same(train(tmp_path), whole)


@pytest.mark.parametrize("damage", ["cut", "empty", "other network", "not a checkpoint"])
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line_that_names_it(tmp_path, damage):
    train(tmp_path, stop_at=2)
    path = tmp_path / CHECKPOINT
    raw = path.read_bytes()
    if damage in ("cut", "empty"):
        path.write_bytes(raw[: len(raw) // 2] if damage == "cut" else b"")
    if damage == "not a checkpoint":
        save_file({"weights": torch.zeros(2)}, path)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)) if damage == "other network" else None
    with pytest.raises(
        ValueError,
        match=r"checkpoint\.safetensors does not continue this training \(.+\); delete it",
    ) as e:
        train(tmp_path, net=net)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)


def test_a_loss_that_is_not_a_number_raises_and_the_last_checkpoint_goes_on(whole, tmp_path):
    def broken(net, b):
        value = loss(net, b)
        return value * torch.nan if torch.equal(b["x"], batch(22)["x"]) else value

    with pytest.raises(
        FloatingPointError,
        match=r"loss is nan at step 22: lower the learning rate .*checkpoint\.safetensors",
    ):
        train(tmp_path, loss=broken)
    assert step_of(tmp_path) == 20
    assert all(v.isfinite().all() for v in read_checkpoint(tmp_path).values())
    assert same(train(tmp_path), whole)
    with pytest.raises(FloatingPointError, match=r"loss is inf at step 0.*not on disk"):
        train(loss=lambda net, b: loss(net, b) * torch.inf)


def test_a_finite_loss_with_a_gradient_that_is_not_stops_the_run_before_it_moves(whole, tmp_path):
    def broken(net, b):
        hidden = (0 * net[0].bias).sum().sqrt()  # zero, but its slope is infinite
        value = loss(net, b)
        return value + hidden if torch.equal(b["x"], batch(22)["x"]) else value

    with pytest.raises(FloatingPointError, match=r"gradient is nan at step 22.*checkpoint"):
        train(tmp_path, loss=broken, save_every=1)
    assert step_of(tmp_path) == 22 and same(train(tmp_path), whole)
    with pytest.raises(FloatingPointError, match="gradient is nan at step 22"):
        train(loss=broken, steps=23)  # the last step: else a broken network would be returned


def test_the_running_loss_goes_on_where_it_was(tmp_path):
    def logged(folder):
        rows = [json.loads(r) for r in (folder / "log.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows}

    train(tmp_path / "whole", steps=8)
    train(tmp_path / "parts", steps=8, stop_at=3)
    train(tmp_path / "parts", steps=8)
    assert logged(tmp_path / "parts")[8] == logged(tmp_path / "whole")[8]


def test_a_log_is_rewound_to_the_checkpoint_and_keeps_its_row(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 9}\n{"step": 10}\n{"step": 11}\n{"step": 3, "t": {"a": 1}\n')
    module._rewind_log(log, 10)
    assert log.read_text() == '{"step": 9}\n{"step": 10}\n'


def test_the_largest_seed_trains():
    assert not same(train(steps=1, seed=2**62 - 1), make().state_dict())


# ---- the loop itself -----------------------------------------------------------------------------


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    factors = [schedule_lr(k, 100, 10, 0.2) for k in range(101)]
    assert factors[:11] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0] and set(
        factors[9:81]
    ) == {1.0}
    assert factors[90] == 0.5 and factors[99] == 0.05 and factors[100] == 0.0
    assert [schedule_lr(k, 50, 0, 0.0) for k in range(50)] == [1.0] * 50


def test_both_optimisers_follow_the_schedule_of_the_learning_rate(monkeypatch):
    rates = {torch.optim.AdamW: [], Muon: []}
    for kind, seen in rates.items():

        def watched(self, *args, step=kind.step, seen=seen):
            seen.append(self.param_groups[0]["lr"])
            return step(self, *args)

        monkeypatch.setattr(kind, "step", watched)
    train(steps=10)
    factors = [schedule_lr(k, 10, 5, 0.3) for k in range(10)]
    assert len(set(factors)) > 5
    assert rates[torch.optim.AdamW] == pytest.approx([1e-2 * f for f in factors])
    assert rates[Muon] == pytest.approx([2e-2 * f for f in factors])


def test_fit_is_the_loop_written_out():
    """AdamW with warm-up, decay, clipping, and an average whose memory grows as (1 + k) / (10 + k)
    up to its limit.
    """
    # fit switches dropout on; here it must be off on both sides
    net, hand = make().eval(), make().eval()
    net[2].p = hand[2].p = 0.0
    train(net=net, optimiser="adamw", steps=30, clip=0.05, weight_decay=0.1)
    opt = torch.optim.AdamW(hand.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    mean = [p.detach().clone() for p in hand.parameters()]
    for k in range(30):
        opt.zero_grad()
        loss(hand, batch(k)).backward()
        norm = torch.stack([p.grad.norm() for p in hand.parameters()]).norm()
        for p in hand.parameters():
            p.grad *= min(1.0, 0.05 / (norm.item() + 1e-6))
        opt.param_groups[0]["lr"] = 1e-2 * min((k + 1) / 5, 1.0, (30 - k) / 9)
        opt.step()
        keep = min(0.9, (1 + k) / (10 + k))
        mean = [keep * m + (1 - keep) * p.detach() for m, p in zip(mean, hand.parameters())]
    assert max((a - b).abs().max() for a, b in zip(net.parameters(), mean)) < 1e-5
    assert max((a - b).abs().max() for a, b in zip(net.parameters(), hand.parameters())) > 1e-4


def test_one_step_averages_nine_tenths_of_the_new_with_one_tenth_of_the_old(tmp_path):
    before = make().state_dict()
    net = train(tmp_path, steps=1, ema=0.999)
    raw = raw_weights(tmp_path)
    assert all(
        (v - 0.1 * before[k] - 0.9 * raw[k]).abs().max() < 1e-6 for k, v in net.state_dict().items()
    )
    assert not same(net, raw)


def test_without_averaging_the_last_weights_are_returned(tmp_path):
    net = train(tmp_path, steps=3, ema=0.0)
    assert same(net, raw_weights(tmp_path))


def test_frozen_parameters_do_not_move():
    net = make()
    net[0].requires_grad_(False)
    train(net=net, steps=5, weight_decay=0.1)
    assert torch.equal(net[0].weight, make()[0].weight) and not torch.equal(
        net[3].weight, make()[3].weight
    )


def test_dropout_is_a_function_of_seed_and_step():
    a, b, c = (train(steps=4, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)
    torch.rand(17)  # what was drawn before does not matter
    assert same(train(steps=4), a)


def test_peek_sees_averaged_weights_and_leaves_the_raw_ones(whole, tmp_path):
    seen = []

    def peek(net, step):
        assert not net.training and not torch.is_grad_enabled()
        torch.rand(3)
        seen.append((step, {k: v.clone() for k, v in net.state_dict().items()}))
        return {"score": step / 2}

    net = train(tmp_path, peek=peek, peek_every=25)
    assert same(net, whole) and [s for s, _ in seen] == [25, 40] and same(net, seen[-1][1])
    half = tmp_path / "half"
    train(half, stop_at=25, peek=peek, peek_every=25)
    average, raw = averaged_weights(half), raw_weights(half)
    assert all(torch.equal(average[k], seen[0][1][k]) for k in average)
    assert not all(torch.equal(raw[k], seen[0][1][k]) for k in raw)
    rows = [json.loads(r) for r in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["score"] for r in rows if "score" in r] == [12.5, 20.0]


def test_a_peek_that_fails_puts_the_raw_weights_back(tmp_path):
    net = make()

    def peek(net, step):
        raise RuntimeError("no more paper")

    with pytest.raises(RuntimeError, match="no more paper"):
        train(tmp_path, net=net, peek=peek, peek_every=10)
    assert same(net, raw_weights(tmp_path)) and net.training


def test_the_log_has_every_tenth_step_once_whatever_happened(tmp_path, monkeypatch):
    assert module.LOG_EVERY == 100
    monkeypatch.setattr(module, "LOG_EVERY", 10)

    def interrupted(step):
        if step == 21:
            raise RuntimeError("power cut")
        return batch(step)

    def steps_in(log):
        return [json.loads(row)["step"] for row in log.read_text().splitlines()]

    setup = dict(steps=25, save_every=14, warmup=5)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, batch=interrupted, **setup)
    log = tmp_path / "log.jsonl"
    assert steps_in(log) == [10, 20] and step_of(tmp_path) == 14
    log.write_text(log.read_text() + '{"step": 2')  # torn in the middle of a line
    train(tmp_path, **setup)
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 25]
    assert all(set(row) == {"step", "loss", "lr", "cpu_seconds"} for row in rows)
    assert rows[1]["lr"] < rows[0]["lr"] == 1e-2
    assert rows[0]["cpu_seconds"] <= rows[1]["cpu_seconds"] <= rows[2]["cpu_seconds"]


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(steps=2)
    assert list(tmp_path.iterdir()) == []


def test_no_steps_and_unknown_optimisers_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        train(steps=0)
    with pytest.raises(ValueError, match="optimiser 'sgd'"):
        train(optimiser="sgd")


def test_bfloat16_is_only_used_on_request():
    seen = []

    def watch(net, b):
        seen.append(net(b["x"]).dtype)
        return loss(net, b)

    train(loss=watch, steps=1)
    net = train(loss=watch, steps=2, amp=True)
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert {p.dtype for p in net.parameters()} == {torch.float32}
