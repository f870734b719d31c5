"""LoRA and its relatives: small files that change a big
network, merged into its weights for a while or for good.

Edward J. Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
LoHa and LoKr: Shih-Ying Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS
Fine-Tuning to Model Evaluation", arXiv 2309.14859.

The idea: what fine-tuning adds to a weight has low rank, so store two thin factors in place of the
whole difference. A convolution counts as a matrix, out x (in kh kw), like every weight below. r is
the rank, W the weight, s the strength:

    W' = W + s (alpha / r) D

    plain, conv   D = B A, with A (down) r x (in kh kw) and B (up) out x r
    tucker        D[o, i, k] = sum_mn B[o, m] T[m, n, k] A[n, i], with a small core T (mid), r x r x
                  (kh kw)
    LoHa          D = (w1a w1b) * (w2a w2b), number by number: rank up to r^2. Either product may be
                  a tucker one
    LoKr          D = w1 (x) w2, Kronecker: a coarse grid w1, in each of its cells a copy of w2.
                  Either may be a product

Merging costs nothing when the network runs, and all techniques see the same plain network.
`lora(...)` is a `with` block: the weights from before are kept aside and put back, the very same
numbers. Strengths add up, so the order of several files does not matter.

Try: `with lora(pipe, "style.safetensors", strength=.8): pipe.generate(...)`; a strength of 2, or
-1; two files nested. Weakness: a LoRA fits only the network it was trained on. Names alone cannot
show that, but every tensor of the file must find its place and its shape, or the file is refused.
In half precision small changes are rounded away: load in float32, merge, then cast. DoRA (a norm
for each column besides) is refused.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path

import torch
from torch import Tensor

from minidiff.formats.lora_files import Factors, collect, homeless_message
from minidiff.formats.mapped import TensorFile
from minidiff.pipe.pipe import Pipe

HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
SETS = {
    "plain": [{"down", "up"}],
    "tucker": [{"down", "up", "mid"}],
    "loha": [HADA, HADA | {"hada_t1", "hada_t2"}],
    "lokr": [
        a | b
        for a in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for b in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    ],
}
BASES = {
    128: "the tiny model",
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "SDXL's second text tower",
    2048: "SDXL",
}  # by the width of its text states
READS_TEXT = (
    "attn2.to_k",
    "attn2.to_v",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.fc1",
)


@dataclass(frozen=True, eq=False)
class Delta:
    """What a file adds to one weight at strength 1.
    `scale` is alpha / r, 1 where the file has no alpha.
    """

    family: str  # plain conv tucker loha lokr
    factors: Factors
    scale: float

    def delta(self, shape: tuple[int, ...]) -> Tensor:
        """scale D in float32, in the shape of the weight: (out, in) or (out, in, kh, kw).
        ValueError: see `matrix`.
        """
        return (self.scale * self.matrix(shape)).reshape(shape)

    def matrix(self, shape: tuple[int, ...]) -> Tensor:
        """D in float32 as out x (in kh kw). ValueError:
        factors that do not multiply, or give another shape.
        """
        d = {k: v.float() for k, v in self.factors.items()}
        try:
            matrix = FORMULAS[self.family](d, tuple(shape[2:]))  # out (in kh kw)
        except RuntimeError as e:
            sizes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in self.factors.items())
            raise ValueError(f"the {self.family} factors {sizes} do not multiply") from e
        if matrix.shape != (shape[0], prod(shape[1:])):
            raise ValueError(
                f"the {self.family} factors give {tuple(matrix.shape)}, the weight is "
                f"{tuple(shape)}"
            )
        return matrix


# ---- formulas ------------------------------------------------------------------------------------


def _low_rank(d: Factors, kernel: tuple[int, ...]) -> Tensor:
    return d["up"].flatten(1) @ d["down"].flatten(1)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """D[o, i, k] = sum_mn a[o, m] core[m, n, k] b[n, i], by
    products, which unlike einsum never stretch an axis of 1.
    """
    x = (a @ core.flatten(1)).view(len(a), core.shape[1], -1)  # o n k
    return (x.transpose(1, 2) @ b).transpose(1, 2).flatten(1)  # o (i k)


def _mid(d: Factors, kernel: tuple[int, ...]) -> Tensor:
    return _tucker(d["mid"], d["up"].flatten(1), d["down"].flatten(1))


def _loha(d: Factors, kernel: tuple[int, ...]) -> Tensor:
    """With a core the outer factors are stored the other way round, r x out."""
    x, y = (
        _tucker(d[f"hada_t{i}"], d[f"hada_w{i}_a"].T, d[f"hada_w{i}_b"])
        if "hada_t1" in d
        else d[f"hada_w{i}_a"] @ d[f"hada_w{i}_b"].flatten(1)
        for i in (1, 2)
    )
    if x.shape != y.shape:
        raise RuntimeError("two products of unlike shape")
    return x * y


def _lokr(d: Factors, kernel: tuple[int, ...]) -> Tensor:
    """The kernel belongs to w2 alone: every cell of the grid holds a whole small convolution."""
    w1 = d["lokr_w1"] if "lokr_w1" in d else d["lokr_w1_a"] @ d["lokr_w1_b"]
    if "lokr_w2" in d:
        w2 = d["lokr_w2"]
    elif "lokr_t2" in d:
        w2 = _tucker(d["lokr_t2"], d["lokr_w2_a"].T, d["lokr_w2_b"])
    else:
        w2 = d["lokr_w2_a"] @ d["lokr_w2_b"].flatten(1)
    w2 = w2.reshape(len(w2), -1, *kernel)
    return torch.kron(w1.reshape(*w1.shape[:2], *(1 for _ in kernel)), w2).flatten(1)


FORMULAS = {"plain": _low_rank, "conv": _low_rank, "tucker": _mid, "loha": _loha, "lokr": _lokr}


def _rank(f: Factors) -> int | None:
    """r, the size that the factors share; None for a Kronecker
    product of two whole matrices, which alpha never scales.

    With a core, r is the core's size. (LyCORIS's own re-import takes the rows of w2_a for it; its
    training does not.)
    """
    inner = next((f[k] for k in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if k in f), None)
    return None if inner is None else len(inner)


# ---- reading -------------------------------------------------------------------------------------


def read_lora(
    source: str | Path | TensorFile, pipe: Pipe, drop: Iterable[str] = ()
) -> dict[str, Delta]:
    """{our layer ("net.down_blocks.0....to_q", "text.encoder....q_proj"): its Delta} of a LoRA file
    in any dialect, less the tensors whose names match a pattern of `drop`.

    Only shapes of `pipe` are looked at: it may live on the device "meta". ValueError, one line with
    the file's name: a tensor without a home in this model, a file made for another base model, an
    incomplete or ill-shaped set of factors, NaN or infinite numbers, DoRA. FileNotFoundError.
    """
    path, found, homeless = collect(source, pipe, drop)
    deltas = {layer: _delta(path, layer, factors) for layer, factors in found.items()}
    wrong = []
    for layer, delta in deltas.items():
        shape = tuple(_weight(pipe, layer).shape)
        try:
            Delta(
                delta.family, {k: v.to("meta") for k, v in delta.factors.items()}, delta.scale
            ).matrix(shape)
        except ValueError as e:
            wrong.append(f"{layer}: {e}")
            base = _base(layer, delta, shape)
            if base and base != shape[1]:
                raise ValueError(
                    f"{path} was made for {BASES[base]} (text width {base}); "
                    f"{pipe.name or 'this model'} has text width {shape[1]}"
                ) from e
    if homeless or not deltas:
        raise ValueError(homeless_message(path, homeless, len(deltas), pipe))
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of {len(deltas)} layers do not fit {pipe.name or 'this model'}: "
            f"{wrong[0]}"
        )
    return deltas


def _delta(path: Path, layer: str, factors: Factors) -> Delta:
    f = {k: v for k, v in factors.items() if k != "alpha"}
    family = next((name for name, sets in SETS.items() if f.keys() in sets), None)
    if family is None:
        raise ValueError(
            f"{path}: {layer} has only {', '.join(sorted(factors))}; expected one of: "
            + "; ".join(" ".join(sorted(s)) for sets in SETS.values() for s in sets[:1])
        )
    if any(v.dim() < 2 for v in f.values()):
        raise ValueError(
            f"{path}: {layer} has factors of shape "
            f"{', '.join(str(tuple(v.shape)) for v in f.values())}; expected matrices or kernels"
        )
    if any(v.numel() == 0 for v in f.values()):
        raise ValueError(f"{path}: {layer} has factors without numbers (rank 0)")
    if family == "plain" and f["down"][0, 0].numel() > 1:
        family = "conv"
    alpha = factors.get("alpha")
    rank = _rank(f)
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"{path}: alpha of {layer} is {tuple(alpha.shape)}, expected one number")
    return Delta(family, f, float(alpha) / rank if alpha is not None and rank else 1.0)


def _base(layer: str, delta: Delta, shape: tuple[int, ...]) -> int | None:
    """The width of text that a low-rank layer was made
    for, if the layer tells and the width is well known.
    """
    inner = delta.factors.get("down", delta.factors.get("hada_w1_b"))
    columns = inner.shape[1] if inner is not None and layer.endswith(READS_TEXT) else None
    return columns if columns in BASES and shape[1] in BASES else None


# ---- merging -------------------------------------------------------------------------------------


@contextmanager
def lora(
    pipe: Pipe,
    path: str | Path | TensorFile,
    strength: float = 1.0,
    drop: Iterable[str] = (),
) -> Iterator[Pipe]:
    """`with lora(pipe, path, strength=.8):` the pipe has the
    LoRA merged; after it, the weights from before, bit by bit.
    """
    with apply_lora(pipe, read_lora(path, pipe, drop), strength):
        yield pipe


@contextmanager
def apply_lora(pipe: Pipe, deltas: dict[str, Delta], strength: float = 1.0) -> Iterator[Pipe]:
    """As `lora`, for deltas read before. The touched weights exist twice
    for so long. What changes them inside the block (training, casting)
    is undone with it. ValueError: a layer that the pipe does not have.
    """
    before = _merge(pipe, deltas, strength)
    try:
        yield pipe
    finally:
        for weight, numbers in before:
            weight.data = numbers


def merge_lora(
    pipe: Pipe,
    path: str | Path | TensorFile,
    strength: float = 1.0,
    drop: Iterable[str] = (),
) -> Pipe:
    """Merge for good, into the pipe's own weights; returns the
    pipe. Errors: those of `read_lora`, nothing half merged.
    """
    _merge(pipe, read_lora(path, pipe, drop), strength)
    return pipe


@torch.no_grad()
def _merge(pipe: Pipe, deltas: dict[str, Delta], strength: float) -> list[tuple[Tensor, Tensor]]:
    """Merge; returns each weight with its numbers from before, which are not written over."""
    if not isfinite(strength):
        raise ValueError(
            f"strength={strength}; expected a number such as 1 (as trained), 0 (off) or -1 (the "
            "opposite)"
        )
    before = []
    try:
        for layer, delta in deltas.items():
            weight = _weight(pipe, layer)
            before.append((weight, weight.data))
            d = delta.delta(tuple(weight.shape)).to(weight.device)
            precise = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
            weight.data = (precise + strength * d).to(weight.dtype)
    except BaseException:
        for weight, numbers in before:
            weight.data = numbers
        raise
    return before


def _weight(pipe: Pipe, layer: str) -> Tensor:
    part, _, name = layer.partition(".")
    try:
        return getattr(pipe, part).get_submodule(name).weight
    except AttributeError as e:
        raise ValueError(
            f"{pipe.name or 'this model'} has no layer {layer!r}; read the LoRA for this pipe"
        ) from e
