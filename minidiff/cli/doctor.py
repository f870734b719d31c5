"""Is this installation sound? Versions, device, shipped
weights, and two steps of every model against stored numbers.

The last check is the one that finds what the others cannot: a package that loads and runs and
computes something else. `store()` writes the numbers again after weights have changed; they carry
the hashes of the files they belong to.
"""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from minidiff.core.cfg import cfg_batched
from minidiff.io import write_json
from minidiff.pipe.pipe import Pipe
from minidiff.samplers.ddim import ddim
from minidiff.weights import store as shelf

PACKAGES = ("minidiff", "torch", "numpy", "einops", "matplotlib", "pillow", "safetensors", "tqdm")
PROMPT = "a red circle on a blue background"
CLASS = "red circle"
# of latents of about unit size; GPUs round convolutions
TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2, "mps": 2e-2}


def examine(device: str = "cpu") -> dict:
    """{check: finding}, with "passed": False if a finding
    starts with FAILED. A sick installation does not raise.
    """
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    facts |= {name: installed(name) for name in PACKAGES}
    facts |= {
        "device": describe(device),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "bfloat16": verdict(check_bfloat16, device),
        "weights": verdict(check_weights),
    }
    for name in shipped():
        facts[f"two steps of {name}"] = verdict(check_steps, name, device)
    return facts | {"passed": not any(str(v).startswith("FAILED") for v in facts.values())}


def verdict(check, *args) -> str:
    """What a check says, or why it failed."""
    try:
        return check(*args)
    except (ValueError, OSError, RuntimeError, KeyError) as e:
        return f"FAILED: {' '.join(str(e).split())}"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "FAILED: not installed"


def describe(device: str) -> str:
    """The device in words."""
    if device == "cuda":
        return (
            f"cuda, {torch.cuda.get_device_name()}, "
            f"{torch.cuda.get_device_properties(0).total_memory >> 20} MiB"
        )
    return f"{device}, {torch.backends.cpu.get_cpu_capability()}" if device == "cpu" else device


def check_bfloat16(device: str) -> str:
    """A product in bfloat16 against float32; the eight
    bits of its mantissa leave an error of about 1 in 256.
    """
    a = torch.linspace(-1, 1, 64 * 64, device=device).view(64, 64)
    error = ((a.bfloat16() @ a.T.bfloat16()).float() - a @ a.T).abs().max() / (a @ a.T).abs().max()
    if not error < 0.02:
        raise ValueError(f"relative error {error:.1e} of a matrix product, expected less than 2e-2")
    return f"ok, relative error {error:.0e}"


def shipped() -> list[str]:
    """Names of the models whose files are all here."""
    try:
        files = set(shelf.manifest())
    except (OSError, ValueError):
        return []
    return [name for name, parts in shelf.PARTS.items() if files >= set(parts.values())]


def check_weights() -> str:
    """Every file of the manifest readable and with the hash
    it was shipped with, and none absent that a model needs.
    """
    files = shelf.manifest()
    for name in files:
        shelf.load_weights(name)
    absent = sorted(
        {part for parts in shelf.PARTS.values() for part in parts.values()} - set(files)
    )
    if absent:
        raise ValueError(f"weights of {', '.join(absent)} are not in {shelf.TINY}; reinstall")
    return f"ok, {len(files)} files as shipped"


def probe(pipe: Pipe) -> list[float]:
    """Sixteen numbers of the sample after two guided steps from seed 0, spread over it."""
    cond = pipe.embed(CLASS if pipe.text is None else PROMPT)
    x = ddim(
        cfg_batched(pipe.eps, pipe.null(), 3.0),
        pipe.schedule,
        pipe.noise(1),
        cond,
        steps=2,
        spacing=pipe.spacing,
    )
    x = x.float().cpu().flatten()
    return [round(v, 6) for v in x[:: len(x) // 16][:16].tolist()]


def hashes(name: str) -> dict[str, str]:
    """{file: SHA-256} of what a model is made of."""
    return {file: shelf.manifest()[file]["sha256"] for file in shelf.PARTS[name].values()}


def check_steps(name: str, device: str = "cpu") -> str:
    """Two steps of a model against the numbers stored when its weights were made."""
    path = shelf.TINY / "doctor.json"
    known = json.loads(path.read_text()).get(name)
    if known is None or known["files"] != hashes(name):
        raise ValueError(
            f"{path} holds no numbers for these weights of {name}; reinstall (or store them anew)"
        )
    found = probe(shelf.load(name, device=device))
    error = max(abs(a - b) for a, b in zip(found, known["values"], strict=True))
    if not error <= TOLERANCE[device]:
        raise ValueError(
            f"off by {error:.1e} from the stored numbers, at most {TOLERANCE[device]:.0e} is "
            "rounding"
        )
    return f"ok, within {error:.0e}"


def store():
    """Write the numbers of all shipped models, computed on the CPU; returns the path."""
    numbers = {
        name: {"files": hashes(name), "values": probe(shelf.load(name, device="cpu"))}
        for name in shipped()
    }
    if not numbers:
        raise ValueError("no weights are shipped with this package: there is nothing to store")
    return write_json(numbers, shelf.TINY / "doctor.json")
