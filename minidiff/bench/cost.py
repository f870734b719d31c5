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

    def _before(self, net, args, kwargs):
        """Count a forward pass, and every backward pass that leaves it by the state. The pass gets
        a view of its own of the state: the state itself may go through several.
        """
        state = args[0] if args else kwargs["x"]
        self.nfe += len(state)
        self.entered = entered = []  # by the output, in the backward pass that runs
        if not (state.requires_grad and torch.is_grad_enabled()):
            return None
        own = state.view_as(state)

        def by_inside(grad):
            if entered:
                entered.clear()
            else:
                self.nfe += 2 * len(grad)

        own.register_hook(by_inside)
        if args:
            return (own, *args[1:]), kwargs
        return args, kwargs | {"x": own}

    def _after(self, net, args, out):
        """Count every backward pass that enters by the output, on its way to the state, the words
        or the weights.
        """
        entered = self.entered

        def by_output(grad):
            self.nfe += 2 * len(grad)
            entered.append(True)

        if out.requires_grad:
            out.register_hook(by_output)

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
        net = self.pipe.net
        self.hooks = [
            net.register_forward_pre_hook(self._before, with_kwargs=True),
            net.register_forward_hook(self._after),
        ]
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exc):
        peak = self._resident("VmHWM")
        self.seconds = time.perf_counter() - self.start
        for hook in self.hooks:
            hook.remove()
        self.mb = None if peak is None or self.before is None else max(peak - self.before, 0.0)
