"""The one training loop. Everything that happens at step k
is a function of (seed, k), so a killed run resumes exactly.

    loss(net, batch) -> scalar            the method: one pure function
    batch(step) -> {name: Tensor}         the data AND its randomness (times, noise) for that step,
    rows first

`fit` adds what every training wants: AdamW or Muon, warm-up and linear decay, gradient clipping,
EMA, mixed precision, a progress bar, atomic checkpoints, a sample grid every so often, and data
parallelism when started by `torchrun`. Each process then takes its rows of the same global batch,
so two processes equal one with the whole batch, if the loss may be split (see `processes`). The
average of the weights is DDPM's (Ho et al. 2020, arXiv 2006.11239); of AdamW and Muon see `optim`,
of what a folder keeps `checkpoint`.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.io import write_bytes
from minidiff.train.checkpoint import (
    CHECKPOINT,
    check_finite,
    check_settings,
    locked,
    read_facts,
    restore,
    save_checkpoint,
)
from minidiff.train.optim import optimisers
from minidiff.train.processes import own_rows, process_group

Batch = dict[str, Tensor]
LOG = "log.jsonl"
LOG_EVERY = 100  # steps


class _Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel
    sees one forward whatever methods the loss calls.
    """

    def __init__(self, net: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]):
        super().__init__()
        self.net = net
        self.loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.net, batch)


def multiplies_bfloat16() -> bool:
    """Has this processor instructions for products of bfloat16 numbers? With them a step takes
    less time; without them autocast costs some.
    """
    able = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch cannot tell
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def schedule_lr(step: int, steps: int, warmup: int, decay: float) -> float:
    """Factor on the learning rate: linear warm-up, constant,
    linear to zero over the last `decay` share of the steps.
    """
    tail = max(int(decay * steps), 1)
    return min((step + 1) / max(warmup, 1), 1.0, max(steps - step, 0) / tail)


def fit(
    net: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    batch: Callable[[int], Batch],
    *,
    steps: int,
    out: str | Path | None = None,
    optimiser: str = "muon",
    lr: float = 2e-3,
    muon_lr: float = 4e-3,
    weight_decay: float = 0.0,
    warmup: int = 100,
    decay: float = 0.2,
    clip: float = 1.0,
    ema: float = 0.999,
    amp: bool | None = None,
    seed: int = 0,
    settings: dict | None = None,
    save_every: int = 500,
    peek: Callable[[nn.Module, int], dict] | None = None,
    peek_every: int = 1000,
    stop_at: int | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train `net` in place for `steps` steps; at the
    end it holds the EMA weights and is in eval mode.

    Only parameters with requires_grad are trained. `out`: folder for the checkpoint and
    `log.jsonl`; a checkpoint found there is resumed (`stop_at` ends this call early, as a kill
    would). It keeps the options that decide the result, and `settings`, whatever else decides it
    (of the data, of the loss) as JSON. `peek(average_net, step)` may draw samples and return
    figures for the log. `amp`: bfloat16 autocast (default: on GPUs only; on a CPU see
    `multiplies_bfloat16`). Ctrl-C saves, then raises.

    Errors: ValueError if the folder holds a training with other settings, or one that runs now.
    FloatingPointError at the first loss, gradient or weight that is not finite; the last good
    checkpoint is kept.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: training needs at least one step")
    device = next(net.parameters()).device
    rank, world = process_group(device.type)
    amp = device.type == "cuda" if amp is None else amp
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in trained.items()}
    movers = optimisers(net, optimiser, lr, muon_lr, weight_decay)
    full_rates = [[group["lr"] for group in mover.param_groups] for mover in movers]
    made_with = dict(settings or {}) | {
        "steps": steps,
        "seed": seed,
        "optimiser": optimiser,
        "lr": lr,
        "muon_lr": muon_lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "decay": decay,
        "clip": clip,
        "ema": ema,
    }
    objective: nn.Module = _Objective(net, loss)
    if world > 1:
        objective = nn.parallel.DistributedDataParallel(objective)
    folder = Path(out) if out else None
    writes = folder is not None and rank == 0
    end = min(steps, stop_at or steps)

    with locked(folder if writes else None):
        start = 0
        spent = 0.0
        running = 0.0
        if folder and (facts := read_facts(folder)):
            check_settings(folder, made_with)
            restore(folder, net, average, movers)
            start = facts["step"]
            spent = facts["cpu_seconds"]
            running = facts["loss"]
        if writes:
            _rewind_log(folder / LOG, start)
        clock = time.process_time()

        def cpu_seconds() -> float:
            return spent + time.process_time() - clock

        def save(step: int) -> None:
            if not writes:
                return
            facts = {"step": step, "cpu_seconds": cpu_seconds(), "loss": running}
            save_checkpoint(folder, net, average, movers, facts | {"settings": made_with})

        net.train()
        bar = tqdm(
            range(start, end),
            initial=start,
            total=steps,
            disable=not progress or rank > 0,
            desc=type(net).__name__,
            mininterval=1,
        )
        done = start
        whole = True  # between two steps, that is
        try:
            for step in bar:
                torch.manual_seed((seed * 1_000_003 + step) % 2**63)  # dropout, if there is any
                rows = own_rows(batch(step), rank, world)
                rows = {name: values.to(device) for name, values in rows.items()}
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    value = objective(rows)
                _refuse_if_not_finite("loss", value, step, folder)
                for mover in movers:
                    mover.zero_grad(set_to_none=True)
                value.backward()
                norm = nn.utils.clip_grad_norm_(trained.values(), clip)
                _refuse_if_not_finite("gradient", norm, step, folder)
                whole = False
                factor = schedule_lr(step, steps, warmup, decay)
                for mover, rates in zip(movers, full_rates):
                    for group, rate in zip(mover.param_groups, rates):
                        group["lr"] = rate * factor
                    mover.step()
                keep = min(ema, (1 + step) / (10 + step))
                now = [p.detach() for p in trained.values()]
                torch._foreach_lerp_(list(average.values()), now, 1 - keep)
                done = step + 1
                running = value.item() if step == 0 else 0.98 * running + 0.02 * value.item()
                whole = True
                bar.set_postfix(loss=f"{running:.4f}", refresh=False)
                last = done == end
                if writes and (done % LOG_EVERY == 0 or last):
                    row = {"loss": round(running, 5), "lr": round(lr * factor, 7)}
                    row["cpu_seconds"] = round(cpu_seconds(), 1)
                    _log(folder / LOG, step=done, **row)
                if done % save_every == 0 or last:
                    save(done)
                if peek and rank == 0 and (done % peek_every == 0 or last):
                    found = _with_average(net, average, lambda at=done: peek(net, at))
                    if writes and found:
                        _log(folder / LOG, step=done, **found)
        except KeyboardInterrupt:
            if whole:  # else half updated: the last checkpoint is better
                save(done)
            raise
        check_finite(trained, done)
        check_finite(average, done)
        if done == steps:
            net.load_state_dict(average, strict=False)
    return net.eval()


def _refuse_if_not_finite(what: str, value: Tensor, step: int, folder: Path | None) -> None:
    if not math.isfinite(value.item()):
        where = f"kept at {folder / CHECKPOINT}" if folder else "not on disk"
        raise FloatingPointError(
            f"{what} is {value.item()} at step {step}: lower the learning rate (the last "
            f"checkpoint is {where})"
        )


def _with_average(net: nn.Module, average: dict[str, Tensor], look: Callable[[], dict]) -> dict:
    """Call `look` with the averaged weights in place and the
    net in eval mode; put everything back, also on errors.
    """
    raw = {name: p.detach().clone() for name, p in net.named_parameters() if name in average}
    try:
        net.load_state_dict(average, strict=False)
        net.eval()
        with torch.no_grad():
            return look()
    finally:
        net.load_state_dict(raw, strict=False)
        net.train()


def _log(path: Path, **row) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def _rewind_log(path: Path, step: int) -> None:
    """Drop what was written after the checkpoint of that step: the resumed run writes it again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    write_bytes("".join(line + "\n" for line in kept).encode(), path)


def _step_of(line: str) -> float:
    """The step a line of the log is about; infinite if the line is torn."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
