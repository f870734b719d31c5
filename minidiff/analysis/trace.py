"""What is inside a network: every block with its output shape, parameters and optimiser.

It costs nothing: the network is built on the meta device, which knows shapes and owns no memory,
and run once there; forward hooks note what each block returns. So Stable Diffusion's 860 million
parameters are traced in a second on any laptop.

    print(table(trace("sd15")))  # also: part="vae", part="text"; sizes: models/sizes.py
"""

import torch
from torch import Tensor, nn

import minidiff
from minidiff.core.cond import Cond
from minidiff.models.attention import SpatialAttention, SpatialTransformer
from minidiff.models.blocks import Downsample, ResBlock, TimeEmbedding, Upsample
from minidiff.models.dit import DiTBlock, FinalLayer
from minidiff.models.text import Block
from minidiff.pipe.pipe import Pipe
from minidiff.train.optim import sections

BLOCKS = (
    ResBlock,
    SpatialTransformer,
    SpatialAttention,
    Downsample,
    Upsample,
    TimeEmbedding,
    DiTBlock,
    FinalLayer,
    Block,
)
PARTS = ("net", "vae", "text")


def trace(size: str, part: str = "net") -> list[dict]:
    """One row per block in the order they run: name, kind, shape of its output (None: it is read,
    not run), parameters, and how many of them each optimiser takes (the rest is fixed). Rows add up
    to the network.

    part    net (the denoiser), vae or text
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} is unknown; choose one of: {', '.join(PARTS)}")
    pipe = minidiff.build(size, device="meta")
    net = getattr(pipe, part)
    if net is None:
        has = ", ".join(p for p in PARTS if getattr(pipe, p) is not None)
        raise ValueError(f"{size} has no {part}; it has: {has}")
    parts = blocks(net)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(module, args, out):  # returns nothing: a returned value would replace the output
            shapes[name] = tuple(out.shape)

        return hook

    hooks = []
    for name, block in parts.items():
        if isinstance(block, nn.Module):
            hooks.append(block.register_forward_hook(note(name)))
    run = {"net": run_net, "vae": run_vae, "text": run_text}[part]
    try:
        run(pipe)
    finally:
        for hook in hooks:
            hook.remove()
    where = trained(net)
    order = [name for name in parts if name not in shapes] + list(shapes)
    return [row(name, parts[name], shapes.get(name), where) for name in order]


def blocks(net: nn.Module, prefix: str = "") -> dict[str, nn.Module | nn.Parameter]:
    """{name: block}: the classes of BLOCKS, layers outside them, and parameters that belong to no
    layer.
    """
    parts: dict[str, nn.Module | nn.Parameter] = {}
    for name, parameter in net.named_parameters(recurse=False):
        parts[prefix + name] = parameter
    for name, child in net.named_children():
        whole = isinstance(child, BLOCKS) or not list(child.children())
        if not whole:
            parts |= blocks(child, f"{prefix}{name}.")
        elif list(child.parameters()):
            parts[prefix + name] = child
    return parts


def trained(net: nn.Module) -> dict[str, str]:
    """{parameter: "muon" | "adamw"} as in a training of the whole network; a DiT's position table
    is fixed.
    """
    net.requires_grad_(True)
    if hasattr(net, "pos_embed"):
        net.pos_embed.requires_grad_(False)
    return sections(net)


def row(
    name: str, block: nn.Module | nn.Parameter, shape: tuple | None, where: dict[str, str]
) -> dict:
    if isinstance(block, nn.Parameter):
        sizes = {name: block.numel()}
    else:
        sizes = {f"{name}.{inner}": p.numel() for inner, p in block.named_parameters()}
    taken = {"muon": 0, "adamw": 0}
    for parameter, size in sizes.items():
        if parameter in where:
            taken[where[parameter]] += size
    total = sum(sizes.values())
    kind = type(block).__name__
    return {"name": name, "kind": kind, "shape": shape, "parameters": total} | taken


def run_net(pipe: Pipe) -> None:
    """One forward of the denoiser, with every input it takes, on one row."""

    def zeros(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="meta")

    net = pipe.net
    channels, h, w = pipe.shape
    label = zeros(1, dtype=torch.long) if getattr(net, "classes", None) else None
    more = net.in_channels - channels  # of a picture beside the latent
    image = zeros(1, more, h, w) if more > 0 else None
    cond = Cond(text=run_text(pipe), label=label, image=image)
    net(zeros(1, channels, h, w), zeros(1, dtype=torch.long), cond)


def run_vae(pipe: Pipe) -> None:
    """There and back again."""
    pipe.vae.decode(pipe.vae.encode(torch.zeros(1, 3, *pipe.image_size, device="meta")).mean)


def run_text(pipe: Pipe) -> Tensor | None:
    """States (1 n d) of an empty prompt."""
    if pipe.text is None:
        return None
    return pipe.text(torch.zeros(1, pipe.text.context, dtype=torch.long, device="meta"))


def table(rows: list[dict]) -> str:
    """The rows as text, with a total."""
    numbers = ("parameters", "muon", "adamw")
    total = {name: sum(r[name] for r in rows) for name in numbers}
    lines = [["block", "kind", "output", *numbers]]
    for r in [*rows, {"name": "total", "kind": "", "shape": (), **total}]:
        shape = "-" if r["shape"] is None else " ".join(map(str, r["shape"]))
        counts = [f"{r[name]:,}" if r[name] else "" for name in numbers]
        lines.append([r["name"], r["kind"], shape, *counts])
    width = [max(len(cell) for cell in column) for column in zip(*lines)]
    text = []
    for line in lines:
        left = [cell.ljust(w) for cell, w in zip(line[:3], width[:3])]
        right = [cell.rjust(w) for cell, w in zip(line[3:], width[3:])]
        text.append("  ".join(left + right).rstrip())
    head, *body, last = text
    rule = "-" * max(len(line) for line in text)
    return "\n".join([head, rule, *body, rule, last])
