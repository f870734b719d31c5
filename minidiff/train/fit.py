"""The one training loop. Everything that happens at step k is a function of (seed, k), so a killed
run resumes exactly.

    loss(net, batch) -> scalar            the method: one pure function
    batch(step) -> {name: Tensor}         the data AND its randomness (times, noise) for that step,
    rows first

`fit` adds what every training wants: AdamW or Muon, warm-up and linear decay, gradient clipping,
EMA, mixed precision, a progress bar, atomic checkpoints, a sample grid every so often, and data
parallelism when started by `torchrun` (each process takes its rows of the same global batch, so two
processes equal one with the whole batch). The average of the weights is DDPM's (Ho et al. 2020,
arXiv 2006.11239); of AdamW and Muon see `optim`.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.train.optim import optimisers

Batch = dict[str, Tensor]


class _Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees one forward whatever methods the
    loss calls.
    """

    def __init__(self, net: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.net, batch)


def save_atomic(obj, path: Path) -> None:
    """torch.save that is either whole or not there: written beside, flushed to disk, then
    renamed.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as f:
            torch.save(obj, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def schedule_lr(step: int, steps: int, warmup: int, decay: float) -> float:
    """Factor on the learning rate: linear warm-up, constant, linear to zero over the last `decay`
    share of the steps.
    """
    tail = max(int(decay * steps), 1)
    return min((step + 1) / max(warmup, 1), 1.0, max(steps - step, 0) / tail)


def process_group(device: str) -> tuple[int, int]:
    """(rank, world). Joins the group that torchrun announces in the environment: gloo on CPU, nccl
    on GPU.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.get_rank(), dist.get_world_size()


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
    save_every: int = 500,
    peek: Callable[[nn.Module, int], dict] | None = None,
    peek_every: int = 1000,
    stop_at: int | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train `net` in place for `steps` steps; at the end it holds the EMA weights and is in eval
    mode.

    Only parameters with requires_grad are trained. `out`: folder for `checkpoint.pt` and
    `log.jsonl`; a checkpoint found there is resumed (`stop_at` ends this call early, as a kill
    would). `peek(ema_net, step)` may draw samples and return figures for the log. `amp`: bfloat16
    autocast (default: on GPUs only). Ctrl-C saves, then raises. Errors: FloatingPointError at the
    first non-finite loss, with the last good checkpoint kept.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: training needs at least one step")
    p0 = next(net.parameters())
    device, (rank, world) = p0.device, process_group(p0.device.type)
    amp = device.type == "cuda" if amp is None else amp
    trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
    opts = optimisers(net, optimiser, lr, muon_lr, weight_decay)
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    shadow = {n: p.detach().clone() for n, p in trained.items()}
    objective: nn.Module = _Objective(net, loss)
    if world > 1:
        objective = nn.parallel.DistributedDataParallel(objective)
    path = Path(out) / "checkpoint.pt" if out else None
    start, spent = 0, 0.0
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            start, spent = _load(path, net, shadow, opts, device)
            _rewind_log(path.parent / "log.jsonl", start)
    clock, end = time.process_time(), min(steps, stop_at or steps)

    def save(step):
        if path and rank == 0:
            save_atomic(
                {
                    "step": step,
                    "cpu_seconds": spent + time.process_time() - clock,
                    "net": net.state_dict(),
                    "ema": shadow,
                    "opts": [o.state_dict() for o in opts],
                },
                path,
            )

    net.train()
    bar = tqdm(
        range(start, end),
        initial=start,
        total=steps,
        disable=not progress or rank > 0,
        desc=type(net).__name__,
        mininterval=1,
    )
    running, done, between = 0.0, start, True  # between two steps, that is
    try:
        for step in bar:
            torch.manual_seed(seed * 1_000_003 + step)  # dropout, if the network has any
            rows = {k: v[rank::world].to(device) for k, v in batch(step).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                value = objective(rows)
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"loss is {value.item()} at step {step}: lower the learning rate "
                    f"(the last checkpoint is {'kept at ' + str(path) if path else 'not on disk'})"
                )
            for o in opts:
                o.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(trained.values(), clip)
            between = False
            factor = schedule_lr(step, steps, warmup, decay)
            for o, lrs in zip(opts, base):
                for g, b in zip(o.param_groups, lrs):
                    g["lr"] = b * factor
                o.step()
            keep = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(
                list(shadow.values()), [p.detach() for p in trained.values()], 1 - keep
            )
            done, between = step + 1, True
            running = value.item() if step == start else 0.98 * running + 0.02 * value.item()
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
            last = done == end
            if rank == 0 and out and (done % 100 == 0 or last):
                _log(
                    path.parent / "log.jsonl",
                    step=done,
                    loss=round(running, 5),
                    lr=round(lr * factor, 7),
                    cpu_seconds=round(spent + time.process_time() - clock, 1),
                )
            if done % save_every == 0 or last:
                save(done)
            if peek and rank == 0 and (done % peek_every == 0 or last):
                found = _with_ema(net, shadow, lambda at=done: peek(net, at))
                if out and found:
                    _log(path.parent / "log.jsonl", step=done, **found)
    except KeyboardInterrupt:
        if between:  # else half updated: the last one is better
            save(done)
        raise
    if done == steps:
        net.load_state_dict(shadow, strict=False)
    return net.eval()


def _with_ema(net: nn.Module, shadow: dict[str, Tensor], fn):
    """Call `fn` with the averaged weights in place and the net in eval mode; put everything back,
    also on errors.
    """
    raw = {n: p.detach().clone() for n, p in net.named_parameters() if n in shadow}
    try:
        net.load_state_dict(shadow, strict=False)
        net.eval()
        with torch.no_grad():
            return fn()
    finally:
        net.load_state_dict(raw, strict=False)
        net.train()


def _load(path: Path, net: nn.Module, shadow: dict[str, Tensor], opts, device) -> tuple[int, float]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        for n, p in shadow.items():
            p.copy_(state["ema"][n])
        for o, s in zip(opts, state["opts"], strict=True):
            o.load_state_dict(s)
        return state["step"], state["cpu_seconds"]
    except Exception as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ValueError(
            f"{path} does not continue this training ({first}); delete it to start over"
        ) from e


def _log(path: Path, **row) -> None:
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")


def _rewind_log(path: Path, step: int) -> None:
    """Drop lines written after the checkpoint: the resumed run will write them again."""
    if path.exists():
        rows = [
            r
            for r in path.read_text().splitlines()
            if r.endswith("}") and json.loads(r)["step"] <= step
        ]
        path.write_text("".join(r + "\n" for r in rows))
