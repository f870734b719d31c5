"""The state of a training: one file that cannot hold code, in a folder that one process owns.

`checkpoint.safetensors` holds three groups of tensors: `net.*` the weights, `ema.*` their average,
and `optimiser.<which>.<parameter>.<what>`. Its header holds, as JSON, the step, the time spent, the
running loss, and the settings the training was made with. Other settings are another training:
`check_settings` refuses them by name instead of going on with the wrong ones.

The file is written whole or not at all, and never with a number that is not finite. `locked` keeps
a second training out of the folder; its lock ends with the process, however that ends.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from minidiff.io import write_bytes

try:
    import fcntl
except ImportError:  # Windows: folders are not guarded there
    fcntl = None

CHECKPOINT = "checkpoint.safetensors"
LOCK = ".lock"  # holds the number of the process; the file stays, the lock does not
HEADER = "training"  # the entry of the file's header
FACTS = {"step", "cpu_seconds", "loss", "settings"}
NET = "net."
AVERAGE = "ema."


# ---- the file ------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    net: nn.Module,
    average: dict[str, Tensor],
    optimisers: list[torch.optim.Optimizer],
    facts: dict,
) -> None:
    """Write the state atomically; `facts` is JSON: step, cpu_seconds, loss, settings.

    FloatingPointError if a learned weight, its average or its optimiser's state is not finite: then
    the checkpoint before stays. OSError in one line, for instance if the disk is full.
    """
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    state = _optimiser_tensors(optimisers)
    check_finite(learned | state, facts["step"])
    check_finite(average, facts["step"])
    tensors = {NET + name: v for name, v in net.state_dict().items()}
    tensors |= {AVERAGE + name: v for name, v in average.items()}
    tensors |= state
    apart = {name: v.detach().cpu().contiguous().clone() for name, v in tensors.items()}
    write_bytes(to_bytes(apart, {HEADER: json.dumps(facts)}), folder / CHECKPOINT)


def check_finite(tensors: dict[str, Tensor], step: int) -> None:
    """FloatingPointError that names the first tensor with a NaN or infinite number."""
    for name, values in tensors.items():
        if not torch.isfinite(values).all():
            raise FloatingPointError(
                f"{name} holds NaN or infinite numbers after step {step}: nothing was saved, the "
                "checkpoint before it is as it was; lower the learning rate"
            )


def _optimiser_tensors(optimisers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """{"optimiser.<which>.<parameter>.<what>": tensor}, parameters by their number."""
    tensors = {}
    for which, optimiser in enumerate(optimisers):
        for parameter, values in optimiser.state_dict()["state"].items():
            for what, value in values.items():
                tensors[f"optimiser.{which}.{parameter}.{what}"] = value
    return tensors


def read_facts(folder: Path) -> dict | None:
    """What the header of a folder's checkpoint says; None if there is no checkpoint."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    with _readable(path), safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get(HEADER, "{}"))
        if not FACTS <= facts.keys():
            raise ValueError("no checkpoint of a training")
        return facts


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file becomes one line that names it."""
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines() or [type(e).__name__]
        raise ValueError(
            f"{path} does not continue this training ({reason[0]}); delete it to start over"
        ) from e


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's checkpoint, in memory of their own."""
    path = folder / CHECKPOINT
    with _readable(path), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}


def averaged_weights(folder: Path) -> dict[str, Tensor]:
    """The network's weights as the checkpoint would
    finish now: averaged where there is an average.
    """
    tensors = read_checkpoint(folder)
    raw = _group(tensors, NET)
    return raw | _group(tensors, AVERAGE)


def _group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}


def restore(
    folder: Path,
    net: nn.Module,
    average: dict[str, Tensor],
    optimisers: list[torch.optim.Optimizer],
) -> None:
    """Fill everything from the folder's checkpoint. ValueError, in one line, if it does not fit."""
    tensors = read_checkpoint(folder)
    with _readable(folder / CHECKPOINT):
        net.load_state_dict(_group(tensors, NET))
        kept = _group(tensors, AVERAGE)
        for name, values in average.items():
            values.copy_(kept[name])
        for which, optimiser in enumerate(optimisers):
            own = _group(tensors, f"optimiser.{which}.")
            _fill_optimiser(optimiser, own)


def _fill_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, what = name.split(".")
        state.setdefault(int(parameter), {})[what] = value
    groups = optimiser.state_dict()["param_groups"]  # as the settings made them
    optimiser.load_state_dict({"state": state, "param_groups": groups})


# ---- the folder ----------------------------------------------------------------------------------


def check_settings(folder: Path, settings: dict) -> None:
    """ValueError if the folder's checkpoint was made with another value of one of `settings`."""
    facts = read_facts(folder)
    if facts is None:
        return
    asked = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    held = facts["settings"]
    others = [name for name in asked if held.get(name) != asked[name]]
    if others:
        holds = _spelled(others, held)
        wants = _spelled(others, asked)
        raise ValueError(
            f"{folder} holds a training with {holds}, and {wants} was asked for: go on with the "
            "settings it has, take another folder, or delete this one to start over"
        )


def _spelled(names: Iterable[str], values: dict) -> str:
    return ", ".join(f"{name} {values.get(name)!r}" for name in names)


def check_free(folder: Path) -> None:
    """ValueError if a training runs in the folder now."""
    path = folder / LOCK
    if fcntl is None or not path.is_file():
        return
    with open(path) as file:
        _take(file, _training(folder))  # closing the file gives it back


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """The folder, made if need be, for this process alone; None locks nothing.

    ValueError, with the number of the process that holds it, if it is taken.
    """
    if folder is None:
        yield
        return
    with held(folder / LOCK, _training(folder)):
        yield


def _training(folder: Path) -> str:
    return f"is training in {folder}: wait until it ends, stop it, or take another folder"


@contextmanager
def held(path: Path, does: str) -> Iterator[None]:
    """A file of that name, made if need be, locked for this process while the block runs. It holds
    the number of the process; the file stays, the lock does not.

    ValueError if another process holds it: its number, and what it `does`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with open(path, "a+") as file:
        _take(file, does)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _take(file, does: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read() or "unknown"
        raise ValueError(f"process {holder} {does}") from None
