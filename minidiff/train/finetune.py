"""Tune some of a network's weights for one picture, and have the network back afterwards.

Imagic (arXiv 2210.09276), UniTune (2210.09477), pivotal tuning (2106.05744) and DiffusionCLIP
(2110.02711) all change a few weights for a while. Here a pattern says which, nothing else gets a
gradient, and when the block is left, by whatever door, every weight is what it was.

    with in_float32(pipe), tuned(pipe.net, r"attn2\\.to_[kv]") as weights:
        optimizer = torch.optim.Adam(weights, lr=1e-3)
        ...

`fit_picture` is what most of them do in the block: teach the network to denoise one picture. A
single picture gives a noisy gradient, since the loss differs much more between times than between
pictures; so each update sees a batch of times, one in each of as many equal bands, and the same
seed gives the same times and noises to whatever is fitted next.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.core.denoise import noises
from minidiff.foundations.latent_diffusion import diffusion_loss
from minidiff.pipe.pipe import Pipe

READS_TEXT = r"attn2\.to_[kv]"  # the few weights that read the text, UNet and DiT


@contextmanager
def in_float32(pipe: Pipe) -> Iterator[None]:
    """All of the pipe in float32, for a block in which
    something learns; then in its own types again.

    An optimiser's steps are smaller than float16 can add, and its squares of gradients are zero
    there: it divides by them. Weights that did not learn come back as they were, to the bit. Takes
    the memory of a float32 model meanwhile; nothing changes for one that is float32 already.
    """
    modules = [m for m in (pipe.net, pipe.vae, pipe.text) if m is not None]
    tensors = [v for m in modules for v in (*m.parameters(), *m.buffers())]
    halves = [(v, v.dtype) for v in tensors if v.dtype in (torch.float16, torch.bfloat16)]
    try:
        for values, _ in halves:
            values.data = values.data.float()
        yield
    finally:
        for values, dtype in halves:
            values.data = values.data.to(dtype)


@contextmanager
def tuned(net: nn.Module, pattern: str = "") -> Iterator[list[nn.Parameter]]:
    """The parameters whose names match the regular expression,
    with gradients on; put back at the end of the block.

    KeyError if none matches.
    """
    chosen = {n: p for n, p in net.named_parameters() if re.search(pattern, n)}
    if not chosen:
        names = [n for n, _ in net.named_parameters()]
        raise KeyError(f"no weight matches {pattern!r}; some that exist: {', '.join(names[:6])}")
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


def picture_batch(pipe: Pipe, z: Tensor, noise: Tensor, g: torch.Generator) -> dict[str, Tensor]:
    """Training rows of one picture's latent z (1 c h w), one
    for each noise (b c h w), times spread evenly over 1..T.
    """
    bands = len(noise)
    within = torch.rand(bands, generator=g)
    share = (torch.arange(bands) + within) / bands  # b, in 0..1
    t = (share * pipe.schedule.T).ceil().long().clamp(1).to(z.device)
    return {"x0": z.expand_as(noise), "eps": noise, "t": t}


def fit_picture(
    pipe: Pipe,
    z: Tensor,
    text: Tensor,
    params: list[Tensor],
    *,
    updates: int,
    lr: float,
    batch: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Adam on `params` so that the network denoises latent z (1
    c h w) when told `text` (1 n d); the loss of each update.

    `params` are weights of the network, or `text` itself. Updates 0 changes nothing.
    """
    if updates < 0:
        raise ValueError(
            f"{updates} updates: expected 0 (nothing is tuned) or more; around 50 are usual here"
        )
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in params):
        raise ValueError(
            f"what is to learn is {params[0].dtype}, too coarse for an optimiser: learn inside "
            "`in_float32(pipe)`"
        )
    optimizer = torch.optim.Adam(params, lr=lr)
    losses = []
    g = torch.Generator().manual_seed(seed)
    stream = noises(z.expand(batch, -1, -1, -1), seed)
    for _ in tqdm(range(updates), disable=not progress, leave=False):
        rows = picture_batch(pipe, z, next(stream), g)
        rows["text"] = text.expand(batch, -1, -1)
        loss = diffusion_loss(pipe.net, rows, pipe.schedule, pipe.prediction)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses
