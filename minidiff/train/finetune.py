"""Tune some of a network's weights for one picture, and have the network back afterwards.

Imagic, UniTune, pivotal tuning and DiffusionCLIP all change a few weights for a while. Here a pattern says which, nothing
else gets a gradient, and when the block is left, by whatever door, every weight is what it was.

    with tuned(pipe.net, r"attn2\\.to_[kv]") as weights:
        optimizer = torch.optim.Adam(weights, lr=1e-3)
        ...
"""
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def tuned(net: nn.Module, pattern: str = "") -> Iterator[list[nn.Parameter]]:
    """The parameters whose names match the regular expression, with gradients on; put back at the end of the block.

    KeyError if none matches.
    """
    chosen = {n: p for n, p in net.named_parameters() if re.search(pattern, n)}
    if not chosen:
        some = ", ".join([n for n, _ in net.named_parameters()][:6])
        raise KeyError(f"no weight matches {pattern!r}; some that exist: {some}")
    wanted = {n: p.requires_grad for n, p in net.named_parameters()}
    before = {n: p.detach().clone() for n, p in chosen.items()}
    try:
        for n, p in net.named_parameters():
            p.requires_grad_(n in chosen)
        yield list(chosen.values())
    finally:
        with torch.no_grad():
            for n, p in net.named_parameters():
                p.requires_grad_(wanted[n])
                p.grad = None
                if n in before:
                    p.copy_(before[n])
