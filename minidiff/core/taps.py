"""Taps: a name for every tensor a paper looks at.

A `Tap` is an identity module. Wherever a paper reads or replaces an activation (attention q, k, v,
logits, probs, out; a ResBlock's h; the bottleneck; the skips; a block's output) the network holds
one, and its name in `named_modules()` is the address. `with tap(net, pattern, fn)` attaches `fn(x,
name)` to all taps whose name matches the regular expression for as long as the block lasts, also
when it is left by an exception. `fn` returns the tensor to go on with, or None to only look. Taps
hold no parameters, so checkpoints never see them.

They are state of the network while the block is open: one network, one thread.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


class Tap(nn.Module):
    """Identity until someone listens; then each listener may replace the tensor in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.fns: list[Callable[[Tensor], Tensor | None]] = []

    def forward(self, x: Tensor) -> Tensor:
        for fn in self.fns:
            y = fn(x)
            x = x if y is None else y
        return x


def _taps(net: nn.Module, pattern: str) -> dict[str, Tap]:
    return {n: m for n, m in net.named_modules() if isinstance(m, Tap) and re.search(pattern, n)}


def tap_names(net: nn.Module, pattern: str = "") -> list[str]:
    """Names of all taps of `net` matching the regular
    expression `pattern` (all of them by default).
    """
    return list(_taps(net, pattern))


@contextmanager
def tap(
    net: nn.Module, pattern: str, fn: Callable[[Tensor, str], Tensor | None]
) -> Iterator[list[str]]:
    """Attach `fn(x, name) -> x or None` to every tap of `net`
    whose name matches the regular expression `pattern`.

    Raises KeyError if no tap matches, since a silent edit that edits nothing is the worst bug of
    this field.
    """
    taps = _taps(net, pattern)
    if not taps:
        raise KeyError(
            f"no tap matches {pattern!r}; some that exist: "
            f"{', '.join(tap_names(net)[:6]) or 'none'}"
        )
    with ExitStack() as stack:
        for name, module in taps.items():
            bound = lambda x, name=name: fn(x, name)  # noqa: E731 - one closure per tap, removed by identity below
            module.fns.append(bound)
            stack.callback(module.fns.remove, bound)
        yield list(taps)
