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
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


class Tap(nn.Module):
    """Identity until someone listens; then each listener may replace the tensor in turn."""

    def __init__(self):
        super().__init__()
        self.fns = []

    def forward(self, x: Tensor) -> Tensor:
        for fn in self.fns:
            y = fn(x)
            x = x if y is None else y
        return x


def tap_names(net: nn.Module, pattern: str = "") -> list[str]:
    """Names of all taps of `net` matching the regular
    expression `pattern` (all of them by default).
    """
    return [n for n, m in net.named_modules() if isinstance(m, Tap) and re.search(pattern, n)]


@contextmanager
def tap(net: nn.Module, pattern: str, fn):
    """Attach `fn(x, name) -> x or None` to every tap of `net`
    whose name matches the regular expression `pattern`.

    Raises KeyError if no tap matches, since a silent edit that edits nothing is the worst bug of
    this field.
    """
    names = tap_names(net, pattern)
    if not names:
        raise KeyError(
            f"no tap matches {pattern!r}; some that exist: "
            f"{', '.join(tap_names(net)[:6]) or 'none'}"
        )
    with ExitStack() as stack:
        for name in names:
            fns = net.get_submodule(name).fns
            bound = lambda x, name=name: fn(x, name)  # noqa: E731 - one closure per tap, removed by identity below
            fns.append(bound)
            stack.callback(fns.remove, bound)
        yield names
