"""Several processes, started by `torchrun`, that train one network together.

Each takes its rows of the same global batch, and DistributedDataParallel averages their gradients.
That equals one process with the whole batch only if the loss is a mean in which every row has the
same weight. A loss that compares rows (CLIP's: every picture with every caption), or that takes a
mean over something rows hold unequal numbers of (words), has to see all rows. It passes what its
network says through `gathered`, and goes on with the whole batch.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def process_group(device: str) -> tuple[int, int]:
    """(rank, world). Joins the group that torchrun
    announces in the environment: gloo on CPU, nccl on GPU.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.get_rank(), dist.get_world_size()


def own_rows(batch: dict[str, Tensor], rank: int, world: int) -> dict[str, Tensor]:
    """Every `world`-th row from `rank` on. ValueError if the shares would be unequal."""
    for name, rows in batch.items():
        if len(rows) % world:
            raise ValueError(
                f"{len(rows)} rows of {name!r} cannot be shared evenly by {world} processes: take "
                f"a multiple of {world} as the size of a batch"
            )
    return {name: rows[rank::world] for name, rows in batch.items()}


class _Gather(torch.autograd.Function):
    """Rows of all processes, in the order of the whole batch.

    Every process computes the same loss from them. Each one's gradient at a row is therefore summed
    over processes and handed to the process that owns the row; averaging over processes then gives
    the gradient of that one loss.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() :: dist.get_world_size()]


def gathered(rows: Tensor) -> Tensor:
    """The rows (b ..) of all processes as they stand in
    the whole batch, with gradients; alone: the rows.
    """
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return rows if alone else _Gather.apply(rows)
