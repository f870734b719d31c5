"""SIGE: after a small change, compute only where something changed.

Muyang Li, Ji Lin, Chenlin Meng, Stefano Ermon, Song Han, Jun-Yan Zhu, 2022, arXiv 2211.02048.

A picture was drawn once, and every layer's output kept. Now a few pixels of its guide change. Where
they did not, a convolution would compute what it computed before; so gather the tiles that the
change touches, run the layer on those, and scatter the result into the map that was kept.

    D          |changed - image| > threshold, on the latents, grown by `grow`; max-pooled to each
               layer's size
    conv       the tiles of o x o outputs that touch D: gather (k - 1 more pixels each way),
               convolve, scatter into the kept map
    linear     the tokens in D, likewise
    GroupNorm  with the mean and variance of the first run, so that it acts pixel by pixel

Layers are exchanged for watched ones for the length of a block, and are themselves again
afterwards.

Try: a small and a large change; tile 1, 2, 4 (a finer one saves more multiplications, and copies
more); `compare`, which does it both ways and counts.

Weakness: the first run's statistics are not the second's, and what attention carries far is dropped
outside D: this is an approximation, and `compare` measures it. Attention's own products stay dense.
On a CPU and a tiny network gathering costs more than it saves, so the figures are multiply-adds,
and seconds beside them. The maps of every step are kept in memory.
"""

from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.core.taps import tap, tap_names
from minidiff.editing.sdedit import sdedit
from minidiff.pipe.checks import door
from minidiff.pipe.masks import to_latent_mask
from minidiff.pipe.pipe import Pipe

LAYERS = (nn.Conv2d, nn.Linear, nn.GroupNorm)
QK = r"\.(q|k)$"  # taps of every attention


class Watched(nn.Module):
    """A layer whose place is taken: fn(layer, name, x) says what comes out."""

    def __init__(self, layer: nn.Module, name: str, fn):
        super().__init__()
        self.layer = layer
        self.name = name
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.layer, self.name, x)


@contextmanager
def watched(net: nn.Module, fn, kinds: tuple = LAYERS):
    """Every layer of these kinds gives fn(layer, name, x) as
    long as the block lasts, also when an exception ends it.
    """
    found = [
        (parent, key, child, f"{name}.{key}")
        for name, parent in net.named_modules()
        for key, child in parent.named_children()
        if isinstance(child, kinds)
    ]
    try:
        for parent, key, child, name in found:
            setattr(parent, key, Watched(child, name, fn))
        yield
    finally:
        for parent, key, child, _ in found:
            setattr(parent, key, child)


@dataclass
class Memory:
    """What a first run left behind, layer by layer and
    call by call; `sparse` reads it in the same order.

    mask   (b 1 h w) at the size of the state, 1 where it changed; tile: side of the output tiles
           that are computed
    macs   multiply-adds of the sparse run, `dense` of the same run without sparsity (layers and
           attention's products)
    """

    tile: int = 2
    mask: Tensor | None = None
    kept: dict = field(default_factory=lambda: defaultdict(list))
    calls: dict = field(default_factory=lambda: defaultdict(int))
    macs: int = 0
    dense: int = 0

    def record(self, layer: nn.Module, name: str, x: Tensor) -> Tensor:
        """The layer as it is, remembered: an output, or GroupNorm's statistics."""
        y = layer(x)
        self.kept[name].append(
            statistics(layer, x) if isinstance(layer, nn.GroupNorm) else y.clone()
        )
        return y

    def sparse(self, layer: nn.Module, name: str, x: Tensor) -> Tensor:
        """The layer where the mask says so, and what was kept elsewhere."""
        i = self.calls[name]
        if i >= len(self.kept[name]):
            raise ValueError(
                f"{name} is called for the {i + 1}. time, but the first run called it {i} times: "
                "both runs need the same steps, guidance and batch"
            )
        kept, self.calls[name] = self.kept[name][i], i + 1
        if isinstance(layer, nn.GroupNorm):
            return normalise(layer, x, *kept)  # the first run's mean and variance
        if isinstance(layer, nn.Conv2d):
            y, share = sparse_conv(layer, x, kept, self._at(kept.shape[-2:], len(x)), self.tile)
        else:
            y, share = self._linear(layer, x, kept)
        per_output = layer.weight[0].numel()
        self.macs = self.macs + round(share * y.numel()) * per_output
        self.dense = self.dense + y.numel() * per_output
        return y

    def _at(self, size: tuple[int, int], rows: int) -> Tensor:
        """The mask (rows 1 h w) of a layer's size: a cell
        counts if anything in it changed. rows: [b, b, ...].
        """
        return F.adaptive_max_pool2d(self.mask, size).repeat(rows // len(self.mask), 1, 1, 1)

    def _linear(self, layer: nn.Linear, x: Tensor, kept: Tensor) -> tuple[Tensor, float]:
        """Tokens of pixels (b hw c) one by one where they
        changed; what has no place (words, time) is computed.
        """
        h, w = self.mask.shape[-2:]
        sizes = {(h // f) * (w // f): (h // f, w // f) for f in (8, 4, 2, 1)}
        if x.ndim != 3 or x.shape[1] not in sizes:
            return layer(x), 1.0
        on = self._at(sizes[x.shape[1]], len(x)).flatten(1) > 0  # b n
        y = kept.clone()
        y[on] = layer(x[on])
        return y, on.float().mean().item()

    def attention(self, x: Tensor, name: str) -> None:
        """For taps on q and k: q k^T and probs v cost as much each, sparse or not."""
        if name.endswith("q"):
            self._q = x.numel()
        else:
            self.macs = self.macs + 2 * self._q * x.shape[2]
            self.dense = self.dense + 2 * self._q * x.shape[2]


def statistics(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation per row and group, (b g 1) each."""
    v = x.reshape(len(x), norm.num_groups, -1)
    return v.mean(2, keepdim=True), (v.var(2, unbiased=False, keepdim=True) + norm.eps).rsqrt()


def normalise(norm: nn.GroupNorm, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """GroupNorm with statistics from elsewhere: nothing but a scale and a shift per pixel."""
    v = ((x.reshape(len(x), norm.num_groups, -1) - mean) * rstd).reshape(x.shape)
    return v * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def sparse_conv(
    conv: nn.Conv2d, x: Tensor, kept: Tensor, mask: Tensor, tile: int
) -> tuple[Tensor, float]:
    """(output (b c h w), share of it that was computed): the
    tiles that touch `mask` (b 1 h w), and `kept` elsewhere.
    """
    (h, w), k, st, pad = kept.shape[-2:], conv.kernel_size[0], conv.stride[0], conv.padding[0]
    ny = -(-h // tile)  # tiles each way
    nx = -(-w // tile)
    hit = F.max_pool2d(F.pad(mask, (0, nx * tile - w, 0, ny * tile - h)), tile)[:, 0] > 0  # b ny nx
    if not hit.any():
        return kept.clone(), 0.0
    side = (tile - 1) * st + k  # input pixels of a tile
    move = tile * st
    x = F.pad(
        x,
        (
            pad,
            (nx - 1) * move + side - x.shape[3] - pad,
            pad,
            (ny - 1) * move + side - x.shape[2] - pad,
        ),
    )
    # b ny nx c side side, a view
    blocks = x.unfold(2, side, move).unfold(3, side, move).permute(0, 2, 3, 1, 4, 5)
    # tiles c tile tile: no padding
    done = F.conv2d(blocks[hit], conv.weight, conv.bias, conv.stride, groups=conv.groups)
    y = (
        F.pad(kept, (0, nx * tile - w, 0, ny * tile - h))
        .unflatten(3, (nx, tile))
        .unflatten(2, (ny, tile))
    )
    y = y.permute(0, 2, 4, 1, 3, 5).clone()  # b ny nx c tile tile
    y[hit] = done  # scatter
    y = y.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)[..., :h, :w]
    return y.contiguous(), hit.float().mean().item()


def changed_mask(
    pipe: Pipe, image: Tensor, changed: Tensor, threshold: float = 0.04, grow: int = 1
) -> Tensor:
    """(b 1 h w): latent cells whose pixels differ by more
    than `threshold` of [-1, 1], grown by `grow` cells.
    """
    if image.shape != changed.shape:
        raise ValueError(
            f"the pictures are {tuple(image.shape)} and {tuple(changed.shape)}: expected the same "
            "shape"
        )
    d = ((changed - image).abs().amax(1, keepdim=True) > threshold).float()
    return F.max_pool2d(to_latent_mask(d, pipe), 2 * grow + 1, 1, grow)


@torch.no_grad()
def compare(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    changed: Tensor,
    strength: float = 0.5,
    tile: int = 1,
    grow: int = 1,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    dense: bool = True,
) -> dict:
    """{"sparse", "dense" (b 3 H W), "mask", "macs": share
    of the dense run's, "seconds": (sparse, dense)}.

    `dense=False` leaves the dense run out. Options as in `sige`.
    """
    if tile < 1 or grow < 0:
        raise ValueError(
            f"tile={tile}, grow={grow}: expected tiles of 1 or more and a growth of 0 or more cells"
        )
    memory = Memory(tile)
    run = dict(strength=strength, steps=steps, scale=scale, seed=seed)
    memory.mask = changed_mask(pipe, image, changed, grow=grow)
    with watched(pipe.net, memory.record):
        sdedit(pipe, image, source, **run)  # the first run: every output is kept
    names = tap_names(pipe.net, QK)
    start = perf_counter()
    seen = tap(pipe.net, QK, memory.attention) if names else nullcontext()
    with watched(pipe.net, memory.sparse), seen:
        out = {"sparse": sdedit(pipe, changed, target, **run)}
    seconds = [perf_counter() - start]
    start = perf_counter()
    if dense:
        out["dense"] = sdedit(pipe, changed, target, **run)
        seconds.append(perf_counter() - start)
    return out | {
        "mask": memory.mask,
        "macs": memory.macs / max(memory.dense, 1),
        "seconds": tuple(seconds),
    }


@door
def sige(
    pipe: Pipe,
    image: Tensor,
    source: str,
    target: str,
    *,
    changed: Tensor,
    strength: float = 0.5,
    tile: int = 1,
    grow: int = 1,
    steps: int = 50,
    scale: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """SDEdit of `changed`, computed only where it differs
    from `image` (b 3 H W); returns (b 3 H W) in [-1, 1].

    changed   the same picture after somebody painted on it, the guide of what is wanted
    source    the prompt that describes `image`: the first run, dense, which is kept
    target    the prompt that describes `changed`
    strength  share of the steps that is run again
    tile      side of the tiles of outputs that are computed, in cells: 1 on 16 cells a side, 4 on
              64
    grow      cells around the change that are computed, too

    ValueError: pictures of different shapes, a tile below 1, and whatever SDEdit refuses.
    """
    return compare(
        pipe,
        image,
        source,
        target,
        changed=changed,
        strength=strength,
        tile=tile,
        grow=grow,
        steps=steps,
        scale=scale,
        seed=seed,
        dense=False,
    )["sparse"]
