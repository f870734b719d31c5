"""Sequential offload: a model larger than the memory, one layer at a time.

    with offload(pipe):                         # or offload(pipe, "cuda", torch.float16)
        image = pipe.generate("a red circle", steps=20)

The weights stay where they lie, best in a file mapped into memory (what loading a checkpoint
gives), and a layer's come to `device`, cast to `dtype`, for the length of its own forward. So the
text tower is gone before the denoiser starts and the denoiser before the decoder, and within each
only one layer is there at a time:

    memory = the interpreter + activations + small layers + the largest layer         instead of
    + all weights

On a CPU a mapped float32 layer costs no copy: the processor reads the pages of the file, and
afterwards they are given back to the system, which may still hold them as cache and lets go of them
as soon as somebody else needs the memory.

Weakness: every step reads the whole model again, from the cache at best, from the disk on a machine
that is really small; a GPU waits for the bus. Weights that lie in plain memory are not paged out:
load them mapped. Inference only. Merge adapters before the block: what is written into a cast
weight is lost at its end. Try: `least=1 << 26`, and see what the large layers alone are worth.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minidiff.pipe.pipe import Pipe

DONTNEED = 4  # Linux: forget these pages, read them from the file again
PRESENT, SWAPPED, FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))  # in /proc/self/pagemap


@contextmanager
def offload(
    pipe: Pipe,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    least: int = 1 << 20,
) -> Iterator[None]:
    """Run net, VAE and text tower of `pipe` layer by layer on
    `device` in `dtype` (default: the pipe's) in the block.

    least   bytes of weights of its own from which a layer comes and goes; smaller ones stay on the
            device throughout (some,
            like the text tower's positions, are read without a call that could fetch them)

    `pipe.device` and `pipe.dtype` are those of the computation inside the block; afterwards
    everything lies at home again.
    """
    device = device or pipe.device
    dtype = dtype or pipe.dtype
    modules = [
        m for part in (pipe.net, pipe.vae, pipe.text) if part is not None for m in part.modules()
    ]
    homes = {p: p.data for m in modules for p in m.parameters(recurse=False)}
    first = next(pipe.net.parameters())  # says what pipe.device is: it stays

    def fetch(m: nn.Module, *_: Any) -> None:
        for p in m.parameters(recurse=False):
            p.data = homes[p].to(device, dtype)

    def send_home(m: nn.Module, *_: Any) -> None:
        for p in m.parameters(recurse=False):
            p.data = homes[p]
            let_go(p.data)

    with ExitStack() as stack:
        for m in modules:
            own = list(m.parameters(recurse=False))
            stack.callback(send_home, m)
            if any(p is first for p in own) or sum(p.nbytes for p in own) < least:
                fetch(m)
            else:
                for hook in (
                    m.register_forward_pre_hook(fetch),
                    m.register_forward_hook(send_home, always_call=True),
                ):
                    stack.callback(hook.remove)
                send_home(m)
        yield


def let_go(tensor: Tensor) -> None:
    """Hand the pages of a tensor in a mapped file back
    to the system; the next look reads them again.

    Nothing is ever lost: memory that is no file, and pages of a private mapping that were written
    to, stay as they are. So does everything where there is no Linux.
    """
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE)
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE
    if tensor.device.type != "cpu" or sys.platform != "linux" or end <= begin:
        return
    with open("/proc/self/pagemap", "rb") as f:
        f.seek(8 * begin)
        pages = np.frombuffer(f.read(8 * (end - begin)), np.uint64)
    private = (pages & (PRESENT | SWAPPED) != 0) & (pages & FILE == 0)
    if not private.any():
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(begin * mmap.PAGESIZE),
            ctypes.c_size_t((end - begin) * mmap.PAGESIZE),
            DONTNEED,
        )
