"""Is what was measured kept to the last digit, and is the rest what was lost?"""

from math import log10

import torch
import torch.nn.functional as F
from torch import Tensor

import minidiff
from minidiff.data import shapes
from minidiff.evaluate.metrics import psnr
from minidiff.pipe.pipe import Pipe
from minidiff.proofs.prove import Row, draw
from minidiff.proofs.repaint import half_holes, seam
from minidiff.restoration.ddnm import ddnm_sample
from minidiff.restoration.ddrm import ddrm_sample
from minidiff.restoration.operators import hole, superres, task_operator


def prove(pipe: Pipe, n: int, seed: int) -> list[Row]:
    """32x32 scenes, nothing told: every operator, four times fewer pixels, half of an object, noise
    of .2.
    """
    pipe, scenes = pixels(pipe), draw(n, seed)
    image, mask = shapes.render(scenes, 32), half_holes(scenes, 32)
    run = lambda op, y, **k: ddnm_sample(pipe, y, op, seed=seed, **k).cpu()  # noqa: E731
    worst = 0.0
    for task in ("inpaint", "sr2", "sr4", "grey", "blur"):
        op = task_operator(task, (32, 32), mask[:2] if task == "inpaint" else None)
        y = op.A(image[:2])
        worst = max(worst, (op.A(run(op, y, steps=5, repeats=1)) - y).abs().max().item())
    sr, cut = superres(4), hole(mask)
    small = sr.A(image)
    plain, best, rival = (
        bicubic(small),
        run(sr, small),
        ddrm_sample(pipe, small, sr, seed=seed).cpu(),
    )
    names = [f"{s.objects[0].color} {s.objects[0].shape}" for s in scenes]
    told = likeness(run(sr, small, prompt=names), image)
    once, thrice = (seam(run(cut, cut.A(image), repeats=r), image, mask) for r in (1, 3))
    noisy = small + 0.2 * torch.randn(small.shape, generator=torch.Generator().manual_seed(seed))
    aware, blind = (likeness(run(sr, noisy, sigma_y=s), image) for s in (0.2, 0.0))
    a, b, c = (likeness(x, image) for x in (best, plain, rival))
    return [
        Row("worst |A x - y| over five operators: digits right", -log10(max(worst, 1e-12)), 5.0),
        Row("four times super-resolution: dB above bicubic", a - b, 3.0, 0.0),
        Row("the same, told colour and shape: dB above bicubic", told - b, 3.0, a - b),
        Row("the same, told nothing: dB above DDRM", a - c, -0.3),
        Row(
            "half an object: seam energy with time travel (3) falls by (share)",
            1 - thrice / once,
            0.2,
        ),
        Row("y with noise .2: dB of DDNM+ above DDNM", aware - blind, 2.0, 0.0),
    ]


def pixels(pipe: Pipe) -> Pipe:
    """The pipe itself if it works on pixels, else the shipped one that does."""
    return pipe if pipe.vae is None else minidiff.load("tiny-pixel", device=pipe.device)


def bicubic(y: Tensor, factor: int = 4) -> Tensor:
    """What one gets without a model."""
    return F.interpolate(y, scale_factor=factor, mode="bicubic").clamp(-1, 1)


def likeness(x: Tensor, image: Tensor) -> float:
    """Mean PSNR in dB of pictures as a file would hold them."""
    return psnr(x.clamp(-1, 1), image).mean().item()
