"""Files of weights."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from by_hand import near, rand
from torch import nn

from minidiff.formats.lora import _delta, apply_lora


def entries(family, f, i, o, k):
    """Entry (o, i, k) of D, by sums over the factors."""
    at = lambda name: f[name].flatten(2)[..., k] if f[name].ndim > 2 else f[name]  # noqa: E731
    if family == "lora":
        return sum(f["up"].flatten(1)[o, r] * at("down")[r, i] for r in range(2))
    if family == "tucker":
        up, down, mid = f["up"].flatten(1), f["down"].flatten(1), at("mid")
        return sum(up[o, m] * mid[m, n] * down[n, i] for m, n in product(range(2), range(2)))
    if family == "loha":
        # a kernel lies flat in the second factor
        cell = i if f["hada_w1_b"].shape[1] == 6 else i * 9 + k
        one, two = (
            sum(f[f"hada_w{j}_a"][o, r] * f[f"hada_w{j}_b"][r, cell] for r in range(2))
            for j in (1, 2)
        )
        return one * two
    # Kronecker: which copy, and where in it
    rows, columns = f["lokr_w2_a"].shape[0], f["lokr_w2_b"].shape[1]
    small = sum(f["lokr_w2_a"][o % rows, r] * f["lokr_w2_b"][r, i % columns] for r in range(2))
    return f["lokr_w1"][o // rows, i // columns] * small


def factors(family, conv):
    shape = {
        "lora": {"up": (4, 2), "down": (2, 6)},
        "tucker": {"up": (4, 2, 1, 1), "mid": (2, 2, 3, 3), "down": (2, 6, 1, 1)},
        "loha": {
            f"hada_w{j}_{e}": (4, 2) if e == "a" else (2, 54 if conv else 6)
            for j in (1, 2)
            for e in "ab"
        },
        "lokr": {"lokr_w1": (2, 3), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 2)},
    }[family]
    if conv and family == "lora":
        shape = {"up": (4, 2, 1, 1), "down": (2, 6, 3, 3)}
    return {name: rand(*s, seed=k) for k, (name, s) in enumerate(shape.items())}


@pytest.mark.parametrize(
    "family, conv",
    [
        ("lora", False),
        ("lora", True),
        ("tucker", True),
        ("loha", False),
        ("loha", True),
        ("lokr", False),
    ],
)
def test_lora_merge(family, conv):
    layer = nn.Conv2d(6, 4, 3).double() if conv else nn.Linear(6, 4).double()
    pipe, before = (
        SimpleNamespace(net=nn.ModuleDict({"to_q": layer}), name=""),
        layer.weight.data.clone(),
    )
    f, alpha, s = factors(family, conv), 3.0, 0.7  # r is 2
    with apply_lora(
        pipe, {"net.to_q": _delta("file", "net.to_q", f | {"alpha": torch.tensor(alpha)})}, s
    ):
        after = layer.weight.data.flatten(2) if conv else layer.weight.data[..., None]
        for o, i, k in product(range(4), range(6), range(after.shape[2])):
            own = before.flatten(2)[o, i, k] if conv else before[o, i]
            # D is made in float32
            near(after[o, i, k], own + s * alpha / 2 * entries(family, f, i, o, k), 1e-5)
    assert torch.equal(layer.weight.data, before)
