"""What an edit costs: network evaluations, seconds, memory.

An evaluation is one row of one forward pass of the denoising network, guided or not; a backward
pass through it counts two more. Passes that gradient checkpointing repeats are repeated work, and
count. Autoencoder and text tower do not.
"""

import ctypes
import gc
import time
from pathlib import Path

import torch

from minidiff.pipe.pipe import Pipe


class Cost:
    """`with Cost(pipe) as c`: network evaluations `nfe` (one per row; a backward pass two more),
    `seconds`, `mb` above what was resident before (Linux: the kernel's high-water mark; on a GPU:
    what was allocated; elsewhere None).
    """

    def __init__(self, pipe: Pipe):
        self.pipe = pipe
        self.nfe = 0
        self.seconds = 0.0
        self.mb = None

    def _count(self, net, args, kwargs, out):
        """One forward pass; and every backward pass through it, whether its gradient enters by the
        output or by a map inside, on its way to the state or the words.
        """
        self.nfe += len(out)
        entered = []  # by the output, in the backward pass that runs

        def by_output(grad):
            self.nfe += 2 * len(grad)
            entered.append(True)

        def by_inside(grad):
            if entered:
                entered.clear()
            else:
                self.nfe += 2 * len(out)

        if out.requires_grad:
            out.register_hook(by_output)
        state = args[0] if args else kwargs.get("x")
        if isinstance(state, torch.Tensor) and state.requires_grad:
            state.register_hook(by_inside)

    def _resident(self, what: str) -> float | None:
        """MB in use ("VmRSS") or at the highest ("VmHWM")."""
        if self.pipe.device.type == "cuda":
            torch.cuda.synchronize(self.pipe.device)
            highest = what == "VmHWM"
            read = torch.cuda.max_memory_allocated if highest else torch.cuda.memory_allocated
            return read(self.pipe.device) / 2**20
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith(what))
        except (OSError, StopIteration):
            return None
        return int(line.split()[1]) / 1024

    def __enter__(self):
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)  # pages that malloc kept would be reused unseen
        except (AttributeError, OSError, TypeError):  # not glibc
            pass
        if self.pipe.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.pipe.device)
        else:
            try:
                # the high-water mark falls to what is resident
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                pass
        self.before = self._resident("VmRSS")
        self.hook = self.pipe.net.register_forward_hook(self._count, with_kwargs=True)
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exc):
        peak = self._resident("VmHWM")
        self.seconds = time.perf_counter() - self.start
        self.hook.remove()
        self.mb = None if peak is None or self.before is None else max(peak - self.before, 0.0)
