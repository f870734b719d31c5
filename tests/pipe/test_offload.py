"""Sequential offload: the same numbers, weights at
home before and after, and memory that stays small.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minidiff.core.cond import Cond
from minidiff.formats.files import open_tensors
from minidiff.pipe.offload import let_go, offload
from minidiff.weights.store import build

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pages are handed back on Linux only")


def run(pipe, seed=0):
    """Net, text tower, VAE both ways."""
    cond = (
        pipe.embed(["a red circle", "a blue square"])
        if pipe.text
        else Cond(label=torch.tensor([0, 3]))
    )
    x = pipe.noise(2, seed)
    out = pipe.eps(x, 500, cond)
    return (
        out
        if pipe.vae is None
        else torch.cat(
            [out.flatten(), pipe.decode(x).flatten(), pipe.encode(pipe.decode(x)).flatten()]
        )
    )


def close(got, want):
    """Equal up to rounding in float32, relative to the spread."""
    return (got - want).abs().max() <= 2e-5 * want.std()


def layout(pipe):
    modules = [m for part in (pipe.net, pipe.vae, pipe.text) if part for m in part.modules()]
    return [(id(p), p.data_ptr(), p.dtype) for m in modules for p in m.parameters(recurse=False)], [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules
    ]


@pytest.mark.parametrize("size", ["tiny", "tiny-dit", "tiny-pixel"])
@pytest.mark.parametrize("least", [0, 20_000, 1 << 30], ids=["all layers", "large layers", "none"])
@torch.no_grad()
def test_the_results_are_the_same_and_everything_goes_home(size, least):
    pipe = build(size, seed=1)
    want, before = run(pipe), layout(pipe)
    with offload(pipe, least=least):
        assert close(run(pipe), want)
    assert layout(pipe) == before and close(run(pipe), want)


@torch.inference_mode()
def test_layers_are_cast_for_the_length_of_their_forward_one_at_a_time():
    pipe, seen = build("tiny", seed=1), set()
    want, before = run(pipe), layout(pipe)
    layers = [
        m
        for m in pipe.net.modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.nbytes >= 20_000
    ]

    def watch(m, *_):
        seen.add((sum(x.weight.dtype == torch.bfloat16 for x in layers), m.weight.dtype))

    with offload(pipe, dtype=torch.bfloat16, least=20_000):
        hooks = [m.register_forward_pre_hook(watch) for m in layers]  # after the one that fetches
        assert pipe.dtype == torch.bfloat16 and pipe.noise(1).dtype == torch.bfloat16
        out = run(pipe)
        [h.remove() for h in hooks]
    assert out.dtype == torch.bfloat16 and (out.float() - want).abs().mean() < 0.05 * want.std()
    assert seen == {(1, torch.bfloat16)} and len(layers) > 20
    assert layout(pipe) == before and close(run(pipe), want)


@torch.no_grad()
def test_an_error_inside_leaves_nothing_behind():
    pipe = build("tiny", seed=1)
    want, before = run(pipe), layout(pipe)
    with pytest.raises(RuntimeError), offload(pipe, dtype=torch.bfloat16, least=0):
        pipe.net(
            torch.zeros(1, 4, 16, 16).bfloat16(),
            torch.tensor([1]),
            Cond(text=torch.zeros(1, 3, 5).bfloat16()),
        )
    assert layout(pipe) == before and close(run(pipe), want)


def resident(tensor):
    """Pages of a tensor that are in memory."""
    size = 4096
    with open("/proc/self/pagemap", "rb") as f:
        f.seek(8 * (tensor.data_ptr() // size))
        return int(
            (np.frombuffer(f.read(8 * (tensor.nbytes // size)), np.uint64) >> np.uint64(63)).sum()
        )


@LINUX
def test_pages_of_a_mapped_file_are_let_go_and_come_back(tmp_path):
    want = torch.randn(4, 1 << 18, generator=torch.Generator().manual_seed(0))
    save_file({"w": want}, tmp_path / "a.safetensors")
    w = open_tensors(tmp_path / "a.safetensors").tensor("w")
    assert torch.equal(w, want) and resident(w) > 1000
    let_go(w)
    assert resident(w) <= 2  # shared with neighbours at both ends
    assert torch.equal(w, want)


@LINUX
def test_what_was_written_is_never_lost(tmp_path):
    """A page of the mapping changed in place (a merged
    adapter), and memory that is no file at all.
    """
    save_file({"w": torch.zeros(4, 1 << 18)}, tmp_path / "a.safetensors")
    w = open_tensors(tmp_path / "a.safetensors").tensor("w")
    w[2, 77:99] += 1
    plain = torch.ones(1 << 20)
    let_go(w), let_go(plain), let_go(plain[:0]), let_go(plain[5:9])
    assert w.sum() == 22 and plain.sum() == 1 << 20


PROBE = """
import sys, torch
from torch import nn
from minidiff.core import schedule
from minidiff.pipe.pipe import Pipe
from minidiff.formats.files import open_tensors
from minidiff.pipe.offload import offload
from contextlib import nullcontext

def memory(what):
    return int(next(l for l in open("/proc/self/status") if l.startswith(what)).split()[1]) >> 10

with torch.device("meta"):
    net = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(40)])
file = open_tensors(sys.argv[1])
net.load_state_dict({k: file.tensor(k) for k in file}, assign=True)
pipe, x, base = Pipe(net, schedule.linear(), (4, 8, 8)), torch.ones(2, 1024), memory("VmRSS")
with torch.no_grad(), offload(pipe, dtype=getattr(torch, sys.argv[3])) if sys.argv[2] == "yes" else nullcontext():
    for _ in range(3):
        x = net(x.to(pipe.dtype)).float()
print(memory("VmHWM") - base, x.abs().sum().item())
"""


@LINUX
def test_the_peak_is_that_of_a_few_layers(tmp_path):
    """40 layers of 4 MB in a file, a process each: in place of 160 MB of weights, a few layers."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(40)])
    save_file(net.state_dict(), tmp_path / "net.safetensors")

    def peak(*how):
        command = [sys.executable, "-c", PROBE, tmp_path / "net.safetensors", *how]
        out = subprocess.run(command, capture_output=True, text=True)
        assert not out.returncode, out.stderr
        return map(float, out.stdout.split())

    (plain, want), (small, same), (half, _) = (
        peak("no", "-"),
        peak("yes", "float32"),
        peak("yes", "bfloat16"),
    )
    # two processes
    assert plain > 150 and same == pytest.approx(want, rel=1e-5)
    assert small < 50 and half < 60
