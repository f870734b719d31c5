"""What is inside a network: every block with its output shape, parameters and optimiser, at no
cost.

The network is built on the meta device, which knows shapes and owns no memory, and run once there;
forward hooks note what each block returns. So Stable Diffusion's 860 million parameters are traced
in a second on any laptop.

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
    found, shapes = blocks(net), {}

    def note(name: str):
        def hook(module, args, out):  # returns nothing: a returned value would replace the output
            shapes[name] = tuple(out.shape)

        return hook

    hooks = [m.register_forward_hook(note(n)) for n, m in found.items() if isinstance(m, nn.Module)]
    try:
        {"net": run_net, "vae": run_vae, "text": run_text}[part](pipe)
    finally:
        for hook in hooks:
            hook.remove()
    where = trained(net)
    order = [n for n in found if n not in shapes] + list(shapes)
    return [row(n, found[n], shapes.get(n), where) for n in order]


def blocks(net: nn.Module, prefix: str = "") -> dict[str, nn.Module | nn.Parameter]:
    """{name: block}: the classes of BLOCKS, layers outside them, and parameters that belong to no
    layer.
    """
    found: dict[str, nn.Module | nn.Parameter] = {
        prefix + n: p for n, p in net.named_parameters(recurse=False)
    }
    for name, child in net.named_children():
        if isinstance(child, BLOCKS) or not list(child.children()):
            found |= {prefix + name: child} if list(child.parameters()) else {}
        else:
            found |= blocks(child, f"{prefix}{name}.")
    return found


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
    own = (
        {name: block}
        if isinstance(block, nn.Parameter)
        else {f"{name}.{n}": p for n, p in block.named_parameters()}
    )
    count = {
        kind: sum(p.numel() for n, p in own.items() if where.get(n) == kind)
        for kind in ("muon", "adamw")
    }
    size = sum(p.numel() for p in own.values())
    return {"name": name, "kind": type(block).__name__, "shape": shape, "parameters": size} | count


def run_net(pipe: Pipe) -> None:
    """One forward of the denoiser, with every input it takes, on one row."""
    zeros = lambda *shape, dtype=None: torch.zeros(shape, dtype=dtype, device="meta")  # noqa: E731
    net, (c, h, w) = pipe.net, pipe.shape
    label = zeros(1, dtype=torch.long) if getattr(net, "classes", None) else None
    image = zeros(1, net.in_channels - c, h, w) if net.in_channels > c else None
    net(
        zeros(1, c, h, w),
        zeros(1, dtype=torch.long),
        Cond(text=run_text(pipe), label=label, image=image),
    )


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
    total = {k: sum(r[k] for r in rows) for k in ("parameters", "muon", "adamw")}
    lines = [("block", "kind", "output", "parameters", "muon", "adamw")]
    for r in [*rows, {"name": "total", "kind": "", "shape": (), **total}]:
        shape = "-" if r["shape"] is None else " ".join(map(str, r["shape"]))
        lines.append((r["name"], r["kind"], shape, *(f"{r[k]:,}" if r[k] else "" for k in total)))
    wide = [max(len(line[i]) for line in lines) for i in range(6)]
    text = [
        "  ".join(
            c.ljust(n) if i < 3 else c.rjust(n) for i, (c, n) in enumerate(zip(line, wide))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, text))
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])
